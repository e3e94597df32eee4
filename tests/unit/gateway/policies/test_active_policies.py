"""Policies in force: changed whole, off the requests' way, never to nothing by an error. Loader and guard are fakes."""

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateway_fakes import RecordingAudit, until
from prometheus_client import generate_latest

from gateway.audit import Audit, AuditFile
from gateway.metrics import GuardMetrics
from gateway.policies.activation import Activation
from gateway.policies.active import ActivePolicies
from gateway.policies.folder import PolicyFolder, Wanted
from gateway.policies.records import FolderError
from guard import LoadedPolicy, PolicyBundle, PolicyMismatchError, SecretError


class Loader:
    """Knows what does not belong here by its version."""

    def load(self, bundle: PolicyBundle, *, at_start: bool = False) -> LoadedPolicy:
        if bundle.config.version == "foreign":
            raise PolicyMismatchError(f"{bundle.path}: built for another model")
        return LoadedPolicy(bundle)

    def load_all(self, wanted: Sequence[Any], *, at_start: bool = False) -> list[LoadedPolicy]:
        loaded = [(self.load(one.bundle), one.config) for one in wanted]
        return [LoadedPolicy(replace(policy.bundle, config=config)) for policy, config in loaded]

    def forget_all_but(self, policies: Sequence[LoadedPolicy]) -> None: ...


@dataclass
class Made:
    """What was asked of the one who makes guards."""

    policies: list[LoadedPolicy]
    secret: bytes
    applies: list[bool] | None = None

    def only(self, applies: np.ndarray) -> "Made":
        return Made(self.policies, self.secret, applies.tolist())


@dataclass
class Setup:
    place: Path
    secret: Callable[[], bytes] = lambda: b"1" * 32
    audit: RecordingAudit = field(default_factory=RecordingAudit)
    metrics: GuardMetrics = field(default_factory=GuardMetrics)
    policies: Any = None

    def begin(self, *static: PolicyBundle) -> ActivePolicies:
        folder, loader = PolicyFolder(self.place), Loader()
        wanted = ActivePolicies.prepare(static, folder, loader)  # type: ignore[arg-type]
        self.policies = ActivePolicies(
            static,
            folder,
            loader,  # type: ignore[arg-type]
            ["base"],
            lambda: self.secret(),
            self.metrics,
            self.audit,
        )
        self.policies.start(lambda policies, secret: Made(list(policies), secret), wanted)
        return self.policies  # type: ignore[no-any-return]

    async def settle(self) -> None:
        for _ in range(2):
            await self.policies.refresh()

    def begin_with(self, policies: Sequence[Wanted], audit: Audit) -> ActivePolicies:
        """A server that starts with these, and has no folder."""
        self.policies = ActivePolicies(
            [one.bundle for one in policies],
            None,
            Loader(),  # type: ignore[arg-type]
            ["base"],
            lambda: self.secret(),
            self.metrics,
            audit,
        )
        self.policies.start(lambda policies, secret: Made(list(policies), secret), tuple(policies))
        return self.policies  # type: ignore[no-any-return]

    def ask(self, **who: str) -> Any:
        return self.policies.guard_for([1, 2], **({"tenant": None, "adapter": None} | who))

    def names(self) -> list[str]:
        guard = self.ask()
        return [] if guard is None else [policy.name for policy in guard.policies]

    def events(self) -> list[tuple[str, str | None]]:
        return [(event["event"], event.get("policy")) for event in self.audit.events]


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    (tmp_path / "policies").mkdir()
    made = Setup(tmp_path / "policies")
    yield made
    if made.policies is not None:
        made.policies.close()


async def test_without_policies_every_prompt_passes(setup: Setup) -> None:
    setup.begin()
    assert setup.ask() is None


