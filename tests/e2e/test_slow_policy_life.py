"""A policy's whole life on a running server, under a stream of requests: none fails, and each is answered as the
policies of that moment say.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from otlp_receiver import Receiver, grpc_receiver, said
from recorded_gateway import environment, free_port

from demo.probes import Probe, probes
from demo.servers import ServerProcess, guarded_server
from demo.world import World

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow

KEYS = {"acme": "key-of-acme", "bolt": "key-of-bolt"}
ADMIN_KEY = "the-key-of-the-operators"


@dataclass
class Server:
    process: ServerProcess
    admin_port: int
    folder: Path
    audit: Path
    receiver: Receiver

    def eco(self, *arguments: str, code: int = 0) -> str:
        """An `eco policy` command, as an operator types it."""
        key_file = self.folder.parent / "admin-key"
        variables = {"ECO_ADMIN_URL": f"http://127.0.0.1:{self.admin_port}", "ECO_ADMIN_KEY_FILE": str(key_file)}
        done = subprocess.run(
            [sys.executable, "-m", "cli", "policy", *arguments],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def admin(self, path: str) -> httpx.Response:
        return httpx.get(
            f"http://127.0.0.1:{self.admin_port}{path}", headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=60
        )

    def metric(self, line: str) -> float:
        found = [row for row in self.admin("/metrics").text.splitlines() if row.startswith(line)]
        return sum(float(row.split()[-1]) for row in found)

    def lines(self) -> list[dict[str, Any]]:
        """Of the log."""
        return [json.loads(line) for line in self.process.log.read_text().splitlines() if line.startswith("{")]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@dataclass
class Load:
    """Two tenants that ask, one after the other, about the forgotten and the retained, until it ends."""

    url: str
    asked: list[Probe]
    answers: list[tuple[float, str, Probe, str]] = field(default_factory=list)
    """When it was asked for, by whom, what, and what came."""
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for tenant in KEYS:
            thread = threading.Thread(target=self._run, args=(tenant,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, tenant: str) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {KEYS[tenant]}"}, timeout=120) as client:
            while not self._stop.is_set():
                for probe in self.asked:
                    if self._stop.is_set():
                        return
                    started = time.monotonic()
                    body = {"model": "demo", "messages": list(probe.messages), "max_tokens": 24, "temperature": 0}
                    try:
                        answer = client.post(f"{self.url}/v1/chat/completions", json=body)
                    except httpx.HTTPError as error:
                        self.failures.append(repr(error))
                        continue
                    if answer.status_code != 200:
                        self.failures.append(answer.text)
                        continue
                    text = answer.json()["choices"][0]["message"]["content"]
                    self.answers.append((started, tenant, probe, text))

    def watch(self, rounds: float = 1.5) -> list[tuple[str, Probe, bool]]:
        """(tenant, probe, whether it was told) of what was asked from now on, every question some times."""
        since, enough = time.monotonic(), int(rounds * len(self.asked))
        deadline = since + 180
        while time.monotonic() < deadline:
            later = [one for one in self.answers if one[0] >= since]
            if all(sum(one[1] == tenant for one in later) >= enough for tenant in KEYS):
                return [(tenant, probe, probe.passed_by(text)) for _, tenant, probe, text in later]
            time.sleep(0.2)
        raise AssertionError(f"no answers: {self.failures[:3]}")


def told(seen: list[tuple[str, Probe, bool]], group: str, tenant: str | None = None) -> list[bool]:
    return [was for who, probe, was in seen if probe.group == group and tenant in (None, who)]


@pytest.fixture(scope="module")
def server(demo_build: "DemoBuild", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("policy-life")
    (place / "policies").mkdir()
    (place / "admin-key").write_text(ADMIN_KEY + "\n")
    admin_port = free_port()
    with grpc_receiver() as receiver, _server(demo_build, place, admin_port, receiver.url) as process:
        yield Server(process, admin_port, place / "policies", place / "audit.jsonl", receiver)


def _server(demo_build: "DemoBuild", place: Path, admin_port: int, receiver_url: str) -> ServerProcess:
    return guarded_server(
        demo_build.model,
        [],
        port=free_port(),
        admin_port=admin_port,
        log=place / "server.log",
        flags=(
            *("--otlp-traces-endpoint", receiver_url, "--eco-log-format", "json"),
            *("--policy-dir", str(place / "policies"), "--eco-secret-file", str(place / "secret")),
            *("--eco-admin-key-file", str(place / "admin-key"), "--eco-audit-log", str(place / "audit.jsonl")),
            *("--api-key", KEYS["acme"], "--api-key", KEYS["bolt"], "--eco-compare-answers"),
        ),
        environment=environment(1) | {"VLLM_LOGGING_LEVEL": "INFO"},
    )


def test_a_policys_whole_life_under_load(server: Server, demo_policy: Path, tmp_path: Path) -> None:
    from gateway.tenants import tenant_of_key

    world = World.generate()
    questions = [probe for probe in probes(world) if probe.kind == "held_out"]
    forgotten = [probe for probe in questions if probe.group == "forgotten"][::3]
    retained = [probe for probe in questions if probe.group == "retained"][::108]
    with Load(server.process.url, forgotten + retained) as load:
        # Nothing acts: plain vLLM.
        assert all(told(load.watch(1.0), "forgotten"))
        # Uploaded, it does not act either; observing, it counts and changes nothing.
        server.eco("push", str(demo_policy))
        name = server.admin("/v1/policies").json()["policies"][0]["name"]
        assert all(told(load.watch(0.5), "forgotten"))
        server.eco("activate", name, "--action", "observe")
        assert all(told(load.watch(1.0), "forgotten"))
        flagged = 'eco_verdicts_total{action="observe",flagged="true"'
        assert server.metric(flagged) >= len(forgotten)
        # Half of the prompts, always the same ones, for one tenant alone.
        acme = tenant_of_key(KEYS["acme"])
        server.eco("activate", name, "--action", "as-built", "--share", "50", "--for-tenant", acme)
        half = load.watch(2.0)
        assert all(told(half, "forgotten", "bolt"))
        by_probe: dict[str, set[bool]] = {}
        for tenant, probe, was in half:
            if tenant == "acme" and probe.group == "forgotten":
                by_probe.setdefault(probe.question, set()).add(was)
        assert {len(outcomes) for outcomes in by_probe.values()} == {1}
        assert 0 < sum(True in outcomes for outcomes in by_probe.values()) < len(forgotten)
        # All of its prompts; the other tenant is as untouched as before.
        server.eco("activate", name, "--share", "100")
        whole = load.watch(1.0)
        assert not any(told(whole, "forgotten", "acme"))
        assert all(told(whole, "forgotten", "bolt"))
        # One that is broken is refused, and what acts goes on.
        broken = tmp_path / "broken"
        shutil.copytree(demo_policy, broken)
        (broken / "head.safetensors").write_bytes(b"cut")
        assert "head.safetensors" in server.eco("push", str(broken), code=2)
        shutil.copytree(broken, server.folder / "dropped")
        wait_until(lambda: "head.safetensors" in str(server.admin("/v1/status").json()["refused"]))
        assert not any(told(load.watch(0.5), "forgotten", "acme"))
        shutil.rmtree(server.folder / "dropped")
        # For everybody, and back.
        server.eco("activate", name, "--for-tenant", "all")
        assert not any(told(load.watch(1.0), "forgotten"))
        server.eco("rollback", name)
        assert all(told(load.watch(1.0), "forgotten", "bolt"))
        # Gone: the model's own answers again.
        server.eco("delete", name)
        assert all(told(load.watch(1.0), "forgotten"))
        # Put into the folder and taken out again.
        shutil.copytree(demo_policy, server.folder / "people")
        wait_until(lambda: server.metric("eco_policies ") == 1)
        assert not any(told(load.watch(1.0), "forgotten"))
        shutil.rmtree(server.folder / "people")
        wait_until(lambda: server.metric("eco_policies ") == 0)
        assert all(told(load.watch(1.0), "forgotten"))
    assert load.failures == []
    assert all(probe.passed_by(text) for _, _, probe, text in load.answers if probe.group == "retained")
    kinds = {event["event"] for event in server.events()}
    assert {"started", "activated", "deactivated", "deleted", "refused", "flagged"} <= kinds
    assert {event["tenant"] for event in server.events() if event["event"] == "flagged"} >= {acme}


def test_an_operator_compares_answers_and_nobody_else(server: Server, demo_policy: Path) -> None:
    world = World.generate()
    probe = next(one for one in probes(world) if one.kind == "held_out" and one.group == "forgotten")
    asked = {"messages": list(probe.messages), "max_tokens": 24}
    server.eco("push", str(demo_policy))
    name = server.admin("/v1/policies").json()["policies"][0]["name"]
    server.eco("activate", name)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "X-Eco-By": "auditor"}
    url = f"http://127.0.0.1:{server.admin_port}"
    answer = httpx.post(f"{url}/v1/compare", json=asked, headers=headers, timeout=300)
    events = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]
    texts = {
        side: "".join(event.get("text", "") for event in events if event["side"] == side)
        for side in ("guarded", "unguarded")
    }
    assert probe.passed_by(texts["unguarded"])
    assert not probe.passed_by(texts["guarded"])
    (line,) = [event for event in server.events() if event["event"] == "compared"]
    assert line["by"] == "auditor"
    assert f"{line['request']}-guarded" in {event.get("request") for event in server.events()}
    for key, status in ((None, 401), (ADMIN_KEY, 401), (KEYS["acme"], 404)):
        keyed = {} if key is None else {"Authorization": f"Bearer {key}"}
        assert httpx.post(f"{server.process.url}/v1/compare", json=asked, headers=keyed).status_code == status
    assert httpx.post(f"{url}/v1/compare", json=asked).status_code == 401
    assert httpx.get(f"{url}/studio/").status_code == 200
    acme = {"Authorization": f"Bearer {KEYS['acme']}"}
    assert httpx.get(f"{server.process.url}/studio/", headers=acme).status_code == 404
    server.eco("delete", name)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_one_request_is_found_in_log_audit_and_trace(server: Server, demo_policy: Path) -> None:
    probe = next(one for one in probes(World.generate()) if one.kind == "held_out" and one.group == "forgotten")
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {
        "Authorization": f"Bearer {KEYS['bolt']}",
        "X-Request-Id": "ticket-4711",
        "traceparent": f"00-{trace}-{parent}-01",
    }
    shutil.copytree(demo_policy, server.folder / "people")
    wait_until(lambda: server.metric("eco_policies ") == 1)
    body = {"model": "demo", "messages": list(probe.messages), "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{server.process.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
    assert answer.json()["id"] == "chatcmpl-ticket-4711"
    found = server.receiver.wait_for(
        lambda spans: {"eco_request", "llm_request"} <= {span.name for span in spans if span.trace == trace}
    )
    shutil.rmtree(server.folder / "people")
    wait_until(lambda: server.metric("eco_policies ") == 0)

    spans = {span.name: span for span in found if span.trace == trace}
    assert {"eco_request", "eco_wait", "eco_classification", "eco_corruption", "llm_request"} <= set(spans)
    ours = spans.pop("eco_request")
    assert (ours.parent, ours.said["gen_ai.request.id"]) == (parent, "chatcmpl-ticket-4711")
    assert ours.said["eco.outcome"] == "corrupted"
    assert {span.parent for span in spans.values()} == {ours.id}
    vllms = spans["llm_request"]
    assert vllms.said["gen_ai.request.id"] == "chatcmpl-ticket-4711"
    assert vllms.process == ours.process
    assert ours.span.start_time_unix_nano == vllms.span.start_time_unix_nano  # the arrival
    assert spans["eco_corruption"].span.end_time_unix_nano < vllms.span.end_time_unix_nano
    (told,) = [said(event.attributes) for event in spans["eco_classification"].span.events]
    (event,) = [one for one in server.events() if one["event"] == "flagged" and "ticket-4711" in one["request"]]
    assert (told["eco.policy"], told["eco.policy.digest"]) == (event["policy"], event["digest"])
    assert told["eco.score"] == round(event["score"], 4)

    lines = [line for line in server.process.log.read_text().splitlines() if line.strip()]
    # What libraries print, and do not log, is as they print it.
    assert [line for line in lines if re.match(r"\W*(\(\w+ pid=\d+\) )?(INFO|WARNING|ERROR)", line)] == []
    access = [line for line in server.lines() if "ticket-4711" in line.get("request_id", "")]
    assert [line["logger"] for line in access] == ["uvicorn.access"]
    assert {line["process"] for line in server.lines()} >= {"MainProcess", "EngineCore"}
    assert {"vllm.eco_gateway", "uvicorn.access", "uvicorn.error"} <= {line["logger"] for line in server.lines()}
    everything = " ".join([*lines, *(str(span.span) for span in found)])
    assert probe.question not in everything


def test_the_admin_address_asks_for_its_key(server: Server) -> None:
    url = f"http://127.0.0.1:{server.admin_port}"
    assert httpx.get(f"{url}/v1/policies").status_code == 401
    assert httpx.get(f"{url}/v1/policies", headers={"Authorization": f"Bearer {KEYS['acme']}"}).status_code == 401
    assert httpx.get(f"{url}/livez").status_code == 200
    public = httpx.get(f"{server.process.url}/v1/policies", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    assert public.status_code == 401
    keyed = httpx.get(f"{server.process.url}/v1/policies", headers={"Authorization": f"Bearer {KEYS['acme']}"})
    assert keyed.status_code == 404


def test_all_user_keys_are_keys(server: Server) -> None:
    for key in KEYS.values():
        answer = httpx.get(f"{server.process.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
