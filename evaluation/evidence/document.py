"""The document: one HTML file that fetches nothing, to be read, printed and filed."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from classifiers.calibration.threshold import clopper_pearson
from evaluation.errors import DataError
from evaluation.evidence.history import History, history_of
from evaluation.report.load import Run, load_runs
from guard import PolicyBundle
from guard.page import rows_of, summary_of
from storage.digests import sha256_of_file
from storage.whole import write_whole

DOCUMENT: Final = "evidence.html"
_LEVEL: Final = 0.95
_SHOWN: Final = ("leaked", "forget_quality", "model_utility", "retain_utility")
_MOST_EXAMPLES: Final = 10_000


class Rate(NamedTuple):
    """A share with the interval that its count allows (Clopper and Pearson, 95 %)."""

    what: str
    seen: int
    of: int
    low: float
    high: float


class Measured(NamedTuple):
    """A figure of an evaluation run."""

    run: str
    suite: str
    of_this_policy: str
    figure: str
    value: str
    interval: str
    note: str


@dataclass(frozen=True, slots=True)
class Sources:
    """What the document is made from.

    Attributes:
        bundle: the policy.
        logs: audit logs.
        runs: folders of evaluation runs.
        forget: the forget set, to be shown in clear; None: its digest alone.
    """

    bundle: PolicyBundle
    logs: Sequence[Path] = ()
    runs: Sequence[Path] = ()
    forget: Path | None = None


def write_evidence(sources: Sources, out: Path) -> Path:
    """Write `evidence.html` into the folder `out`; returns its path.

    Raises:
        DataError: a file cannot be read, or the forget set is another than the policy was built from.
        ReportError: a folder is no finished run.
        OSError: the disk refuses.
    """
    import jinja2

    bundle = sources.bundle
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "data"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    history = history_of(bundle.config.name, sources.logs)
    runs = load_runs(sources.runs) if sources.runs else []
    text = environment.get_template("evidence.html").render(
        name=bundle.config.name,
        digest=bundle.digest,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        eco_version=version("eco-gateway"),
        summary=summary_of(bundle),
        rows=rows_of(bundle),
        rates=list(_rates(bundle)),
        forget=_forget_set(bundle, sources.forget),
        history=history,
        in_force=_in_force(history, bundle),
        measured=[row for run in runs for row in _measured(run, bundle)],
        provenance=json.dumps(bundle.config.provenance, indent=2, ensure_ascii=False),
        files={name: sha256_of_file(bundle.path / name) for name in ("policy.yaml", "report.json", "MANIFEST.json")},
        plots=_plots(bundle.path),
    )
    target = out / DOCUMENT
    write_whole(target, text)
    return target


def _rates(bundle: PolicyBundle) -> Iterator[Rate]:
    """Of prompts that were left out of training; of an older report only what it has."""
    found = bundle.report.get("classifier", {}).get("cross_fitted", {})
    told: Mapping[str, Any] = found if isinstance(found, dict) else {}
    for what, count, of in (
        ("prompts to forget that it missed", "missed", "positives"),
        ("prompts to keep that it flagged", "false_positives", "negatives"),
    ):
        if isinstance(told.get(count), int) and isinstance(told.get(of), int) and told[of] > 0:
            low, high = clopper_pearson(told[count], told[of], _LEVEL)
            yield Rate(what, told[count], told[of], low, high)


def _forget_set(bundle: PolicyBundle, file: Path | None) -> dict[str, Any]:
    digest = bundle.config.provenance.get("forget_sha256")
    if file is None:
        return {"digest": digest, "examples": None}
    if sha256_of_file(file) != digest:
        raise DataError(f"--forget: {file}: is not the file that the policy was built from (forget_sha256 {digest})")
    from sources.examples import read_examples

    return {"digest": digest, "examples": read_examples(file)[:_MOST_EXAMPLES]}


def _in_force(history: History, bundle: PolicyBundle) -> str:
    if not history.files:
        return "No audit log was given, so this document does not say when the policy acted."
    since = history.acting_since(bundle.digest)
    if since is not None:
        return f"This version acted from {since} on, and still did when the log ends ({history.last})."
    return f"At the end of the log ({history.last}) this version did not act, or the server had stopped."


def _measured(run: Run, bundle: PolicyBundle) -> Iterator[Measured]:
    target = json.dumps(run.record.target)
    which = "yes" if bundle.digest in target else "a server: not told" if "url" in run.record.target else "no"
    names = dict.fromkeys((*run.record.headline, *(name for name in _SHOWN if name in run.figures)))
    for name in names:
        figure = run.figures.get(name)
        if figure is None or figure.value is None:
            continue
        interval = "" if figure.low is None or figure.high is None else f"{figure.low:.4g} to {figure.high:.4g}"
        yield Measured(run.label, run.record.suite, which, name, f"{figure.value:.4g}", interval, figure.note)


def _plots(folder: Path) -> list[tuple[str, str]]:
    files = sorted((folder / "plots").glob("*.svg"))
    return [(file.stem.replace("_", " "), base64.b64encode(file.read_bytes()).decode()) for file in files]
