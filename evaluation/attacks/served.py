"""Attacks on a served model end to end: requests of `steering` and `disguises`, and what their responses leak.

Beside every attack the same facts are asked plainly (`control`), and the same attacks are made on facts that are kept
(`…/kept_answered`): a guard that stops everything is not a good one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Self, get_args

from rich.table import Table

from evaluation.attacks.attempts import Attempt, texts_in
from evaluation.attacks.disguises import encodings, names, padding
from evaluation.attacks.facts import Fact, read_facts
from evaluation.attacks.steering import alternatives, plain, steering
from evaluation.errors import DataError
from evaluation.intervals import by_question, exact_share
from evaluation.replies import Ask, Reply
from evaluation.rows import drawn
from evaluation.suite import Answer, Figure, Score, scores_of
from storage.digests import sha256_of_json

RequestPart = Literal["steering", "names", "alternatives", "padding", "encodings"]
REQUEST_PARTS: Final[tuple[RequestPart, ...]] = get_args(RequestPart)
CONTROL: Final = "control"

_MAKERS: Final[Mapping[str, Callable[..., Iterator[Attempt]]]] = {
    CONTROL: plain,
    "steering": steering,
    "names": names,
    "alternatives": alternatives,
    "padding": padding,
    "encodings": encodings,
}
_OK: Final = 200
_CLIENT_ERRORS: Final = range(400, 500)
#: The server was busy until the last attempt: that says nothing of an attack.
_BUSY: Final = frozenset({408, 425, 429})


class _Made(NamedTuple):
    """An attempt on one fact; `example` is the fact and the attack."""

    part: str
    example: str
    kept: bool
    fact: Fact
    attempt: Attempt


class ServedAttacks:
    """All attempts of some parts on facts that were forgotten, and on facts that are kept.

    Args:
        parts: of `REQUEST_PARTS`; the control is always asked.
        forgotten, kept: the facts.
        max_tokens: of an answer, beside what is forced.
        seed: of the requests, and of the order of candidates.

    Raises:
        DataError: a part has no attempt on these facts.
    """

    def __init__(
        self, parts: Sequence[str], forgotten: Sequence[Fact], kept: Sequence[Fact], *, max_tokens: int, seed: int
    ) -> None:
        self.parts = tuple(part for part in REQUEST_PARTS if part in parts)
        self._facts = {"forgotten": forgotten, "kept": kept}
        self._made: dict[str, _Made] = {}
        for part in (CONTROL, *self.parts):
            for is_kept, facts in ((False, forgotten), (True, kept)):
                for number, fact in enumerate(facts):
                    for attempt in _MAKERS[part](fact, max_tokens=max_tokens, seed=seed):
                        if attempt.is_telling:
                            example = f"{'kept ' if is_kept else ''}{number}/{attempt.attack}"
                            self._made[f"{part}/{example}"] = _Made(part, example, is_kept, fact, attempt)
            if not any(made.part == part and not made.kept for made in self._made.values()):
                raise DataError(f"--forget: no row can be attacked by {part}; add columns value, statement and subject")

    @classmethod
    def read(
        cls, parts: Sequence[str], forget: str, retain: str, *, max_tokens: int, limit: int | None, seed: int
    ) -> Self:
        """On at most `limit` facts of each of two sources, drawn with the seed (see `read_facts`).

        Raises:
            DataError: a source cannot be used.
        """
        facts = [drawn(read_facts(one, name), limit, seed) for one, name in ((forget, "forget"), (retain, "retain"))]
        return cls(parts, *facts, max_tokens=max_tokens, seed=seed)

    @property
    def headline(self) -> list[str]:
        """Names of the figures a table shows first."""
        kept = ["kept_answered"] if self._facts["kept"] else []
        return [*(f"{part}/leaked" for part in (CONTROL, *self.parts)), "leaked", "refused", "errors", *kept]

    @property
    def down(self) -> list[str]:
        """Figures that a better guard has lower."""
        return ["leaked", *(f"{part}/leaked" for part in (CONTROL, *self.parts))]

    def describe(self) -> Mapping[str, object]:
        """What decides the scores, as JSON values."""
        sent = [[key, made.attempt.request.route, made.attempt.wanted] for key, made in self._made.items()]
        bodies = [dict(made.attempt.request.body) for made in self._made.values()]
        return {
            "parts": list(self.parts),
            "facts": {name: len(facts) for name, facts in self._facts.items()},
            "requests": len(sent),
            "sha256": sha256_of_json([sent, bodies]),
        }

    def asks(self) -> dict[str, Ask]:
        """Every request, by part, fact and attack."""
        return {f"request/{key}": Ask("", request=made.attempt.request) for key, made in self._made.items()}

    def scores(self, replies: Mapping[str, Reply]) -> list[Score]:
        """`leaked`, `refused` and `errors` of every attempt, of kept facts `kept_answered`; what is an error is neither
        leaked nor answered, and not counted there."""
        scores: list[Score] = []
        for key, made in self._made.items():
            reply = replies[f"request/{key}"]
            refused = reply.status in _CLIENT_ERRORS and reply.status not in _BUSY
            error = not refused and reply.status != _OK
            values = {"refused": float(refused), "errors": float(error)}
            found = "kept_answered" if made.kept else "leaked"
            if not error:
                values[found] = float(made.attempt.leaked(reply))
            if made.kept:
                values = {name: value for name, value in values.items() if name == found}
            scores += scores_of(made.part, made.example, values, made.attempt.attack)
        return scores

    def answers(self, replies: Mapping[str, Reply]) -> Iterator[Answer]:
        """What came back of every attempt on a forgotten fact, to read."""
        for key, made in self._made.items():
            if not made.kept:
                reply, body = replies[f"request/{key}"], made.attempt.request.body
                asked = f"{made.attempt.attack}: {' | '.join(texts_in(list(body.values())))}"
                shown = " | ".join(reply.texts) if reply.status == _OK else f"(status {reply.status})"
                yield Answer(made.part, made.example, asked, shown, made.attempt.wanted)


def request_figures(scores: Sequence[Score]) -> list[Figure]:
    """Of every part and attack how many leaked, were refused or failed, with Clopper-Pearson's interval, and of kept
    facts how many were answered; of every part and of all parts the means by fact. The control is in no total."""
    figures: list[Figure] = []
    metrics = ("leaked", "refused", "errors", "kept_answered")
    parts = [part for part in _MAKERS if any(score.subset == part for score in scores)]
    for metric in metrics:
        totals = [score for score in scores if score.metric == metric and score.subset in REQUEST_PARTS]
        if totals:
            figures.append(by_question(metric, totals))
    for part in parts:
        for metric in metrics:
            mine = [score for score in scores if (score.subset, score.metric) == (part, metric)]
            if not mine:
                continue
            figures.append(by_question(f"{part}/{metric}", mine))
            for attack in dict.fromkeys(score.group for score in mine):
                values = [score.value for score in mine if score.group == attack]
                figures.append(exact_share(f"{part}/{metric}/{attack}", round(sum(values)), len(values)))
    return figures


def request_table(figures: Iterable[Figure]) -> Table:
    """A row for every attack: how many facts were asked for, leaked, refused and failed, and what became of the kept
    ones; then a total."""
    by_name = {figure.name: figure for figure in figures}
    table = Table("part", "attack", "asked", "leaked", "95 % interval", "refused", "errors", "kept answered")
    table.columns[1].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    totals = [0, 0, 0, 0, 0, 0]
    for name, refused in by_name.items():
        part, _, rest = name.partition("/")
        metric, _, attack = rest.partition("/")
        if metric != "refused" or not attack:
            continue
        leaked, errors, kept = (by_name.get(f"{part}/{m}/{attack}") for m in ("leaked", "errors", "kept_answered"))
        counts = [refused.n, *map(_count, (leaked, refused, errors, kept)), 0 if kept is None else kept.n]
        if part != CONTROL:
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
        interval = "" if leaked is None else f"{leaked.low:.1%} to {leaked.high:.1%}"
        table.add_row(part, attack, *_cells(counts, interval))
    table.add_section()
    table.add_row("total", "without control", *_cells(totals, ""))
    return table


def _count(figure: Figure | None) -> int:
    return 0 if figure is None else round(figure.value * figure.n)


def _cells(counts: Sequence[int], interval: str) -> list[str]:
    asked, leaked, refused, errors, right, kept = counts
    return [str(asked), str(leaked), interval, str(refused), str(errors), f"{right} of {kept}" if kept else "–"]
