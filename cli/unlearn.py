"""`eco finetune` and `eco unlearn METHOD`: training jobs, with flags made from the schemas of their settings."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import click

from cli.launcher import launcher_options, rank, run_or_launch, take_launch
from cli.options import DeferredCommand, JobCommand, collect, config_options, names_of, options_of

if TYPE_CHECKING:
    from offline_training.methods.method import Method
    from offline_training.presets import Preset
    from offline_training.settings import FinetuneJob, Job

_ALTERNATIVES = "alternatives"
_ALTERNATIVES_HELP = "no method: made-up answers for altpo, by asking a served model"
FINETUNE_HELP = "Train a model on data: the one that is to forget, or the reference that never learned."


def training_command(
    name: str,
    schema: "type[Job]",
    run: Callable[[Any, Any], None],
    *,
    help_text: str,
    short_help: str | None = None,
    method: "Method | None" = None,
    leave_out: Collection[str] = (),
    presets: Collection[str] = (),
    preset: Callable[[str, bool], Mapping[str, Any]] | None = None,
) -> JobCommand:
    """A command with the flags of a job, of its method and of training.

    Args:
        run: does the job, an instance of `schema`, with a console; here, or in each process of a launcher.
        leave_out: fields of the schema without a flag.
        presets: names of published experiments.
        preset: the settings of the one of that name; whether this process is to tell what a person should know of it.
    """
    from offline_training.settings import TrainingSettings

    fields = options_of(schema, "Job", leave_out=("method", "method_settings", "training", *leave_out))
    if method is not None:
        fields += options_of(method.settings, f"Method {method.name}")
    fields += options_of(TrainingSettings, "Training")
    known = frozenset(names_of(fields))

    def start(ctx: click.Context, **options: Any) -> None:
        launching = take_launch(options)
        chosen = options.pop("preset", None)
        # A launcher's processes are told the same; one of them says so, and not the one that starts them.
        settings = {} if chosen is None or preset is None else preset(chosen, launching is None and rank() == 0)
        values = collect(options, known, options.pop("config"), settings)
        ready: dict[str, Any] = {}
        if method is not None:
            ready = {"method": method.name, "method_settings": values.build(method.settings)}
        job = values.build(schema, **ready, training=values.build(TrainingSettings))
        run_or_launch(ctx, launching, lambda console: run(job, console))

    return JobCommand(
        name,
        params=[*fields, *config_options(presets), *launcher_options()],
        callback=click.pass_context(start),
        help=help_text,
        short_help=short_help,
    )


def finetune(job: "FinetuneJob", console: Any) -> None:
    """Run a fine-tuning; transformers is imported no earlier."""
    from offline_training.job import run_finetuning

    run_finetuning(job, console=console)


def finetune_command() -> click.Command:
    """`eco finetune`; made when it is looked up, because its flags come from a pydantic schema."""
    from offline_training.settings import FinetuneJob

    return training_command(
        "finetune",
        FinetuneJob,
        finetune,
        help_text=f"{FINETUNE_HELP}\n\nWith --from-scratch only the configuration and tokenizer of --model are used, "
        "and its weights are drawn at random from --seed.",
        short_help=FINETUNE_HELP,
    )


def _presets_help(presets: "Mapping[str, Preset]") -> str:
    return "".join(f"\n\nPreset {name}: {preset.source}" for name, preset in presets.items())


def _alternatives_command() -> click.Command:
    from offline_training.alternatives import AlternativeOptions, write_alternatives

    flags = options_of(AlternativeOptions, "Job")

    def start(**options: Any) -> None:
        from rich.console import Console

        values = collect(options, names_of(flags), options.pop("config"))
        write_alternatives(values.build(AlternativeOptions), Console(stderr=True))

    return JobCommand(
        _ALTERNATIVES,
        params=[*flags, *config_options()],
        callback=start,
        help="Before altpo: made-up answers to the questions to forget, by asking a served model.\n\nSource: Mekala et "
        "al. 2024, arXiv 2409.13474; molereddy/Alternate-Preference-Optimization, generate.py",
    )


class _Methods(click.Group):
    """Looks the methods up when it is asked for one: importing them imports torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        from offline_training.methods.registry import METHODS

        return [*METHODS, _ALTERNATIVES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name == _ALTERNATIVES:
            return DeferredCommand(cmd_name, _alternatives_command, short_help=_ALTERNATIVES_HELP)
        from offline_training.methods.registry import METHODS
        from offline_training.presets import PRESETS
        from offline_training.settings import UnlearnJob

        method = METHODS.get(cmd_name)
        if method is None:
            return None

        def run(job: UnlearnJob, console: Any) -> None:
            from offline_training.job import run_unlearning

            run_unlearning(job, console=console)

        presets = PRESETS.get(method.name, {})

        def preset(name: str, tells: bool) -> Mapping[str, Any]:
            for line in presets[name].lines(name) if tells else ():
                click.echo(line, err=True)
            return presets[name].settings

        return training_command(
            method.name,
            UnlearnJob,
            run,
            help_text=f"{method.summary}\n\nSource: {method.source}" + _presets_help(presets),
            short_help=method.summary,
            method=method,
            presets=presets,
            preset=preset,
        )


@click.command(cls=_Methods)
def unlearn() -> None:
    """Train a model to forget: gradient-based methods, to compare with forgetting at inference time.

    The new checkpoint is a Hugging Face folder that eco serve and vLLM load.
    """
