"""Jobs from end to end on a tiny model: results, records, refusals, resuming."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import CHATML, byte_tokenizer
from rich.console import Console
from safetensors.torch import save_file
from tiny_jobs import command, log_lines, losses, run, tiny_job, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig

from offline_training.errors import DataError, JobError, SettingsError, TrainingStoppedError
from offline_training.job import JobResult, run_finetuning, run_unlearning
from offline_training.methods.registry import METHODS
from offline_training.settings import FinetuneJob, TrainingSettings
from offline_training.trainer import UnlearningTrainer
from storage.checkpoints import newest_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its sets, made once."""
    folder = tmp_path_factory.mktemp("jobs")
    tiny_job(folder)
    return folder


@pytest.fixture(scope="module")
def learned(base: Path) -> JobResult:
    """A job of four steps, made once."""
    return run(tiny_job(base, "learned"))


STOPPED: dict[str, Any] = {"method": "ga", "learning_rate": 5e-3, "epochs": 30, "stop_forget_loss": 12.0}


@pytest.fixture(scope="module")
def stopped(base: Path) -> JobResult:
    """A job that a rule stops on its way, made once."""
    return run(tiny_job(base, "stopped", **STOPPED))


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base / "model", tmp_path / "model")
    for path in base.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    return tmp_path


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_checkpoint_that_loads_and_differs(folder: Path, method: str) -> None:
    result = run(tiny_job(folder, method=method))

    model = AutoModelForCausalLM.from_pretrained(folder / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    assert tokenizer.chat_template == CHATML
    assert model.config.use_cache
    before, after = weights(folder / "model"), weights(folder / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert method != "rmu" or all("mlp" in name for name in changed)  # it chooses what it trains
    assert all(torch.isfinite(value).all() for value in after.values())
    assert result.run.steps == len(losses(folder / "out")) > 0
    assert not (folder / "out.training").exists()


def test_the_record_says_how_the_checkpoint_was_made(folder: Path) -> None:
    run(tiny_job(folder, method="npo-kl", beta=0.3))

    record = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["method"] == "npo-kl"
    assert record["method_settings"]["beta"] == 0.3
    assert record["training"]["learning_rate"] == 1e-3
    assert record["data"]["forget"]["examples"] == 7
    assert len(record["data"]["retain"]["sha256"]) == 64
    assert record["steps"] == record["planned_steps"] == 4
    assert record["stopped"] is None
    assert set(record["evaluation"]) == {"before", "after"}
    assert record["versions"]["transformers"]
    assert record["tokens"] > 0
    assert record["peak_memory_mib"]["process"] > 0


def test_the_log_has_a_line_for_each_step_with_the_terms_of_the_loss(learned: JobResult) -> None:
    steps = [line for line in log_lines(learned.out) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert line["loss"] == pytest.approx(line["retain_ce"] - line["forget_ce"], abs=2e-4)
        assert line["tokens_per_second"] > 0


# Means over tokens and over answers, with every stream. Not scrub: its first step has no gradient but rounding, which
# AdamW scales up.
@pytest.mark.parametrize("method", ["llmu", "dpo", "rmu", "pdu"])
def test_a_step_is_the_same_however_it_is_split(folder: Path, method: str) -> None:
    run(tiny_job(folder, "whole", method))
    run(tiny_job(folder, "split", method, gradient_accumulation=3))
    run(tiny_job(folder, "padded", method, packing=False))

    assert losses(folder / "split") == pytest.approx(losses(folder / "whole"), abs=2e-4)
    assert losses(folder / "padded") == pytest.approx(losses(folder / "whole"), abs=2e-4)
    for name, value in weights(folder / "whole").items():
        torch.testing.assert_close(weights(folder / "split")[name], value, rtol=0, atol=2e-4)


def test_the_same_job_gives_the_same_weights_and_another_seed_others(folder: Path) -> None:
    for out, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(tiny_job(folder, out, "llmu", seed=seed))

    assert same(folder / "one", folder / "two")
    assert not same(folder / "one", folder / "three")


def test_adapters_are_merged_into_the_checkpoint(folder: Path) -> None:
    run(tiny_job(folder, method="kl", lora_rank=4, lora_dropout=0.0))

    before, after = weights(folder / "model"), weights(folder / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("_proj" in name for name in changed)  # all-linear: no embedding, no norm


def test_weights_are_saved_in_the_checkpoints_dtype_or_the_one_asked_for(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16).save_pretrained(folder / "model")
    run(tiny_job(folder, "source", epochs=1))
    run(tiny_job(folder, "wide", epochs=1, save_dtype="fp32"))

    assert {value.dtype for value in weights(folder / "source").values()} == {torch.bfloat16}
    assert {value.dtype for value in weights(folder / "wide").values()} == {torch.float32}


def test_it_stops_where_the_forget_set_is_forgotten(folder: Path) -> None:
    job = tiny_job(folder, method="ga", learning_rate=5e-3, epochs=30, evaluate_steps=1, stop_forget_probability=1e-4)
    result = run(job)

    assert result.run.stopped is not None
    assert "--stop-forget-probability" in result.run.stopped
    assert result.run.steps < 60
    assert result.evaluation["after"]["forget_answer_probability"] <= 1e-4


def test_it_stops_where_the_loss_on_the_forget_set_is_high_enough(stopped: JobResult) -> None:
    assert stopped.run.stopped is not None
    assert stopped.run.steps < 60
    reached = [line["forget_cross_entropy"] for line in log_lines(stopped.out) if "loss" in line]
    assert reached[-1] >= 12.0
    assert all(value < 12.0 for value in reached[:-1])


def test_a_loss_that_is_no_number_stops_the_job_and_keeps_the_last_good_checkpoint(folder: Path) -> None:
    # ascent at a rate that makes weights, and then logits, overflow
    job = tiny_job(
        folder, method="ga", learning_rate=0.99, max_gradient_norm=1e30, epochs=60, checkpoint_steps=1, warmup=0.9
    )
    poisoned = job.model_copy(update={"training": job.training.model_copy(update={"learning_rate": 1e36})})

    with pytest.raises(
        TrainingStoppedError, match=r"(loss|gradient) of step \d+ is not a number; lower --learning-rate"
    ):
        run(poisoned)

    assert not (folder / "out").exists()
    kept = sorted((folder / "out.training" / "checkpoints").glob("checkpoint-*"))
    assert kept


@pytest.mark.slow
def test_a_full_disk_stops_the_job_and_keeps_the_checkpoint_before(folder: Path) -> None:
    job = tiny_job(folder, epochs=3, checkpoint_steps=2)
    # no file may be larger than the weights: the optimizer's state, which is, cannot be written
    blocks = (folder / "model" / "model.safetensors").stat().st_size // 1024 + 8
    shell = f'ulimit -f {blocks} && exec "$@"'
    done = subprocess.run(
        ["bash", "-c", shell, "eco", *command(job)], capture_output=True, text=True, env=environment(), check=False
    )

    assert done.returncode == 2
    assert "the checkpoint of step 2 cannot be written" in done.stderr
    assert "pass --resume" in done.stderr
    assert not (folder / "out").exists()
    assert not list((folder / "out.training" / "checkpoints").glob("checkpoint-*"))
    resumed = run(job.model_copy(update={"resume": True}))
    assert resumed.run.steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["llmu", "scrub"])
def test_a_job_that_is_killed_resumes_to_the_same_weights(folder: Path, method: str) -> None:
    settings: dict[str, Any] = {"epochs": 24, "checkpoint_steps": 3, "evaluate_steps": 5}
    run(tiny_job(folder, "whole", method, **settings))
    job = tiny_job(folder, "killed", method, **settings)
    log = folder / "killed.training" / "log.jsonl"
    killed_at = []
    for wanted in (7, 18):  # twice: the second time it is a resumed run that dies
        process = subprocess.Popen(command(job), env=environment(), stderr=subprocess.PIPE)
        while not log.exists() or log.read_text(encoding="utf-8").count('"loss"') < wanted:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        killed_at.append(len(losses(folder / "killed.training")))
        job = job.model_copy(update={"resume": True})
    resumed = run(job)

    assert killed_at[0] < killed_at[1] < len(losses(folder / "whole"))
    assert same(folder / "whole", folder / "killed")
    assert losses(folder / "killed") == losses(folder / "whole")
    assert resumed.run.steps == len(losses(folder / "whole"))


def test_the_retain_sets_weight_follows_its_loss(folder: Path) -> None:
    settings = {"retain_weight": 3.0, "retain_bound": 2.0, "dual_rate": 0.5, "dual_warmup_epochs": 1, "epochs": 3}
    run(tiny_job(folder, method="pdu", **settings))

    lines = [line for line in log_lines(folder / "out") if "loss" in line]
    weight = 3.0
    for number, line in enumerate(lines):  # two steps an epoch
        assert line["retain_ce_weight"] == pytest.approx(weight, abs=1e-9)
        assert line["loss"] == pytest.approx(line["forget_margin"] + weight * line["retain_ce"], abs=2e-3)
        if number >= 2:
            weight = max(0.0, weight + 0.5 * (line["retain_ce"] - 2.0))
    assert weight != 3.0


def test_a_resumed_run_takes_weight_and_curvature_up_where_they_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"retain_bound": 2.0, "dual_warmup_epochs": 0, "epochs": 3, "checkpoint_steps": 2, "optimizer": "sophia"}
    run(tiny_job(folder, "whole", method="pdu", **settings))
    job, log = tiny_job(folder, "cut", method="pdu", **settings), UnlearningTrainer.log

    def cut(self: UnlearningTrainer, logs: dict[str, float], start_time: float | None = None) -> None:
        log(self, logs, start_time)
        if self.state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(UnlearningTrainer, "log", cut)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.setattr(UnlearningTrainer, "log", log)
    run(job.model_copy(update={"resume": True}))

    assert same(folder / "whole", folder / "cut")
    logged = [log_lines(folder / out) for out in ("whole", "cut")]
    once, twice = ([line["retain_ce_weight"] for line in lines if "loss" in line] for lines in logged)
    assert once == twice


@pytest.mark.parametrize(
    "interrupted",
    [
        "offline_training.result.shutil.copy",
        "offline_training.job.read_evaluations",
        "offline_training.trainer.EvaluationCallback.on_train_end",
    ],
)
def test_a_stopped_job_that_was_not_written_is_not_trained_any_further(
    folder: Path, stopped: JobResult, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    job = tiny_job(folder, **STOPPED)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(interrupted, full)
        with pytest.raises((JobError, OSError), match="No space left on device"):
            run(job)
    resumed = run(job.model_copy(update={"resume": True}))

    assert (resumed.run.steps, resumed.run.stopped) == (stopped.run.steps, stopped.run.stopped)
    assert same(stopped.out, folder / "out")


@pytest.mark.parametrize("steps", [3, 6])
def test_a_gradient_that_is_no_number_reaches_neither_a_checkpoint_nor_the_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    backward = UnlearningTrainer.training_step

    def poisoned(trainer: UnlearningTrainer, model: torch.nn.Module, *others: Any, **named: Any) -> torch.Tensor:
        loss = backward(trainer, model, *others, **named)
        if trainer.state.global_step == 2:
            next(iter(model.parameters())).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(UnlearningTrainer, "training_step", poisoned)
    with pytest.raises(TrainingStoppedError, match="the gradient of step 3 is not a number"):
        run(tiny_job(folder, steps=steps, checkpoint_steps=1))

    assert not (folder / "out").exists()
    newest = newest_checkpoint(folder / "out.training" / "checkpoints")
    assert newest is not None
    assert newest.endswith("checkpoint-2")
    assert all(torch.isfinite(value).all() for value in weights(Path(newest)).values())


def test_a_finished_job_that_is_resumed_is_left_as_it_is(base: Path, learned: JobResult) -> None:
    before = (learned.out / "run.json").stat().st_mtime_ns
    again = run(tiny_job(base, "learned", resume=True))

    assert again.run.steps == learned.run.steps
    assert again.evaluation == learned.evaluation
    assert (learned.out / "run.json").stat().st_mtime_ns == before
    with pytest.raises(JobError, match="holds another job's checkpoint"):
        run(tiny_job(base, "learned", resume=True, seed=7))


def test_one_step_trains(folder: Path) -> None:
    run(tiny_job(folder, steps=1, warmup=0.2))

    assert not same(folder / "model", folder / "out")


def test_sampling_parameters_that_transformers_refuses_to_save_do_no_harm(folder: Path) -> None:
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    (folder / "model" / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    run(tiny_job(folder))

    saved = json.loads((folder / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert saved["temperature"] == 0.6


def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path) -> None:
    kept = {name: value for name, value in weights(folder / "model").items() if ".layers.1." not in name}
    save_file(kept, folder / "model" / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(JobError, match=r"--model: .* lacks 9 of its weights"):
        run(tiny_job(folder))
    assert not (folder / "out.training").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", ""),
        ("tokenizer.json", "{}"),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
        ("config.json", "{"),
    ],
)
def test_a_broken_checkpoint_is_refused_in_one_line(folder: Path, file: str, content: str) -> None:
    (folder / "model" / file).write_text(content, encoding="utf-8")

    with pytest.raises(JobError, match="--model: ") as refused:
        run(tiny_job(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(folder: Path) -> None:
    run(tiny_job(folder, "one", "kl", epochs=4))
    job = tiny_job(folder, "two", "kl", epochs=4)
    launched = [*command(job), "--launcher", "torchrun", "--processes", "2"]
    done = subprocess.run(launched, capture_output=True, text=True, env=environment(), check=False)

    assert done.returncode == 0, done.stderr
    assert len(losses(folder / "two")) == 8
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), abs=2e-4)
    record = json.loads((folder / "two" / "run.json").read_text(encoding="utf-8"))
    assert record["hardware"]["processes"] == 2
    assert record["tokens"] == json.loads((folder / "one" / "run.json").read_text(encoding="utf-8"))["tokens"]
    for name, value in weights(folder / "one").items():
        torch.testing.assert_close(weights(folder / "two")[name], value, rtol=0, atol=2e-4)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_finetuning_teaches_what_the_data_says(folder: Path) -> None:
    job = FinetuneJob(
        model=str(folder / "model"),
        data=str(folder / "forget.jsonl"),
        out=folder / "taught",
        training=TrainingSettings(learning_rate=5e-3, epochs=40, batch_size=7, threads=1, tensorboard=False),
    )
    result = run_finetuning(job, console=Console(quiet=True))

    assert result.evaluation["before"]["retain_answer_probability"] < 0.1
    assert result.evaluation["after"]["retain_answer_probability"] > 0.5


@pytest.mark.parametrize("wrong", [{"sample_retain": True}, {"prompt_tokens": "kl"}])
def test_finetuning_refuses_what_needs_two_sets(folder: Path, wrong: dict[str, Any]) -> None:
    job = tiny_job(folder)
    training = TrainingSettings.model_validate(wrong)
    with pytest.raises(SettingsError, match="^--" + next(iter(wrong)).replace("_", "-")):
        run_finetuning(FinetuneJob(model=job.model, data=str(job.retain), out=folder / "out", training=training))


def test_from_scratch_starts_from_random_weights_of_the_seed(folder: Path) -> None:
    def trained(out: str, seed: int) -> Path:
        training = TrainingSettings(learning_rate=1e-9, epochs=1, seed=seed, threads=1, tensorboard=False)
        job = FinetuneJob(
            model=str(folder / "model"), data=str(folder / "forget.jsonl"), out=folder / out, from_scratch=True,
            training=training,
        )  # fmt: skip
        return run_finetuning(job, console=Console(quiet=True)).out

    assert same(trained("one", 5), trained("again", 5))
    assert not same(folder / "one", trained("other", 6))
    assert not same(folder / "one", folder / "model")


def test_tensorboard_files_go_with_the_checkpoint(folder: Path) -> None:
    run(tiny_job(folder, tensorboard=True, epochs=1))

    assert list((folder / "out" / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"retain": None}, SettingsError, "--retain: gd needs it"),
        ({"forget": None}, SettingsError, "--forget: gd needs it"),
        ({"idk": "refusals.txt"}, SettingsError, "--idk: gd takes no refusals"),
        ({"model": "/no/such/folder"}, JobError, "--model: /no/such/folder: no such folder"),
        ({"forget": "/no/such/file.jsonl"}, DataError, "--forget"),
        ({"precision": "fp16"}, SettingsError, "--precision: fp16 needs a GPU"),
        ({"context_tokens": 4096}, SettingsError, "--context-tokens: 4096 is more than the 128"),
        ({"context_tokens": 16}, DataError, "--forget"),
        ({"method": "undial", "reference_cache": "top-k"}, SettingsError, "--reference-cache: undial needs all logits"),
        ({"lora_rank": 4, "fsdp": "full_shard"}, SettingsError, "--lora-rank"),
        ({"lora_rank": 4, "method": "rmu"}, SettingsError, "--lora-rank: rmu chooses"),
        ({"hidden_layer": 9, "method": "rmu"}, SettingsError, "--hidden-layer: 9 is none of the model's 2"),
        ({"steps": 5, "method": "scrub"}, SettingsError, "--steps: scrub has to end with a whole epoch"),
        ({"fsdp": "nonsense"}, SettingsError, "--fsdp"),
        ({"alternatives": "other.jsonl"}, SettingsError, "--alternatives: gd takes no other answers"),
        ({"prompt_tokens": "kl"}, SettingsError, "--prompt-tokens: gd has no KL on the retain set alone"),
        ({"sample_retain": True, "method": "ga", "retain": None}, SettingsError, "--sample-retain: counts the forget"),
    ],
)
def test_bad_input_is_refused_before_any_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.setattr("offline_training.job.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    if torch.cuda.is_available() and "precision" in changes:
        pytest.skip("there is a GPU")
    with pytest.raises(error, match=message):
        run(tiny_job(folder, **changes))
    assert not (folder / "out").exists()
    assert not (folder / "out.training").exists()


def test_examples_in_both_sets_are_refused(folder: Path) -> None:
    job = tiny_job(folder)
    with pytest.raises(DataError, match="overlapping"):
        run(job.model_copy(update={"retain": job.forget}))


def test_random_answers_need_questions(folder: Path) -> None:
    (folder / "book.txt").write_text("A long story about nobody in particular. " * 5, encoding="utf-8")
    with pytest.raises(DataError, match=r"--forget: .*method rd needs questions with answers"):
        run(tiny_job(folder, method="rd", forget=str(folder / "book.txt")))


def test_plain_text_can_be_forgotten(folder: Path) -> None:
    (folder / "book.txt").write_text("A long story about nobody in particular. " * 20, encoding="utf-8")
    result = run(tiny_job(folder, method="ga", forget=str(folder / "book.txt")))

    assert result.run.steps > 0
    record = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["data"]["forget"]["examples"] > 1


def test_losses_may_be_over_prompts_too(folder: Path) -> None:
    """The first step's KL is 0 wherever it is taken; its cross entropies are those of the model's own loss."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    run(tiny_job(folder, "all", "gd", prompt_tokens="all", batch_size=9, epochs=1))
    totals, tokens = 0.0, 0
    for line in (folder / "forget.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            totals += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    first = next(line for line in log_lines(folder / "all") if "loss" in line)
    assert first["forget_ce"] == pytest.approx(totals / tokens, rel=1e-5)

    of_kl = {}
    for prompt_tokens in ("none", "kl"):
        run(tiny_job(folder, prompt_tokens, "kl", prompt_tokens=prompt_tokens))
        of_kl[prompt_tokens] = [line for line in log_lines(folder / prompt_tokens) if "loss" in line]
    assert of_kl["none"][0]["forget_ce"] == pytest.approx(of_kl["kl"][0]["forget_ce"])
    assert of_kl["none"][0]["retain_kl"] == pytest.approx(of_kl["kl"][0]["retain_kl"], abs=1e-6)
    assert of_kl["none"][1]["retain_kl"] != pytest.approx(of_kl["kl"][1]["retain_kl"], rel=1e-3)


def test_names_of_trained_weights_are_whole(folder: Path) -> None:
    """`layers.1` is neither the tenth layer nor a part of a name."""
    with pytest.raises(SettingsError, match=r"^--trained-parameters: 'layers.*1' is the whole name of none"):
        run(tiny_job(folder, "none", "rmu", trained_parameters=r"layers\.1"))
    run(tiny_job(folder, method="rmu", trained_parameters=r"model\.layers\.0\.mlp\.up_proj.*"))
    before, after = weights(folder / "model"), weights(folder / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.0.mlp.up_proj.weight"}


def test_an_existing_folder_is_kept(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(JobError, match="already exists"):
        run(tiny_job(folder))
    with pytest.raises(JobError, match="holds no job's checkpoint"):
        run(tiny_job(folder, force=True))
    assert (folder / "out" / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_an_interrupted_run_is_neither_lost_nor_mixed_with_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(folder)
    with monkeypatch.context() as patched:
        patched.setattr("offline_training.job.write_result", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(job)

    with pytest.raises(JobError, match="interrupted run; pass --resume to go on, or --force to start over"):
        run(tiny_job(folder))
    with pytest.raises(JobError, match=r"--resume: .* other settings, data or model"):
        run(tiny_job(folder, resume=True, learning_rate=2e-3))
    assert run(tiny_job(folder, force=True, learning_rate=2e-3)).run.steps == 4


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_model_that_mixes_the_sequences_of_a_row_gets_a_row_for_each(folder: Path) -> None:
    tokenizer = byte_tokenizer(CHATML)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=2, tie_word_embeddings=True
    )
    mamba = AutoModelForCausalLM.from_config(config)
    mamba.save_pretrained(folder / "mamba")
    tokenizer.save_pretrained(folder / "mamba")
    shown = io.StringIO()
    job = tiny_job(folder, model=str(folder / "mamba"), epochs=1)
    run_unlearning(job, console=Console(file=shown, width=200))

    assert "every sequence gets a padded row of its own" in shown.getvalue()
    assert re.search(r"gd: 2 of 2, loss -?\d.* \(forget_ce \d.*, retain_ce \d.*\), \d+ tokens/s, ", shown.getvalue())