async def test_policies_come_change_and_go(setup: Setup, make_bundle) -> None:
    setup.begin()
    for version in ("1", "2"):
        bundle = make_bundle(setup.place / "x", version=version)
        await setup.settle()
        assert setup.ask().policies[0].bundle.digest == bundle.digest
    shutil.rmtree(setup.place / "x")
    await setup.settle()
    assert setup.ask() is None
    assert setup.events() == [("activated", "people"), ("activated", "people"), ("deactivated", "people")]
    assert [entry.event for entry in setup.policies.folder.record("people").entries] == [
        "activated",
        "activated",
        "deactivated",
    ]


async def test_a_request_keeps_the_guard_it_began_with(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    before = setup.ask()
    make_bundle(setup.place / "x", version="2")
    await setup.settle()
    assert [policy.bundle.config.version for policy in before.policies] == ["1"]
    assert setup.ask() is not before


async def test_nothing_changes_where_nothing_did(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    before = setup.ask()
    await setup.settle()
    assert setup.ask() is before


async def test_what_is_not_for_this_model_is_refused_once_and_the_old_one_acts(setup: Setup, make_bundle) -> None:
    first = make_bundle(setup.place / "x")
    setup.begin()
    make_bundle(setup.place / "x", version="foreign")
    for _ in range(3):
        await setup.settle()
    assert setup.ask().policies[0].bundle.digest == first.digest
    assert "another model" in setup.policies.refused["people"]
    assert setup.events().count(("refused", None)) == 1
    assert setup.metrics.registry.get_sample_value("eco_policy_activations_total", {"outcome": "refused"}) == 1


async def test_at_the_start_it_is_an_error(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x", version="foreign")
    with pytest.raises(PolicyMismatchError):
        setup.begin()


async def test_a_lost_folder_changes_nothing(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    shutil.rmtree(setup.place)
    await setup.settle()
    assert setup.names() == ["people"]
    assert setup.policies.refused


async def test_an_error_nobody_foresaw_changes_nothing(
    setup: Setup, make_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    monkeypatch.setattr(PolicyFolder, "scan", lambda self: 1 / 0)
    await setup.policies.refresh()
    assert setup.names() == ["people"]
    assert setup.policies.refused == {"policy folder": "ZeroDivisionError"}


async def test_a_version_that_was_lost_acts_on(setup: Setup, make_bundle, tmp_path: Path) -> None:
    setup.begin()
    bundle = await setup.policies.add(make_bundle(tmp_path / "x"))
    await setup.policies.say("people", lambda _: Activation(digest=bundle.digest), by="me")
    setup.policies.folder._kept.clear()
    shutil.rmtree(bundle.path)
    await setup.policies.refresh()
    assert setup.names() == ["people"]
    assert "no version" in setup.policies.refused[".eco/people"]


async def test_what_others_said_meanwhile_holds(setup: Setup, make_bundle) -> None:
    """A replica that starts or swaps late writes down what it saw, and undoes nothing."""
    make_bundle(setup.place / "x")
    setup.begin()
    late = setup.policies.folder.scan().wanted[0]
    await setup.policies.say("people", lambda _: Activation(active=False), by="me")
    setup.policies.folder.note_put(late)
    await setup.settle()
    assert setup.names() == []
    assert setup.policies.folder.record("people").current == Activation(active=False)


async def test_two_changes_at_once_both_hold(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    await asyncio.gather(
        setup.policies.say("people", lambda holds: holds.model_copy(update={"share": 50.0}), by="me"),
        setup.policies.say("people", lambda holds: holds.model_copy(update={"action": "observe"}), by="you"),
    )
    activation = setup.policies.current.wanted[0].activation
    assert (activation.share, activation.action) == (50.0, "observe")


async def test_a_change_that_does_not_come_in_force_is_taken_back(
    setup: Setup, make_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    await setup.policies.say("people", lambda _: Activation(share=50), by="me")
    made = ActivePolicies._made
    monkeypatch.setattr(ActivePolicies, "_made", lambda *_: 1 / 0)
    with pytest.raises(FolderError, match="ZeroDivisionError"):
        await setup.policies.say("people", lambda _: Activation(action="observe"), by="me")
    monkeypatch.setattr(ActivePolicies, "_made", made)
    await setup.policies.refresh()
    assert setup.policies.current.wanted[0].activation == Activation(share=50)


async def test_a_look_that_fails_is_not_the_last(setup: Setup, make_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.policies.active.POLL_S", 0.01)
    setup.begin()
    calls = 0

    def failing(self: PolicyFolder, one: Any) -> None:
        nonlocal calls
        calls += 1
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(PolicyFolder, "note_put", failing)
    watching = asyncio.create_task(setup.policies.watch(lambda _: None))
    make_bundle(setup.place / "x")
    await until(lambda: setup.names() == ["people"] and calls == 1)
    make_bundle(setup.place / "y", "books")
    await until(lambda: setup.names() == ["books", "people"])
    assert not watching.done()
    watching.cancel()


async def test_a_new_secret_moves_no_prompt_out_of_a_share(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    await setup.policies.say("people", lambda _: Activation(share=50), by="me")

    def inside() -> list[bool]:
        return [setup.policies.guard_for([n], tenant=None, adapter=None) is not None for n in range(200)]

    before = inside()
    setup.secret = lambda: b"3" * 32
    await setup.policies.refresh()
    assert inside() == before
    assert 60 < sum(before) < 140


async def test_static_policies_come_first_and_stay(setup: Setup, make_bundle, tmp_path: Path) -> None:
    static = make_bundle(tmp_path / "static", "people")
    setup.begin(static)
    make_bundle(setup.place / "x", "books")
    make_bundle(setup.place / "y", "people", version="2")
    await setup.settle()
    assert setup.names() == ["people", "books"]
    assert "--policy" in setup.policies.refused["people"]
    with pytest.raises(FolderError, match="--policy"):
        await setup.policies.say("people", lambda _: Activation(active=False), by="me")


async def test_a_name_that_is_used_twice_at_the_start_is_an_error(setup: Setup, make_bundle, tmp_path: Path) -> None:
    make_bundle(setup.place / "x")
    with pytest.raises(FolderError, match="used twice"):
        setup.begin(make_bundle(tmp_path / "static"))


async def test_activations_act_as_they_say(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    await setup.policies.say("people", lambda _: Activation(action="observe", tenants=("acme",)), by="me")
    assert setup.ask(tenant="other") is None
    guard = setup.ask(tenant="acme")
    assert guard.policies[0].bundle.config.action == "observe"
    await setup.policies.roll_back("people", by="me")
    assert setup.ask(tenant="other").policies[0].bundle.config.action == "corrupt"
    assert setup.audit.events[-1]["by"] == "me"


async def test_some_of_the_policies(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x", "people")
    make_bundle(setup.place / "y", "books")
    setup.begin()
    await setup.policies.say("people", lambda _: Activation(models=("french",)), by="me")
    assert setup.ask().applies == [True, False]
    assert setup.ask(adapter="french").applies is None
    assert setup.policies.among(["people"]).applies == [False, True]
    with pytest.raises(FolderError, match="songs"):
        setup.policies.among(["people", "songs"])


async def test_an_activation_that_cannot_be_had_changes_nothing(setup: Setup, make_bundle, tmp_path: Path) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    foreign = setup.policies.folder.keep(make_bundle(tmp_path / "foreign", version="foreign"))
    with pytest.raises(PolicyMismatchError):
        await setup.policies.say("people", lambda _: Activation(digest=foreign.digest), by="me")
    with pytest.raises(PolicyMismatchError):
        await setup.policies.add(make_bundle(tmp_path / "other", "other", version="foreign"))
    assert setup.policies.folder.names() == ["people"]
    assert setup.policies.folder.record("people").current == Activation()


async def test_a_new_secret_is_taken_up_and_a_bad_one_is_not(setup: Setup, make_bundle) -> None:
    make_bundle(setup.place / "x")
    setup.begin()
    setup.secret = lambda: b"2" * 32
    await setup.policies.refresh()
    assert setup.ask().secret == b"2" * 32

    def bad() -> bytes:
        raise SecretError("secret file: cannot be read")

    setup.secret = bad
    await setup.policies.refresh()
    assert setup.ask().secret == b"2" * 32
    assert "secret" in setup.policies.refused


async def test_replicas_that_do_the_same_say_the_same(setup: Setup, make_bundle, tmp_path: Path) -> None:
    bundle = make_bundle(setup.place / "x")
    setup.begin()
    (tmp_path / "replica").mkdir()
    other = Setup(tmp_path / "replica")
    other.begin()
    other.policies.folder.keep(bundle)
    await other.policies.say("people", lambda _: Activation(digest=bundle.digest), by="me")
    assert other.policies.current.digest == setup.policies.current.digest
    await other.policies.say("people", lambda _: Activation(digest=bundle.digest, share=50), by="me")
    assert other.policies.current.digest != setup.policies.current.digest
    other.policies.close()


async def test_metrics_say_what_is_in_force(setup: Setup, make_bundle) -> None:
    bundle = make_bundle(setup.place / "x")
    setup.begin()
    await setup.policies.say("people", lambda _: Activation(action="observe"), by="me")
    lines = generate_latest(setup.metrics.policies).decode().splitlines()
    info = 'eco_policy_info{action="observe",answers="off",digest="%s",policy="people",version="1"} 1.0'
    assert info % bundle.digest[:16] in lines
    assert f'eco_policy_set_info{{digest="{setup.policies.current.digest[:16]}"}} 1.0' in lines
    assert "eco_policies 1.0" in lines


async def test_the_folder_is_followed(setup: Setup, make_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.policies.active.POLL_S", 0.01)
    setup.begin()
    told: list[str] = []
    watching = asyncio.create_task(setup.policies.watch(told.append))
    make_bundle(setup.place / "x")
    await until(lambda: setup.names() == ["people"] and told[-1] == setup.policies.current.digest)
    watching.cancel()


MANY = 12_000  # more than the audit log's queue has room for


def many(bundle: PolicyBundle) -> list[Wanted]:
    return [
        Wanted(replace(bundle, config=bundle.config.model_copy(update={"name": f"policy-{number}"})), Activation())
        for number in range(MANY)
    ]


def test_a_start_with_many_policies_loses_no_line_of_the_audit_log(
    setup: Setup, make_bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[str] = []
    audit = AuditFile(tmp_path / "audit.jsonl", max_bytes=1 << 30, backups=1, secret=bytes(32), lost=lost.append)
    logger = logging.getLogger("vllm.eco_gateway")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            setup.begin_with(many(make_bundle(tmp_path / "one")), audit)
    finally:
        logger.removeHandler(caplog.handler)
    audit.close()
    told = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["policy"] for line in told] == [f"policy-{number}" for number in range(MANY)]
    assert {line["event"] for line in told} == {"activated"}
    assert lost == []
    assert set(caplog.messages) == {f"{MANY} policies act from now on, 0 no longer (start)"}


async def test_what_changes_of_many_is_found_and_told_off_the_event_loop(
    setup: Setup, make_bundle, tmp_path: Path
) -> None:
    class Audited(RecordingAudit):
        def __init__(self) -> None:
            super().__init__()
            self.threads: set[int] = set()

        def event(self, kind: str, *, waits_s: float = 0.0, **said: Any) -> None:
            self.threads.add(threading.get_ident())
            super().event(kind, waits_s=waits_s, **said)

    audit = Audited()
    policies = setup.begin_with(many(make_bundle(tmp_path / "one")), audit)
    audit.threads.clear()
    audit.events.clear()
    setup.secret = lambda: b"2" * 32
    before = policies.current
    gone = policies.static[-1].config.name
    policies.static = policies.static[:-1]  # as a folder of so many would say, without writing them
    await policies.refresh()
    assert (len(before.wanted), len(policies.current.wanted)) == (MANY, MANY - 1)
    assert [(event["event"], event["policy"]) for event in audit.events] == [("deactivated", gone)]
    assert threading.get_ident() not in audit.threads
