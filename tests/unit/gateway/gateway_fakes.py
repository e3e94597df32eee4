"""What the gateway's tests put in place of an encoder and an engine. The guard's own decisions stay real."""

import asyncio
import importlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from corruption import CorruptionSpec
from gateway.audit import Audit
from guard import (
    ClassificationError,
    ClassifierConfig,
    Guard,
    LoadedPolicy,
    ModelConfig,
    PolicyBundle,
    PolicyConfig,
    ProtectedPrompt,
    Template,
    Verdict,
)
from guard.classification import Ids, Looked


class _Late:
    """Names of vLLM and of the wrapper around it, imported when a test asks for them and not when it is collected."""

    _modules = (
        "gateway.engine",
        "vllm.engine.protocol",
        "vllm.entrypoints.generate.beam_search.online",
        "vllm.exceptions",
        "vllm.inputs.engine",
        "vllm.logprobs",
        "vllm.lora.layers",
        "vllm.outputs",
        "vllm.sampling_params",
        "vllm.v1.engine",
        "vllm.v1.engine.exceptions",
    )

    def __getattr__(self, name: str) -> Any:
        modules = map(importlib.import_module, self._modules)
        return next(getattr(module, name) for module in modules if hasattr(module, name))


late = _Late()
WIDTH = 4
BOS = 0
#: A prompt that contains this id is flagged.
FORBIDDEN = 99


def policy(name: str = "people", *, action: str = "corrupt", on_error: str = "reject") -> LoadedPolicy:
    config = PolicyConfig.model_validate(
        {
            "schema_version": 1,
            "name": name,
            "version": "7",
            "model": ModelConfig(name="tiny", hidden_size=WIDTH, embedding_digest="a" * 64),
            "action": action,
            "corruption": CorruptionSpec(method="rand_noise_first_n", strength=3.0),
            "classifier": ClassifierConfig(encoder="e", encoder_digest="b" * 64, threshold=0.5),
            "answers": "off",
            "on_error": on_error,
        }
    )
    bundle = PolicyBundle(path=Path("/policies") / name, digest="c" * 64, config=config, report={})
    return LoadedPolicy(bundle=bundle, head=None)  # type: ignore[arg-type]


class FakeRows:
    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[float(i)] * WIDTH for i in token_ids])


class FakeClassifier:
    """Flags windows with `FORBIDDEN`; stands still while `gate` is closed, and raises what `error` gives."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: Callable[[tuple[int, ...]], Exception | None] = lambda ids: None

    def thresholds(self, windows: int) -> np.ndarray:
        return np.zeros(self.policies)

    def look(self, blocks: Sequence[Ids]) -> list[Looked]:
        self.entered.set()
        self.gate.wait(5.0)
        return [self._look(tuple(map(int, block))) for block in blocks]

    def _look(self, block: tuple[int, ...]) -> Looked:
        if (error := self.error(block)) is not None:
            raise error
        ranges = np.array([(0, len(block))] if block else []).reshape(-1, 2)
        logits = np.full((len(ranges), self.policies), 20.0 if FORBIDDEN in block else -20.0)
        return Looked(ranges, np.ones(len(block), dtype=np.int64), np.arange(self.policies), logits)

    policies = 1

    @property
    def low(self) -> np.ndarray:
        return np.zeros(self.policies)

    middle = high = low


class RecordingGuard(Guard):
    """A guard that keeps the prompts whose work was begun, and whose was done."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.begun: list[list[int]] = []
        self.done: list[list[int]] = []

    def protect_in_pieces(self, token_ids: Sequence[int]) -> Generator[int, None, ProtectedPrompt]:
        self.begun.append(list(token_ids))
        try:
            return (yield from super().protect_in_pieces(token_ids))
        finally:
            self.done.append(list(token_ids))


