"""`eco unlearn` and `eco finetune`: what reaches the job, what is refused before it, and what is imported when."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from eco_command import check_one_line, run

from offline_training import alternatives
from offline_training import job as jobs
from offline_training.methods.registry import METHODS
from offline_training.presets import PRESETS
from offline_training.settings import FinetuneJob, UnlearnJob

BASIC = ["--model", "m", "--forget", "f.jsonl", "--retain", "r.jsonl", "--out", "o"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that commands start, instead of running them."""
    found: list[Any] = []
    for name in ("run_unlearning", "run_finetuning"):
        monkeypatch.setattr(jobs, name, lambda job, *, console: found.append(job))
    return found


# --- help -----------------------------------------------------------------------------------------------------


def test_the_methods_are_listed_with_their_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["unlearn", "--help"], capsys)
    text = " ".join(out.split())
    assert code == 0
    for method in METHODS.values():
        assert f" {method.name} {' '.join(method.summary.split())}" in text


@pytest.mark.parametrize("name", list(METHODS))
def test_each_methods_help_has_its_source_and_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["unlearn", name, "--help"], capsys)
    assert code == 0
    assert "".join(f"Source: {METHODS[name].source}".split()) in "".join(out.split())
    for field in [*METHODS[name].settings.model_fields, "learning_rate", "launcher", "config"]:
        assert f"--{field.replace('_', '-')}" in out
    assert ("--preset" in out) == (name in PRESETS)


# --- jobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_without_further_flags_the_schemas_defaults_reach_the_job(
    name: str, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["unlearn", name, *BASIC], capsys) == (0, "", "")
    settings = METHODS[name].settings()
    expected = UnlearnJob(
        model="m", forget="f.jsonl", retain="r.jsonl", out=Path("o"), method=name, method_settings=settings
    )
    assert started == [expected]
    assert type(started[0].method_settings) is METHODS[name].settings


