"""Policies applied without a server: the gateway's own guard between a question and an offline model.

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
from guard import Guard, GuardError, LoadedPolicy, decoder_of, load_bundle, load_policy, template_of
from guard.classification import FeatureCache
from scoring.scorer import CorruptedRows

#: Prompts classified together: their windows share encoder batches.


@dataclass(frozen=True, slots=True)
class Protection:
    """What the guard makes of one prompt.

    Attributes:
        flagged: whether any policy that is not merely observing flagged it.
        rows: what the model must see in place of the prompt's own rows; None: the prompt passes as it is.
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
    """Protects prompts under numbered noise draws; verdicts do not depend on the draw.

    Args:
        opened: the policies.
        tokenizer: the model's, of transformers.
        secret: of draw 0; the operator's, for the server's own noise.
    """

    def __init__(self, opened: OpenedPolicies, tokenizer: Any, secret: bytes) -> None:
        self._opened = opened
        self._decode, self._template = decoder_of(tokenizer), template_of(tokenizer)
        self._features = FeatureCache()
        self._secret = secret
        self._guards: dict[int, Guard] = {}
        self._known: dict[tuple[int, tuple[int, ...]], Protection] = {}

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

    def protect(self, prompts: Sequence[tuple[int, ...]], draw: int) -> list[Protection]:
        """What each prompt becomes under a draw. Prompts seen before cost nothing.

        Raises:
            TargetError: one could not be classified or corrupted.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if (draw, prompt) not in self._known]
        for prompt in new:
            try:
                outcome = self._guard(draw).protect(prompt)
            except GuardError as error:
                raise TargetError(f"the guard failed on a prompt: {error}") from error
            rows = None
            if outcome.refused_by is None and outcome.mask is not None:
                assert outcome.embeddings is not None
                positions = [position for position, masked in enumerate(outcome.mask) if masked]
                rows = CorruptedRows(positions, outcome.embeddings[positions], list(range(len(positions))))
            flagged = rows is not None or outcome.refused_by is not None
            self._known[draw, prompt] = Protection(flagged, rows, outcome.refused_by)
        return [self._known[draw, prompt] for prompt in prompts]

    def _guard(self, draw: int) -> Guard:
        if draw not in self._guards:
            secret = self._secret
            if draw:
                secret = hmac.new(secret, f"noise draw {draw}".encode(), hashlib.sha256).digest()
            self._guards[draw] = Guard(
                self._opened.policies,
                encoder=self._opened.encoder,
                decode=self._decode,
                template=self._template,
                rows=self._opened.rows,
                features=self._features,
                secret=secret,
                dtype=torch.float32,  # in the checkpoint's units: the scorer scales and rounds, as the gateway would
            )
        return self._guards[draw]