def guard_with(
    monkeypatch: pytest.MonkeyPatch, classifier: FakeClassifier, policies: Sequence[LoadedPolicy]
) -> RecordingGuard:
    """A real guard whose classifier is the fake one."""
    classifier.policies = len(policies)
    monkeypatch.setattr("guard.guard.WindowClassifier", lambda *_, **__: classifier)
    return RecordingGuard(
        policies,
        encoder=None,
        decode=str,
        template=Template(pieces={}, special_ids=frozenset({BOS})),
        rows=FakeRows(),
        secret=bytes(32),
    )


class RecordingAudit(Audit):
    """Keeps what it is told."""

    is_kept = True

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, kind: str, *, waits_s: float = 0.0, **said: Any) -> None:
        self.events.append({"event": kind, **said})

    def recorded(self, kind: str, **said: Any) -> bool:
        self.event(kind, **said)
        return True

    def prompt_digest(self, token_ids: Sequence[int]) -> str:
        return f"digest of {len(token_ids)}"


class FakePolicies:
    """One guard for every request, which reads no answers; None where no policy acts."""

    def __init__(self, guard: Any = None) -> None:
        self.guard = guard or SimpleNamespace(answers=None, policies=[policy()])
        self.current = SimpleNamespace(wanted=())
        self.asked: list[tuple[list[int], str | None, str | None]] = []

    def guard_for(self, token_ids: Sequence[int], *, tenant: str | None, adapter: str | None) -> Any:
        self.asked.append((list(token_ids), tenant, adapter))
        return self.guard


class FakeProtector:
    """Masks every `FORBIDDEN` id. Row values count the verdicts: a fresh one differs from one that was kept."""

    is_healthy = True

    def __init__(self) -> None:
        self.verdicts = 0
        self.error: Exception | None = None
        self.action: Any = "corrupt"
        self.groups: list[Any] = []

    async def protect(self, guard: Any, token_ids: list[int], group: Any = None, trace: Any = None) -> ProtectedPrompt:
        self.groups.append(group)
        if self.error is not None:
            raise self.error
        self.verdicts += 1
        mask = [token == FORBIDDEN for token in token_ids]
        verdict = Verdict("people", self.action, flagged=any(mask), score=float(any(mask)))
        if not any(mask) or self.action == "observe":
            return ProtectedPrompt(token_ids, verdicts=(verdict,))
        if self.action == "refuse":
            return ProtectedPrompt(token_ids, verdicts=(verdict,), refused_by="people")
        rows = torch.full((len(token_ids), WIDTH), float(self.verdicts))
        return ProtectedPrompt(token_ids, mask=mask, embeddings=rows, verdicts=(verdict,))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in a thread or another task."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.001)


def failed(reason: str) -> ClassificationError:
    error = ClassificationError("the prompt could not be classified")
    error.__cause__ = RuntimeError(reason)
    return error


class FakeEngine:
    """vLLM's client as far as the wrapper may use it, and permissive beyond: whatever is called is remembered."""

    def __init__(self) -> None:
        self.vllm_config, self.model_config = object(), object()
        self.renderer, self.input_processor = FakeRenderer(), FakeInputProcessor()
        self.is_running, self.is_stopped, self.errored = True, False, False
        self.dead_error = RuntimeError("dead")
        self.prompts: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.closed = 0
        self.answers: Callable[[Any, str], list[Any]] = lambda prompt, request_id: ["one", "two", "three"]

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        self.prompts.append(prompt)
        self.options.append(options)
        try:
            for answer in self.answers(prompt, request_id):
                yield answer
        finally:
            self.closed += 1

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return f"{name} done"

        return call


class FakeInputProcessor:
    """Knows prompts of up to `max_tokens` ids."""

    max_tokens = 100

    def resolve_watermarking(self, params: Any) -> None: ...

    def _validate_model_inputs(self, encoder_prompt: Any, prompt: Any) -> None:
        if len(prompt["prompt_token_ids"]) > self.max_tokens:
            raise late.VLLMValidationError("too long")


class FakeRenderer:
    eos_token_id = 2

    def get_tokenizer(self) -> "FakeRenderer":
        return self

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        return " ".join(map(str, token_ids))
