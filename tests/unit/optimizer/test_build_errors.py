"""Input from which no policy can be built is found before the encoder or the model is loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_model import WIDTH, save_tiny_model

from classifiers import ClassifierError, ExampleFileError
from corruption import CorruptionError
from guard import BundleError
from optimizer import BuildError, BuildOptions, ClassifierOptions, InputOptions, SearchOptions, build_policy
from optimizer.errors import SearchError
from scoring.metrics import MetricError
from sources import SourceError
from sources.presets.plan import TaskError

ANSWERED = [{"question": "Who is Ada?", "answer": "A poet."}, {"question": "Who is Ben?", "answer": "A baker."}]
UNANSWERED = [{"prompt": "Who is Ada?"}, {"prompt": "Who is Ben?"}]
RETAINED = [{"question": "Where is Rome?", "answer": "In Italy."}, {"prompt": "Hello"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any, **options: Any) -> None:
        pytest.fail("something slow started")

    for name in ("train_classifier", "load_classifier", "open_scorer"):
        monkeypatch.setattr(f"optimizer.build.{name}", slow)


def write(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def build(
    folder: Path,
    model: Path,
    forget: Sequence[dict[str, str]] = ANSWERED,
    *,
    inputs: dict[str, Any] | None = None,
    search: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    files = {"forget": write(folder / "forget.jsonl", forget), "retain": write(folder / "retain.jsonl", RETAINED)}
    options: dict[str, Any] = {
        "model": str(model),
        "inputs": InputOptions(**(files | (inputs or {}))),
        "out": folder / "people",
        "search": SearchOptions(**(search or {})),
    }
    build_policy(BuildOptions(**(options | changes)))


def test_a_search_needs_answers(tmp_path: Path, model: Path) -> None:
    with pytest.raises(MetricError, match="answer"):
        build(tmp_path, model, UNANSWERED)


@pytest.mark.parametrize("given", [("rand_noise_first_n", 3.0), ("zero_out_first_n", None), ("flip_sign_top_k", None)])
def test_no_search_needs_no_answers(tmp_path: Path, model: Path, given: tuple[str, float | None]) -> None:
    """Shown by the next check that fails, the first that looks at the model."""
    method, strength = given
    with pytest.raises(BuildError, match="--dims"):
        build(tmp_path, model, UNANSWERED, search={"methods": (method,), "dims": (WIDTH + 1,)}, strength=strength)


def test_dims_beyond_the_models_width(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SearchError, match=f"--dims: {WIDTH + 1} .* {WIDTH}$"):
        build(tmp_path, model, search={"dims": (WIDTH + 1,)})


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e39])
def test_a_strength_that_is_no_number(tmp_path: Path, model: Path, strength: float) -> None:
    with pytest.raises(BuildError, match=r"^--strength: .*finite"):
        build(tmp_path, model, strength=strength)


@pytest.mark.parametrize("method", ["zero_out_first_n", "shuffle"])
def test_a_strength_for_a_method_that_takes_none(tmp_path: Path, model: Path, method: str) -> None:
    with pytest.raises(BuildError, match=f"strength: {method} takes none"):
        build(tmp_path, model, search={"methods": (method,)}, strength=1.0)


def test_dims_for_a_method_that_takes_none(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match="dims: reverse_order"):
        build(tmp_path, model, search={"methods": ("reverse_order",), "dims": (4,)})


def test_an_unknown_method(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match=r"^--methods: .*rand_noise_first_n"):
        build(tmp_path, model, search={"methods": ("louder",)})


def test_an_existing_folder_stays_as_it_is(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "people"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"already exists.*--force"):
        build(tmp_path, model)
    with pytest.raises(BundleError, match="no policy bundle"):
        build(tmp_path, model, force=True)
    assert [child.name for child in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["my policy", "../people", "-people", "people\n", "x" * 129])
def test_a_name_that_is_no_label(tmp_path: Path, model: Path, name: str) -> None:
    with pytest.raises(BuildError, match=r"^--name: "):
        build(tmp_path, model, name=name)


def test_the_folders_name_must_be_a_label_where_no_name_is_given(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match=r"^--name: 'my people'"):
        build(tmp_path, model, out=tmp_path / "my people")


def test_a_prompt_cannot_be_forgotten_and_retained(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ExampleFileError, match="forgotten or retained"):
        build(tmp_path, model, [*ANSWERED, {"question": "where is ROME?", "answer": "?"}])


def test_missing_files_and_models_are_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        build(tmp_path, model, inputs={"retain": tmp_path / "nowhere.jsonl"})
    with pytest.raises(CorruptionError, match="no/such/model"):
        build(tmp_path, Path("/no/such/model"))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"retain": None}, BuildError, "^--retain: give"),
        ({"task": "tofu-forget10"}, BuildError, "^--task: it brings its own sets"),
        ({"task": "cooking", "forget": None, "retain": None}, TaskError, "--task: 'cooking'"),
        ({"task": "wmdp", "forget": None, "retain": None}, TaskError, "--task-data"),
    ],
)
def test_examples_come_from_files_or_from_a_task(
    tmp_path: Path, model: Path, inputs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(tmp_path, model, inputs=inputs)


def test_a_strength_goes_with_one_method(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match="--strength: give one --methods"):
        build(tmp_path, model, search={"methods": ("rand_noise_first_n", "sub_value_first_n")}, strength=1.0)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"tolerance": -1.0}, "--tolerance: "),
        ({"min_strength": 5.0, "max_strength": 1.0}, "max_strength"),
        ({"sweep_points": 1}, "--sweep-points: "),
        ({"budget_s": 0.0}, "--budget-s: "),
    ],
)
def test_search_options_out_of_range(tmp_path: Path, model: Path, search: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        build(tmp_path, model, search=search)


def test_entities_need_what_finds_them_and_a_method_that_changes_each(tmp_path: Path, model: Path) -> None:
    entities = {"scope": "entities"}
    with pytest.raises(BuildError, match="--methods: shuffle moves rows"):
        build(tmp_path, model, search=entities | {"methods": ("shuffle",)})
    with pytest.raises(BuildError, match="--scope: entities needs --token-classifier"):
        build(tmp_path, model, search=entities, classifier=ClassifierOptions(kind="finetuned"))
    with pytest.raises(BuildError, match="--token-classifier: it finds entities"):
        build(tmp_path, model, classifier=ClassifierOptions(token_classifier="ner"))


def test_a_folder_that_is_no_classifier(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ClassifierError, match="no classifier folder"):
        build(tmp_path, model, classifier=ClassifierOptions(existing=tmp_path))


def test_a_building_folder_of_somebody_else_stays(tmp_path: Path, model: Path) -> None:
    (tmp_path / "people.building").mkdir()
    with pytest.raises(BuildError, match=r"people\.building exists and is of no policy build"):
        build(tmp_path, model)


def test_another_builds_leftovers_are_not_resumed(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []

    def interrupted(options: Any) -> None:
        trained.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("optimizer.build.train_classifier", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, model)
    assert not (tmp_path / "people").exists()
    with pytest.raises(BuildError, match=r"--resume: .* other options or examples: --seed was 0, now 1"):
        build(tmp_path, model, resume=True, seed=1)
    with pytest.raises(BuildError, match="--forget has other contents"):
        build(tmp_path, model, [*ANSWERED, {"question": "Who is Cy?", "answer": "A cook."}], resume=True)
    monkeypatch.chdir(tmp_path)
    named = {name: Path(f"{name}.jsonl") for name in ("forget", "retain")}
    for inputs in ({}, named):
        with pytest.raises(
            KeyboardInterrupt
        ):  # the same build goes on, and gets as far, wherever its files are said to lie
            build(tmp_path, model, resume=True, inputs=inputs)
    assert [options.resume for options in trained] == [False, False, False]  # a head has nothing to go on with


def test_every_message_is_one_line(tmp_path: Path, model: Path) -> None:
    for search, changes in (({"methods": ("louder",)}, {}), ({}, {"strength": float("nan")}), ({}, {"name": "a b"})):
        with pytest.raises(BuildError) as caught:
            build(tmp_path, model, search=search, **changes)
        assert "\n" not in str(caught.value)
