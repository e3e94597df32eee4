"""What is masked, how, and by whom; only the classifier is replaced, by one that finds needles."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from corruption import CorruptionSpec, corrupt
from guard import (
    ClassificationError,
    ClassifierConfig,
    CorruptionFailedError,
    Guard,
    LoadedPolicy,
    ModelConfig,
    PolicyBundle,
    PolicyConfig,
    PolicyMismatchError,
    ProtectedPrompt,
    Template,
    Verdict,
    row_seeds,
)
from guard.classification import Looked
from guard.guard import ENCODER_BUDGET

WIDTH, BOS, USER, END = 6, 0, 1, 2
SECRET = bytes(range(32))
TEMPLATE = Template(pieces={}, special_ids=frozenset({BOS, USER, END}))
SPEC = CorruptionSpec(method="rand_noise_first_n", dims=2, strength=3.0)
Needles = dict[str, tuple[int, ...]]


class Table:
    """Rows that say which id they belong to; ids from 900 on have none."""

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        if max(token_ids) >= 900:
            raise ValueError("outside the table")
        return torch.tensor([[float(i)] * WIDTH for i in token_ids])


class NeedleClassifier:
    """A window scores 1 for a policy where the policy's needle stands in it, unbroken. A token is a unit."""

    def __init__(self, needles: Sequence[tuple[int, ...]]) -> None:
        self.needles = needles
        self.seen: list[tuple[int, ...]] = []
        self.poison: int | None = None
        self.low = self.middle = self.high = np.zeros(len(needles))

    def thresholds(self, windows: int) -> np.ndarray:
        return np.zeros(len(self.needles))

    def look(self, blocks: Sequence[NDArray[np.int64]]) -> list[Looked]:
        return [self._look(tuple(block.tolist())) for block in blocks]

    def _look(self, block: tuple[int, ...]) -> Looked:
        starts = range(0, max(len(block) - 32, 1) if block else 0, 32)
        ranges = np.array([(start, min(start + 64, len(block))) for start in starts]).reshape(-1, 2)
        logits = np.zeros((len(ranges), len(self.needles)))
        for row, (start, end) in enumerate(ranges.tolist()):
            ids = block[start:end]
            if self.poison in ids:
                raise ClassificationError("poisoned")
            self.seen.append(ids)
            logits[row] = [20.0 if has(ids, needle) else -20.0 for needle in self.needles]
        texts = {row: str(highest) for row, highest in enumerate(logits.max(axis=1, initial=-20.0).tolist())}
        return Looked(ranges, np.ones(len(block), dtype=np.int64), np.arange(len(self.needles)), logits, texts)


def has(ids: Sequence[int], needle: tuple[int, ...]) -> bool:
    return any(tuple(ids[i : i + len(needle)]) == needle for i in range(len(ids) - len(needle) + 1))


def policy(
    name: str, spec: CorruptionSpec = SPEC, *, action: str = "corrupt", on_error: str = "reject"
) -> LoadedPolicy:
    config = PolicyConfig.model_validate(
        {
            "schema_version": 1,
            "name": name,
            "version": "1",
            "model": ModelConfig(name="m", hidden_size=WIDTH, embedding_digest="a" * 64),
            "action": action,
            "corruption": spec,
            "classifier": ClassifierConfig(encoder="e", encoder_digest="b" * 64, threshold=0.5),
            "answers": "off",
            "on_error": on_error,
        }
    )
    digest = name.encode().hex().ljust(64, "0")
    return LoadedPolicy(PolicyBundle(Path(name), digest, config, {}), head=None)  # type: ignore[arg-type]


