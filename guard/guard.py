"""`Guard.protect(token_ids) -> ProtectedPrompt`: classify a prompt and corrupt what must be forgotten.

Purely token ids in, ids and embedding rows out: no vLLM, no HTTP, no files. The method is ECO's
(arXiv 2406.07933, section 3): a prompt classifier flags, the flagged content's embedding rows are corrupted.
Blocking and CPU-bound; safe to call from several threads, not meant to be called in an event loop.
"""

import bisect
import copy
import time
from collections.abc import Callable, Collection, Generator, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from classifiers import Encoder, Head
from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.encoders.runtime import Device, probability
from classifiers.encoders.tokens import TokenClassifier
from classifiers.prompt_classifier import PromptClassifier
from corruption import PERMUTING_METHODS, ZEROING_METHODS, corrupt
from guard.answers import AnswerGuard
from guard.bundle import AnswerMode, PolicyBundle
from guard.classification import FeatureCache, WindowClassifier
from guard.entities import EntityFinder, EntityTokens, open_finder
from guard.errors import ClassificationError, CorruptionFailedError, GuardError, PolicyMismatchError
from guard.secret import row_seeds
from guard.segments import Template
from guard.verdicts import Verdict, Verdicts
from guard.windows import BLOCK_TOKENS, Content, Placed, Window, glued_windows, local_windows

