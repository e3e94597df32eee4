"""`Guard.protect(token_ids) -> ProtectedPrompt`: classify a prompt and corrupt what must be forgotten.

Purely token ids in, ids and embedding rows out: no vLLM, no HTTP, no files. The method is ECO's
(arXiv 2406.07933, section 3): a prompt classifier flags, the flagged content's embedding rows are corrupted.
Blocking and CPU-bound; safe to call from several threads, not meant to be called in an event loop.
"""

from collections.abc import Callable, Generator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from classifiers import Encoder, Head
from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.encoders.tokens import TokenClassifier
from classifiers.prompt_classifier import PromptClassifier
from corruption import PERMUTING_METHODS, corrupt
from guard.bundle import Action, PolicyBundle
from guard.classification import FeatureCache, Scores, WindowClassifier
from guard.entities import EntityFinder, EntityTokens, open_finder
from guard.errors import ClassificationError, CorruptionFailedError, GuardError, PolicyMismatchError
from guard.secret import row_seeds
from guard.segments import Template, Window, slide

#: Content tokens in one classified window, and the step between windows. A window this short is not diluted
#: by the text around one forbidden question; the overlap shows every sentence of up to 32 tokens whole.
WINDOW_TOKENS, WINDOW_STRIDE = 64, 32
#: Windows classified in one piece of `protect_in_pieces`, and a rough guess of what one costs.
_WINDOWS_IN_A_PIECE, _WINDOW_US = 4, 5_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """One policy's decision on one prompt.

    Attributes:
        score: highest probability over the prompt's windows, in [0, 1]; NaN where it could not be computed.
        failed: classification failed and `on_error: corrupt` decided.
    """

    policy: str
    action: Action
    flagged: bool
    score: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class ProtectedPrompt:
    """A prompt as it may reach the model.

    Attributes:
        token_ids: the T prompt ids, unchanged.
        mask: T booleans, True where the model must see a corrupted row instead of the token's own. None where
            nothing is corrupted: the prompt passes as it is.
        embeddings: (T, D) rows in the served model's dtype and scale; rows outside the mask are zero and must
            not be used. None exactly where `mask` is None.
        verdicts: one for each active policy, in the order of the policies.
        refused_by: name of the policy with `action: refuse` that flagged the prompt, else None.
    """

    token_ids: list[int]
    mask: list[bool] | None = None
    embeddings: torch.Tensor | None = None
    verdicts: tuple[Verdict, ...] = ()
    refused_by: str | None = None

    def __post_init__(self) -> None:
        if (self.mask is None) != (self.embeddings is None):
            raise ValueError("mask and embeddings come together or not at all")


class RowSource(Protocol):
    """Input-embedding rows in checkpoint units (`corruption.EmbeddingRows`)."""

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        """(T,) ids -> (T, D) rows."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A verified bundle and its classifier, which is one of two: a head, or one with an encoder of its own.

    Attributes:
        finder: says which tokens of a flagged window are masked; there is one exactly with `scope: entities`.
    """

    bundle: PolicyBundle
    head: Head | None = None
    own_classifier: PromptClassifier | None = None
    finder: EntityFinder | None = None

    @property
    def name(self) -> str:
        return self.bundle.config.name


