"""Runs that stand side by side: sorted, and refused where they were not asked the same questions."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from evaluation.replies import AnswerProtocol
from evaluation.report.load import ReportError, Run, named
from evaluation.runs.record import Kind

_TITLES: Final = {
    "tofu": "TOFU",
    "muse": "MUSE",
    "qa": "Questions and answers",
    "rwku": "RWKU",
    "choice": "Multiple choice",
    "copyright": "Copyright",
    "potter": "Who's Harry Potter",
    "harmful": "Harmful prompts",
    "leakage": "Leakage",
    "attacks": "Attacks on the guard",
    "domains": "False positives by domain",
    "successive": "Requests one after another",
}
#: Parts of a setting's name that make its digest one of a tool, not of the questions.
_TOOLS: Final = frozenset({"encoder", "gate", "judge", "model", "policies", "policy", "reference", "target"})
#: Where data lie; beside their digest it says nothing.
_PLACES: Final = frozenset({"file", "passages", "path", "prompts", "source"})
_PROTOCOLS: Final = (None, *get_args(AnswerProtocol))
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SuiteRuns:
    """One suite's runs in the table's order.

    Attributes:
        suite: its name.
        runs: original, retain, guarded by protocol of answers and strength, prompting, methods by name, others.
        differing: settings that are not the same in all runs, as one line each; the questions are the same.
    """

    suite: str
    runs: tuple[Run, ...]
    differing: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return _TITLES.get(self.suite, self.suite)

    @property
    def directions(self) -> Mapping[str, str]:
        """Figure name -> "up" or "down"; where runs disagree, what the first of them says."""
        return {name: better for run in reversed(self.runs) for name, better in run.record.directions.items()}

    def headline(self) -> list[str]:
        """Names of the figures that any run puts first, in the order in which they are met."""
        return _united(run.record.headline for run in self.runs)

    def names(self) -> list[str]:
        """Names of all figures, in the order in which they are met."""
        return _united((figure.name for figure in run.record.figures) for run in self.runs)

    def protocols(self, name: str | None = None) -> dict[AnswerProtocol, list[Run]]:
        """Runs by how the answers that they scored were treated; of those that have a figure, where one is named."""
        found: dict[AnswerProtocol, list[Run]] = {}
        for run in self.runs:
            if run.record.protocol is not None and (name is None or run.value(name) is not None):
                found.setdefault(run.record.protocol, []).append(run)
        return found

    def of_kind(self, *kinds: str) -> list[Run]:
        return [run for run in self.runs if run.record.kind in kinds]


def compared(runs: Sequence[Run]) -> list[SuiteRuns]:
    """The runs by suite, in an order that does not hang on the order in which they are given.

    Raises:
        ReportError: two runs of a suite have one label, or were asked different questions.
    """
    known = list(_TITLES)
    suites = sorted(
        {run.record.suite for run in runs},
        key=lambda suite: (known.index(suite) if suite in known else len(known), suite),
    )
    found = []
    for suite in suites:
        mine = [run for run in runs if run.record.suite == suite]
        # By kind and method, then by protocol, by strength, and by name.
        mine.sort(key=lambda run: (run.label, run.folder))
        mine.sort(key=lambda run: (run.record.strength is None, run.record.strength or 0.0))
        mine.sort(key=lambda run: _PROTOCOLS.index(run.record.protocol))
        mine.sort(key=lambda run: (get_args(Kind).index(run.record.kind), run.record.method or ""))
        labelled: dict[str, Run] = {}
        for run in mine:
            if (same := labelled.setdefault(run.label, run)) is not run:
                raise ReportError(
                    f"{run.folder}: label: {run.label!r} of suite {suite} is also that of {same.folder}; "
                    "name one of the two, or give one another --label"
                )
        for one, other in itertools.combinations(map(_Questions.of, mine), 2):
            # Same data by digest, same examples of the metrics that both measured, same questions to read.
            remedy = "report runs of the same questions, or each in a report of its own"
            for name in one.digests:
                if other.digests.get(name, one.digests[name]) != one.digests[name]:
                    raise ReportError(
                        f"{other.folder}: suite_settings.{name}: the data are not those of {one.folder}; {remedy}"
                    )
            shared = [key for key in one.examples if key in other.examples]
            for subset in dict.fromkeys(subset for subset, _ in shared):
                keys = [key for key in shared if key[0] == subset]
                here, there = (set[str]().union(*(asked.examples[key] for key in keys)) for asked in (one, other))
                if here != there:
                    raise ReportError(
                        f"{other.folder}: scores.jsonl: its {len(there)} examples of {subset or 'the suite'} are not "
                        f"the {len(here)} of {one.folder}, {len(here & there)} are in both; {remedy}"
                    )
            for key, text in one.texts.items():
                if other.texts.get(key, text) != text:
                    raise ReportError(
                        f"{other.folder}: answers.jsonl: {'/'.join(key)} has another question or reference than in "
                        f"{one.folder}; {remedy}"
                    )
        found.append(SuiteRuns(suite, tuple(mine), tuple(_differing(mine))))
    return found


@dataclass(frozen=True, slots=True)
class _Questions:
    """What a run was asked: digests of its data, example ids of every (subset, metric), and questions to read."""

    folder: str
    digests: Mapping[str, str]
    examples: Mapping[tuple[str, str], set[str]]
    texts: Mapping[tuple[str, str], tuple[str, str]]

    @classmethod
    def of(cls, run: Run) -> "_Questions":
        settings = _leaves(run.record.suite_settings)
        digests = {name: str(value) for name, value in settings if _is_digest_of_data(name, value)}
        examples: dict[tuple[str, str], set[str]] = {}
        for score in run.scores:
            examples.setdefault((score.subset, score.metric), set()).add(score.example)
        texts = {(answer.subset, answer.example): (answer.question, answer.reference) for answer in run.answers}
        return cls(run.folder, digests, examples, texts)


def _is_digest_of_data(name: str, value: Any) -> bool:
    """Whether a setting is a digest of questions, by its name or its look."""
    *parents, last = name.split(".")
    digest = "sha256" in last or "digest" in last or (isinstance(value, str) and bool(_SHA256.fullmatch(value)))
    return digest and not _TOOLS.intersection([*parents, *last.split("_")])


def _differing(runs: Sequence[Run]) -> Iterator[str]:
    """Settings that differ, with their values; digests of data, which do not, and their places are left out."""
    settings = [dict(_leaves(run.record.suite_settings)) for run in runs]
    data: set[str] = set()
    for own in settings:
        digests = {name for name, value in own.items() if _is_digest_of_data(name, value)}
        parents = {name.rpartition(".")[0] for name in digests}
        places = {name for name in own if name.rpartition(".")[0] in parents and name.rpartition(".")[2] in _PLACES}
        data |= digests | places
    labels: dict[str, dict[str, list[str]]] = {}  # setting -> value -> runs
    for name in _united(settings):
        for run, own in zip(runs, settings, strict=True):
            if name not in data:
                value = "not set" if own.get(name) is None else json.dumps(own[name], ensure_ascii=False)
                labels.setdefault(name, {}).setdefault(value, []).append(run.label)
    for run in runs:
        if run.record.protocol is not None:
            labels.setdefault("answers", {}).setdefault(run.record.protocol, []).append(run.label)
        if run.record.reference is not None:
            labels.setdefault("compared with", {}).setdefault(named(run.record.reference.label), []).append(run.label)
    for name, values in labels.items():
        if len(values) > 1:
            yield f"{name}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of all that is not a mapping or a list of mappings."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{name}.{number}")
    else:
        yield name, value


def _united(lists: Iterable[Iterable[str]]) -> list[str]:
    """All names once, in the order in which they are met."""
    return list(dict.fromkeys(name for names in lists for name in names))
