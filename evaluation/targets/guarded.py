"""Policies applied without a server: the gateway's own guard between a question and an offline model, and before the
answers that are scored, by each of three protocols (`evaluation.replies.AnswerProtocol`).

With the operator's secret file the noise is the server's own, token for token. Further draws have secrets derived
from it, so that figures can say how much of them is luck.
"""

import functools
import hashlib
import hmac
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from classifiers import Encoder, resolve_encoder
from classifiers.encoders.tokens import TokenClassifier
from corruption import STRENGTHLESS_METHODS, EmbeddingRows
from evaluation.errors import TargetError
from evaluation.replies import AnswerProtocol
from guard import Guard, GuardError, LoadedPolicy, ProtectedPrompt, decoder_of, load_bundle, load_policy, template_of
from guard.classification import FeatureCache
from scoring.scorer import CorruptedRows, Pair


@dataclass(frozen=True, slots=True)
class Protection:
    """What the guard makes of one prompt, with the answer that is scored after it if there is one.

    Attributes:
        flagged: whether any policy that is not merely observing flagged it.
        rows: what the model must see in place of its own rows, an answer's behind the prompt's; None: all passes as it
            is.
        refused_by: the policy that answers with an error instead; None: none does.
    """

    flagged: bool
    rows: CorruptedRows | None = None
    refused_by: str | None = None


@dataclass(frozen=True, slots=True)
class OpenedPolicies:
    """Policies loaded for one model.

    Attributes:
        policies: at least one.
        encoder: the one that they share; None where each has its own.
        rows: the model's embedding rows.
    """

    policies: tuple[LoadedPolicy, ...]
    encoder: Encoder | None
    rows: EmbeddingRows


def open_policies(folders: Sequence[Path], model: str, *, strength: float | None = None) -> OpenedPolicies:
    """Load policies for a model, and the encoder that they share.

    Args:
        folders: policy folders, at least one.
        model: the model that they are applied to; they must have been built for it.
        strength: instead of each policy's own.

    Raises:
        BundleError, PolicyMismatchError: a folder is no policy, or one of another model.
        TargetError: the policies do not go together, or take no strength.
    """
    bundles = []
    for bundle in map(load_bundle, folders):
        if strength is None:
            bundles.append(bundle)
            continue
        spec = bundle.config.corruption
        if spec.method in STRENGTHLESS_METHODS:
            raise TargetError(f"--strength: {bundle.path} corrupts by {spec.method}, which takes none")
        if not (math.isfinite(strength) and strength >= 0):
            raise TargetError(f"--strength: {strength}: give a finite number, 0 or more")
        changed = {"corruption": spec.model_copy(update={"strength": float(strength)})}
        # The digest stays: it seeds the noise, which is then the same at every strength.
        bundles.append(replace(bundle, config=bundle.config.model_copy(update=changed)))
    shared = {b.config.classifier.encoder for b in bundles if b.config.classifier.kind == "head"}
    if len(shared) > 1:
        raise TargetError(f"--policy: different encoders ({', '.join(sorted(shared))}); evaluate one at a time")
    encoder = Encoder.open(resolve_encoder(shared.pop())) if shared else None
    rows = EmbeddingRows.open(model)
    digest, opened = rows.digest(), dict[str, TokenClassifier]()
    policies = [
        load_policy(bundle, encoder, hidden_size=rows.hidden_size, embedding_digest=digest, token_classifiers=opened)
        for bundle in bundles
    ]
    return OpenedPolicies(tuple(policies), encoder, rows)