def test_flags_of_all_three_schemas_reach_the_job(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--beta", "0.3", "--learning-rate", "3e-5", "--no-packing", "--resume", "--steps", "7"]
    assert run(["unlearn", "npo", *BASIC, *flags], capsys)[0] == 0
    (job,) = started
    assert (job.method_settings.beta, job.training.learning_rate) == (0.3, 3e-5)
    assert (job.training.packing, job.training.steps, job.resume, job.force) == (False, 7, True, False)


def test_a_file_can_hold_everything_and_a_flag_wins(
    tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "npo.yaml"
    file.write_text("model: m\nforget: f.jsonl\nretain: r.jsonl\nout: o\nbeta: 0.3\nlearning_rate: 3e-5\nepochs: 2\n")
    assert run(["unlearn", "npo", "--config", str(file), "--epochs", "4"], capsys)[0] == 0
    assert run(["unlearn", "npo", *BASIC, "--beta", "0.3", "--learning-rate", "3e-5", "--epochs", "4"], capsys)[0] == 0
    assert started[0] == started[1]


def preset(method: str, name: str, started: list[Any], capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    """The job that a preset starts; its source is on the standard error."""
    code, out, err = run(["unlearn", method, "--preset", name, "--out", "o", *flags], capsys)
    assert (code, out) == (0, "")
    assert err.splitlines() == PRESETS[method][name].lines(name)
    assert err.startswith(f"--preset {name}: ")
    return started.pop()


def test_the_published_llmu_experiment(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The defaults of the arguments of unlearn_harm.py."""
    job = preset("llmu-original", "harm", started, capsys)
    assert job.model == "facebook/opt-1.3b"
    settings = PRESETS["llmu-original"]["harm"].settings
    assert (job.forget, job.retain) == (settings["forget"], settings["retain"])
    training = job.training
    assert (training.learning_rate, training.batch_size, training.steps) == (2e-6, 2, 1000)
    assert (training.schedule, training.warmup, training.precision) == ("linear", 0.0, "fp32")
    assert training.stop_forget_loss is None  # the script compares a negative loss with 100, and never stops by it
    method = job.method_settings
    assert (method.forget_weight, method.random_weight, method.random_answers) == (0.5, 1.0, 5)


def test_a_presets_data_and_model_can_be_replaced(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    job = preset("llmu-original", "harm", started, capsys, *BASIC[:-2], "--steps", "3")
    assert (job.model, job.forget, job.training.steps, job.training.batch_size) == ("m", "f.jsonl", 3, 2)


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, named in PRESETS.items() for name in named])
def test_every_preset_is_a_job(method: str, name: str, started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    job = preset(method, name, started, capsys, *BASIC[:-2])
    found = job.training.model_dump() | job.method_settings.model_dump() | job.model_dump()
    replaced = {"model", "forget", "retain"}
    settings = PRESETS[method][name].settings
    assert {key: found[key] for key in settings if key not in replaced} == {
        key: value for key, value in settings.items() if key not in replaced
    }
    assert run(["unlearn", method, "--help"], capsys)[1].count(f"Preset {name}: ") == 1


def test_recipes_as_they_were_read(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("ft", "ga", "gd", "kl", "rd", "llmu", "scrub"):  # copyright_unlearn_baselines.py
        eco = preset(method, "eco", started, capsys, *BASIC[:-2]).training
        assert (eco.learning_rate, eco.schedule, eco.warmup, eco.batch_size) == (2e-5, "cosine", 0.1, 8)
        assert (eco.context_tokens, eco.epochs, eco.sample_retain, eco.prompt_tokens) == (256, 5, True, "all")
    for method in ("ga", "gd", "npo-gd", "simnpo", "dpo", "rmu", "wga", "satimp", "ce-u"):
        tofu = preset(method, "open-unlearning", started, capsys, *BASIC[:-2]).training
        assert (tofu.epochs, tofu.warmup, tofu.learning_rate, tofu.batch_size) == (10, 0.1, 1e-5, 32)
    undial = preset("undial", "open-unlearning", started, capsys, *BASIC[:-2])
    assert (undial.training.learning_rate, undial.training.epochs, undial.method_settings.strength) == (1e-4, 10, 10.0)
    wmdp = preset("rmu", "wmdp", started, capsys, "--forget", "f.txt", "--retain", "r.txt")
    assert (wmdp.training.learning_rate, wmdp.training.batch_size, wmdp.training.steps) == (5e-5, 4, 150)
    method = wmdp.method_settings
    assert (method.hidden_layer, method.steering_coefficient, method.retain_weight) == (7, 6.5, 1200.0)
    names = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(32)}
    trained = {name for name in names if re.fullmatch(method.trained_parameters, name)}
    assert trained == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (5, 6, 7)}


def test_finetuning(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "m", "--data", "d.jsonl", "--out", "o", "--from-scratch", "--epochs", "3"]
    assert run(["finetune", *flags], capsys) == (0, "", "")
    expected = FinetuneJob(model="m", data="d.jsonl", out=Path("o"), from_scratch=True, training={"epochs": 3})
    assert started == [expected]


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["unlearn", "npoo"], "npoo"),
        (["unlearn", "npo", *BASIC, "--learning-rate", "-1"], "--learning-rate: "),
        (["unlearn", "npo", *BASIC, "--learning-rate", "fast"], "--learning-rate: "),
        (["unlearn", "npo", *BASIC, "--beta", "-1"], "--beta: "),
        (["unlearn", "ga", *BASIC, "--beta", "1"], "--beta"),
        (["unlearn", "npo", *BASIC, "--schedule", "cubic"], "--schedule"),
        (["unlearn", "npo", *BASIC[2:]], "--model: is missing"),
        (["unlearn", "npo", *BASIC[:-2]], "--out: is missing"),
        (["unlearn", "npo", *BASIC, "--processes", "2"], "--processes: needs --launcher"),
        (["unlearn", "npo", *BASIC, "--config", "nowhere.yaml"], "--config: nowhere.yaml: cannot be read"),
        (["unlearn", "npo", *BASIC, "--preset", "harm"], "--preset"),
        (["unlearn", "llmu-original", *BASIC, "--preset", "other"], "--preset"),
        (["unlearn", "npo", *BASIC, "--deepspeed", "d.json", "--fsdp", "full_shard"], "deepspeed and fsdp exclude"),
        (["finetune", "--model", "m", "--out", "o"], "--data: is missing"),
        (["finetune", "--model", "m", "--out", "o", "--data", "d", "--batch-size", "0"], "--batch-size: "),
    ],
)
def test_wrong_flags_are_one_line(
    arguments: list[str], named: str, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_one_line(run(arguments, capsys), named)
    assert started == []


def test_another_methods_key_in_the_file(
    tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("beta: 0.1\n")
    check_one_line(run(["unlearn", "ga", *BASIC, "--config", str(file)], capsys), str(file), "unknown key 'beta'")


def test_what_the_job_refuses_is_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.jsonl").write_text(json.dumps({"question": "Who?", "answer": "He."}) + "\n")
    flags = ["--model", str(tmp_path / "nowhere"), "--forget", str(tmp_path / "f.jsonl"), "--out", str(tmp_path / "o")]
    check_one_line(run(["unlearn", "gd", *flags], capsys), "--retain")
    check_one_line(run(["unlearn", "ga", *flags], capsys), "nowhere")


def test_wrong_settings_are_refused_before_a_launcher_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a launcher was started"))
    flags = [*BASIC, "--launcher", "torchrun", "--processes", "2", "--epochs", "0"]
    check_one_line(run(["unlearn", "npo", *flags], capsys), "--epochs: ")


# --- answers made up for altpo --------------------------------------------------------------------------------


def test_alternatives_are_asked_for_as_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(alternatives, "write_alternatives", lambda options, console: told.append(options))
    file = tmp_path / "job.yaml"
    file.write_text("endpoint: http://localhost:8000/v1\nper_question: 3\n")
    flags = ["--forget", "f.jsonl", "--out", "a.jsonl", "--config", str(file), "--temperature", "0.7"]
    assert run(["unlearn", "alternatives", *flags], capsys) == (0, "", "")
    assert told == [
        alternatives.AlternativeOptions(
            forget="f.jsonl",
            out=Path("a.jsonl"),
            endpoint="http://localhost:8000/v1",
            per_question=3,
            temperature=0.7,
        )
    ]


def test_alternatives_need_a_forget_set_and_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    check_one_line(
        run(["unlearn", "alternatives", "--out", "a"], capsys), "--forget: is missing", "--endpoint: is missing"
    )
    code, out, _ = run(["unlearn", "--help"], capsys)
    assert code == 0
    assert "alternatives" in out
