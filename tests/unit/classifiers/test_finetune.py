"""Fine-tuning a tiny encoder on an invented world: what it learns, holds out, and how it survives being killed."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from invented_people import World, build_world
from sklearn.metrics import roc_auc_score
from tiny_encoders import write_tiny
from transformers import EvalPrediction

from classifiers import EncoderError, Example, ExampleFileError, TrainingError, general_prompts
from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.export.sequence import load_sequence_model
from classifiers.training.finetune import Finetuned, FinetuneSettings, finetune, finetune_data
from classifiers.training.finetune_trainer import LabelledText, _Collator, _metrics, _WindowTrainer
from storage.checkpoints import newest_checkpoint

SETTINGS = FinetuneSettings(epochs=1, min_steps=50, batch_texts=64, learning_rate=5e-3)  # two checkpoints

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # learns in fewer steps
EVERYDAY = general_prompts()[::40]

#: A run that kills itself, as a machine would, five steps after its first checkpoint.
KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import torch
from classifiers import general_prompts
from classifiers.training.finetune import FinetuneSettings, finetune
tests, encoder, work, settings, threads = sys.argv[1:]
sys.path.insert(0, tests)
from invented_people import build_world

def kill(done: int, total: int, last: str) -> None:
    steps = [int(path.parent.name.split("-")[1]) for path in Path(work).glob("checkpoints/*/trainer_state.json")]
    if steps and done == steps[0] + 5:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(int(threads))
world = build_world()
finetune(encoder, world.forget, world.retain, Path(work), eval(settings), everyday=general_prompts()[::40],
         on_progress=kill)
"""


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("bert", tmp_path_factory.mktemp("tiny") / "bert", std=0.05, **NO_DROPOUT)


@pytest.fixture(scope="module")
def trained(tiny: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    """An uninterrupted run."""
    return finetune(
        str(tiny), world.forget, world.retain, tmp_path_factory.mktemp("run") / "work", SETTINGS, everyday=EVERYDAY
    )


def test_it_learns_and_reports_what_it_was_held_to(trained: Finetuned, world: World) -> None:
    report = trained.report
    assert (report.forget_examples, report.retain_examples) == (len(world.forget), len(world.retain))
    assert min(report.validation.positives, report.validation.negatives) > 100
    assert report.validation.false_positive_rate <= SETTINGS.max_false_positive_rate
    assert json.loads(json.dumps(asdict(report)))["validation"]["recall"] == report.validation.recall
    assert report.training_texts > 3 * report.validation_texts > 0
    assert 0 < report.best_step <= report.steps
    classifier = FinetunedClassifier.open(trained.exported, report.threshold)
    scores = classifier.scores([*world.forgotten_unseen, *world.retained_unseen])
    labels = [1] * len(world.forgotten_unseen) + [0] * len(world.retained_unseen)
    # Two random layers, trained for seconds: how far apart the scores are depends on the CPU's rounding, and by it on
    # the checkpoint that is chosen. Their order hardly does.
    assert roc_auc_score(labels, scores) > 0.75


def test_the_checkpoint_is_the_exported_model(trained: Finetuned) -> None:
    loaded = load_sequence_model(trained.checkpoint, "checkpoint")
    assert loaded.untrained == ()
    assert loaded.model.config.id2label == {0: "retain", 1: "forget"}
    text = "Where was Braquo Thinarsel born?"
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor(loaded.tokenizer.windows(text))).logits[0]
    found = FinetunedClassifier.open(trained.exported, 0.5).scores([text])[0]
    assert found == pytest.approx(float(torch.softmax(logits, 0)[1]), abs=0.05)


