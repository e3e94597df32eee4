"""A policy on a page: what it does and what was measured, for a terminal and as one HTML file with its plots."""

import base64
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from guard.bundle import PolicyBundle

_WIDTH: Final = 110
_ANSWERS: Final = {
    "restart": "an answer that gives it away goes on from a corrupted prompt",
    "end": "an answer that gives it away ends there",
    "observe": "an answer that gives it away is counted",
    "off": "answers are not read",
}
_ACTIONS: Final = {
    "corrupt": "flagged prompts are corrupted",
    "refuse": "flagged prompts are refused with an error",
    "observe": "flagged prompts are counted and answered as they are",
}
_ERRORS: Final = {"reject": "a prompt that cannot be classified is refused", "corrupt": "it is corrupted in whole"}
_SCOPES: Final = {"content": "all of a flagged text", "entities": "the names in a flagged text"}
#: Of the plots, in the order of an argument: is it recognised, can the threshold be trusted, why this strength.
_TITLES: Final = {
    "scores": "Scores of prompts to forget and to keep",
    "roc": "Recall against false positives",
    "precision_recall": "Precision against recall",
    "reliability": "Whether scores are probabilities",
    "search": "Every strength tried, and what it did",
}


def page_of(bundle: PolicyBundle) -> list[str]:
    """Lines for a terminal, about twenty."""
    lines: list[str] = []
    for name, text in rows_of(bundle):
        wrapped = textwrap.wrap(text, _WIDTH - 12, break_long_words=False, break_on_hyphens=False)
        lines += [f"{name if number == 0 else '':<12}{part}" for number, part in enumerate(wrapped)]
    return lines


def rows_of(bundle: PolicyBundle) -> list[tuple[str, str]]:
    """What the page says: a word, and a sentence. Of an older or other report only what it has."""
    config = bundle.config
    corruption, classifier = config.corruption, config.classifier
    strength = corruption.strength
    how = f", strength {strength:.4g}" if isinstance(strength, float) else "" if strength is None else ", by dimension"
    dims = "all dimensions" if corruption.dims is None else f"{corruption.dims} dimensions"
    rows = [
        ("policy", f"{config.name}, version {config.version}, digest {bundle.digest}"),
        ("made for", f"{config.model.name} (embedding table {config.model.embedding_digest[:12]})"),
        ("prompts", f"{_ACTIONS[config.action]}: {corruption.method} on {dims}{how}, {_SCOPES[corruption.scope]}"),
        ("answers", f"{_ANSWERS[config.answer_mode]} ({config.answer_mode})"),
        ("on error", _ERRORS[config.on_error]),
        ("classifier", f"{classifier.kind} on {classifier.encoder}, threshold {classifier.threshold:.4f}"),
    ]
    if isinstance(guarantee := classifier.calibration.get("guarantee"), str):
        mixture = classifier.calibration.get("calibration_negatives")
        rows.append(("guarantee", guarantee + (f"; these are {mixture}" if isinstance(mixture, str) else "")))
    for name, said in (
        ("built from", _examples),
        ("measured", _held_out),
        ("examples", _misjudged),
        ("search", _search),
        ("effect", _effect),
    ):
        try:
            rows += [(name if number == 0 else "", text) for number, text in enumerate(said(bundle.report))]
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a report is whatever its build measured
    made_with = ", ".join(f"{name} {number}" for name, number in dict(config.provenance.get("versions") or {}).items())
    return [*rows, ("made with", made_with)] if made_with else rows


def _examples(report: Mapping[str, Any]) -> Iterator[str]:
    trained = report["classifier"]
    yield (
        f"{trained['forget_examples']} examples to forget, {trained['retain_examples']} to keep, and "
        f"{trained['general_prompts']} everyday prompts"
    )


def _held_out(report: Mapping[str, Any]) -> Iterator[str]:
    rates = report["classifier"]["cross_fitted"]
    yield (
        f"on prompts left out of training misses {rates['missed']} of {rates['positives']} to forget "
        f"({1 - rates['recall']:.1%}) and flags {rates['false_positives']} of {rates['negatives']} to keep "
        f"({rates['false_positive_rate']:.2%})"
    )


