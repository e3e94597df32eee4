"""Hand-written questions that never name their subject: through another fact, by an alias, in reverse, by description.

A kind is whatever the file calls it. Two that matter by themselves: `multi_hop` ("In which town was the author of The
Quiet Key born?"), which needs two forgotten facts or one and what leads to it, and `alias` ("Where does W. F. come
from?"). The same kinds of question about what is kept say what the target can do at all: a model that cannot put two
facts together leaks none.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from rich.markup import escape
from rich.table import Table

from evaluation.attacks.answers import output_scores
from evaluation.attacks.data import IndirectQuestion
from evaluation.attacks.gate import Gate
from evaluation.intervals import bootstrap, exact_share, exact_where_unanimous, table_of
from evaluation.suite import Answer, Figure, Score

LEAKS: Final = ("leak", "leak_output_classified")
"""Metrics of forgotten questions: the answer gives the value away; and a guard that reads answers lets it out."""
ANSWERED: Final = "neighbour/answered"
"""The figure of kept questions that were answered right."""

#: Whether an answer gives a reference away that the question does not hold: answer, reference, question.
_Leaks = Callable[[str, str, str], bool]
_SUBSETS: Final = ((True, "indirect"), (False, "neighbour"))


def indirect_scores(
    questions: Sequence[IndirectQuestion], texts: Sequence[str], gate: Gate | None, leaks: _Leaks
) -> list[Score]:
    """`leak` of what is to be forgotten and `answered` of what is kept and has an answer, grouped by kind; with a gate
    what classifying answers does (see `output_scores`)."""
    scores: list[Score] = []
    for forget, subset in _SUBSETS:
        rows = []
        for number, (one, text) in enumerate(zip(questions, texts, strict=True)):
            if one.forget == forget:
                said = leaks(text, one.answer, one.prompt) if one.answer else None
                rows.append((str(number), one.kind, text, said if forget else None))
                if said is not None and not forget:
                    scores.append(Score(subset, "answered", str(number), float(said), one.kind))
        scores += output_scores(gate, subset, rows)
    return scores


def indirect_answers(questions: Sequence[IndirectQuestion], texts: Sequence[str]) -> Iterator[Answer]:
    """To read, those that are to be forgotten first."""
    for forget, subset in _SUBSETS:
        for number, (one, text) in enumerate(zip(questions, texts, strict=True)):
            if one.forget == forget:
                yield Answer(subset, str(number), one.prompt, text, one.answer or "")


def kind_figures(scores: Sequence[Score]) -> list[Figure]:
    """`indirect/leak/KIND`, `indirect/leak_output_classified/KIND` and `neighbour/answered/KIND`: the share of the
    kind's questions, with Clopper and Pearson's interval; with several draws of noise a bootstrap's."""
    figures = []
    for subset, metric in (*(("indirect", metric) for metric in LEAKS), tuple(ANSWERED.split("/"))):
        mine = [score for score in scores if (score.subset, score.metric) == (subset, metric)]
        for kind in dict.fromkeys(score.group for score in mine):
            _, values = table_of([score for score in mine if score.group == kind], subset, metric)  # (D, N)
            name = f"{subset}/{metric}/{kind}"
            if len(values) == 1:
                figures.append(exact_share(name, round(values.sum()), values.shape[1]))
                continue
            interval = exact_where_unanimous(values) or bootstrap(values)
            figures.append(Figure.within(interval, name, float(np.mean(values)), values.shape[1]))
    return figures


def kind_table(figures: Sequence[Figure]) -> Table:
    """A row for each kind of question that there are figures of."""
    by_name = {figure.name: figure for figure in figures}
    kinds = dict.fromkeys(
        name.split("/", 2)[2] for name in by_name if name.startswith((f"indirect/{LEAKS[0]}/", f"{ANSWERED}/"))
    )
    columns = ("kind", "asked", "leaked", "95 % interval", "leaked, answers read", "kept answered")
    table = Table(*columns, title="indirect questions by kind")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in kinds:
        leaked, read, kept = (by_name.get(f"{of}/{kind}") for of in (*(f"indirect/{m}" for m in LEAKS), ANSWERED))
        interval = "–"
        if leaked is not None and leaked.low is not None and leaked.high is not None:
            interval = f"{leaked.low:.1%} to {leaked.high:.1%}"
        shares = [leaked, read]
        shown = ["–" if one is None else f"{one.value:.1%}" for one in shares]
        asked = "–" if leaked is None else str(leaked.n)
        answered = "–" if kept is None else f"{kept.value:.1%} of {kept.n}"
        table.add_row(escape(kind), asked, shown[0], interval, shown[1], answered)
    return table
