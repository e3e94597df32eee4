"""What an audit log says of one policy. Lines of JSON as `eco serve --eco-audit-log` writes them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from evaluation.errors import DataError

_CHANGES: Final = frozenset({"activated", "deactivated", "deleted"})
_SERVER: Final = frozenset({"started", "stopped"})
_LONGEST_LINE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """When a policy began or ceased to act, or the server did."""

    at: str
    event: str
    digest: str = ""
    said: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """A policy in service.

    Attributes:
        changes: oldest first.
        flagged: prompts it flagged, by action.
        answers: answers that it found giving something away, by what was done.
        failures: prompts and answers that could not be checked, of all policies: they were not served.
        refused: bundles that could not act, with the reasons.
        first, last: times of the first and last line; "" without any.
        files: names of the logs that were read, and how many lines each has.
    """

    changes: Sequence[Change] = ()
    flagged: Mapping[str, int] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)
    failures: int = 0
    refused: Sequence[Change] = ()
    first: str = ""
    last: str = ""
    files: Mapping[str, int] = field(default_factory=dict)

    def acting_since(self, digest: str) -> str | None:
        """When the version of that digest began to act, where it still did at the end of the log; else None."""
        since = None
        for change in self.changes:
            if change.event == "activated":
                since = (since or change.at) if change.digest == digest else None
            elif change.event in _CHANGES or change.event == "stopped":
                since = None
        return since


def history_of(policy: str, logs: Sequence[Path]) -> History:
    """Read audit logs, oldest file first or not.

    Raises:
        DataError: one cannot be read, or a line of it is no line of an audit log.
    """
    lines: list[dict[str, Any]] = []
    files: dict[str, int] = {}
    for log in logs:
        read = list(_lines(log))
        files[log.name] = len(read)
        lines += read
    lines.sort(key=lambda line: str(line["at"]))
    mine = [line for line in lines if line.get("policy") == policy]
    return History(
        changes=[_change(line) for line in lines if line["event"] in _SERVER or _changes(line, policy)],
        flagged=_counted(line.get("action") for line in mine if line["event"] == "flagged"),
        answers=_counted(line.get("action") for line in mine if line["event"] == "answer"),
        failures=sum(line["event"] == "failed" for line in lines),
        refused=[_change(line) for line in lines if line["event"] == "refused"],
        first=str(lines[0]["at"]) if lines else "",
        last=str(lines[-1]["at"]) if lines else "",
        files=files,
    )


def _changes(line: Mapping[str, Any], policy: str) -> bool:
    return line["event"] in _CHANGES and line.get("policy") == policy


def _change(line: Mapping[str, Any]) -> Change:
    activation = line.get("activation") or {}
    said = ", ".join(f"{name} {value}" for name, value in activation.items() if name != "digest")
    return Change(
        at=str(line["at"]),
        event=str(line["event"]),
        digest=str(line.get("digest") or ""),
        said=said or str(line.get("reason") or ""),
        by=str(line.get("by") or ""),
    )


def _counted(values: Iterable[Any]) -> dict[str, int]:
    return dict(sorted(Counter(str(value) for value in values).items()))


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    try:
        text = log.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--audit-log: {log}: cannot be read") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            said = json.loads(line[:_LONGEST_LINE])
        except ValueError as error:
            raise DataError(f"--audit-log: {log}:{number}: is no line of JSON") from error
        if not isinstance(said, dict) or not isinstance(said.get("at"), str) or not isinstance(said.get("event"), str):
            raise DataError(f"--audit-log: {log}:{number}: has no `at` and `event`; expected eco serve's audit log")
        yield said