def _misjudged(report: Mapping[str, Any]) -> Iterator[str]:
    forget, retain = report["misjudged"]["forget"], report["misjudged"]["retain"]
    yield (
        f"of its own examples misses {len(forget['missed'])} of {forget['examples']} to forget and flags "
        f"{len(retain['flagged'])} of {retain['examples']} to keep"
    )


def _search(report: Mapping[str, Any]) -> Iterator[str]:
    search = report["search"]
    if "best" not in search:
        yield str(search["reason"])
        return
    reached = "reached" if search["reached"] else "not reached, the nearest is taken"
    metric = search["objective"]["metric"]
    if metric == "forget_quality":
        metric = "chance that a truth ratio is below one of a model that never learned:"
    yield (
        f"{metric} {search['uncorrupted_value']:.3f} without corruption, {search['best']['value']:.3f} with it; a "
        f"model that never learned: {search['retained_value']:.3f} ({reached})"
    )
    if (quality := search.get("forget_quality")) is not None:
        values = quality["p_values"]
        drawn = "without noise: the same under every secret"
        if len(values) > 1:
            drawn = f"least of {len(values)} noise draws that the search has not seen {min(values):.2g}"
        yield (
            f"TOFU's test against the {quality['reference']}, {quality['examples']} questions: p = "
            f"{statistics.median(values):.2g} ({drawn})"
        )


def _effect(report: Mapping[str, Any]) -> Iterator[str]:
    for name, effect in report["effect"].items():
        low, high = effect["guarded_interval"]
        yield (
            f"{name} set: {effect['metric']} {effect['unguarded']:.3f} without the policy, {effect['guarded']:.3f} "
            f"with it (95 % {low:.3f} to {high:.3f}); {effect['flagged']} of {effect['examples']} prompts flagged"
        )


def html_of(bundle: PolicyBundle) -> str:
    """One page without scripts that fetches nothing. Plots are images, so that nothing in them can act."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "data"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    plots = [
        (_TITLES[name], base64.b64encode(file.read_bytes()).decode())
        for name in _TITLES
        if (file := bundle.path / "plots" / f"{name}.svg").is_file()
    ]
    return environment.get_template("policy.html").render(
        name=bundle.config.name, rows=rows_of(bundle), plots=plots, summary=summary_of(bundle)
    )


def summary_of(bundle: PolicyBundle) -> str:
    """Three sentences for somebody who reads no further."""
    report, config = bundle.report, bundle.config

    def said(make: Callable[[], str]) -> str:
        try:
            return make()
        except (KeyError, TypeError, ValueError, AttributeError):
            return ""

    def recognised() -> str:
        rates = report["classifier"]["cross_fitted"]
        return (
            f"On prompts left out of training it recognises {rates['recall']:.0%} of those to forget and wrongly flags "
            f"{rates['false_positive_rate']:.2%} of those to keep."
        )

    def answered() -> str:
        forget, retain = report["effect"]["forget"], report["effect"]["retain"]
        return (
            f"Answers to what is to be forgotten fall from {forget['unguarded']:.2f} to {forget['guarded']:.2f} "
            f"({forget['metric']}, 1 is the right answer), answers to what is to be kept go from "
            f"{retain['unguarded']:.2f} to {retain['guarded']:.2f}."
        )

    model = config.model.name.rstrip("/")
    model = (
        model.rpartition("/")[2] if model.startswith(("/", "~", ".")) else model
    )  # a folder's path is nobody's business
    what = f"Policy {config.name} makes {model} answer as if it had never learned its forget set"
    if config.action != "corrupt":
        what = f"Policy {config.name} watches what {model} is asked: {_ACTIONS[config.action]}"
    return " ".join(filter(None, (f"{what}; the weights stay as they are.", said(recognised), said(answered))))
