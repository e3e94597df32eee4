"""Input from which no policy can be built is found before the encoder or the model is loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_model import WIDTH, save_tiny_model

from classifiers import ClassifierError
from corruption import CorruptionError
from guard import BundleError
from optimizer import BuildError, BuildOptions, build_policy

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

    for name in ("resolve_encoder", "train_head", "_load_model"):
        monkeypatch.setattr(f"optimizer.build.{name}", slow)


def write(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def build(folder: Path, model: Path, forget: Sequence[dict[str, str]] = ANSWERED, **changes: Any) -> None:
    options: dict[str, Any] = {
        "model": str(model),
        "forget": write(folder / "forget.jsonl", forget),
        "retain": write(folder / "retain.jsonl", RETAINED),
        "out": folder / "people",
    }
    build_policy(BuildOptions(**(options | changes)))


def test_a_search_needs_answers(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match=r"forget\.jsonl.*answers.*--strength"):
        build(tmp_path, model, UNANSWERED)


@pytest.mark.parametrize("given", [{"strength": 3.0}, {"method": "zero_out_first_n"}, {"method": "flip_sign_top_k"}])
def test_no_search_needs_no_answers(tmp_path: Path, model: Path, given: dict[str, Any]) -> None:
    """Shown by the next check that fails, the first that looks at the model."""
    with pytest.raises(BuildError, match="--dims"):
        build(tmp_path, model, UNANSWERED, dims=WIDTH + 1, **given)


def test_dims_beyond_the_models_width(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match=f"--dims: {WIDTH + 1} .* {WIDTH}$"):
        build(tmp_path, model, dims=WIDTH + 1)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e39])
def test_a_strength_that_is_no_number(tmp_path: Path, model: Path, strength: float) -> None:
    with pytest.raises(BuildError, match=r"^--strength: .*finite"):
        build(tmp_path, model, strength=strength)


@pytest.mark.parametrize("method", ["zero_out_first_n", "shuffle"])
def test_a_strength_for_a_method_that_takes_none(tmp_path: Path, model: Path, method: str) -> None:
    with pytest.raises(BuildError, match=f"strength: {method} takes none"):
        build(tmp_path, model, method=method, strength=1.0)


def test_dims_for_a_method_that_takes_none(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match="dims: reverse_order"):
        build(tmp_path, model, method="reverse_order", dims=4)


def test_an_unknown_method(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BuildError, match=r"^--method: .*rand_noise_first_n"):
        build(tmp_path, model, method="louder")


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
    with pytest.raises(ClassifierError, match="forgotten or retained"):
        build(tmp_path, model, [*ANSWERED, {"question": "where is ROME?", "answer": "?"}])


def test_missing_files_and_models_are_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ClassifierError, match="nowhere"):
        build(tmp_path, model, forget=ANSWERED, retain=tmp_path / "nowhere.jsonl")
    with pytest.raises(CorruptionError, match="no/such/model"):
        build(tmp_path, Path("/no/such/model"))


def test_every_message_is_one_line(tmp_path: Path, model: Path) -> None:
    for changes in ({"method": "louder"}, {"strength": float("nan")}, {"dims": WIDTH + 1}, {"name": "a b"}):
        with pytest.raises(BuildError) as caught:
            build(tmp_path, model, **changes)
        assert "\n" not in str(caught.value)
