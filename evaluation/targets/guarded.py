"""Policies applied without a server: the gateway's own guard between a question and an offline model, and before the
answers that are scored, by each of three protocols (`evaluation.replies.AnswerProtocol`).

With the operator's secret file the noise is the server's own, token for token. Further draws have secrets derived
from it, so that figures can say how much of them is luck.
"""

import functools
import hashlib
import hmac
import math
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
        self._guards: dict[tuple[int, bool], Guard] = {}
        self._prompts: dict[tuple[int, tuple[int, ...]], _Outcome] = {}
        self._flagged: dict[Pair, bool] = {}

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

    def protect(self, pairs: Sequence[Pair], draw: int) -> list[Protection]:
        """What each prompt, with its answer if it has one, becomes under a draw.

        Raises:
            TargetError: one could not be classified or corrupted.
        """
        try:
            protections = [self._protected(pair, draw) for pair in pairs]
        except GuardError as error:
            raise TargetError(f"the guard failed on a prompt: {error}") from error
        self._flagged.update(zip(pairs, (protection.flagged for protection in protections), strict=True))
        return protections

    def flagged(self, pair: Pair) -> bool:
        """Whether anything of it is corrupted or refused, under whatever draw.

        Raises:
            TargetError: it could not be classified or corrupted.
        """
        if pair not in self._flagged:
            self.protect([pair], draw=0)
        return self._flagged[pair]

    def _protected(self, pair: Pair, draw: int) -> Protection:
        if not pair.answer_ids or self.protocol == "clean":
            return self._protected_prompt(pair.prompt_ids, draw).protection
        whole = pair.prompt_ids + pair.answer_ids
        if self.protocol == "served":
            # As the gateway, which reads what it generates, classifies prompts. Not kept: no answer is scored twice.
            return _protection(self._guard(draw, watched=True).protect(whole))
        of_prompt = self._protected_prompt(pair.prompt_ids, draw)
        if not of_prompt.corrupting:
            return of_prompt.protection
        return _protection(self._guard(draw).corrupt_all(whole, of_prompt.corrupting))

    def _protected_prompt(self, prompt: tuple[int, ...], draw: int) -> "_Outcome":
        """By a guard that reads prompts alone. Prompts seen before cost nothing."""
        if (draw, prompt) not in self._prompts:
            outcome = self._guard(draw).protect(prompt)
            corrupting = [
                number
                for number, verdict in enumerate(outcome.verdicts)
                if verdict.flagged and verdict.action == "corrupt" and outcome.refused_by is None
            ]
            self._prompts[draw, prompt] = _Outcome(_protection(outcome), tuple(corrupting))
        return self._prompts[draw, prompt]

    def _guard(self, draw: int, *, watched: bool = False) -> Guard:
        if (draw, watched) not in self._guards:
            secret = self._secret
            if draw:
                secret = hmac.new(secret, f"noise draw {draw}".encode(), hashlib.sha256).digest()
            self._guards[draw, watched] = Guard(
                self._opened.policies,
                encoder=self._opened.encoder,
                decode=self._decode,
                template=self._template,
                rows=self._opened.rows,
                features=self._features,
                secret=secret,
                dtype=torch.float32,  # in the checkpoint's units: the scorer scales and rounds, as the gateway would
                watched=watched,
            )
        return self._guards[draw, watched]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a prompt alone becomes, and the policies, by number, that corrupt it."""

    protection: Protection
    corrupting: tuple[int, ...]


def _protection(outcome: ProtectedPrompt) -> Protection:
    rows = None
    if outcome.refused_by is None and outcome.mask is not None:
        assert outcome.embeddings is not None
        positions = [position for position, masked in enumerate(outcome.mask) if masked]
        rows = CorruptedRows(positions, outcome.embeddings[positions], list(range(len(positions))))
    return Protection(rows is not None or outcome.refused_by is not None, rows, outcome.refused_by)