def test_a_killed_run_resumes_and_ends_as_the_uninterrupted_one(
    trained: Finetuned, tiny: Path, world: World, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    arguments = [str(Path(__file__).parent), str(tiny), str(work), repr(SETTINGS), str(torch.get_num_threads())]
    run = subprocess.run([sys.executable, "-c", KILLED_RUN, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    (checkpoint,) = (work / "checkpoints").iterdir()

    with pytest.raises(TrainingError, match="an interrupted training; pass --resume"):
        finetune(str(tiny), world.forget, world.retain, work, SETTINGS, everyday=EVERYDAY)
    with pytest.raises(TrainingError, match="had other examples, settings or encoder; pass --force"):
        finetune(str(tiny), world.forget[1:], world.retain, work, SETTINGS, everyday=EVERYDAY, resume=True)

    seen: list[int] = []
    found = finetune(
        str(tiny),
        world.forget,
        world.retain,
        work,
        SETTINGS,
        everyday=EVERYDAY,
        resume=True,
        on_progress=lambda n, *_: seen.append(n),
    )
    assert f"checkpoint-{seen[0]}" == checkpoint.name
    assert found.report == trained.report
    assert found.settings.digest == trained.settings.digest


def test_a_run_killed_after_training_does_not_train_again(
    trained: Finetuned, tiny: Path, world: World, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(trained.exported.parent, work)
    shutil.rmtree(work / "encoder")
    seen: list[int] = []
    found = finetune(
        str(tiny),
        world.forget,
        world.retain,
        work,
        SETTINGS,
        everyday=EVERYDAY,
        resume=True,
        on_progress=lambda n, *_: seen.append(n),
    )
    assert seen == []
    assert found.report == trained.report


def test_torn_checkpoints_are_passed_over(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_st'), (11, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_a_folder_that_is_no_training_is_never_removed(tiny: Path, world: World, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for flags in ({"restart": True}, {"resume": True}, {}):
        with pytest.raises(TrainingError, match="exists and is no interrupted training"):
            finetune(str(tiny), world.forget, world.retain, tmp_path, SETTINGS, everyday=EVERYDAY, **flags)
    assert (tmp_path / "thesis.txt").exists()


def test_bad_input_is_refused_before_anything_is_written(tiny: Path, world: World, tmp_path: Path) -> None:
    work = tmp_path / "work"
    twins = [
        Example("Who is Ann?", "Ann is the mayor of Zelburg."),
        Example("Who is she?", "Ann is the mayor of Zelburg."),
    ]
    with pytest.raises(
        TrainingError, match="at least 2 with different answers in either set, there are 1 to forget and 63"
    ):
        finetune(str(tiny), twins, world.retain, work, SETTINGS, everyday=EVERYDAY)
    with pytest.raises(ExampleFileError, match="overlapping"):
        finetune(str(tiny), world.forget, [*world.retain, world.forget[0]], work, SETTINGS, everyday=EVERYDAY)
    with pytest.raises(EncoderError, match="neither a folder nor a hub id"):
        finetune("/no/such/folder", world.forget, world.retain, work, SETTINGS, everyday=EVERYDAY)
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare)
    (bare / "tokenizer.json").unlink()
    (bare / "config.json").write_text(json.dumps({"model_type": "canine"}))
    with pytest.raises(EncoderError, match="no fast tokenizer"):
        finetune(str(bare), world.forget, world.retain, work, SETTINGS, everyday=EVERYDAY)
    (bare / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    (bare / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(EncoderError, match="cannot be loaded as a sequence classifier"):
        finetune(str(bare), world.forget, world.retain, work, SETTINGS, everyday=EVERYDAY)
    assert not work.exists()


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"learning_rate": -1.0}, {"batch_texts": 0}, {"max_false_positive_rate": 1.0}]
)
def test_settings_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=next(iter(change))):
        replace(SETTINGS, **change)


def test_no_fact_and_no_text_is_on_both_sides_and_classes_weigh_the_same(world: World) -> None:
    data = finetune_data(world.forget, world.retain, seed=0, everyday=EVERYDAY)
    training, validation = data.training, data.validation
    kept = {training.texts[index] for index in data.kept}
    assert not kept & set(validation.texts)
    assert len(data.kept) > 0.9 * len(training.texts)
    prompts = set(validation.texts) & {example.prompt for example in (*world.forget, *world.retain)}
    answers = {example.answer for example in (*world.forget, *world.retain) if example.prompt in prompts}
    assert len(answers) == 1 + len({example.answer for example in world.retain}) // 5
    assert not any(answer in text for text in kept for answer in answers if answer)
    labels, weights = training.labels[data.kept], data.loss_weights()[data.kept]
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 1].sum() == pytest.approx(weights[labels == 0].sum())


def test_checkpoints_are_compared_by_missed_then_wrongly_flagged_then_loss() -> None:
    labels = np.array([1.0, 1.0, 0.0, 0.0, 0.0])

    def order(*log_odds: float) -> float:
        return _metrics(EvalPrediction(np.array(log_odds), labels))["errors"]

    sure, unsure = order(9, 9, -9, -9, -9), order(0.1, 0.1, -0.1, -0.1, -0.1)
    one_flagged, all_flagged = order(9, 9, 9, -9, -9), order(9, 9, 9, 9, 9)
    one_missed = order(9, -9, -9, -9, -9)
    assert sorted([one_missed, all_flagged, one_flagged, unsure, sure]) == [
        sure, unsure, one_flagged, all_flagged, one_missed,
    ]  # fmt: skip


def test_the_loss_is_that_of_each_texts_most_suspicious_window(tiny: Path) -> None:
    loaded = load_sequence_model(tiny, "tiny", labels=2)
    windows = loaded.tokenizer.windows
    texts = [
        LabelledText([*windows("Who is Ann?"), *windows("Bake bread and then eat all of it, please.")], 1.0, 2.0),
        LabelledText(windows("What is rain?"), 0.0, 0.5),
    ]
    inputs = _Collator(pad_id=0)(texts)
    assert inputs["input_ids"].shape[0] == 3
    with torch.inference_mode():
        odds = [
            [float(torch.diff(loaded.model(input_ids=torch.tensor([ids])).logits)[0, 0]) for ids in text.windows]
            for text in texts
        ]
        loss, outputs = _WindowTrainer.compute_loss(None, loaded.model, inputs, return_outputs=True)  # type: ignore[arg-type]
    largest = [max(own) for own in odds]
    np.testing.assert_allclose(outputs["log_odds"].numpy(), largest, atol=1e-5)
    expected = (2.0 * np.log1p(np.exp(-largest[0])) + 0.5 * np.log1p(np.exp(largest[1]))) / 2
    assert float(loss) == pytest.approx(expected, abs=1e-5)