def load_policy(
    bundle: PolicyBundle,
    encoder: Encoder | None,
    *,
    hidden_size: int,
    embedding_digest: str,
    token_classifiers: MutableMapping[str, TokenClassifier] | None = None,
) -> LoadedPolicy:
    """Load a bundle's classifier and check that the bundle belongs to this encoder and this model.

    `encoder` is the shared one; a policy with an encoder of its own needs none. `token_classifiers` are those that
    are open already, by their digest: policies with the same one share it.

    Raises:
        PolicyMismatchError: built for another model or encoder.
        ClassifierError: the classifier's files cannot be used.
    """
    config = bundle.config
    if config.model.hidden_size != hidden_size:
        raise PolicyMismatchError(
            f"{bundle.path}: model.hidden_size: built for width {config.model.hidden_size} "
            f"({config.model.name}), the served model has {hidden_size}; build the policy for this model"
        )
    if config.model.embedding_digest != embedding_digest:
        raise PolicyMismatchError(
            f"{bundle.path}: model.embedding_digest: built for {config.model.name}, whose input embeddings differ "
            "from the served model's; build the policy for this model"
        )
    if config.classifier.kind == "finetuned":
        own = FinetunedClassifier.open(bundle.encoder_path, config.classifier.threshold)
        _check_encoder(bundle, own.digest)
        return LoadedPolicy(bundle, own_classifier=own, finder=open_finder(bundle, None, token_classifiers))
    if encoder is None:
        raise PolicyMismatchError(f"{bundle.path}: classifier.kind: head needs the encoder {config.classifier.encoder}")
    _check_encoder(bundle, encoder.digest)
    head = Head.load(bundle.head_path, encoder)
    return LoadedPolicy(bundle, head=head, finder=open_finder(bundle, head, token_classifiers))


def _check_encoder(bundle: PolicyBundle, digest: str) -> None:
    if bundle.config.classifier.encoder_digest != digest:
        raise PolicyMismatchError(
            f"{bundle.path}: classifier.encoder_digest: built with another export of "
            f"{bundle.config.classifier.encoder}; build the policy anew or serve with the encoder it was built with"
        )


@dataclass(slots=True)
class _Reading:
    """A prompt under classification: its windows within segments, and over the glued content of several."""

    token_ids: list[int]
    local: list[Window]
    glued: list[Window]


