"""One schema for flags and files: which value wins, what is refused, and how it is said."""

from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cli.options import JobCommand, Values, collect, names_of, options_of, read_config
from offline_training.errors import SettingsError
from offline_training.methods.registry import METHODS
from offline_training.settings import FinetuneJob, TrainingSettings, UnlearnJob

KNOWN = ("learning_rate", "epochs", "kind", "packing", "names", "folder", "limit")


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(1e-5, gt=0, lt=1, description="Peak.")
    epochs: int = Field(ge=1, description="Passes.")
    kind: Literal["linear", "cosine"] = Field("linear", description="Course.")
    packing: bool = Field(True, description="Rows.")
    names: tuple[str, ...] = Field((), description="Names.")
    folder: Path | None = Field(None, description="Where; None: nowhere.")
    limit: int | None = Field(None, ge=0, le=9, description="How many.")

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.limit == self.epochs:
            raise ValueError("limit and epochs must differ")
        return self


def config(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options as click gives them to a command."""
    seen: dict[str, Any] = {}
    command = JobCommand("c", params=[*options_of(Settings, "Job")], callback=lambda **options: seen.update(options))
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen


def built(arguments: list[str], file: Path | None = None, preset: dict[str, Any] | None = None) -> Settings:
    return collect(parsed(arguments), KNOWN, file, preset).build(Settings)


# --- flags ----------------------------------------------------------------------------------------------------


def test_flags_become_what_the_schema_says() -> None:
    arguments = ["--learning-rate", "2e-6", "--epochs", "3", "--kind", "cosine", "--no-packing", "--limit", "0"]
    found = built([*arguments, "--names", "a", "--names", "b", "--folder", "x/y"])
    expected = Settings(
        learning_rate=2e-6, epochs=3, kind="cosine", packing=False, names=("a", "b"), folder=Path("x/y"), limit=0
    )
    assert found == expected


def test_without_flags_the_schemas_defaults_hold() -> None:
    assert built(["--epochs", "1"]) == Settings(epochs=1)


def test_help_has_description_default_and_bounds() -> None:
    command = JobCommand("c", params=[*options_of(Settings, "Some section")])
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "Some section: --learning-rate FLOAT Peak. [default: 1e-05; above 0, below 1]" in text
    assert "--epochs INTEGER Passes. [from 1]" in text
    assert "--kind [linear|cosine] Course. [default: linear]" in text
    assert "--packing / --no-packing Rows. [default: on]" in text
    assert "--folder PATH Where; not given: nowhere." in text
    assert "--limit INTEGER How many. [from 0, to 9]" in text


# --- files ----------------------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_file_and_the_file_over_a_preset(tmp_path: Path) -> None:
    file = config(tmp_path, "epochs: 2\nlearning_rate: 1e-4\nfolder: null\n")
    preset = {"epochs": 7, "learning_rate": 0.5, "limit": 4}
    found = built(["--epochs", "3"], file, preset)
    assert (found.epochs, found.learning_rate, found.limit) == (3, 1e-4, 4)


def test_a_flag_can_switch_off_what_the_file_switches_on(tmp_path: Path) -> None:
    assert built(["--epochs", "1", "--no-packing"], config(tmp_path, "packing: true\n")).packing is False
    assert built(["--epochs", "1", "--packing"], config(tmp_path, "packing: false\n")).packing is True


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_config(config(tmp_path, "# nothing yet\n"), KNOWN) == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lerning_rate: 1\n", "unknown key 'lerning_rate'; did you mean learning_rate?"),
        ("learning-rate: 1\n", "unknown key 'learning-rate'; did you mean learning_rate?"),
        ("zzz: 1\n", "unknown key 'zzz'"),
        ("1: 1\n", "unknown key 1"),
        ("[1]: 1\n", "is not YAML"),
        ("epochs: 1\nlimit: 2\nepochs: 3\n", "the key 'epochs' is there more than once"),
        ("epochs: [1\n", "is not YAML"),
        ("- epochs\n", "expected lines like"),
        ("!!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, named: str) -> None:
    path = config(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        read_config(path, KNOWN)
    message = str(caught.value)
    assert message.startswith(f"--config: {path}: ")
    assert named in message
    assert "\n" not in message


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_config(tmp_path / "nowhere.yaml", KNOWN)
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not YAML"):
        read_config(tmp_path / "job.yaml", KNOWN)


# --- values that the schema refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "0"}, "--epochs: input should be greater than or equal to 1, not '0'"),
        ({"epochs": "many"}, "--epochs: input should be a valid integer, unable to parse string as an integer, not"),
        ({}, "--epochs: is missing; give it here or as epochs in the --config file"),
        ({"epochs": "4", "limit": "4"}, "limit and epochs must differ"),
        ({"epochs": "1", "names": [1]}, "--names: "),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_flag(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Values(values, {}).build(Settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_wrong_value_of_the_file_names_file_and_key(tmp_path: Path) -> None:
    path = config(tmp_path, "epochs: 0\nlearning_rate: 2\n")
    with pytest.raises(SettingsError) as caught:
        built([], path)
    assert f"{path}: epochs: " in str(caught.value)
    assert f"{path}: learning_rate: " in str(caught.value)


def test_a_wrong_value_of_a_flag_names_the_flag_although_the_file_has_the_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--epochs: "):
        built(["--epochs", "0"], config(tmp_path, "epochs: 2\n"))


# --- the real schemas -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_no_two_settings_of_a_command_share_a_name(name: str) -> None:
    """Flags and keys are flat: a method's setting must not hide a setting of the training."""
    names = [
        *names_of(options_of(UnlearnJob, "", leave_out=("method", "method_settings", "training"))),
        *names_of(options_of(METHODS[name].settings, "")),
        *names_of(options_of(TrainingSettings, "")),
        *("config", "preset", "launcher", "processes", "launcher_args"),
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "schema", [TrainingSettings, UnlearnJob, FinetuneJob, *(method.settings for method in METHODS.values())]
)
def test_every_setting_has_a_description(schema: type[BaseModel]) -> None:
    structure = {"method", "method_settings", "training"}
    assert [
        name for name, field in schema.model_fields.items() if not field.description and name not in structure
    ] == []


def test_a_default_typed_as_a_flag_is_the_default() -> None:
    """What --help shows can be typed back."""
    options = {name: field.default for name, field in TrainingSettings.model_fields.items()}
    typed = {name: str(value) for name, value in options.items() if value is not None and not isinstance(value, bool)}
    assert Values(typed, {}).build(TrainingSettings) == TrainingSettings()


def test_options_are_found_by_click() -> None:
    assert all(isinstance(option, click.Option) for option in options_of(TrainingSettings, "Training"))
