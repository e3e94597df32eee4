"""The `eco` command: quick help, one-line errors, and what reaches the server."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from eco_command import check_one_line, run
from transformers import LlamaConfig, LlamaForCausalLM

from cli.main import main
from console.errors import EcoError
from corruption import CorruptionSpec, EmbeddingRows
from guard import ClassifierConfig, ModelConfig, PolicyBundle, PolicyConfig, write_bundle

WIDTH = 8
HEAVY = (
    "torch", "transformers", "vllm", "numpy", "onnxruntime", "pydantic", "yaml", "fastapi", "matplotlib", "jinja2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ECO_SECRET_FILE", raising=False)


def bundle(folder: Path, name: str = "people", embedding_digest: str = "a" * 64) -> PolicyBundle:
    config = PolicyConfig.model_validate(
        {
            "schema_version": 1,
            "name": name,
            "version": "3",
            "model": ModelConfig(name="the-model", hidden_size=WIDTH, embedding_digest=embedding_digest),
            "corruption": CorruptionSpec(method="rand_noise_first_n", strength=3.0),
            "classifier": ClassifierConfig(encoder="e", encoder_digest="b" * 64, threshold=0.5),
        }
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    head = folder.parent / "head"
    head.write_bytes(b"not read here")
    return write_bundle(folder, config, head, {"recall": 0.97, "größe": 3})


# --- help ---------------------------------------------------------------------------------------------------


IMPORTED = """
import contextlib, io, json, sys
from cli.main import main
seen = {}
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(command.split())
    seen[command] = [out.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]
print(json.dumps(seen))
"""


def test_help_imports_nothing_heavy() -> None:
    """In one fresh process: the first command's imports are its own, and the later ones add theirs."""
    groups = (
        "classifier",
        "classifier train",
        "classifier score",
        "corruption search",
        "evaluate tofu",
        "policy build",
    )
    helps = ["--help", "--version", *(f"{name} --help" for name in ("report", "serve", "demo", *groups))]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, json.dumps(helps)], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    first, modules = seen["--help"]
    for command in ("serve", "policy", "demo", "unlearn", "finetune"):
        assert f"\n  {command} " in first
    assert {"cli", "click"} <= set(modules)
    assert not {"gateway", "optimizer", "guard", "demo", "evaluation", "offline_training", "rich"} & set(modules)
    for command, (_, modules) in seen.items():
        assert not set(HEAVY) & set(modules), command


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run([], capsys)
    assert code == 2
    assert "Commands:" in out + err


# --- errors -------------------------------------------------------------------------------------------------