class Guard:
    """An immutable set of active policies over one encoder, template and embedding table.

    Args:
        policies: in order; where two corrupt the same token, the first one's corruption holds.
        encoder: what the policies' heads were trained on; None where each has an encoder of its own.
        decode: token ids -> text, special tokens left out.
        rows: embedding rows in checkpoint units.
        secret: the operator's noise secret.
        row_scale: served rows = checkpoint rows * row_scale (1 for most models; found by the start-up self-test).
        dtype: the served model's dtype.
        features: a cache to keep across policy sets; the default is a new one.

    Raises:
        PolicyMismatchError: no policy, a name used twice, or `scope: entities` without what finds them.
    """

    def __init__(
        self,
        policies: Sequence[LoadedPolicy],
        *,
        encoder: Encoder | None,
        decode: Callable[[Sequence[int]], str],
        template: Template,
        rows: RowSource,
        secret: bytes,
        row_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        features: FeatureCache | None = None,
    ) -> None:
        names = [policy.name for policy in policies]
        if not policies:
            raise PolicyMismatchError("no policy given; a guard without a policy would pass everything")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise PolicyMismatchError(f"policy name {twice!r} is used twice; each active policy needs its own name")
        for policy in policies:
            if policy.bundle.config.corruption.scope == "entities" and policy.finder is None:
                raise PolicyMismatchError(
                    f"policy {policy.name!r}: corruption.scope: entities needs a token classifier"
                )
        self.policies = tuple(policies)
        self._thresholds = np.array([p.bundle.config.classifier.threshold for p in policies], dtype=np.float64)
        self._corrupts = np.array([p.bundle.config.action == "corrupt" for p in policies])
        self._classifier = WindowClassifier(
            [policy.head or policy.own_classifier for policy in policies],
            encoder=encoder,
            decode=decode,
            features=features,
        )
        self._entities = EntityTokens(decode)
        self._template = template
        self._rows = rows
        self._secret = secret
        self._row_scale = row_scale
        self._dtype = dtype

    def protect(self, token_ids: Sequence[int]) -> ProtectedPrompt:
        """Classify a prompt of T >= 1 ids and corrupt what its policies flag.

        Raises:
            ClassificationError: it could not be classified and a policy says `on_error: reject`.
            CorruptionFailedError: it was flagged and could not be corrupted.
        """
        outcome = self.protect_batch([token_ids])[0]
        if isinstance(outcome, GuardError):
            raise outcome
        return outcome

    def protect_batch(self, prompts: Sequence[Sequence[int]]) -> list[ProtectedPrompt | GuardError]:
        """`protect` for several prompts, whose windows share encoder batches. Errors are returned, not raised."""
        try:
            readings = [self._read(list(prompt)) for prompt in prompts]
            scores = self._classifier.scores(w for reading in readings for w in (*reading.local, *reading.glued))
            self._reglue(readings, scores)
            scores |= self._classifier.scores(w for reading in readings for w in reading.glued)
        except Exception as error:  # noqa: BLE001 - whatever failed, the prompts must not pass unclassified
            if len(prompts) > 1:  # one prompt's failure is not its neighbours'
                return [self.protect_batch([prompt])[0] for prompt in prompts]
            return [self.on_error(prompt, error) for prompt in prompts]
        return [self._decide(reading, scores) for reading in readings]

    def protect_in_pieces(self, token_ids: Sequence[int]) -> Generator[int, None, ProtectedPrompt]:
        """`protect` in pieces of bounded work, for who has other prompts to see to as well.

        Yields:
            Between two pieces, about how many microseconds of work are still to do: a hint.

        Raises:
            ClassificationError, CorruptionFailedError: as `protect`.
        """
        ids = list(token_ids)
        outcome: ProtectedPrompt | GuardError
        scores: dict[tuple[int, ...], Scores] = {}
        try:
            reading = self._read(ids)
            yield from self._score([*reading.local, *reading.glued], scores)
            self._reglue([reading], scores)
            yield from self._score(reading.glued, scores)
        except Exception as error:  # noqa: BLE001 - whatever failed, the prompt must not pass unclassified
            outcome = self.on_error(ids, error)
        else:
            outcome = self._decide(reading, scores)
        if isinstance(outcome, GuardError):
            raise outcome
        return outcome

    def _score(self, windows: Sequence[Window], scores: dict[tuple[int, ...], Scores]) -> Generator[int, None, None]:
        unknown = [window for window in windows if window.token_ids not in scores]
        for start in range(0, len(unknown), _WINDOWS_IN_A_PIECE):
            yield _WINDOW_US * (len(unknown) - start)
            scores |= self._classifier.scores(unknown[start : start + _WINDOWS_IN_A_PIECE])

    def on_error(self, token_ids: Sequence[int], error: BaseException) -> ProtectedPrompt | GuardError:
        """What becomes of a prompt whose classification failed: all content corrupted, or an error. Never a pass.

        All content is corrupted only where every policy says `on_error: corrupt`.
        """
        if any(policy.bundle.config.on_error == "reject" for policy in self.policies):
            failed = ClassificationError("the prompt could not be classified")
            failed.__cause__ = error
            return failed
        verdicts = tuple(
            Verdict(p.name, p.bundle.config.action, flagged=True, score=float("nan"), failed=True)
            for p in self.policies
        )
        content = [position for segment in self._template.segments(token_ids) for position in segment]
        return self._corrupt(list(token_ids), dict.fromkeys(content, 0), verdicts)

    def _read(self, token_ids: list[int]) -> _Reading:
        """Segments are attacker-controlled: a special token inside a word splits it (`Har<|im_end|>ry`). So the
        content of all segments, glued together, is classified as well."""
        segments = self._template.segments(token_ids)
        local = [window for segment in segments for window in _windows(segment, token_ids)]
        content = [position for segment in segments for position in segment] if len(segments) > 1 else []
        return _Reading(token_ids, local, _windows(content, token_ids))

    def _reglue(self, readings: Sequence[_Reading], scores: dict[tuple[int, ...], Scores]) -> None:
        """Where a window within a segment is flagged, it is the glue of what remains that is still in question:
        a conversation that names a forgotten person once does not lose its other turns."""
        for reading in readings:
            if not reading.glued:
                continue
            # Only what will be masked may leave the glue: what is merely observed, or stands beside an entity, still
            # reaches the model.
            hit: set[int] = set()
            for window in reading.local:
                flagged = self._corrupts & (scores[window.token_ids] >= self._thresholds)
                hit.update(position for index in np.flatnonzero(flagged) for position in self._masked(index, window))
            if hit:
                content = dict.fromkeys(position for window in reading.glued for position in window.positions)
                reading.glued = _windows([p for p in content if p not in hit], reading.token_ids)

    def _decide(self, reading: _Reading, scores: dict[tuple[int, ...], Scores]) -> ProtectedPrompt | GuardError:
        windows = [*reading.local, *reading.glued]
        table = np.zeros((len(windows), len(self.policies)))  # (W, P)
        for row, window in enumerate(windows):
            table[row] = scores[window.token_ids]
        hits = table >= self._thresholds
        verdicts = tuple(
            Verdict(
                policy.name,
                policy.bundle.config.action,
                flagged=bool(hits[:, index].any()),
                score=float(table[:, index].max(initial=0.0)),
            )
            for index, policy in enumerate(self.policies)
        )
        refused_by = next((v.policy for v in verdicts if v.flagged and v.action == "refuse"), None)
        if refused_by is not None:
            return ProtectedPrompt(reading.token_ids, verdicts=verdicts, refused_by=refused_by)
        owners: dict[int, int] = {}
        try:
            for index in np.flatnonzero(self._corrupts).tolist():
                for row in np.flatnonzero(hits[:, index]).tolist():
                    owners = dict.fromkeys(self._masked(index, windows[row]), index) | owners
        except Exception as error:  # noqa: BLE001 - where the entity stands is not known: nothing may pass
            return self.on_error(reading.token_ids, error)
        return self._corrupt(reading.token_ids, owners, verdicts)

    def _masked(self, index: int, window: Window) -> Sequence[int]:
        """The positions in a flagged window that the policy of that index corrupts."""
        finder = self.policies[index].finder
        return window.positions if finder is None else self._entities.positions(window, finder)

    def _corrupt(
        self, token_ids: list[int], owners: dict[int, int], verdicts: tuple[Verdict, ...]
    ) -> ProtectedPrompt | GuardError:
        """Corrupt the row at each position in `owners` as the policy of that index says."""
        if not owners:
            return ProtectedPrompt(token_ids, verdicts=verdicts)
        positions = sorted(owners)
        try:
            rows = self._rows.rows([token_ids[position] for position in positions])  # (M, D)
            corrupted = torch.empty_like(rows)
            for index in set(owners.values()):
                mine = [row for row, position in enumerate(positions) if owners[position] == index]
                for group in self._groups(index, mine, positions):
                    corrupted[group] = self._corrupt_rows(index, [token_ids[positions[r]] for r in group], rows[group])
            embeddings = torch.zeros((len(token_ids), rows.shape[1]), dtype=self._dtype)
            embeddings[positions] = (corrupted.float() * self._row_scale).to(self._dtype)
        except Exception as error:  # noqa: BLE001 - a flagged prompt that cannot be corrupted must not pass
            failed = CorruptionFailedError("a flagged prompt could not be corrupted")
            failed.__cause__ = error
            return failed
        mask = [position in owners for position in range(len(token_ids))]
        return ProtectedPrompt(token_ids, mask=mask, embeddings=embeddings, verdicts=verdicts)

    def _corrupt_rows(self, index: int, ids: list[int], rows: torch.Tensor) -> torch.Tensor:
        policy = self.policies[index].bundle
        seeds = row_seeds(self._secret, policy.digest, ids)
        return corrupt(rows, torch.ones(len(ids), dtype=torch.bool), policy.config.corruption, row_seeds=seeds)

    def _groups(self, index: int, mine: list[int], positions: list[int]) -> list[list[int]]:
        """Row numbers to corrupt together: all at once, or run by run where rows trade places."""
        if self.policies[index].bundle.config.corruption.method not in PERMUTING_METHODS:
            return [mine]
        groups: list[list[int]] = []
        for row in mine:
            if groups and positions[row] == positions[groups[-1][-1]] + 1:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups


def _windows(positions: Sequence[int], token_ids: Sequence[int]) -> list[Window]:
    return slide(positions, token_ids, WINDOW_TOKENS, WINDOW_STRIDE)
