"""A real admin address with the studio, on a real port; the classifier and the engine behind it are fakes."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pytest
from gateway_fakes import BOS, FORBIDDEN, FakeClassifier, FakeEngine, RecordingAudit, guard_with, late, until
from policies.test_active_policies import Loader

from gateway.admin import AdminServer, build_admin_app
from gateway.admin_key import AdminKeys
from gateway.admin_policies import policy_routes
from gateway.front_ends import FrontEnd
from gateway.metrics import GuardMetrics
from gateway.policies.active import ActivePolicies
from gateway.policies.folder import PolicyFolder
from gateway.protector import Protector
from gateway.traffic import Traffic
from guard import PolicyBundle

KEY = "the-key-of-the-operators"
SECRET = "Ruby"
"""The word that policies forget."""


class Words:
    """A tokenizer of words."""

    def __init__(self) -> None:
        self._known = {BOS: "<bos>", FORBIDDEN: SECRET}

    def render(self, said: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(said, str):
            return [self._id(word) for word in said.split(" ")]
        return [BOS, *(self._id(word) for message in said for word in message["content"].split(" "))]

    def _id(self, word: str) -> int:
        known = {said: number for number, said in self._known.items()}
        number = known.get(word, 100 + len(self._known))
        self._known[number] = word
        return number

    def spell(self, token: int) -> str:
        return self._known[token] if token == BOS else f"{self._known[token]} "


class Engine(FakeEngine):
    """Tells the secret unless it is masked; says one word, and the others when it is let to."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()

    async def generate(self, prompt: Any, params: Any, request_id: str, **options: Any) -> AsyncGenerator[Any, None]:
        self.prompts.append(prompt)
        words = ["I", " do", " not", " know."] if prompt["type"] == "embeds" else ["It", " was", f" {SECRET}."]
        try:
            for number, word in enumerate(words):
                if number:
                    await asyncio.to_thread(self.goes_on.wait, 20)
                reason = "stop" if number == len(words) - 1 else None
                yield SimpleNamespace(outputs=[SimpleNamespace(text=word, finish_reason=reason)])
        finally:
            self.closed += 1


class StudioServer:
    """Serves while it is entered.

    Args:
        place: a folder for policies and keys.
        static: policies of `--policy`; there is no policy folder then.
        has_key: ask for `KEY`.
        compares: answer without the guard too.
    """

    def __init__(
        self,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        static: Sequence[PolicyBundle] = (),
        has_key: bool = True,
        compares: bool = True,
    ) -> None:
        self.audit, self.engine, self.words = RecordingAudit(), Engine(), Words()
        self.folder = place / "policies"
        self.folder.mkdir(exist_ok=True)
        self.key_file = place / "keys" if has_key else None
        (place / "keys").write_text(KEY)
        self._static, self._compares, self._monkeypatch = tuple(static), compares, monkeypatch
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._stop: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._up.wait(0.05):
            assert self._thread.is_alive(), "it did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.goes_on.set()
        self._stop()
        self._thread.join(30)

    async def _serve(self) -> None:
        from gateway.studio.comparison import SideBySide, comparison_routes

        metrics, traffic, loader = GuardMetrics(), Traffic(), Loader()
        folder = None if self._static else PolicyFolder(self.folder)
        policies = ActivePolicies(
            self._static,
            folder,
            loader,  # type: ignore[arg-type]
            ["base"],
            lambda: bytes(32),
            metrics,
            self.audit,
        )
        wanted = ActivePolicies.prepare(self._static, folder, loader)  # type: ignore[arg-type]
        policies.start(lambda loaded, _: guard_with(self._monkeypatch, FakeClassifier(), loaded), wanted)
        protector = Protector(metrics, timeout_s=20.0)
        protector.start()
        traffic.open()
        guarded = late.GuardedEngine(self.engine, protector, metrics, traffic, policies, self.audit, answers=None)
        both = SideBySide(guarded.generate, self.engine.generate, traffic, self.audit, str)
        render = self.words.render

        async def everywhere(digest: str) -> bool:
            return digest == policies.current.digest

        async def healthy() -> None: ...

        routes = [
            policy_routes(policies, protector, render, self.words.spell, everywhere, compares=self._compares),
            comparison_routes(both if self._compares else None, render),
        ]
        app = build_admin_app(
            routes, partial(FrontEnd().metrics_text, metrics), healthy, lambda: traffic.closed_because
        )
        server = AdminServer(app, AdminKeys(self.key_file))
        self._stop = partial(setattr, server, "should_exit", True)
        serving = asyncio.create_task(server.serve_on(self._socket))
        watching = asyncio.create_task(policies.watch(lambda _: None))
        await until(lambda: server.started)
        self._up.set()
        await serving
        watching.cancel()
        protector.stop()
        policies.close()