class GuardedPrompts:
    """Protects prompts, and the answers that are scored after them, under numbered noise draws; verdicts do not depend
    on the draw.

    Args:
        opened: the policies.
        tokenizer: the model's, of transformers.
        secret: of draw 0; the operator's, for the server's own noise.
        protocol: what becomes of the answers that are scored.
    """

    def __init__(
        self, opened: OpenedPolicies, tokenizer: Any, secret: bytes, *, protocol: AnswerProtocol = "served"
    ) -> None:
        self.protocol = protocol
        self._opened = opened
        self._decode, self._template = decoder_of(tokenizer), template_of(tokenizer)
        self._features = FeatureCache()
        self._secret = secret
        self._guards: dict[tuple[int, bool, int], Guard] = {}
        self._prompts: dict[tuple[int, tuple[int, ...], int], _Outcome] = {}
        self._flagged: dict[tuple[Pair, int], bool] = {}
        self._alike: dict[tuple[Pair, int], int] = {}

    def describe(self) -> list[dict[str, object]]:
        """Name, digest and corruption of each policy, as JSON values."""
        return [
            {
                "name": policy.name,
                "digest": policy.bundle.digest,
                "action": policy.bundle.config.action,
                "corruption": policy.bundle.config.corruption.model_dump(mode="json"),
            }
            for policy in self._opened.policies
        ]

    @property
    def secret_sha256(self) -> str:
        """Tells two secrets apart without giving one away."""
        return hashlib.sha256(self._secret).hexdigest()

    @functools.cached_property
    def table(self) -> torch.Tensor:
        """(V, D): all embedding rows, in the checkpoint's units."""
        rows = self._opened.rows
        return rows.rows(range(rows.vocab_size)).float()

    def protect(self, pairs: Sequence[Pair], draw: int, count: int | None = None) -> list[Protection]:
        """What each prompt, with its answer if it has one, becomes under a draw.

        Args:
            count: the first of the policies alone, as many of them; None: all.

        Raises:
            TargetError: one could not be classified or corrupted.
        """
        applied = self._applied(count)
        try:
            protections = [self._protected(pair, draw, applied) for pair in pairs]
        except GuardError as error:
            raise TargetError(f"the guard failed on a prompt: {error}") from error
        for pair, protection in zip(pairs, protections, strict=True):
            self._flagged[pair, applied] = protection.flagged
        return protections

    def flagged(self, pair: Pair, count: int | None = None) -> bool:
        """Whether anything of it is corrupted or refused, under whatever draw.

        Raises:
            TargetError: it could not be classified or corrupted.
        """
        applied = self._applied(count)
        if (pair, applied) not in self._flagged:
            self.protect([pair], 0, applied)
        return self._flagged[pair, applied]

    def first_alike(self, pair: Pair, count: int) -> int:
        """From how many of the first policies on, up to `count`, the pair is treated as under these: a later policy
        that leaves it alone changes nothing.

        Raises:
            TargetError: it could not be classified or corrupted.
        """
        applied = self._applied(count)
        if not applied:
            return 0
        if (pair, applied) not in self._alike:
            one, other = (self.protect([pair], 0, step)[0] for step in (applied - 1, applied))
            self._alike[pair, applied] = self.first_alike(pair, applied - 1) if _same(one, other) else applied
        return self._alike[pair, applied]

    def seconds(self, prompts: Sequence[tuple[int, ...]], count: int | None = None) -> list[float]:
        """Wall time of the verdict on each prompt, and its corruption, one after another, by a guard that has seen none
        of them.

        Raises:
            TargetError: one could not be classified or corrupted.
        """
        applied = self._applied(count)
        if not applied or not prompts:
            return [0.0] * len(prompts)
        times = []
        try:
            self._guard(0, applied).protect(prompts[0])  # what is loaded at first use is no prompt's
            guard = self._new_guard(self._secret, applied, FeatureCache())
            for prompt in prompts:
                started = time.perf_counter()
                guard.protect(prompt)
                times.append(time.perf_counter() - started)
        except GuardError as error:
            raise TargetError(f"the guard failed on a prompt: {error}") from error
        return times

    def _applied(self, count: int | None) -> int:
        most = len(self._opened.policies)
        if count is None:
            return most
        if not 0 <= count <= most:
            raise TargetError(f"policies: {count} are to be applied, and there are {most}")
        return count

    def _protected(self, pair: Pair, draw: int, count: int) -> Protection:
        if not count:
            return Protection(flagged=False)
        if not pair.answer_ids or self.protocol == "clean":
            return self._protected_prompt(pair.prompt_ids, draw, count).protection
        whole = pair.prompt_ids + pair.answer_ids
        if self.protocol == "served":
            # As the gateway, which reads what it generates, classifies prompts. Not kept: few answers are scored twice.
            return _protection(self._guard(draw, count, watched=True).protect(whole))
        of_prompt = self._protected_prompt(pair.prompt_ids, draw, count)
        if not of_prompt.corrupting:
            return of_prompt.protection
        return _protection(self._guard(draw, count).corrupt_all(whole, of_prompt.corrupting))

    def _protected_prompt(self, prompt: tuple[int, ...], draw: int, count: int) -> "_Outcome":
        """By a guard that reads prompts alone. Prompts seen before cost nothing."""
        if (draw, prompt, count) not in self._prompts:
            outcome = self._guard(draw, count).protect(prompt)
            corrupting = [
                number
                for number, verdict in enumerate(outcome.verdicts)
                if verdict.flagged and verdict.action == "corrupt" and outcome.refused_by is None
            ]
            found = _Outcome(_protection(outcome), tuple(corrupting))
            before = self._prompts.get((draw, prompt, count - 1))  # its rows are held once
            alike = before is not None and before.corrupting == found.corrupting
            if before is not None and alike and _same(before.protection, found.protection):
                found = before
            self._prompts[draw, prompt, count] = found
        return self._prompts[draw, prompt, count]

    def _guard(self, draw: int, count: int, *, watched: bool = False) -> Guard:
        if (draw, watched, count) not in self._guards:
            secret = self._secret
            if draw:
                secret = hmac.new(secret, f"noise draw {draw}".encode(), hashlib.sha256).digest()
            self._guards[draw, watched, count] = self._new_guard(secret, count, self._features, watched=watched)
        return self._guards[draw, watched, count]

    def _new_guard(self, secret: bytes, count: int, features: FeatureCache, *, watched: bool = False) -> Guard:
        return Guard(
            self._opened.policies[:count],
            encoder=self._opened.encoder,
            decode=self._decode,
            template=self._template,
            rows=self._opened.rows,
            features=features,
            secret=secret,
            dtype=torch.float32,  # in the checkpoint's units: the scorer scales and rounds, as the gateway would
            watched=watched,
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a prompt alone becomes, and the policies, by number, that corrupt it."""

    protection: Protection
    corrupting: tuple[int, ...]


def _same(one: Protection, other: Protection) -> bool:
    """Whether the model sees the same."""
    if (one.refused_by is None) != (other.refused_by is None) or (one.rows is None) != (other.rows is None):
        return False
    if one.rows is None or other.rows is None:
        return True
    return one.rows.positions == other.rows.positions and torch.equal(one.rows.rows, other.rows.rows)


def _protection(outcome: ProtectedPrompt) -> Protection:
    rows = None
    if outcome.refused_by is None and outcome.mask is not None:
        assert outcome.embeddings is not None
        positions = [position for position, masked in enumerate(outcome.mask) if masked]
        rows = CorruptedRows(positions, outcome.embeddings[positions], list(range(len(positions))))
    return Protection(rows is not None or outcome.refused_by is not None, rows, outcome.refused_by)
