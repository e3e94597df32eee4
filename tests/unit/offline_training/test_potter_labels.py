"""The labelling job with real (tiny, random) models: its labels, its refusals, and that it survives being killed."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from potter_models import byte_pairs, save_llama
from rich.console import Console
from transformers import LlamaForCausalLM

from offline_training.data.tokens import IGNORED
from offline_training.errors import JobError
from offline_training.potter.blocks import BlockCutter
from offline_training.potter.labels import LabelFolder, LabelOptions, load_labels, make_labels

ANCHORS = {"Harry": "Robin", "Hogwarts": "the Mystic Academy"}
TEXT = "Harry went to Hogwarts. The hat said to Harry: the hat! Then Harry's owl went to the hat. " * 14 + "The end."
ALPHA = 2.0

Make = Callable[..., LabelOptions]


def replace(options: LabelOptions, **changes: Any) -> LabelOptions:
    return options.model_copy(update=changes)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save_llama(folder / "baseline"), save_llama(folder / "reinforced", surer=1.5)


@pytest.fixture
def options(tmp_path: Path, models: tuple[Path, Path]) -> LabelOptions:
    (tmp_path / "anchors.json").write_text(json.dumps(ANCHORS))
    (tmp_path / "book.txt").write_text(TEXT)
    return LabelOptions(
        model=str(models[0]),
        reinforced=str(models[1]),
        anchors=tmp_path / "anchors.json",
        text=str(tmp_path / "book.txt"),
        out=tmp_path / "labels",
        alpha=ALPHA,
        context_tokens=48,
        precision="fp32",
        batch_tokens=120,
        part_blocks=3,
    )


def quiet() -> Console:
    return Console(file=io.StringIO(), width=500)


def test_labels_are_those_of_a_slow_reference(options: LabelOptions) -> None:
    examples = make_labels(options, quiet())
    tokenizer = byte_pairs()
    baseline, reinforced = (
        LlamaForCausalLM.from_pretrained(name, dtype=torch.float64) for name in (options.model, options.reinforced)
    )
    blocks = list(BlockCutter(tokenizer, ANCHORS, 48).blocks(TEXT))
    assert len(blocks) > 2 * options.part_blocks
    ids = len(tokenizer)
    changed = 0
    for block, example in zip(blocks, examples, strict=True):
        assert example.ids == block.ids
        expected = [IGNORED] * (len(block.ids) - 1)
        with torch.no_grad():
            on_translated = baseline(torch.tensor([block.translated_ids])).logits[0].tolist()
            on_original = reinforced(torch.tensor([block.ids])).logits[0].tolist()
        for at in block.positions:
            base, more = on_translated[at.translated], on_original[at.original]
            scores = {
                token: base[token] - ALPHA * max(more[token] - base[token], 0.0) - 5.0 * (token in at.given)
                for token in range(2, ids)  # <pad> and <s> come first; behind the tokenizer's lie rows of no token
            }
            expected[at.original] = max(scores, key=scores.__getitem__)
            changed += expected[at.original] != base.index(max(base))
        assert example.targets == tuple(expected)
    assert changed > 10  # the reinforced model does decide


def test_finished_labels_are_loaded_and_not_made_again(options: LabelOptions) -> None:
    examples = make_labels(options, quiet())
    assert load_labels(options.out) == examples
    assert sorted(path.name for path in options.out.iterdir()) == ["labels.jsonl", "meta.json"]
    calls: list[tuple[int, int]] = []
    assert make_labels(options, quiet(), lambda *call: calls.append(call)) == examples
    assert calls == []
    meta = json.loads((options.out / "meta.json").read_text())
    assert meta["labels"] == sum(example.target_count for example in examples)
    with (options.out / "labels.jsonl").open("a") as stream:
        stream.write("{}\n")
    with pytest.raises(JobError, match="not as it was written"):
        load_labels(options.out)


_KILLED = """
import io, os, signal, sys
from pathlib import Path
from rich.console import Console
from offline_training.potter.labels import LabelOptions, make_labels

def on_progress(done, total):
    if done >= 6:
        os.kill(os.getpid(), signal.SIGKILL)

