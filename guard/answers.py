"""Which of an answer under way may leave, and when it gives away what must be forgotten. Token ids in, no vLLM.

What a model generates is its own next input, and a client can steer it: a prompt that says nothing may have the model
write the question itself. So an answer's last words are classified as a prompt's would be, alone and, with a threshold
of their own, joined to the end of the prompt. Looks cost, and wait: words that are no evidence of anything a policy
forgets (`classifiers.memory.evidence`) leave at once, and no word that completes enough evidence leaves unlooked at.
"""

import bisect
import copy
import itertools
import re
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.runtime import probability
from guard.bundle import AnswerMode, PolicyConfig
from guard.classification import WindowClassifier
from guard.segments import Template
from guard.verdicts import Verdict
from text.encodings import variants
from text.names import Word, split_words
from text.reading import OVERLAP_UNITS, WINDOW_UNITS, windows_of

#: Held back for policies that may flag whatever words a text has, and how often such an answer is looked at.
FIXED_HOLD_TOKENS, _FIXED_EVERY_TOKENS = 16, 8
#: Held back after a look that came near to flagging.
_DOUBT_HOLD_TOKENS, _DOUBT_LOGITS = 4, 2.0
#: Looks in a row that must flag: every further look at an answer is a further chance of an error.
_CONFIRMING_LOOKS = 2
_EVERY_TOKENS = 32  # looked at, whatever its words
#: In other letters than names are compared in: a name is found by ear once it is whole.
_FOREIGN_HOLD_TOKENS, _FOREIGN_EVERY_TOKENS = 8, 4
_LAST_LATIN = "\u024f"
#: A run of these, this long, may be text in another code: what it says is known when it is whole.
_CODE_CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-=%&#;{}\\"
_CODE_RUN = re.compile(rf"[{re.escape(_CODE_CHARS)}]{{16,}}")
_LONGEST_WORD = 40
_CODE_LEAST, _CODE_EVERY_TOKENS, _CODE_HOLD_TOKENS = 16, 8, 128
_LEAST_START = 2  # letters that may be the beginning of a word worth holding
_TAIL_TOKENS = 64  # of a prompt are joined to its answer
_GIVEN_TOKENS = 512  # and what these say, the client has said: repeated, it is no leak
_WINDOW_CHARS = 5 * WINDOW_UNITS
_RECENT_WORDS = WINDOW_UNITS
_SPELT, _SPELT_OF = 4, 6  # of the last words have one letter: something is spelt out
_SPELT_CHARS = 80
_PARTS = re.compile(r"""['"]\s*(?:\+|\.|\|\|)\s*['"]""")  # "Wend" + "ell"
_MOST_OPEN_TOKENS = 40  # without an end of a word: there is none
_TELLING_SHARE = 0.2  # of what a policy asks for: a word that a restarted answer must not see
_LEAST_SHARE = 0.05  # a word that is worth a look
_ENCODER_BUDGET = 24  # windows of a batch of a whole answer's that the encoder reads at most
_LOOK_BUDGET = 2  # and of one under way, at each look
_ALTERNATIVES_BUDGET = 8  # and of the alternatives at one place
_WINDOWS_AT_ONCE = 16
_SENTENCE_WORDS = 16
_UNCONFIRMED_LOGITS = 1.0  # above the threshold, where there is no second look
#: Of a forgotten answer, in its distinctive words: given so much of it, it is given away. TOFU's own answers reach it
#: in 95 of 100 cases, its wrong answers to the same questions in 2 to 5, by the number of authors.
_STATED = 0.6
_MOST_COMPLETIONS = 500
_COMPLETIONS = 3  # of a token that begins a word are looked at
_EVERYTHING = 1 << 62  # more tokens than any answer has


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer gives away what a policy forgets.

    Attributes:
        policy: its number; of several the surest.
        score: its probability; NaN where no classifier gave one.
        ends: the answer ends here, and is not to be restarted.
    """

    policy: int
    score: float
    ends: bool


class AnswerGuard:
    """What the policies of a guard make of answers.

    Args:
        configs: of all P policies, in their order.
        classifier: theirs.
        template: what is no content of a prompt.
    """

    def __init__(self, configs: Sequence[PolicyConfig], classifier: WindowClassifier, template: Template) -> None:
        modes: list[AnswerMode] = [config.answer_mode for config in configs]
        self.names = [config.name for config in configs]
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self.classifier = classifier
        self.template = template
        self.observes = np.array([mode == "observe" for mode in modes])
        self.ends = np.array([mode == "end" for mode in modes])
        self._can_read = np.array([mode != "off" for mode in modes])
        self._rejects = np.array([config.on_error == "reject" for config in configs])
        self._apply(np.full(len(configs), True))

    def only(self, applies: NDArray[np.bool_]) -> "AnswerGuard":
        """The same for an answer to which some of the P policies do not apply: (P,)."""
        other = copy.copy(self)
        other._apply(applies)
        return other

    def _apply(self, applies: NDArray[np.bool_]) -> None:
        self.reads = applies & self._can_read
        enforcing = np.flatnonzero(self.reads & ~self.observes)
        self.enforces = bool(len(enforcing))
        """Whether a policy does more than observe."""
        self.first = int(enforcing[0]) if len(enforcing) else 0
        """The policy that corrupts where none can be told."""
        self.rejects_on_error = bool(self._rejects[enforcing].any())
        self.holds_all = bool((self.classifier.untold & self.reads & ~self.observes).any())
        """Whether some policy may flag an answer whatever words it has."""
        self.joins = np.isfinite(self.classifier.joined) & self.reads

    def watch(
        self,
        prompt: Sequence[int] = (),
        mask: Sequence[bool] | None = None,
        answer: Sequence[int] = (),
        forgets: Sequence[int] = (),
    ) -> "AnswerWatch":
        """Watch an answer.

        Args:
            prompt: the ids it answers; () where they are not to be read with it.
            mask: which of them the model does not see. Where there are any, the answer is read alone: the prompt was
                flagged, and so would be every answer that is joined to it.
            answer: ids of it that have left already and are read with what follows.
            forgets: policies, by number, that the prompt is known to be about. Its answer must not say what they
                forget, of whomever it says so: a name that the model did not see it may get wrong.
        """
        tail = "" if mask is not None and any(mask) else self._tail(prompt)
        about = np.array([policy for policy in forgets if self.reads[policy]], dtype=np.int64)
        given = self._said(prompt[-_GIVEN_TOKENS:]) if len(about) else ""
        watch = AnswerWatch(self, tail, about, frozenset(word.text for word in split_words(given)))
        if answer:
            watch.add(answer)
        return watch

    def corrupting(self, flagged: Sequence[Verdict]) -> list[int]:
        """Of the policies that flagged a prompt those that corrupt it, by number. One that failed knows nothing."""
        known = (verdict for verdict in flagged if verdict.action == "corrupt" and not verdict.failed)
        return sorted(self._numbers[verdict.policy] for verdict in known)

    def telling_tokens(self, token_ids: Sequence[int]) -> set[int]:
        """Which tokens of an answer, by number, belong to words that are evidence of something: what a restart must not
        see."""
        if self.holds_all:
            return set(range(len(token_ids)))
        text, starts, ends = self.classifier.spell(token_ids)
        telling: set[int] = set()
        for word in split_words(text):
            policies, shares = self.classifier.shares(word.text)
            if (shares * self.reads[policies]).max(initial=0.0) >= _TELLING_SHARE:
                first, last = np.searchsorted(ends, word.start, side="right"), np.searchsorted(starts, word.end)
                telling.update(range(int(first), int(last)))
        return telling

    def _tail(self, prompt: Sequence[int]) -> str:
        """The end of a prompt's content, where there are policies that read it with the answer."""
        return self._said(prompt, _TAIL_TOKENS) if prompt and self.joins.any() else ""

    def _said(self, prompt: Sequence[int], left: int = _GIVEN_TOKENS) -> str:
        """The last `left` tokens of a prompt's content; its last stretches, a line each."""
        parts: list[str] = []
        first = max(0, len(prompt) - 4 * left)  # the template's own tokens stand between
        for stretch in reversed(self.template.segments(prompt[first:])):
            kept = stretch[-left:]
            parts.append(self.classifier.spell([prompt[first + position] for position in kept])[0].strip())
            left -= len(kept)
            if left <= 0:
                break
        return "\n".join(reversed(parts))