def test_a_missing_policy_folder_in_a_real_process(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "serve", "model", "--policy", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    check_one_line((done.returncode, done.stdout, done.stderr), "nowhere", "eco policy build")


def test_a_corrupt_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle(tmp_path / "people").path
    with (path / "policy.yaml").open("a") as file:
        file.write("# edited by hand\n")
    for arguments in (
        ["serve", "model", "--policy", str(path)],
        ["policy", "verify", str(path)],
        ["policy", "show", str(path)],
    ):
        check_one_line(run(arguments, capsys), str(path / "policy.yaml"), "sha256")


def test_a_policy_name_used_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(bundle(tmp_path / folder / "p", "people").path) for folder in ("a", "b")]
    result = run(["serve", "model", "--policy", paths[0], "--policy", paths[1]], capsys)
    check_one_line(result, "'people' is used twice", *paths)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serve", "--policy", "somewhere"], "MODEL is missing"),
        (["serve", "model"], "--policy"),
        (["serve", "model", "--policy", "p", "--eco-admin-port", "70000"], "--eco-admin-port"),
        (["serve", "model", "--policy", "p", "--eco-guard-timeout-s", "0"], "--eco-guard-timeout-s"),
        (["serve", "model", "--policy", "p", "--eco-guard-queue-ms", "0"], "--eco-guard-queue-ms"),
        (["serve", "model", "--policy", "p", "--eco-guard-threads", "0"], "--eco-guard-threads"),
        (["policy", "build", "--model", "m"], "--out"),
        (["policy", "build", "--model", "m", "--out", "o"], "--forget"),
        (["policy", "build", "--dry-run"], "--task"),
        (["policy", "build", "--task", "cooking"], "--task"),
        (["policy", "build", "--model", "m", "--out", "o", "--dims", "many"], "--dims"),
        (["policy", "build", "--model", "m", "--out", "o", "--level", "2"], "level"),
        (["corruption", "search", "--model", "m"], "--forget"),
        (["classifier", "calibrate", "nowhere"], "--forget"),
        (["policy", "verify"], "PATH"),
        (["policy", "verify", "/no/such/folder"], "/no/such/folder"),
        (["forget"], "forget"),
    ],
)
def test_wrong_arguments(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_one_line(run(arguments, capsys), named)


def test_a_refused_variable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    path = bundle(tmp_path / "people").path
    check_one_line(run(["serve", "model", "--policy", str(path)], capsys), "VLLM_SERVER_DEV_MODE")
    assert not (tmp_path / "config").exists()


def test_a_secret_that_others_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, secret = bundle(tmp_path / "people").path, tmp_path / "secret"
    secret.write_text("ab" * 32)
    secret.chmod(0o644)
    arguments = ["serve", "model", "--policy", str(path), "--eco-secret-file", str(secret)]
    check_one_line(run(arguments, capsys), str(secret), "chmod 600")


def test_a_missing_example_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--{name}={tmp_path / name}" for name in ("forget", "retain", "out")]
    check_one_line(run(["policy", "build", "--model", "m", *files], capsys), str(tmp_path / "forget"))


def test_an_error_of_the_project_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(vllm_args: object, options: object) -> None:
        raise type("Special", (EcoError,), {})("two\nlines")

    monkeypatch.setattr("gateway.launch.serve", fail)
    check_one_line(run(["serve", "model", "--policy", "p"], capsys), "two lines")


def test_a_bug_is_not_dressed_up_as_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(vllm_args: object, options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gateway.launch.serve", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["serve", "model", "--policy", "p"])


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(vllm_args: object, options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gateway.launch.serve", interrupt)
    code, out, err = run(["serve", "model", "--policy", "p"], capsys)
    assert (code, out) == (130, "")
    assert "Traceback" not in err


# --- what reaches the server --------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments and options of the server that would have started."""
    seen: list[Any] = []
    monkeypatch.setattr("gateway.launch.serve", lambda vllm_args, options: seen.extend((vllm_args, options)))
    return seen


def test_vllms_flags_arrive_in_order_whatever_stands_between(served: list[Any]) -> None:
    first, second = "--port 9 -tp 2", "--dtype=float32 -O3"
    third, fourth = "--hf-overrides.x.y 1 --lora-modules one=1 two=2", "--enforce-eager"
    line = f"model --policy a {first} --eco-admin-port 7 {second} --policy=b {third} --eco-allow-untested {fourth}"
    main(["serve", *shlex.split(line)])
    vllm_args, options = served
    assert " ".join(vllm_args) == f"model {first} {second} {third} {fourth}"
    assert options.policies == (Path("a"), Path("b"))
    assert (options.admin_port, options.allow_untested, options.allow_multimodal) == (7, True, False)


def test_the_defaults_are_closed(served: list[Any], tmp_path: Path) -> None:
    main(["serve", "model", "--policy", "a"])
    options = served[1]
    assert (options.admin_host, options.admin_port, options.guard_timeout_s) == ("127.0.0.1", 8001, 10.0)
    assert (options.guard_queue_ms, options.guard_threads) == (5000.0, None)
    assert not options.allow_untested
    assert not options.allow_multimodal
    assert options.secret_file == tmp_path / "config" / "eco-gateway" / "secret"


def test_the_secret_file_may_come_from_the_environment(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECO_SECRET_FILE", "/run/secrets/eco")
    main(["serve", "model", "--policy", "a"])
    assert served[1].secret_file == Path("/run/secrets/eco")


# --- policy verify and show ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_verify_names_the_policy_and_its_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = bundle(tmp_path / "people")
    code, out, err = run(["policy", "verify", str(written.path)], capsys)
    assert (code, err) == (0, "")
    assert out == f"{written.path}: ok  people 3  digest {written.digest}\n"


def test_verify_against_a_model(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = bundle(tmp_path / "right", embedding_digest=EmbeddingRows.open(model).digest()).path
    wrong = bundle(tmp_path / "wrong").path
    assert run(["policy", "verify", str(right), "--model", str(model)], capsys)[0] == 0
    result = run(["policy", "verify", str(wrong), "--model", str(model)], capsys)
    check_one_line(result, "embedding_digest", "the-model", str(model))
    result = run(["policy", "verify", str(right), "--model", "/no/such/model"], capsys)
    check_one_line(result, "/no/such/model")


def test_show_prints_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = bundle(tmp_path / "people")
    code, out, err = run(["policy", "show", str(written.path)], capsys)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) < 25
    said = " ".join(out.split())
    for text in (written.digest, "people, version 3", "the-model", "strength 3, all of a flagged text", "0.5000"):
        assert text in said


def test_show_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = bundle(tmp_path / "people")
    code, out, err = run(["policy", "show", str(written.path), "--json"], capsys)
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert PolicyConfig.model_validate(shown["policy"]) == written.config
    assert shown["report"] == {"recall": 0.97, "größe": 3}
    assert shown["digest"] == written.digest
    assert "größe" in out


def test_a_policys_report_is_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, out = bundle(tmp_path / "people"), tmp_path / "people.html"
    assert run(["policy", "report", str(written.path), "--out", str(out)], capsys)[0] == 0
    page = out.read_text(encoding="utf-8")
    assert written.digest in page
    assert "the-model" in page
    check_one_line(run(["policy", "report", str(written.path), "--out", str(out)], capsys), str(out), "--force")
    assert run(["policy", "report", str(written.path), "--out", str(out), "--force"], capsys)[0] == 0


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_build_has_groups_and_an_example(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["policy", "build", flag], capsys)
    assert code == 0, err
    titles = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "What it is built from:"
    assert len(titles) >= 7
    assert "eco serve Qwen/Qwen2.5-7B-Instruct --policy policies/people" in out


def test_a_server_has_policies_or_no_guard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_one_line(run(["serve", "model"], capsys), "--policy", "--no-guard")
    check_one_line(run(["serve", "model", "--policy", "p", "--no-guard"], capsys), "--no-guard")
    seen: list[Any] = []
    monkeypatch.setattr("gateway.launch.serve", lambda arguments, options: seen.append((arguments, options.no_guard)))
    assert run(["serve", "model", "--no-guard", "--port", "9"], capsys)[0] == 0
    assert seen == [(("model", "--port", "9"), True)]