class Maker:
    """Builds guards whose policies look for needles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.kind = NeedleClassifier
        self.guarded: list[bool] = []
        """Which policies need not guess, as their answers are guarded."""
        self.classifier = NeedleClassifier(())

    def __call__(self, *policies: tuple[LoadedPolicy, tuple[int, ...]], **options: Any) -> Guard:
        self.classifier = self.kind([needle for _, needle in policies])

        def classifier(*_: object, guarded: list[bool], **__: object) -> NeedleClassifier:
            self.guarded = guarded
            self.classifier.joined = np.full(len(policies), np.inf)
            self.classifier.untold = np.ones(len(policies), dtype=bool)
            return self.classifier

        self._monkeypatch.setattr("guard.guard.WindowClassifier", classifier)
        settings: dict[str, Any] = {"template": TEMPLATE, "rows": Table(), "secret": SECRET} | options
        return Guard([p for p, _ in policies], encoder=None, decode=str, **settings)  # type: ignore[arg-type]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(monkeypatch)


def masked(prompt: ProtectedPrompt) -> list[int]:
    return [] if prompt.mask is None else [i for i, m in zip(prompt.token_ids, prompt.mask, strict=True) if m]


def test_nothing_flagged_passes_as_it_is(make: Maker) -> None:
    prompt = make((policy("a"), (50,))).protect([BOS, USER, 10, 11, END])
    assert (prompt.mask, prompt.embeddings, prompt.refused_by) == (None, None, None)
    assert [(v.policy, v.flagged, v.score) for v in prompt.verdicts] == [("a", False, pytest.approx(0, abs=1e-6))]


def test_flagged_content_is_masked_and_template_never(make: Maker) -> None:
    prompt = make((policy("a"), (50,))).protect([BOS, USER, 10, 50, END, USER])
    assert prompt.mask == [False, False, True, True, False, False]


def test_rows_are_the_corruptions_seeded_by_token(make: Maker) -> None:
    prompt = make((policy("a"), (50,)), row_scale=2.0, dtype=torch.bfloat16).protect([BOS, 50, 10, 50])
    assert prompt.embeddings is not None
    digest = policy("a").bundle.digest
    ids = [50, 10, 50]
    seeds = row_seeds(SECRET, digest, ids)
    wanted = corrupt(Table().rows(ids), torch.ones(3, dtype=torch.bool), SPEC, row_seeds=seeds)
    assert prompt.embeddings.dtype == torch.bfloat16
    assert torch.equal(prompt.embeddings[1:], (wanted * 2.0).bfloat16())
    assert torch.equal(prompt.embeddings[1], prompt.embeddings[3])
    assert not prompt.embeddings[0].any()


def test_a_text_can_be_corrupted_whatever_is_found_in_it(make: Maker) -> None:
    """All content by the first of the policies, with the rows that it has wherever its tokens stand."""
    guard = make((policy("a"), (50,)), (policy("b"), (51,)))
    whole = guard.corrupt_all([BOS, USER, 10, 50, END, USER, 11], [1, 0])
    assert whole.mask == [False, False, True, True, False, False, True]
    assert whole.embeddings is not None
    seeds = row_seeds(SECRET, policy("b").bundle.digest, [10, 50, 11])
    rows = corrupt(Table().rows([10, 50, 11]), torch.ones(3, dtype=torch.bool), SPEC, row_seeds=seeds)
    assert torch.equal(whole.embeddings[[2, 3, 6]], rows)
    assert make.classifier.seen == []
    assert guard.corrupt_all([BOS, USER], [0]).mask is None
    with pytest.raises(CorruptionFailedError):
        guard.corrupt_all([900], [0])


@pytest.mark.parametrize("method", ["rand_noise_first_n", "rand_noise_rand_n", "flip_sign_top_k"])
def test_a_long_prompts_rows_are_each_what_its_token_has_alone(make: Maker, method: str) -> None:
    strength = None if method == "flip_sign_top_k" else 3.0
    spec = CorruptionSpec(method=method, dims=2, strength=strength)  # type: ignore[arg-type]
    guard = make((policy("a", spec, on_error="corrupt"), (50,)))
    ids = [3 + number * 7 % 800 for number in range(2000)]
    whole = guard.on_error(ids, RuntimeError())
    assert isinstance(whole, ProtectedPrompt)
    assert whole.embeddings is not None
    for place in range(0, 2000, 37):
        alone = guard.on_error(ids[place : place + 1], RuntimeError())
        assert isinstance(alone, ProtectedPrompt)
        assert alone.embeddings is not None
        assert torch.equal(whole.embeddings[place], alone.embeddings[0])


def test_a_later_turn_leaves_earlier_rows_as_they_were(make: Maker) -> None:
    guard = make((policy("a"), (50,)))
    first = guard.protect([USER, 50, 10, END])
    later = guard.protect([USER, 50, 10, END, USER, 11, END])
    assert first.embeddings is not None
    assert later.embeddings is not None
    assert torch.equal(later.embeddings[:4], first.embeddings)
    assert masked(later) == [50, 10]


def test_another_secret_or_policy_is_other_noise(make: Maker) -> None:
    rows = [
        make((policy(name), (50,)), secret=secret).protect([50]).embeddings
        for name, secret in (("a", SECRET), ("b", SECRET), ("a", bytes(32)))
    ]
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_a_needle_split_by_template_tokens_is_found_in_the_glue(make: Maker) -> None:
    prompt = make((policy("a"), (50, 51))).protect([USER, 10, 50, END, 51, 11, END])
    assert masked(prompt) == [10, 50, 51, 11]


def test_a_turn_that_explains_the_glue_spares_the_other_turns(make: Maker) -> None:
    prompt = make((policy("a"), (50,))).protect([USER, 50, END, USER, 10, 11, END])
    assert masked(prompt) == [50]


def test_what_is_left_is_glued_and_classified_again(make: Maker) -> None:
    """A decoy in a segment of its own does not hide a needle that the other segments spell together."""
    prompt = make((policy("a"), (50,)), (policy("b"), (60, 61))).protect([USER, 50, END, 60, END, 50, END, 61, END])
    assert masked(prompt) == [50, 60, 50, 61]


def test_an_observers_hit_does_not_take_content_out_of_the_glue(make: Maker) -> None:
    guard = make((policy("watch", action="observe"), (60,)), (policy("a"), (60, 61)))
    prompt = guard.protect([USER, 60, END, 61, END])
    assert masked(prompt) == [60, 61]


def test_only_the_windows_around_a_needle_in_a_long_text_are_masked(make: Maker) -> None:
    ids = [USER, *[10] * 300, 50, *[10] * 300, END]
    prompt = make((policy("a"), (50,))).protect(ids)
    assert prompt.mask is not None
    positions = [p for p, m in enumerate(prompt.mask) if m]
    assert 301 in positions
    assert 64 <= len(positions) <= 96
    assert max(positions) - min(positions) == len(positions) - 1


def test_the_first_policy_owns_what_several_flag(make: Maker) -> None:
    strong = CorruptionSpec(method="set_rand_noise_first_n", strength=9.0)
    guard = make((policy("a", CorruptionSpec(method="zero_out_first_n")), (50,)), (policy("b", strong), (50,)))
    prompt = guard.protect([50, 10])
    assert prompt.embeddings is not None
    assert not prompt.embeddings.any()
    assert [v.flagged for v in prompt.verdicts] == [True, True]


def test_permuting_methods_stay_within_a_segment(make: Maker) -> None:
    guard = make((policy("a", CorruptionSpec(method="reverse_order")), (50,)))
    prompt = guard.protect([USER, 50, 10, END, USER, 50, 11, 12, END])
    assert prompt.embeddings is not None
    assert prompt.embeddings[:, 0].tolist() == [0, 10, 50, 0, 0, 12, 11, 50, 0]


def test_observing_changes_nothing_and_refusing_refuses(make: Maker) -> None:
    observed = make((policy("a", action="observe"), (50,))).protect([50])
    assert (observed.mask, observed.refused_by, observed.verdicts[0].flagged) == (None, None, True)
    refused = make((policy("a"), (50,)), (policy("b", action="refuse"), (50,))).protect([50])
    assert (refused.mask, refused.refused_by) == (None, "b")


def test_failed_classification_rejects_or_corrupts_and_never_passes(make: Maker) -> None:
    guard = make((policy("a", on_error="corrupt"), (50,)))
    make.classifier.poison = 13
    prompt = guard.protect([BOS, 13, 14, END])
    assert masked(prompt) == [13, 14]
    assert prompt.verdicts[0].failed
    guard = make((policy("a", on_error="corrupt"), (50,)), (policy("b"), (51,)))
    make.classifier.poison = 13
    with pytest.raises(ClassificationError):
        guard.protect([BOS, 13])


def test_rows_that_cannot_be_had_reject_the_prompt(make: Maker) -> None:
    with pytest.raises(CorruptionFailedError):
        make((policy("a"), (950,))).protect([950])


def test_a_prompt_without_content_passes(make: Maker) -> None:
    assert make((policy("a"), (50,))).protect([BOS, USER, END]).mask is None


def test_policies_are_needed_and_named_once(make: Maker) -> None:
    with pytest.raises(PolicyMismatchError, match="no policy"):
        make()
    with pytest.raises(PolicyMismatchError, match="'a' is used twice"):
        make((policy("a"), (50,)), (policy("a"), (51,)))


def test_threads_get_the_same_answers(make: Maker) -> None:
    guard = make((policy("a"), (50,)))
    prompts = [[BOS, 50, i % 40] for i in range(200)]
    wanted = [guard.protect(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(lambda _: [guard.protect(prompt) for prompt in prompts], range(4)):
            for answer, expected in zip(answers, wanted, strict=True):
                assert answer.embeddings is not None
                assert expected.embeddings is not None
                assert torch.equal(answer.embeddings, expected.embeddings)


def in_pieces(guard: Guard, token_ids: Sequence[int]) -> tuple[list[int], ProtectedPrompt]:
    """What `protect_in_pieces` yields, and its result."""
    work, hints = guard.protect_in_pieces(token_ids), []
    while True:
        try:
            hints.append(next(work))
        except StopIteration as end:
            return hints, end.value


def test_work_is_done_in_pieces_and_says_what_is_left(make: Maker) -> None:
    guard = make((policy("a"), (50,)))
    prompt = [BOS, *range(100, 700), *[10] * 20_000, USER, 50, END]
    hints, found = in_pieces(guard, prompt)
    expected = guard.protect(prompt)
    assert (found.mask, found.verdicts) == (expected.mask, expected.verdicts)
    assert found.embeddings is not None
    assert expected.embeddings is not None
    assert torch.equal(found.embeddings, expected.embeddings)
    assert len(hints) > 8
    assert min(hints) >= 0
    assert max(hints[5:]) < hints[0]


def test_ids_that_nothing_can_read_are_an_error_even_where_errors_corrupt(make: Maker) -> None:
    guard = make((policy("a", on_error="corrupt"), (50,)))
    with pytest.raises(ClassificationError):
        guard.protect([1, 2**63])


def test_failures_in_pieces_reject_or_corrupt(make: Maker) -> None:
    guard = make((policy("a", on_error="corrupt"), (50,)))
    make.classifier.poison = 13
    assert masked(in_pieces(guard, [BOS, 13, 14, END])[1]) == [13, 14]
    guard = make((policy("a"), (50,)))
    make.classifier.poison = 13
    with pytest.raises(ClassificationError):
        in_pieces(guard, [BOS, 13])


class DoubtfulClassifier(NeedleClassifier):
    """Every window is in doubt; the encoder finds needles and says no to everything else."""

    def __init__(self, needles: Sequence[tuple[int, ...]]) -> None:
        super().__init__(needles)
        self.low, self.middle, self.high = (np.full(len(needles), end) for end in (-30.0, 0.0, 30.0))
        self.read: list[float] = []

    def embedded(self, text: str, policies: np.ndarray) -> np.ndarray:
        self.read.append(float(text))
        return np.zeros(len(policies))


def test_the_encoder_reads_what_is_in_doubt_nearest_first_within_its_budget(make: Maker) -> None:
    make.kind = DoubtfulClassifier
    guard = make((policy("a"), (50,)))
    short = guard.protect([10, 50, 11])
    assert (short.windows, short.encoded, short.over_budget) == (1, 1, 0)
    assert masked(short) == [10, 50, 11]
    innocent = guard.protect([10] * 300)
    assert (innocent.encoded, innocent.mask) == (innocent.windows, None)
    long = guard.protect([*[10] * 5000, 50])
    assert long.encoded == ENCODER_BUDGET
    assert long.over_budget == long.windows - ENCODER_BUDGET
    assert make.classifier.read[-ENCODER_BUDGET] == 20.0  # type: ignore[attr-defined]
    # what it had no time for is on the safe side
    assert sum(long.mask or []) > 4000


def test_a_window_of_a_long_prompt_must_show_more(make: Maker) -> None:
    guard = make((policy("a"), (50,)))
    make.classifier.thresholds = lambda windows: np.array([0.0 if windows < 9 else 25.0])  # type: ignore[method-assign]
    assert guard.protect([50]).verdicts[0].flagged
    verdict = guard.protect([50, *[10] * 1000]).verdicts[0]
    assert not verdict.flagged
    assert verdict.score < 0.5


class ConcernedClassifier(NeedleClassifier):
    """Only policies whose needle a block has look at it."""

    def _look(self, block: tuple[int, ...]) -> Looked:
        whole = super()._look(block)
        looks = np.flatnonzero((whole.logits > 0).any(axis=0))
        seen = np.where(whole.logits[:, looks] > 0, 20.0, -np.inf)
        return Looked(whole.ranges, whole.units, looks, seen)


def test_policies_that_find_nothing_to_look_at_pass_a_prompt(make: Maker) -> None:
    make.kind = ConcernedClassifier
    names = [f"p{number}" for number in range(300)]
    guard = make(*((policy(name), (1000 + number,)) for number, name in enumerate(names)))
    with pytest.raises(CorruptionFailedError):  # the table has no such rows
        guard.protect([10, 1007])
    guard = make(*((policy(name), (400 + number,)) for number, name in enumerate(names)))
    prompt = [*range(10, 100), 407, *([10] * 3000), 450, USER, 11]
    found = guard.protect(prompt)
    assert [verdict.policy for verdict in found.verdicts] == names
    assert [verdict.policy for verdict in found.verdicts if verdict.flagged] == ["p7", "p50"]
    assert {407, 450} <= set(masked(found))
    assert set(found.verdicts.told) == {7, 50}  # type: ignore[attr-defined]
    assert (found.verdicts[0].score, found.verdicts[-293].score) == (0.0, found.verdicts[7].score)
    assert found.verdicts[5:8] == [found.verdicts[5], found.verdicts[6], found.verdicts[7]]
    assert guard.protect([10, 11]).verdicts == [Verdict(name, "corrupt", flagged=False, score=0.0) for name in names]
    assert guard.protect([10, 11]) == guard.protect([10, 11])


@pytest.mark.parametrize(
    ("action", "answers", "mode"),
    [
        ("corrupt", "restart", "restart"),
        ("corrupt", "end", "end"),
        ("corrupt", "observe", "observe"),
        ("observe", "restart", "observe"),
        ("observe", "end", "observe"),
        ("refuse", "restart", "end"),
        ("refuse", "end", "end"),
        ("refuse", "observe", "observe"),
        *((action, "off", "off") for action in ("corrupt", "observe", "refuse")),
    ],
)
def test_what_becomes_of_answers_follows_what_becomes_of_prompts(action: str, answers: str, mode: str) -> None:
    config = policy("a", action=action).bundle.config
    assert config.model_copy(update={"answers": answers}).answer_mode == mode


def test_answers_are_not_read_where_no_policy_says_so(make: Maker) -> None:
    guard = make((policy("a"), (50,)))
    assert (guard.answers, guard.answer_modes) == (None, ["off"])


@pytest.mark.parametrize(
    ("answers", "watched", "guarded"),
    [
        ("restart", True, True),
        ("end", True, True),
        ("observe", True, False),
        ("off", True, False),
        ("restart", False, False),
    ],
)
def test_who_does_not_stop_answers_has_to_guess_at_prompts(
    make: Maker, answers: str, watched: bool, guarded: bool
) -> None:
    make((policy("a"), (50,)), (policy("b", action="observe"), (51,)), answers=answers, watched=watched)
    assert make.guarded == [guarded, guarded]  # who observes says what it would do if it did more


def some(*applies: bool) -> np.ndarray:
    return np.array(applies)


def test_policies_that_do_not_apply_neither_mask_nor_refuse_nor_tell(make: Maker) -> None:
    whole = make((policy("a"), (50,)), (policy("b"), (51,)), (policy("c", action="refuse"), (52,)))
    guard = whole.only(some(False, True, False))
    ids = [BOS, USER, 50, 51, 52, END]
    assert whole.protect(ids).refused_by == "c"
    found = guard.protect(ids)
    assert (masked(found), found.refused_by) == ([50, 51, 52], None)
    assert [(verdict.policy, verdict.flagged) for verdict in found.verdicts] == [("b", True)]
    assert guard.protect([BOS, USER, 50, 52, END]).mask is None
    assert whole.protect([BOS, USER, 50, END]).mask is not None


def test_rows_are_those_of_the_policy_that_applies(make: Maker) -> None:
    both = make((policy("a"), (50,)), (policy("b"), (50,)))
    ids = [BOS, USER, 50, END]
    rows = [
        guard.protect(ids).embeddings for guard in (both, both.only(some(True, False)), both.only(some(False, True)))
    ]
    assert torch.equal(rows[0], rows[1])  # type: ignore[arg-type]
    assert not torch.equal(rows[0], rows[2])  # type: ignore[arg-type]


def test_only_those_that_apply_decide_of_failures(make: Maker) -> None:
    guard = make((policy("a", on_error="reject"), (50,)), (policy("b", on_error="corrupt"), (51,)))
    make.classifier.poison = 60
    with pytest.raises(ClassificationError):
        guard.protect([BOS, USER, 60, END])
    found = guard.only(some(False, True)).protect([BOS, USER, 60, END])
    assert masked(found) == [60]
    assert [verdict.policy for verdict in found.verdicts] == ["b"]


def test_a_prompt_is_explained_by_its_windows(make: Maker) -> None:
    guard = make((policy("a"), (50,)), (policy("b"), (51,)))
    work = guard.explain([BOS, USER, 50, 7, END])
    while True:
        try:
            next(work)
        except StopIteration as done:
            found = done.value
            break
    assert found.prompt.mask == [False, False, True, True, False]
    positions, scores = found.windows[0]
    assert positions == [2, 3]
    assert scores["a"] > 0.99
    assert scores["b"] < 0.01