@dataclass(slots=True)
class _Seen:
    """A word that is evidence: which of the answer's words it is, and of which policies it is how much."""

    number: int
    word: str
    policies: NDArray[np.int64]
    shares: NDArray[np.float64]


@dataclass(slots=True)
class AnswerWatch:
    """One answer under way. `add` what comes; where it says so, do the work of `look` before anything of it leaves."""

    guard: AnswerGuard
    tail: str
    """The end of the prompt; "" where the answer is read alone."""
    about: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Policies that the prompt is known to be about."""
    given: frozenset[str] = frozenset()
    """The prompt's words, where there are such policies."""
    observed: set[int] = field(default_factory=set)
    """Policies that merely observe, and would have flagged it."""
    looks: int = 0
    _text: str = ""
    """Of the words that are complete."""
    _open: list[int] = field(default_factory=list)
    """Tokens from the beginning of a word that may go on."""
    _open_text: str = ""
    _open_hold: int = 0
    _name_hold: int = 0
    """Tokens from the beginning of a name that the words so far may be of."""
    _code_chars: int = 0
    _code_hold: int = 0
    _sizes: deque[int] = field(default_factory=lambda: deque(maxlen=_CODE_HOLD_TOKENS))
    _recent: deque[_Seen] = field(default_factory=deque)
    _lengths: deque[int] = field(default_factory=lambda: deque(maxlen=_SPELT_OF))
    _words: int = 0
    _tokens: int = 0
    _since: int = 0
    _suspected: int = 0
    _doubtful: bool = False
    _foreign: bool = False
    _is_spelt: bool = False
    _done: bool = False
    _asked: NDArray[np.float64] = field(init=False)
    _asked_words: frozenset[str] = field(init=False)
    _of_tail: NDArray[np.float64] = field(init=False)
    _shown: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        # (P,) shares of what each policy asks for: of the prompt's end, and with the answer's recent words.
        self._asked = np.where(self.guard.reads, 0.0, -np.inf)
        words = {word.text for word in split_words(self.tail)}
        for word in words:
            policies, shares = self.guard.classifier.shares(word)
            if len(policies):
                self._asked[policies] += np.where(self.guard.joins[policies], shares, 0.0)
        self._asked_words, self._of_tail = frozenset(words), self._asked
        if len(self.about):  # any word that is evidence of what they forget is looked at
            self._asked = self._asked.copy()
            self._asked[self.about] = 1.0
        self._shown = self._asked

    def copy(self) -> "AnswerWatch":
        """One that reads on by itself."""
        other = copy.copy(self)
        other._open, other._recent, other._lengths = list(self._open), self._recent.copy(), self._lengths.copy()
        other._sizes, other.observed = self._sizes.copy(), set(self.observed)
        return other

    def of_alternatives(self) -> "AnswerWatch":
        """One that judges what might have come, as if it did not know what the prompt is about: which words are then
        missing would tell what is forgotten."""
        other = self.copy()
        if len(self.about):
            other.about, other._asked = self.about[:0], self._of_tail
            other._show()
        return other

    @property
    def hold(self) -> int:
        """Tokens at the end of the answer that must not leave yet."""
        if self._done or not self.guard.enforces:
            return 0
        if self._suspected:
            return _EVERYTHING
        fixed = FIXED_HOLD_TOKENS if self.guard.holds_all or self._is_spelt else 0
        foreign = _FOREIGN_HOLD_TOKENS if self._foreign else 0
        doubt = _DOUBT_HOLD_TOKENS if self._doubtful else 0
        return max(fixed, foreign, doubt, self._open_hold, self._name_hold, self._code_hold)

    def _spells(self) -> bool:
        """Something is put together of letters, or of quoted parts."""
        if self._lengths.count(1) >= _SPELT:
            return True
        said = (self._text[-_SPELT_CHARS:] + self._open_text)[-_SPELT_CHARS:]
        return len(_PARTS.findall(said)) >= 2

    def add(self, token_ids: Sequence[int], *, done: bool = False) -> bool:
        """Read on, to the end where `done`; returns whether to look before anything of this leaves."""
        self._tokens += len(token_ids)
        self._since += len(token_ids)
        self._open += token_ids
        self._done = done
        text, starts, ends = self.guard.classifier.spell_few(self._open)
        self._foreign = not text.isascii() and any(char > _LAST_LATIN and char.isalpha() for char in text)
        words = split_words(text)
        complete = words if done or len(self._open) > _MOST_OPEN_TOKENS else [w for w in words if w.end < len(text)]
        told = self._note(complete)
        opened = words[-1] if len(complete) < len(words) else None
        cut = len(text) if opened is None else opened.start
        first = bisect.bisect_right(ends, cut)
        if len(self._open) <= _MOST_OPEN_TOKENS:  # what says nothing at the end may be the first part of a character
            while first and starts[first - 1] == ends[first - 1]:
                first -= 1
        edge = starts[first] if first < len(starts) else len(text)
        self._hold_names(complete, ends, len(token_ids))
        self._text = (self._text + text[:edge])[-2 * _WINDOW_CHARS :]
        self._open, self._open_text, self._open_hold = self._open[first:], text[edge:], 0
        if opened is not None and self._may_tell(opened.text):
            self._open_hold = len(self._open)
            told = told or self._reach(opened.text) >= 1
        new = len(starts) - len(token_ids)
        told = self._hold_code([end - start for start, end in zip(starts[new:], ends[new:], strict=True)]) or told
        if complete or "'" in text or '"' in text:
            self._is_spelt = self._spells()
        return self._is_due(told, bool(complete))

    def _hold_names(self, complete: Sequence[Word], ends: Sequence[int], new: int) -> None:
        """Hold a name's first words until the next is there: `complete` are words of the open tokens, which end at
        `ends` and of which the last `new` have just come."""
        held = self._name_hold + new if self._name_hold else 0
        for word in complete:
            if self.guard.classifier.continues_name(word.text, begun=False):
                held = len(ends) - bisect.bisect_right(ends, word.start)
            elif not (held and self.guard.classifier.continues_name(word.text, begun=True)):
                held = 0
        self._name_hold = held

    def _hold_code(self, sizes: Sequence[int]) -> bool:
        """Hold what may be text in another code until it ends; `sizes` are the characters of each new token. Returns
        whether to look."""
        self._sizes.extend(sizes)
        # Before what has come, and the run that it may go on, stands nothing of a code.
        read = min(sum(sizes) + self._code_chars, _WINDOW_CHARS)
        said = (self._text[-read:] + self._open_text)[-read:] if read else ""
        plain = len(said.rstrip(_CODE_CHARS))
        self._code_chars, self._code_hold = len(said) - plain, 0
        due = plain >= _CODE_LEAST and any(variants(run) for run in _CODE_RUN.findall(said[:plain]))
        if (length := self._code_chars) < _CODE_LEAST:
            return due
        for size in reversed(self._sizes):
            if length <= 0:
                break
            length -= size
            self._code_hold += 1
        return due or (self._since >= _CODE_EVERY_TOKENS and bool(variants(said[plain:])))

    def _note(self, words: Sequence[Word]) -> bool:
        """Count in complete words; returns whether one of them says enough, with those before it, to be looked at."""
        telling: list[NDArray[np.int64]] = []
        for word in words:
            self._words += 1
            self._lengths.append(len(word.text))
            policies, shares = self.guard.classifier.shares(word.text)
            if len(policies):
                telling.append(policies[shares >= _LEAST_SHARE])
                if word.text in self._asked_words:  # which policies that join the prompt have counted
                    shares = np.where(self.guard.joins[policies], 0.0, shares)
                self._recent.append(_Seen(self._words, word.text, policies, shares))
        stale = bool(self._recent) and self._recent[0].number <= self._words - _RECENT_WORDS
        while self._recent and self._recent[0].number <= self._words - _RECENT_WORDS:
            self._recent.popleft()
        if telling or stale:
            self._show()
        return any(bool((self._shown[policies] >= 1).any()) for policies in telling)

    def _show(self) -> None:
        self._shown = self._asked.copy()
        for seen in {seen.word: seen for seen in self._recent}.values():
            self._shown[seen.policies] += seen.shares

    def _reach(self, word: str, *, begun: bool = False) -> float:
        """The largest share of what a policy asks for, were this the next word."""
        policies, shares = self.guard.classifier.shares(word, begun=begun)
        return float((self._shown[policies] + shares).max(initial=0.0)) if len(policies) else 0.0

    def _may_tell(self, start: str) -> bool:
        return self._reach(start) >= 1 or (len(start) >= _LEAST_START and self._reach(start, begun=True) >= 1)

    def _is_due(self, told: bool, completed: bool) -> bool:
        if self._done or told:
            return True
        if completed and (self._suspected or self._is_spelt):
            return True
        every = _FIXED_EVERY_TOKENS if self.guard.holds_all else _EVERY_TOKENS
        return self._since >= (min(every, _FOREIGN_EVERY_TOKENS) if self._foreign else every)

    def look(self) -> Generator[int, None, Hit | None]:
        """Classify the answer's last words. Work for a guard's thread, in pieces: between two of them it yields what is
        left to do, in microseconds.

        Raises:
            ClassificationError: they could not be classified.
        """
        self.looks += 1
        self._since = 0
        text = (self._text + self._open_text)[-_WINDOW_CHARS:]
        if len(self._text) > _WINDOW_CHARS:
            head, _, rest = text.partition(" ")
            text = rest if rest and len(head) <= _LONGEST_WORD else text  # of a long run the end says something too
        windows = 1 + max(0, self._tokens - WINDOW_UNITS) // (WINDOW_UNITS - OVERLAP_UNITS)
        policies, margins = yield from self._margins([text], windows, _LOOK_BUDGET)
        hit = _either(self._hit(policies, margins), self._stated(text))
        enforced = ~self.guard.observes[policies]
        nearest = float(margins[enforced].max(initial=-np.inf))
        self._suspected = self._suspected + 1 if hit else 0
        self._doubtful = nearest >= -_DOUBT_LOGITS
        return hit if self._done or self._suspected >= _CONFIRMING_LOOKS else None

    def whole(self, token_ids: Sequence[int]) -> Generator[int, None, Hit | None]:
        """Classify a whole answer of T tokens, of which nothing has left. Work as `look`.

        Its windows are looked at, and what of them would have been looked at as it came, before the rest was there:
        a sentence that is buried in others.
        """
        text = self.guard.classifier.spell(token_ids)[0]
        pieces, words = windows_of(text), text.split()
        pieces += [piece for variant in variants(text) for piece in windows_of(variant.said)]
        sentences = [
            " ".join(words[start : start + _SENTENCE_WORDS])
            for start in range(0, len(words) - _SENTENCE_WORDS // 2, _SENTENCE_WORDS // 2)
        ]
        batches = [(pieces[at : at + _WINDOWS_AT_ONCE], True) for at in range(0, len(pieces), _WINDOWS_AT_ONCE)]
        if len(words) > _SENTENCE_WORDS:
            at_once = 2 * _WINDOWS_AT_ONCE
            batches += [(sentences[at : at + at_once], False) for at in range(0, len(sentences), at_once)]
        best: Hit | None = None
        stated: Hit | None = None
        for number, (texts, whole) in enumerate(batches):
            self.looks += 1
            policies, margins = yield from self._margins(texts, len(pieces), _ENCODER_BUDGET, joined=whole)
            hit = self._hit(policies, margins if whole else margins - _UNCONFIRMED_LOGITS)
            if hit is not None and (best is None or hit.score > best.score):
                best = hit
            for piece in texts if whole and len(self.about) else ():
                stated = _either(stated, self._stated(piece))
                yield (len(batches) - number) * 1000
            yield (len(batches) - number) * 1000
        return _either(best, stated)

    def _margins(
        self, texts: Sequence[str], windows: int, budget: int, *, joined: bool = True
    ) -> Generator[int, None, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Policies (Q,) and by how much (Q,) any of the texts, alone or joined to the prompt, is above the threshold of
        an answer that has so many windows."""
        policies, margins = yield from self._all_margins(texts, windows, budget, joined=joined)
        return policies, margins.max(axis=0, initial=-np.inf)

    def _all_margins(
        self, texts: Sequence[str], windows: int, budget: int, *, joined: bool = True
    ) -> Generator[int, None, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """The same of each text: (T, Q), or (2 T, Q) where they are joined to a prompt as well."""
        least = np.where(self.guard.reads, self.guard.classifier.thresholds(windows), np.inf)
        thresholds = [least + self.guard.classifier.answered] * len(texts)
        if self.tail and joined:
            thresholds += [least + self.guard.classifier.joined] * len(texts)
            texts = [*texts, *(f"{self.tail}\n{text}" for text in texts)]
        return (yield from self.guard.classifier.margins(texts, np.stack(thresholds), budget=budget))

    def _hit(self, policies: NDArray[np.int64], margins: NDArray[np.float64]) -> Hit | None:
        over = margins >= 0
        observes = self.guard.observes[policies]
        self.observed.update(policies[over & observes].tolist())
        over &= ~observes
        if not over.any():
            return None
        best = int(np.argmax(np.where(over, margins, -np.inf)))
        threshold = float(self.guard.classifier.thresholds(1)[policies[best]])
        score = float(probability(np.array([margins[best] + threshold]))[0])
        return Hit(int(policies[best]), score, ends=bool(self.guard.ends[policies[over]].any()))

    def _stated(self, text: str) -> Hit | None:
        """A policy that the prompt is about, where a text gives an answer that it forgets and the client did not."""
        if not len(self.about):
            return None
        own = " ".join(word.text for word in split_words(text) if word.text not in self.given)
        shares = self.guard.classifier.answers_given(own, self.about)
        over, observes = shares >= _STATED, self.guard.observes[self.about]
        self.observed.update(self.about[over & observes].tolist())
        over &= ~observes
        if not over.any():
            return None
        policy = int(self.about[np.argmax(np.where(over, shares, -1.0))])
        return Hit(policy, float("nan"), ends=bool(self.guard.ends[self.about[over]].any()))

    def telling(self, token_ids: Sequence[int]) -> list[int]:
        """Of the tokens that might have come next, those that would be looked at before they leave."""
        if not self.guard.enforces:
            return []
        if self.guard.holds_all:
            return list(token_ids)
        return [token for token in token_ids if self._tells(token)]

    def _tells(self, token: int) -> bool:
        words = split_words(self.guard.classifier.spell([*self._open, token])[0])
        return any(self._reach(word.text) >= 1 for word in words) or (bool(words) and self._may_tell(words[-1].text))

    def give_away(self, token_ids: Sequence[int]) -> Generator[int, None, set[int]]:
        """Which of the tokens that are `telling` would make the answer one that is flagged, were they next, or are all
        that is wanting of a word that does. Work as `look`.

        Raises:
            ClassificationError: they could not be classified.
        """
        if self.guard.holds_all or not token_ids:
            return set(token_ids)
        texts: list[str] = []
        owners: list[int] = []
        for token in token_ids:
            said = self.guard.classifier.spell([*self._open, token])[0]
            words = split_words(said)
            if words and words[-1].start >= len(self._open_text) and not self._says(words[-1].text):
                said = said[: words[-1].start]  # what it completes is in question, not the word that it begins
            ends = [said]
            if words and words[-1].end == len(said):
                ends += [said[: words[-1].start] + word for word in self._completions(words[-1].text)]
            texts += [(self._text + end)[-_WINDOW_CHARS:] for end in ends]
            owners += [token] * len(ends)
        windows = 1 + max(0, self._tokens - WINDOW_UNITS) // (WINDOW_UNITS - OVERLAP_UNITS)
        distinct = list(dict.fromkeys(texts))
        margins = yield from self._each_margin(distinct, windows)
        margin_of = dict(zip(distinct, margins.tolist(), strict=True))
        return {token for token, text in zip(owners, texts, strict=True) if margin_of[text] >= _UNCONFIRMED_LOGITS}

    def _says(self, word: str) -> bool:
        """Whether a word, or one that it may begin, is evidence of anything."""
        return any(len(self.guard.classifier.shares(word, begun=begun)[0]) > 0 for begun in (False, True))

    def _completions(self, start: str) -> list[str]:
        """Words that would be looked at, and that this may be the beginning of: those that say most."""
        words = itertools.islice(self.guard.classifier.begun_words(start), _MOST_COMPLETIONS)
        reached = [(self._reach(word), word) for word in words]
        return [word for reach, word in sorted(reached, reverse=True)[:_COMPLETIONS] if reach >= 1]

    def _each_margin(self, texts: Sequence[str], windows: int) -> Generator[int, None, NDArray[np.float64]]:
        """(T,) by how much each text, alone or joined to the prompt, is above the threshold of a policy that does more
        than observe."""
        count = len(texts)
        policies, margins = yield from self._all_margins(texts, windows, _ALTERNATIVES_BUDGET)
        enforced = ~self.guard.observes[policies]
        highest = margins[:, enforced].max(axis=1, initial=-np.inf)
        return highest.reshape(-1, count).max(axis=0)  # type: ignore[no-any-return]


def _either(one: Hit | None, other: Hit | None) -> Hit | None:
    """What two ways of looking found: the first of them, which ends the answer where either does."""
    if one is None or other is None:
        return one or other
    return replace(one, ends=one.ends or other.ends)
