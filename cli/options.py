"""Flags, configuration files, and the settings that they fill.

Where a command's settings are a pydantic schema, its flags are made from it (`options_of`): one field is one flag and
one key of a file, with the same bounds. Values that come from the command line stay text until the schema reads them,
so that a flag and a file cannot be judged differently. A flag wins over the file, the file over a preset, a preset over
the schema's default. Where help must come at once, before anything heavy is imported, flags are click's own, named like
the fields of what they fill (`filled`).
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)

_RAW_ARGUMENTS = "cli.raw_arguments"
#: Fields that a reader looks for first.
_FIRST = ("model", "forget", "retain", "data", "idk", "out")
_BOUNDS = (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"))

_Made = TypeVar("_Made")
_Schema = TypeVar("_Schema", bound="BaseModel")
_Command = Callable[..., Any]


def filled(make: Callable[..., _Made], options: Mapping[str, Any], **more: Any) -> _Made:
    """`make`, a settings class, of the options that are named like its fields; `more` are given besides, or instead."""
    names = inspect.signature(make).parameters
    return make(**({name: value for name, value in options.items() if name in names} | more))


def option_group(
    *options: Callable[[_Command], _Command], section: str | None = None
) -> Callable[[_Command], _Command]:
    """One decorator for options that several commands share, or that stand under one heading in a command's help; help
    lists them in this order."""

    def decorate(command: Any) -> _Command:
        before = len(getattr(command, "__click_params__", ()))
        for option in reversed(options):
            command = option(command)
        for made in command.__click_params__[before:] if section else ():
            made.section = section
        return command  # type: ignore[no-any-return]

    return decorate


class JobOption(click.Option):
    """An option that is listed under a heading of its own."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class JobCommand(SectionedCommand):
    """It remembers how it was called, for a launcher to call it again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_RAW_ARGUMENTS] = [*ctx.command_path.split()[1:], *args]
        return super().parse_args(ctx, args)


class DeferredCommand(click.Command):
    """Stands in a list of commands for one whose flags come from a schema, which is imported when it is called."""

    def __init__(self, name: str, make: Callable[[], click.Command], *, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._make = make

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return self._make().make_context(info_name, args, parent=parent, **extra)


def raw_arguments(ctx: click.Context) -> list[str]:
    """What came after `eco` on the command line that `ctx` was made from."""
    arguments: list[str] = ctx.meta[_RAW_ARGUMENTS]
    return arguments


def flag(name: str) -> str:
    """`learning_rate` -> `--learning-rate`."""
    return f"--{name.replace('_', '-')}"


def options_of(schema: "type[BaseModel]", section: str, leave_out: Collection[str] = ()) -> list[JobOption]:
    """One option for each field of a schema; none has a default here, so that only what was typed counts as given."""
    names = [name for name in schema.model_fields if name not in leave_out]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return [_option(name, schema.model_fields[name], section) for name in names]


def _option(name: str, field: "FieldInfo", section: str) -> JobOption:
    kind: Any = field.annotation
    if typing.get_origin(kind) in (typing.Union, types.UnionType):  # None is said by leaving the flag out
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        kind = kinds[0] if len(kinds) == 1 else str
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    spelled = flag(name)
    settings: dict[str, Any] = {}
    if kind is bool:
        spelled = f"{spelled}/--no-{spelled[2:]}"
    elif origin is typing.Literal and all(isinstance(part, str) for part in parts):
        settings["type"] = click.Choice(parts)
    else:
        metavar = {int: "INTEGER", float: "FLOAT", Path: "PATH"}.get(parts[0] if parts else kind, "TEXT")
        settings |= {"type": str, "metavar": metavar, "multiple": origin in (tuple, list, set, frozenset)}
    return JobOption([spelled, name], default=None, help=_help(field), section=section, **settings)


def _help(field: "FieldInfo") -> str:
    """A field's description, its default and its bounds."""
    default = field.get_default()
    if isinstance(default, bool):
        default = "on" if default else "off"
    bounds = ", ".join(
        f"{word} {getattr(limit, name):g}" for limit in field.metadata for name, word in _BOUNDS if hasattr(limit, name)
    )
    notes = [] if field.is_required() or default is None else [f"default: {default}"]
    notes += [bounds] if bounds else []
    text = (field.description or "").replace("None: ", "not given: ")  # a file can say null, a flag cannot
    return text + (f"  [{'; '.join(notes)}]" if notes else "")


def config_options(presets: Collection[str] = ()) -> list[JobOption]:
    """`--config`, and `--preset` where there are presets."""
    config = JobOption(
        ["--config"],
        type=click.Path(path_type=Path),
        help="YAML file with any of these settings: the flags' names with _ for -. A flag wins over the file.",
        section="Job",
    )
    if not presets:
        return [config]
    text = "The settings of a published experiment; flags and file win over it."
    return [config, JobOption(["--preset"], type=click.Choice(list(presets)), help=text, section="Job")]


def read_config(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        SettingsError: it cannot be read, is no mapping, has a key twice, or has one that is not in `known`.
    """
    import yaml

    from offline_training.errors import SettingsError

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which PyYAML would keep the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(problem=f"the key {key!r} is there more than once")
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506 (it is a SafeLoader)
    except OSError as error:
        raise SettingsError(f"--config: {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise SettingsError(f"--config: {path}: is not YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config: {path}: expected lines like 'learning_rate: 1e-5'")
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key).lower().replace("-", "_"), sorted(known), n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else "this command's --help lists all (with _ for -)"
            raise SettingsError(f"--config: {path}: unknown key {key!r}; {advice}")
    return content


@dataclass(frozen=True)
class Values:
    """What a job was told, and where each value was said."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    """Name -> `--flag`, or `file: key`."""

    def build(self, schema: type[_Schema], **ready: Any) -> _Schema:
        """The schema filled with those of its fields that were given; `ready` fields are taken as they are.

        Raises:
            SettingsError: one line that names each wrong flag or key.
        """
        from pydantic import ValidationError

        from offline_training.errors import SettingsError

        given = {name: value for name, value in self.values.items() if name in schema.model_fields}
        try:
            return schema(**{**given, **ready})
        except ValidationError as error:
            lines = []
            for problem in error.errors(include_url=False):
                text = str(problem["msg"]).removeprefix("Value error, ")
                if problem["loc"]:
                    name = str(problem["loc"][0])
                    origin = self.origins.get(name, flag(name))
                    text = f"{origin}: {text[:1].lower()}{text[1:]}, not {str(problem['input'])[:80]!r}"
                    if problem["type"] == "missing":
                        text = f"{origin}: is missing; give it here or as {name} in the --config file"
                lines.append(text)
            raise SettingsError("; ".join(lines)) from error


def collect(
    options: Mapping[str, Any],
    known: Collection[str],
    config: Path | None,
    preset: Mapping[str, Any] | None = None,
) -> Values:
    """Join what the command line, the configuration file and a preset say.

    Args:
        options: click's values of all options; those that were not given are None, or empty.
        known: names of the fields that flags and file may set.
    """
    values = dict(preset or {})
    origins = {name: f"--preset: {name}" for name in values}
    if config is not None:
        read = read_config(config, known)
        values |= read
        origins |= {name: f"{config}: {name}" for name in read}
    given = {name: value for name, value in options.items() if name in known and value not in (None, ())}
    values |= given
    origins |= {name: flag(name) for name in given}
    return Values(values, origins)


def names_of(options: Iterable[click.Option]) -> Sequence[str]:
    """The field names of options."""
    return [option.name for option in options if option.name is not None]