#: Windows of one prompt that the encoder reads at most, those first that are nearest to being flagged. Only text that
#: was made to keep the encoder busy has more in doubt.
ENCODER_BUDGET = 24
# What `protect_in_pieces` says is left to do, in microseconds: measured on one core, rounded up.
_BLOCK_US, _ENCODED_US = 5_000, 5_000
# Rows corrupted together: with their float32 and noise they are some megabytes at a width of 4,096.
_ROWS_AT_ONCE = 128
_NO_POLICIES = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ProtectedPrompt:
    """A prompt as it may reach the model.

    Attributes:
        token_ids: the T prompt ids, unchanged.
        mask: T booleans, True where the model must see a corrupted row instead of the token's own. None where
            nothing is corrupted: the prompt passes as it is.
        embeddings: (T, D) rows in the served model's dtype and scale; rows outside the mask are zero and must
            not be used. None exactly where `mask` is None.
        has_zero_rows: corrupted rows may be zeros, as those outside the mask are.
        verdicts: one for each policy that applies, in their order.
        refused_by: name of the policy with `action: refuse` that flagged the prompt, else None.
        windows: how many windows it was classified in.
        encoded: how many of them the encoder read.
        over_budget: how many of them it should have read and did not: they count as flagged.
        corruption_s: seconds that the corruption of its rows took.
    """

    token_ids: list[int]
    mask: list[bool] | None = None
    embeddings: torch.Tensor | None = None
    has_zero_rows: bool = False
    verdicts: Sequence[Verdict] = ()
    refused_by: str | None = None
    windows: int = 0
    encoded: int = 0
    over_budget: int = 0
    corruption_s: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if (self.mask is None) != (self.embeddings is None):
            raise ValueError("mask and embeddings come together or not at all")

    @property
    def outcome(self) -> Literal["passed", "corrupted", "refused"]:
        if self.refused_by is not None:
            return "refused"
        return "passed" if self.mask is None else "corrupted"

    @property
    def flagged(self) -> list[Verdict]:
        """Of the policies that flagged it, observing ones included."""
        told = self.verdicts.told.values() if isinstance(self.verdicts, Verdicts) else self.verdicts
        return [verdict for verdict in told if verdict.flagged]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a prompt is treated as it is.

    Attributes:
        prompt: what becomes of it.
        windows: what it was classified in, in order: the positions of each, and the scores in [0, 1] of the policies
            that look at it, by name. From a policy's threshold on it is flagged.
    """

    prompt: ProtectedPrompt
    windows: list[tuple[list[int], dict[str, float]]]


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
    device: Device = "cpu",
) -> LoadedPolicy:
    """Load a bundle's classifier and check that the bundle belongs to this encoder and this model.

    `encoder` is the shared one; a policy with an encoder of its own needs none. `token_classifiers` are those that
    are open already, by their digest: policies with the same one share it. An encoder of its own runs on `device`.

    Raises:
        PolicyMismatchError: built for another model or encoder.
        ClassifierError: the classifier's files cannot be used.
    """
    check_model(bundle, hidden_size=hidden_size, embedding_digest=embedding_digest)
    config = bundle.config
    if config.classifier.kind == "finetuned":
        own = FinetunedClassifier.open(bundle.encoder_path, config.classifier.threshold, device=device)
        _check_encoder(bundle, own.digest)
        return LoadedPolicy(bundle, own_classifier=own, finder=open_finder(bundle, None, token_classifiers))
    if encoder is None:
        raise PolicyMismatchError(f"{bundle.path}: classifier.kind: head needs the encoder {config.classifier.encoder}")
    _check_encoder(bundle, encoder.digest)
    head = Head.load(bundle.head_path, encoder)
    return LoadedPolicy(bundle, head=head, finder=open_finder(bundle, head, token_classifiers))


def check_model(bundle: PolicyBundle, *, hidden_size: int, embedding_digest: str) -> None:
    """Raise `PolicyMismatchError` for a bundle that was built for another model."""
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


def _check_encoder(bundle: PolicyBundle, digest: str) -> None:
    if bundle.config.classifier.encoder_digest != digest:
        raise PolicyMismatchError(
            f"{bundle.path}: classifier.encoder_digest: built with another export of "
            f"{bundle.config.classifier.encoder}; build the policy anew or serve with the encoder it was built with"
        )


@dataclass(slots=True)
class _Reading:
    """A prompt under classification: its windows, W of which are decided, and their log odds (W, U) for each of U
    policies that look at any of them; minus infinity where a policy does not."""

    token_ids: list[int]
    placed: list[Placed] = field(default_factory=list)
    policies: NDArray[np.int64] = field(default_factory=_NO_POLICIES.copy)
    logits: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    encoded: int = 0
    over_budget: int = 0
    _ends: list[int] = field(default_factory=lambda: [0])
    """Windows before each of `placed`, and all."""

    def add(self, placed: Iterable[Placed]) -> None:
        """Further windows, undecided yet."""
        for one in placed:
            self.placed.append(one)
            self._ends.append(self._ends[-1] + len(one))

    def undecided(self) -> list[tuple[int, Placed]]:
        """Those behind the W, each with the number of its first window among them."""
        first = bisect.bisect_left(self._ends, len(self.logits))
        pairs = zip(self._ends[first:-1], self.placed[first:], strict=True)
        return [(start - len(self.logits), one) for start, one in pairs]

    def decide(self, policies: NDArray[np.int64], logits: NDArray[np.float64]) -> None:
        """Decide them, (V, Q) for Q policies."""
        union = np.union1d(self.policies, policies)
        whole = np.full((len(self.logits) + len(logits), len(union)), -np.inf)
        whole[: len(self.logits), np.searchsorted(union, self.policies)] = self.logits
        whole[len(self.logits) :, np.searchsorted(union, policies)] = logits
        self.policies, self.logits = union, whole

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, row: int) -> tuple[Placed, int]:
        """Where one of the windows is."""
        number = bisect.bisect_right(self._ends, row) - 1
        return self.placed[number], row - self._ends[number]

    def window(self, row: int) -> Window:
        """The window itself."""
        placed, index = self.at(row)
        return placed.of(self.token_ids, index)


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
        answers: what becomes of answers, whatever the policies say.
        watched: whether the caller watches answers (`Guard.answers`). Then a prompt that names nobody need not be
            guessed at where the policy's examples do without that too.

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
        answers: AnswerMode | None = None,
        watched: bool = False,
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
        self._passed = tuple(Verdict(p.name, p.bundle.config.action, flagged=False, score=0.0) for p in policies)
        self._corrupts = np.array([p.bundle.config.action == "corrupt" for p in policies])
        configs = [policy.bundle.config for policy in policies]
        if answers is not None:
            configs = [config.model_copy(update={"answers": answers}) for config in configs]
        self.answer_modes: list[AnswerMode] = [config.answer_mode for config in configs]
        self._least = np.array([config.classifier.threshold for config in configs], dtype=np.float64)
        self._classifier = WindowClassifier(
            [policy.head or policy.own_classifier for policy in policies],
            self._least,
            encoder=encoder,
            decode=decode,
            features=features,
            # A policy that only observes says what it would do if it did more.
            guarded=[watched and config.answers in ("restart", "end") for config in configs],
        )
        self._applies = np.full(len(self.policies), True)
        reads = any(mode != "off" for mode in self.answer_modes)
        self.answers = AnswerGuard(configs, self._classifier, template) if reads else None
        """What it makes of answers; None where no policy reads them."""
        self._entities = EntityTokens(decode)
        self._template = template
        self._rows = rows
        self._secret = secret
        self._row_scale = row_scale
        self._dtype = dtype

    def only(self, applies: NDArray[np.bool_]) -> "Guard":
        """The same guard for a request to which some of its P policies do not apply: (P,), at least one True.

        Cheap: nothing is loaded or learned anew, and caches are shared.
        """
        guard = copy.copy(self)
        guard._applies = applies
        guard._corrupts = self._corrupts & applies
        answers = None if self.answers is None else self.answers.only(applies)
        guard.answers = answers if answers is not None and answers.reads.any() else None
        return guard

    def protect(self, token_ids: Sequence[int]) -> ProtectedPrompt:
        """Classify a prompt of T >= 1 ids and corrupt what its policies flag.

        Raises:
            ClassificationError: it could not be classified and a policy says `on_error: reject`.
            CorruptionFailedError: it was flagged and could not be corrupted.
        """
        work = self.protect_in_pieces(token_ids)
        while True:
            try:
                next(work)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    def protect_in_pieces(self, token_ids: Sequence[int]) -> Generator[int, None, ProtectedPrompt]:
        """`protect` in pieces of some milliseconds: between two of them it yields what is left to do, an estimate in
        microseconds. Whoever runs it may turn to another prompt in between, or leave it.

        Raises:
            ClassificationError, CorruptionFailedError: as `protect`.
        """
        outcome: ProtectedPrompt | GuardError
        try:
            reading, thresholds = yield from self._classify(list(token_ids))
            outcome = self._decide(reading, thresholds)
        except Exception as error:  # noqa: BLE001 - whatever failed, the prompt must not pass unclassified
            outcome = self.on_error(token_ids, error)
        if isinstance(outcome, GuardError):
            raise outcome
        return outcome

    def explain(self, token_ids: Sequence[int]) -> Generator[int, None, Explanation]:
        """`protect_in_pieces`, and what every window shows.

        Raises:
            GuardError: as `protect`; whatever the policies' `on_error` says.
        """
        try:
            reading, thresholds = yield from self._classify(list(token_ids))
        except Exception as error:
            raise ClassificationError("the prompt could not be classified") from error
        outcome = self._decide(reading, thresholds)
        if isinstance(outcome, GuardError):
            raise outcome
        scores = self._scores(reading, thresholds)
        names = [self.policies[number].name for number in reading.policies.tolist()]
        looked = np.isfinite(reading.logits) & self._applies[reading.policies]
        windows = [
            (
                list(reading.window(row).positions),
                {names[column]: float(scores[row, column]) for column in np.flatnonzero(looked[row]).tolist()},
            )
            for row in range(len(reading))
        ]
        return Explanation(outcome, windows)

    def on_error(self, token_ids: Sequence[int], error: BaseException) -> ProtectedPrompt | GuardError:
        """What becomes of a prompt whose classification failed: all content corrupted, or an error. Never a pass.

        All content is corrupted only where every policy says `on_error: corrupt`.
        """
        policies = [policy for policy, applies in zip(self.policies, self._applies, strict=True) if applies]
        if any(policy.bundle.config.on_error == "reject" for policy in policies):
            failed = ClassificationError("the prompt could not be classified")
            failed.__cause__ = error
            return failed
        verdicts = tuple(
            Verdict(p.name, p.bundle.config.action, flagged=True, score=float("nan"), failed=True) for p in policies
        )
        try:
            content = [position for segment in self._template.segments(token_ids) for position in segment]
        except Exception as unreadable:  # noqa: BLE001 - what cannot be read cannot be corrupted
            failed = ClassificationError("the prompt could not be classified")
            failed.__cause__ = unreadable
            return failed
        first = int(np.flatnonzero(self._applies)[0])
        return self._corrupt(list(token_ids), dict.fromkeys(content, first), verdicts)

    def forgotten(
        self, prompt: Sequence[int], answer: Sequence[int], unseen: Collection[int], policy: int
    ) -> Generator[int, None, ProtectedPrompt]:
        """What an answer goes on from, after it gave away what a policy forgets: all content of the prompt corrupted as
        that policy says, and of the answer so far the tokens whose numbers are `unseen`. Work of one piece.

        Raises:
            CorruptionFailedError: it could not be corrupted.
        """
        ids = [*prompt, *answer]
        content = [position for stretch in self._template.segments(prompt) for position in stretch]
        positions = [*content, *(len(prompt) + number for number in unseen)]
        outcome = self._corrupt(ids, dict.fromkeys(positions, policy), ())
        if isinstance(outcome, GuardError):
            raise outcome
        return outcome
        yield 0  # a generator, as all work is

    def corrupt_all(self, token_ids: Sequence[int], policies: Sequence[int]) -> ProtectedPrompt:
        """A text of T >= 1 ids as policies, by number, corrupt it where they flag it as a whole; nothing is classified.

        Each corrupts the entity tokens in it with `scope: entities`, and all content where it finds none, or has
        another scope. ECO's public code does so with a prompt and the answer that it scores; without a token classifier
        it corrupts template tokens as well, and all tokens but the last.

        Raises:
            CorruptionFailedError: it could not be corrupted.
        """
        ids = list(token_ids)
        content = [position for stretch in self._template.segments(ids) for position in stretch]
        whole = Window(tuple(range(len(ids))), tuple(ids))
        owners: dict[int, int] = {}
        for index in policies:
            finder = self.policies[index].finder
            try:
                found = () if finder is None else self._entities.found(whole, finder)
            except Exception as error:
                raise CorruptionFailedError("the entities of a flagged text could not be found") from error
            for position in set(content).intersection(found) or content:
                owners.setdefault(position, index)
        outcome = self._corrupt(ids, owners, ())
        if isinstance(outcome, GuardError):
            raise outcome
        return outcome

    def _classify(self, token_ids: list[int]) -> Generator[int, None, tuple[_Reading, NDArray[np.float64]]]:
        """Decide every window; returns them, and the thresholds (P,) that hold for so many, as log odds."""
        reading = _Reading(token_ids)
        ids = np.array(token_ids, dtype=np.int64)
        contents: list[Content] = []
        done = 0
        for placed, content in local_windows(self._template, self._classifier, ids):
            reading.add(placed)
            contents.append(content)
            done += BLOCK_TOKENS
            yield max(len(token_ids) - done, 0) // BLOCK_TOKENS * _BLOCK_US
        # What stretches say decoded makes a prompt no longer.
        plain = sum(max(len(placed) - placed.block.said, 0) for placed in reading.placed)
        thresholds = np.where(self._applies, self._classifier.thresholds(plain), np.inf)
        yield from self._settle(reading, thresholds)
        if contents and contents[-1].stretches[-1] != contents[0].stretches[0]:
            # Only what will be masked may leave the glue: what is merely observed, or stands beside an entity, still
            # reaches the model.
            hit: set[int] = set()
            masking = (reading.logits >= thresholds[reading.policies]) & self._corrupts[reading.policies]
            for row, column in np.argwhere(masking).tolist():
                hit.update(self._masked(int(reading.policies[column]), reading.window(row)))
            for placed in glued_windows(self._classifier, ids, contents, hit):
                reading.add(placed)
                yield _BLOCK_US
            yield from self._settle(reading, thresholds)
        return reading, thresholds

    def _settle(self, reading: _Reading, thresholds: NDArray[np.float64]) -> Generator[int, None, None]:
        """Decide the windows that are not decided yet: by what was seen of them where the embedding cannot change the
        outcome for any policy, else by the encoder, within its budget."""
        first = len(reading.logits)
        told = [(row, placed) for row, placed in reading.undecided() if len(placed.block.policies)]
        policies = np.unique(np.concatenate([_NO_POLICIES, *(placed.block.policies for _, placed in told)]))
        seen = np.full((len(reading) - first, len(policies)), -np.inf)
        if not told:
            reading.decide(policies, seen)
            return
        for row, placed in told:
            columns = np.searchsorted(policies, placed.block.policies)
            seen[row : row + len(placed), columns] = placed.block.logits[placed.windows]
        low, middle, high = (
            band[policies] for band in (self._classifier.low, self._classifier.middle, self._classifier.high)
        )
        least = thresholds[policies]
        below, above = seen + low < least, seen + high >= least
        doubtful = np.flatnonzero((below & above).any(axis=1))
        logits = seen + middle
        nearest = np.where(below & above, seen - least, -np.inf).max(axis=1, initial=-np.inf)
        order = sorted(doubtful.tolist(), key=lambda row: -nearest[row])
        allowed = max(ENCODER_BUDGET - reading.encoded, 0)
        for number, row in enumerate(order[:allowed]):
            placed, index = reading.at(first + row)
            logits[row] = seen[row] + self._classifier.embedded(placed.block.texts[placed.windows[index]], policies)
            yield (min(len(order), allowed) - number - 1) * _ENCODED_US
        for row in order[allowed:]:
            logits[row] = seen[row] + high
        reading.encoded += min(len(order), allowed)
        reading.over_budget += max(len(order) - allowed, 0)
        reading.decide(policies, logits)

    def _decide(self, reading: _Reading, thresholds: NDArray[np.float64]) -> ProtectedPrompt | GuardError:
        policies = reading.policies
        hits = reading.logits >= thresholds[policies]  # (W, U)
        scores = self._scores(reading, thresholds)
        flagged, score = np.any(hits, axis=0), np.max(scores, axis=0, initial=0.0)
        told = {
            index: Verdict(passed.policy, passed.action, bool(flagged[column]), float(score[column]))
            for column, index in enumerate(policies.tolist())
            if self._applies[index]
            for passed in (self._passed[index],)
        }
        verdicts: Sequence[Verdict] = Verdicts(self._passed, told)
        if not self._applies.all():
            verdicts = tuple(verdicts[number] for number in np.flatnonzero(self._applies).tolist())
        refused_by = next((v.policy for v in told.values() if v.flagged and v.action == "refuse"), None)
        if refused_by is not None:
            return self._counted(ProtectedPrompt(reading.token_ids, verdicts=verdicts, refused_by=refused_by), reading)
        owners: dict[int, int] = {}
        try:
            for column, index in enumerate(policies.tolist()):
                for row in np.flatnonzero(hits[:, column] & self._corrupts[index]).tolist():
                    for position in self._masked(index, reading.window(row)):
                        owners.setdefault(position, index)
        except Exception as error:  # noqa: BLE001 - where the entity stands is not known: nothing may pass
            return self.on_error(reading.token_ids, error)
        return self._counted(self._corrupt(reading.token_ids, owners, verdicts), reading)

    def _scores(self, reading: _Reading, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        """(W, U) probabilities, flagged from their policy's threshold on, however long the prompt."""
        policies = reading.policies
        higher = np.where(self._applies, thresholds - self._classifier.thresholds(1), 0.0)
        scores = probability(reading.logits - higher[policies])
        least, hits = self._least[policies], reading.logits >= thresholds[policies]
        return np.where(hits, np.maximum(scores, least), np.minimum(scores, np.nextafter(least, 0)))

    @staticmethod
    def _counted(outcome: ProtectedPrompt | GuardError, reading: _Reading) -> ProtectedPrompt | GuardError:
        if isinstance(outcome, GuardError):
            return outcome
        return replace(outcome, windows=len(reading.logits), encoded=reading.encoded, over_budget=reading.over_budget)

    def _masked(self, index: int, window: Window) -> Sequence[int]:
        """The positions in a flagged window that the policy of that index corrupts."""
        finder = self.policies[index].finder
        return window.positions if finder is None else self._entities.positions(window, finder)

    def _corrupt(
        self, token_ids: list[int], owners: dict[int, int], verdicts: Sequence[Verdict]
    ) -> ProtectedPrompt | GuardError:
        """Corrupt the row at each position in `owners` as the policy of that index says."""
        if not owners:
            return ProtectedPrompt(token_ids, verdicts=verdicts)
        started = time.perf_counter()
        try:
            embeddings = self._corrupted(token_ids, owners)
        except Exception as error:  # noqa: BLE001 - a flagged prompt that cannot be corrupted must not pass
            failed = CorruptionFailedError("a flagged prompt could not be corrupted")
            failed.__cause__ = error
            return failed
        mask = [position in owners for position in range(len(token_ids))]
        methods = {self.policies[index].bundle.config.corruption.method for index in owners.values()}
        zeros = not ZEROING_METHODS.isdisjoint(methods)
        return ProtectedPrompt(
            token_ids,
            mask,
            embeddings,
            has_zero_rows=zeros,
            verdicts=verdicts,
            corruption_s=time.perf_counter() - started,
        )

    def _corrupted(self, token_ids: list[int], owners: dict[int, int]) -> torch.Tensor:
        """(T, D) as the model takes them: corrupted at the positions in `owners`, zeros elsewhere."""
        made: list[tuple[int, list[int]]] = []  # policies, and the tokens of which each is to corrupt together
        place = torch.zeros(len(token_ids), dtype=torch.int64)  # (T,) among all that is made, from 1
        count = 1
        for index in sorted(set(owners.values())):
            mine = sorted(position for position, owner in owners.items() if owner == index)
            ids = [token_ids[position] for position in mine]
            if self.policies[index].bundle.config.corruption.method in PERMUTING_METHODS:
                made += [(index, [token_ids[position] for position in run]) for run in _runs(mine)]
                place[mine] = torch.arange(count, count + len(mine))
                count += len(mine)
                continue
            # A row follows from its token alone: each token's is made once, and few at once, which stay in the cache.
            distinct, places = torch.unique(torch.tensor(ids), return_inverse=True)
            ids = distinct.tolist()
            made += [(index, ids[start : start + _ROWS_AT_ONCE]) for start in range(0, len(ids), _ROWS_AT_ONCE)]
            place[mine] = places + count
            count += len(ids)
        width = self._rows.rows(made[0][1][:1]).shape[1]
        rows = _zeros(count, width, self._dtype)
        start = 1
        for index, ids in made:
            rows[start : start + len(ids)] = self._corrupt_rows(index, ids)
            start += len(ids)
        embeddings = _zeros(len(token_ids), width, self._dtype)
        if 2 * len(owners) >= len(token_ids):
            return torch.index_select(rows, 0, place, out=embeddings)
        positions = place.nonzero().squeeze(1)  # memory that nobody writes to is not taken
        embeddings[positions] = rows[place[positions]]
        return embeddings

    def _corrupt_rows(self, index: int, ids: list[int]) -> torch.Tensor:
        policy = self.policies[index].bundle
        seeds = row_seeds(self._secret, policy.digest, ids)
        mask = torch.ones(len(ids), dtype=torch.bool)
        rows = corrupt(self._rows.rows(ids), mask, policy.config.corruption, row_seeds=seeds)
        return (rows if self._row_scale == 1.0 else rows.float() * self._row_scale).to(self._dtype)


def _runs(positions: list[int]) -> list[list[int]]:
    """Ascending positions as runs without a gap: rows trade places within one."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def _zeros(count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """(count, width) zeros in memory that numpy asked for, since it asks for huge pages: first writing to tens of
    megabytes takes a fraction of the time."""
    return torch.from_numpy(np.zeros((count, width * dtype.itemsize), dtype=np.uint8)).view(dtype)