model, reinforced, anchors, text, out = sys.argv[1:]
make_labels(
    LabelOptions(
        model=model, reinforced=reinforced, anchors=Path(anchors), text=text, out=Path(out),
        alpha=2.0, context_tokens=48, precision="fp32", batch_tokens=120, part_blocks=3,
    ),
    Console(file=io.StringIO()),
    on_progress,
)
"""


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_in_the_same_bytes(options: LabelOptions, tmp_path: Path) -> None:
    make_labels(options, quiet())
    broken = replace(options, out=tmp_path / "killed")
    arguments = [broken.model, broken.reinforced, str(broken.anchors), broken.text, str(broken.out)]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *arguments], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in broken.out.rglob("*.jsonl")) == ["000000.jsonl", "000001.jsonl"]
    (broken.out / "parts" / "half.tmp").write_text("{")  # a kill in the midst of writing leaves one
    with pytest.raises(JobError, match="holds no finished labels"):
        load_labels(broken.out)
    with pytest.raises(JobError, match="--resume"):
        make_labels(broken, quiet())
    with pytest.raises(JobError, match="made otherwise"):
        make_labels(replace(broken, resume=True, alpha=3.0), quiet())
    calls: list[tuple[int, int]] = []
    make_labels(replace(broken, resume=True), quiet(), lambda *call: calls.append(call))
    assert calls[0][0] == 6
    for name in ("labels.jsonl", "meta.json"):
        assert (broken.out / name).read_bytes() == (options.out / name).read_bytes()
    assert sorted(path.name for path in broken.out.iterdir()) == ["labels.jsonl", "meta.json"]


def test_another_jobs_labels_are_not_taken_for_its_own(options: LabelOptions) -> None:
    make_labels(options, quiet())
    other = replace(options, alpha=0.0)
    with pytest.raises(JobError, match="made otherwise"):
        make_labels(other, quiet())
    before = load_labels(options.out)
    assert make_labels(replace(other, force=True), quiet()) != before


def test_no_more_text_than_asked_for(options: LabelOptions) -> None:
    assert len(make_labels(replace(options, max_tokens=100), quiet())) == 3


def test_fp16_without_a_gpu_becomes_fp32_and_says_so(options: LabelOptions) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    console = quiet()
    make_labels(replace(options, precision="fp16"), console)
    assert isinstance(console.file, io.StringIO)
    assert "fp16 needs a GPU; computing in fp32" in console.file.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "--alpha: must be at least 0, not -1"),
        ({"alpha": float("nan")}, "--alpha"),
        ({"context_tokens": 4}, "--context-tokens: must be at least 8"),
        ({"context_tokens": 4096}, "--context-tokens: 4096 is more than the 128"),
        ({"part_blocks": 0}, "--part-blocks"),
        ({"resume": True, "force": True}, "--resume, --force"),
        ({"anchors": Path("nowhere.json")}, "nowhere.json"),
        ({"text": "nowhere.txt"}, "--text: nowhere.txt"),
        ({"reinforced": "/no/such/model"}, "--reinforced: /no/such/model"),
    ],
)
def test_refused(options: LabelOptions, changes: dict[str, object], message: str) -> None:
    with pytest.raises(JobError, match=message) as refusal:
        make_labels(replace(options, **changes), quiet())
    assert "\n" not in str(refusal.value)
    assert not options.out.exists()


def test_the_baseline_is_no_reinforced_model(options: LabelOptions) -> None:
    with pytest.raises(JobError, match=r"--reinforced: .* is --model itself"):
        make_labels(replace(options, reinforced=options.model), quiet())


def test_a_folder_of_other_things_is_left_alone(options: LabelOptions) -> None:
    options.out.mkdir()
    (options.out / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(JobError, match="exists and holds no labels"):
            make_labels(replace(options, force=force), quiet())
    assert [path.name for path in options.out.iterdir()] == ["thesis.tex"]


def test_force_removes_nothing_from_a_folder_that_is_not_the_jobs(tmp_path):
    theirs = {"book.txt": "mine", "meta.json": '{"title": "mine"}', "parts/mine.txt": "mine", "a.tmp": "mine"}
    for name, content in theirs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")

    with pytest.raises(JobError, match="exists and holds no labels"):
        LabelFolder(tmp_path, {"alpha": 5}).prepare(resume=False, force=True)

    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in theirs} == theirs
