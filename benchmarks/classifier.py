"""How well a head trained on a forget file and a retain file alone recognises what it never saw.

    python -m benchmarks.classifier [--tofu DIR] [--rwku FILE] [--json FILE]

People: eight well-known people, each forgotten in turn from 25 questions, the other seven's questions being the
retain set. Judged on nine kinds of attacks, on neighbours (their works, places, friends), and on everybody else. TOFU
(only with --tofu, a folder with forget10.jsonl, …): judged on rewordings of forget and retain questions,
on attacks, and on world facts and real authors. The rewordings and the people's questions in `benchmarks/data` were
written for this purpose; `people_development.jsonl` was looked at while the classifier was made, and
`people_held_out.jsonl` was not. RWKU (only with --rwku, its probes as JSON lines: subject, split, query, answer):
each person forgotten from levels 1 and 2, those of the others and their neighbours being the retain set; judged on
level 3, on the person's own neighbours, and on the others' level 3 and neighbours, of which these were trained on.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from classifiers import Encoder, Example, Head, read_examples, resolve_encoder, score_texts, train_head
from classifiers.calibration.threshold import clopper_pearson
from classifiers.prompt_classifier import HeadClassifier, flags_answers, flags_prompts

_DATA = Path(__file__).parent / "data"
#: (name, forget file, retain file, first row of forget10 that it forgets)
_TOFU = (("forget10", "forget10", "retain90", 0), ("forget01", "forget01", "retain99", 360))

Rows = list[dict[str, Any]]


Verdicts = tuple[list[bool], list[bool]]
"""Of some questions: flagged by a guard of prompts alone; and prompt or answer flagged, by one that reads both.
The second is empty where no answers are known."""
Counts = dict[str, dict[str, tuple[int, int]]]
"""By kind of question, flagged and asked: `prompt`, and `either`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", type=Path, default=None, help="folder with TOFU's JSON-lines files")
    parser.add_argument("--rwku", type=Path, default=None, help="file of RWKU's probes of several people")
    parser.add_argument("--people", type=Path, default=_DATA / "people_held_out.jsonl")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    options = parser.parse_args()
    console = Console()
    encoder = Encoder.open(resolve_encoder())
    figures = {"people": _people(encoder, _rows(options.people), console)}
    if options.tofu is not None:
        for name, forget, retain, first in _TOFU:
            figures[name] = _tofu(encoder, options.tofu, forget, retain, first, console)
    if options.rwku is not None:
        figures["rwku"] = _people(encoder, _rwku_rows(options.rwku), console, retained=("forget", "neighbour"))
    for name, counts in figures.items():
        columns = [f"{heading}{more}" for heading in ("prompt", "prompt or answer") for more in ("", ", 95 %")]
        table = Table("what was asked", *columns, title=name)
        for kind, own in counts.items():
            cells = []
            for flagged, asked in own.values():
                low, high = clopper_pearson(flagged, asked)
                cells += [f"{flagged} / {asked} ({flagged / asked:.1%})", f"{low:.1%} to {high:.1%}"]
            table.add_row(kind, *cells)
        console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _rwku_rows(path: Path) -> Rows:
    """RWKU's probes as rows of `_people`."""
    kinds = {"forget_level1": "forget", "forget_level2": "forget", "forget_level3": "attack"}
    return [
        {
            "person": row["subject"],
            "kind": kinds.get(row["split"], "neighbour"),
            "question": row["query"],
            "answer": row["answer"],
        }
        for row in _rows(path)
    ]


def _people(encoder: Encoder, rows: Rows, console: Console, retained: Sequence[str] = ("forget",)) -> Counts:
    """Over all people; `others` is everything about those who stay, whose rows of some kinds are the retain set."""
    verdicts: dict[str, Verdicts] = defaultdict(lambda: ([], []))
    for person in dict.fromkeys(row["person"] for row in rows):
        started = time.perf_counter()
        own = [row for row in rows if row["person"] == person]
        rest = [row for row in rows if row["person"] != person]
        forget = [Example(row["question"], row["answer"]) for row in own if row["kind"] == "forget"]
        known = {example.prompt for example in forget}
        retain = [
            Example(row["question"], row["answer"])
            for row in rest
            if row["kind"] in retained and row["question"] not in known
        ]
        head, _ = train_head(encoder, forget, retain, seed=0)
        asked = [row for row in (*own, *rest) if row["kind"] != "forget"]
        for row, *flags in zip(asked, *_judged(encoder, head, asked), strict=True):
            kinds = [row["kind"]] if row["person"] == person else ["others"]
            attacked = kinds[0] not in ("neighbour", "others")
            for kind in (*kinds, *(["all attacks"] if attacked else [])):
                for column, flag in zip(verdicts[kind], flags, strict=True):
                    column.append(flag)
        console.print(f"{person}: trained and judged in {time.perf_counter() - started:.0f} s", highlight=False)
    return {kind: _counts(found) for kind, found in verdicts.items()}


def _tofu(encoder: Encoder, folder: Path, forget: str, retain: str, first: int, console: Console) -> Counts:
    started = time.perf_counter()
    sets = read_examples(folder / f"{forget}.jsonl"), read_examples(folder / f"{retain}.jsonl")
    head, report = train_head(encoder, *sets, seed=0)
    console.print(f"{forget}: trained in {time.perf_counter() - started:.0f} s; {report.calibration.guarantee}")
    reworded, attacks = _rows(_DATA / "tofu_paraphrases.jsonl"), _rows(_DATA / "tofu_attacks.jsonl")
    forgotten = [row for row in reworded if row["set"] == "forget10" and row["row"] >= first]
    kept = [row for row in reworded if row not in forgotten]
    attacked = [row for row in attacks if row["row"] >= first]
    known = {example.prompt for example in (*sets[0], *sets[1])}
    judged = {
        "forget questions, reworded": forgotten,
        "forget questions, attacked": attacked,
        "retain questions, reworded": kept,
        "retain questions, trained on": _rows(folder / f"{retain}.jsonl"),
        "real authors": _rows(folder / "real_authors.jsonl"),
        "world facts": _rows(folder / "world_facts.jsonl"),
        "authors of neither set": [row for row in _rows(folder / "holdout10.jsonl") if row["question"] not in known],
    }
    return {name: _counts(_judged(encoder, head, rows)) for name, rows in judged.items() if rows}


def _judged(encoder: Encoder, head: Head, rows: Rows) -> Verdicts:
    prompts, answers = [row["question"] for row in rows], [row.get("answer") for row in rows]
    alone = score_texts(encoder, head, prompts) >= head.threshold
    if None in answers:
        return alone.tolist(), []
    classifier = HeadClassifier(head, encoder, head.threshold, "0" * 64)
    either = flags_prompts(classifier, prompts) | flags_answers(classifier, prompts, answers)
    return alone.tolist(), either.tolist()


def _counts(verdicts: Verdicts) -> dict[str, tuple[int, int]]:
    columns = zip(("prompt", "either"), verdicts, strict=True)
    return {name: (sum(flags), len(flags)) for name, flags in columns if flags}


def _rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
