"""The cache: built once, rebuilt only when an input changes or the files are not what was written."""

import dataclasses
import io
import multiprocessing
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import models as demo_models
from demo.errors import DemoError
from demo.lessons import Mixture
from demo.models import DemoBuild, DemoSettings, build_models, settings_digest
from demo.probes import probes
from demo.replies import replies
from demo.training import Recipe
from demo.world import World, WorldSpec

TINY = DemoSettings(
    world=WorldSpec(people=10, general_facts=10),
    recipe=Recipe(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        layers=1,
        heads=2,
        steps=2,
        batch_size=8,
        threads=1,
    ),
)


def quiet() -> Console:
    return Console(file=io.StringIO())


def build_in_another_process(cache: str) -> None:
    build_models(Path(cache), TINY, quiet())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def builds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows by one at each build, which is a copy of the one in `cache`: nothing is trained again."""
    seen: list[Path] = []
    trained = build_models(cache, TINY, quiet()).folder

    def copied(build: DemoBuild, settings: DemoSettings, console: Console) -> None:
        seen.append(build.folder)
        shutil.copytree(trained, build.folder, dirs_exist_ok=True)

    monkeypatch.setattr(demo_models, "_build", copied)
    return seen


def test_a_build_holds_two_ordinary_checkpoints_and_the_example_files(cache: Path) -> None:
    build = build_models(cache, TINY, quiet())

    assert build.folder.parent == cache / "demo"
    for checkpoint in (build.model, build.reference):
        assert (checkpoint / "model.safetensors").is_file()
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert tokenizer.chat_template
    assert build.forget_examples.is_file()
    assert build.retain_examples.is_file()


def test_a_checkpoint_replies_to_every_probe(cache: Path) -> None:
    build = build_models(cache, TINY, quiet())
    asked = probes(World.generate(TINY.world), "forgotten")

    assert len(replies(build.model, asked)) == len(asked)


def test_a_finished_build_is_not_built_again(cache: Path, builds: list[Path]) -> None:
    assert build_models(cache, TINY, quiet()).folder.parent == cache / "demo"
    assert not builds


@pytest.mark.parametrize("damage", ["altered", "missing", "no manifest", "empty manifest"])
def test_a_damaged_build_is_built_again(cache: Path, tmp_path: Path, builds: list[Path], damage: str) -> None:
    shutil.copytree(build_models(cache, TINY, quiet()).folder, tmp_path / "demo" / settings_digest(TINY))
    build = build_models(tmp_path, TINY, quiet())
    weights, manifest = build.model / "model.safetensors", build.folder / "MANIFEST.json"
    intact = weights.read_bytes()
    match damage:
        case "altered":
            weights.write_bytes(intact[:-1] + b"\0")
        case "missing":
            weights.unlink()
        case "no manifest":
            manifest.unlink()
        case _:
            manifest.write_text("[]")

    build_models(tmp_path, TINY, quiet())

    assert len(builds) == 1
    assert weights.read_bytes() == intact


def test_a_build_that_fails_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_models, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_models(tmp_path, TINY, quiet())

    assert [p.suffix for p in (tmp_path / "demo").iterdir()] == [".lock"]


def test_a_training_that_dies_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    uneven = dataclasses.replace(TINY, recipe=dataclasses.replace(TINY.recipe, heads=7))
    with pytest.raises(DemoError, match="could not be trained"):
        build_models(tmp_path, uneven, quiet())

    assert [p.suffix for p in (tmp_path / "demo").iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, builds: list[Path]) -> None:
    leftover = tmp_path / "demo" / f".{settings_digest(TINY)}.abc"
    leftover.mkdir(parents=True)

    build_models(tmp_path, TINY, quiet())

    assert not leftover.exists()


def test_two_processes_that_build_at_once_build_once(tmp_path: Path) -> None:
    # A spawned process, since forking one that runs torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_in_another_process, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)

    assert [process.exitcode for process in processes] == [0, 0]
    assert [p.name for p in (tmp_path / "demo").iterdir() if p.is_dir()] == [settings_digest(TINY)]


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(TINY, world=dataclasses.replace(TINY.world, seed=1)),
        dataclasses.replace(TINY, recipe=dataclasses.replace(TINY.recipe, steps=3)),
        dataclasses.replace(TINY, mixture=Mixture(statement_copies=1)),
    ],
)
def test_other_settings_are_another_build(other: DemoSettings) -> None:
    assert settings_digest(other) != settings_digest(TINY)
    assert settings_digest(TINY) == settings_digest(dataclasses.replace(TINY))


def test_other_code_words_or_torch_are_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {settings_digest(TINY)}
    with monkeypatch.context() as patch:
        patch.setattr(demo_models, "RECIPE_VERSION", -1)
        digests.add(settings_digest(TINY))
    with monkeypatch.context() as patch:
        patch.setattr("demo.models._general_english", lambda: "other words")
        digests.add(settings_digest(TINY))
    with monkeypatch.context() as patch:
        patch.setattr("demo.lessons.system_prompts", lambda: ("Another prompt.",))
        digests.add(settings_digest(TINY))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0.0")
        digests.add(settings_digest(TINY))

    assert len(digests) == 5
