"""`eco evaluate successive`: what it refuses, and what it does to a server's policies by its admin address."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eco_command import check_one_line, run
from scripted_endpoint import error, ok, running, texts

import guard
from cli import successive
from cli.policy_service import AdminAddress, AdminError
from cli.successive import AdminPolicies
from evaluation.runs.record import read_record
from evaluation.successive import sequence
from evaluation.targets import options as target_options

PAIR = ["--add", "policies/ann", "ann.jsonl"]
BASIC = ["evaluate", "successive", "--target", "m", "--retain", "r.jsonl", "--out", "o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--add, --additions: give the policies by one of them"),
        ([*PAIR, "--additions", "all.jsonl"], "--add, --additions: give the policies by one of them"),
        ([*PAIR, "--policy", "p"], "--policy: is there from the start; add it with --add"),
        ([*PAIR, "--retain-run", "r"], "--retain-run: a model that never learned has no policies"),
        ([*PAIR, "--target", "http://localhost:8000/v1"], "--admin: is missing"),
        (["--additions", "none.jsonl"], "--additions: none.jsonl: no such file"),
        (["--add", "policies/ann"], "--add"),
    ],
)
def test_what_is_refused_at_once(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ECO_ADMIN_URL", raising=False)
    check_one_line(run([*BASIC, *arguments], capsys), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--add", "--additions"])
def test_a_folder_that_is_no_policy_is_refused_by_its_flag(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(path: Path) -> object:
        raise guard.BundleError(f"{path}: no such policy folder")

    monkeypatch.setattr(guard, "load_bundle", missing)
    file = tmp_path / "all.jsonl"
    file.write_text('{"policy": "ann", "forget": "ann.jsonl"}\n')
    given = PAIR if flag == "--add" else ["--additions", str(file)]
    check_one_line(run([*BASIC, *given], capsys), f"{flag}: ", "no such policy folder")


class Address(AdminAddress):
    """An admin address that is not there: it remembers what was asked, and says what a server would."""

    known: dict[str, bool]
    log: list[tuple[str, str, Any]]
    late: int

    def __init__(self, known: dict[str, bool] | None = None, late: int = 0) -> None:
        super().__init__("http://localhost:8001")
        for name, value in (("known", known or {}), ("log", []), ("late", late)):
            object.__setattr__(self, name, value)

    def push(self, path: Path) -> dict[str, Any]:
        self.log.append(("push", path.name, None))
        return {"name": path.name, "digest": "d"}

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        self.log.append((method, path, options.get("json")))
        if path == "/policies":
            return {"policies": [{"name": name, "active": active} for name, active in self.known.items()]}
        object.__setattr__(self, "late", self.late - 1)
        return {"everywhere": self.late < 0}


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(path: Path) -> object:
        return SimpleNamespace(digest="d", config=SimpleNamespace(name=path.name, action="corrupt"))

    for module in (guard, sequence, target_options):  # all imported before: what is put there is taken away again
        monkeypatch.setattr(module, "load_bundle", config)
    monkeypatch.setattr(successive, "_LOOK_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


FOLDERS = [Path("a"), Path("b")]


def test_policies_are_pushed_once_and_deleted_at_the_end() -> None:
    address = Address({"other": False})
    policies = AdminPolicies(address, FOLDERS)
    for count in (2, 0, 1):
        policies.apply(count)
    policies.close()
    on, off = {"active": True}, {"active": False}
    assert address.log == [
        ("GET", "/policies", None),
        ("push", "a", None),
        ("POST", "/policies/a/activation", on),
        ("push", "b", None),
        ("POST", "/policies/b/activation", on),
        ("POST", "/policies/b/activation", off),
        ("POST", "/policies/a/activation", off),
        ("POST", "/policies/a/activation", on),
        ("DELETE", "/policies/b", None),
        ("DELETE", "/policies/a", None),
    ]


def test_one_that_cannot_be_deleted_is_named_and_keeps_no_other_there() -> None:
    class Stubborn(Address):
        def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
            said = super().ask(method, path, **options)
            if (method, path) == ("DELETE", "/policies/b"):
                raise AdminError("refuses (500): no")
            return said

    address = Stubborn()
    policies = AdminPolicies(address, FOLDERS)
    policies.apply(2)
    with pytest.raises(AdminError, match=r"refuses \(500\): no; these policies are left there, .*: b$"):
        policies.close()
    assert address.log[-1] == ("DELETE", "/policies/a", None)


def test_one_that_was_being_pushed_is_deleted_too() -> None:
    class Interrupted(Address):
        def push(self, path: Path) -> dict[str, Any]:
            super().push(path)
            raise KeyboardInterrupt

    address = Interrupted()
    policies = AdminPolicies(address, FOLDERS)
    with pytest.raises(KeyboardInterrupt):
        policies.apply(1)
    policies.close()
    assert address.log[-1] == ("DELETE", "/policies/a", None)


def test_a_step_waits_for_all_front_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address(late=2)
    AdminPolicies(address, FOLDERS).apply(1)
    assert [path for _, path, _ in address.log[-3:]] == ["/policies/a/activation", "/status", "/status"]
    monkeypatch.setattr(successive, "_EVERYWHERE_S", 0.0)
    with pytest.raises(AdminError, match="not all front ends have policy a after 0 s"):
        AdminPolicies(Address(late=10**6), FOLDERS).apply(1)


def test_a_server_with_policies_of_its_own_is_left_alone() -> None:
    for known, message in (
        ({"other": True}, "--admin: policy other acts there already"),
        ({"b": False}, "--admin: policy b is known there already"),
    ):
        address = Address(known)
        policies = AdminPolicies(address, FOLDERS)
        with pytest.raises(AdminError, match=message):
            policies.apply(1)
        policies.close()
        assert [method for method, *_ in address.log] == ["GET"]


def test_verdicts_are_timed_over_one_connection_after_one_that_is_not(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with running() as server:
        server.rule = lambda path, body: ok({"verdicts": []}) if path == "/v1/classify" else error(404, "")
        times = AdminPolicies(AdminAddress(server.url, key), FOLDERS).classify_ms(["Who?", "Where?"])
    assert len(times) == 2
    assert [body["messages"][0]["content"] for _, body in server.requests] == ["Who?", "Who?", "Where?"]
    assert len(server.connections) == 1
    assert server.keys == {"Bearer secret"}


def test_what_refuses_to_be_timed_is_an_error_of_the_address() -> None:
    with running() as server:
        server.rule = lambda path, body: error(503, "the queue is full")
        with pytest.raises(AdminError, match=r"refuses \(503\): the queue is full"):
            AdminPolicies(AdminAddress(server.url), FOLDERS).classify_ms(["Who?"])


# --- the command over a server -------------------------------------------------------------------------------------


class Switch:
    """Policies of an admin address that is not there; `log` is what was done to them."""

    log: list[object] = []  # noqa: RUF012

    def __init__(self, address: AdminAddress, folders: Sequence[Path]) -> None:
        self.log.append(address.url)
        self.names = [folder.name for folder in folders]

    def describe(self) -> list[dict[str, object]]:
        return [{"name": name, "digest": "d", "action": "corrupt"} for name in self.names]

    def apply(self, count: int) -> None:
        self.log.append(count)

    def classify_ms(self, prompts: Sequence[str]) -> list[float]:
        return [3.0] * len(prompts)

    def close(self) -> None:
        self.log.append("closed")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setattr(successive, "AdminPolicies", Switch)
    monkeypatch.setattr(Switch, "log", [])
    for name in ("ann", "bob", "kept"):
        row = {"question": f"Where was {name} born?", "answer": "In Zelburg."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    added = [part for name in ("ann", "bob") for part in ("--add", tmp_path / name, tmp_path / f"{name}.jsonl")]
    where = ["--admin", "http://localhost:8001", "--out", tmp_path / "run", "--retries", 0, "--generated-only"]
    return ["evaluate", "successive", "--retain", tmp_path / "kept.jsonl", *where, *added]


def test_the_policies_are_put_around_the_server_and_taken_away(
    command: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as server:
        server.rule = lambda path, body: ok(texts("In Zelburg."))
        code, printed, _ = run([*command, "--target", server.url], capsys)
    assert code == 0
    assert "after" in printed
    assert Switch.log == ["http://localhost:8001", 2, 0, 1, 2, 0, 1, 2, "closed"]  # the check, the answers, the times
    record = read_record(tmp_path / "run")
    assert (record.kind, record.label) == ("guarded", "guarded: 2 policies in turn")
    assert [one["name"] for one in record.target["policies"]] == ["ann", "bob"]
    found = {figure.name: figure.value for figure in record.figures}
    assert found["latency/classify_ms/after_2"] == 3
    assert found["forget/rouge_l/after_2"] == 1


def test_the_policies_are_taken_away_where_the_server_fails(
    command: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as server:
        server.rule = lambda path, body: error(400, "no more")
        check_one_line(run([*command, "--target", server.url], capsys), "answered 400 (no more)")
    assert Switch.log[-1] == "closed"
