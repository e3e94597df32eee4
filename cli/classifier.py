"""`eco classifier`: prompt classifiers without a language model; and the options of a calibration, which a policy's
build shares."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli.options import COUNT, PATH, filled, option_group

_DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

calibration_options = option_group(
    click.option(
        "--calibration",
        default=None,
        type=click.Choice(["conformal", "fpr", "fixed"]),
        help="How the threshold is found: with a guarantee, by a wanted rate, or given.  [default: conformal]",
    ),
    click.option(
        "--level", default=None, type=float, help="Bound of the error under conformal and fpr.  [default: 0.01]"
    ),
    click.option(
        "--error",
        default="false_positive",
        show_default=True,
        type=click.Choice(["false_positive", "miss"]),
        help="The error that conformal bounds.",
    ),
    click.option("--threshold", default=None, type=float, help="The threshold itself, for fixed."),
)


def calibration_settings(options: dict[str, Any]) -> Any:
    """`classifiers.CalibrationSettings` of what `calibration_options` gave, None where nothing was.

    Raises:
        CalibrationError: they do not fit together.
    """
    from classifiers import CalibrationSettings

    method: Any
    method, level, error, threshold = (options[name] for name in ("calibration", "level", "error", "threshold"))
    if method is None and level is None and threshold is None and error == "false_positive":
        return None
    method = method if method is not None else "fixed" if threshold is not None else "conformal"
    if level is None and method != "fixed":
        level = 0.01
    return CalibrationSettings(method=method, level=level, threshold=threshold, error=error)


@click.group()
def classifier() -> None:
    """Train, import, export and try prompt classifiers."""


@classifier.command("train")
@click.option("--forget", required=True, type=PATH, help="JSON lines: what must be forgotten.")
@click.option("--retain", required=True, type=PATH, help="JSON lines: what must stay.")
@click.option("--out", required=True, type=PATH, help="Folder to write the classifier to.")
@click.option(
    "--kind",
    default="head",
    show_default=True,
    type=click.Choice(["head", "finetuned"]),
    help="A head on the shared encoder (seconds), or an encoder fine-tuned for this classifier alone.",
)
@click.option(
    "--encoder",
    default=_DEFAULT_ENCODER,
    show_default=True,
    help="Hub id or folder; for --kind finetuned any sequence-classification architecture, such as roberta-base.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--max-false-positive-rate",
    default=0.02,
    show_default=True,
    type=float,
    help="Bound for the preferred threshold, on examples left out of training; --level bounds the one taken.",
)
@calibration_options
@click.option("--force", is_flag=True, help="Replace the folder if it holds a classifier, and an interrupted training.")
@click.option("--resume", is_flag=True, help="Continue an interrupted fine-tuning, if there is one.")
@click.option("--learning-rate", default=None, type=float, help="Fine-tuning.  [default: 2e-5]")
@click.option("--epochs", default=None, type=COUNT, help="Fine-tuning, at most.  [default: 5]")
@click.option("--min-steps", default=None, type=COUNT, help="Steps at least.  [default: 400]")
@click.option("--batch-size", default=None, type=COUNT, help="Texts a step.  [default: 16]")
@click.option(
    "--precision",
    default=None,
    type=click.Choice(["int8", "fp32"]),
    help="Of the exported fine-tuned encoder.  [default: int8]",
)
@click.option(
    "--keep-checkpoint",
    default=None,
    type=PATH,
    help="Also write the fine-tuned encoder as Hugging Face files to this folder.",
)
def classifier_train(**options: Any) -> None:
    """Train and calibrate a classifier from examples."""
    from rich.console import Console

    from classifiers.training.classifier import TrainOptions, train_classifier
    from console.progress import shown_progress

    settings = filled(TrainOptions, options, calibration=calibration_settings(options))
    with shown_progress(Console(stderr=True)) as show:
        info = train_classifier(settings, on_progress=functools.partial(show, "fine-tuning"))
    report = info.report
    click.echo(
        f"{info.kind} classifier trained on {report['forget_examples']} examples to forget, "
        f"{report['retain_examples']} to retain and {report['general_prompts']} everyday prompts"
    )
    rates = report["cross_fitted"] if info.kind == "head" else info.calibration["rates"]
    click.echo(
        f"left out of training: misses {rates['missed']} of {rates['positives']} prompts to forget "
        f"({1 - rates['recall']:.2%}), flags {rates['false_positives']} of {rates['negatives']} that should pass "
        f"({rates['false_positive_rate']:.2%})"
    )
    click.echo(f"guarantee: {info.calibration['guarantee']}")
    _describe(options["out"], info)


@classifier.command("import")
@click.argument("model")
@click.option("--forget-label", required=True, help="The class whose probability is the score: its index or its name.")
@click.option("--threshold", required=True, type=float, help="Prompts are flagged at or above this probability.")
@click.option("--out", required=True, type=PATH, help="Folder to write the classifier to.")
@click.option("--precision", default="int8", show_default=True, type=click.Choice(["int8", "fp32"]))
@click.option("--force", is_flag=True, help="Replace the folder if it holds a classifier.")
def classifier_import(model: str, forget_label: str, threshold: float, out: Path, precision: Any, force: bool) -> None:
    """Take MODEL, a trained sequence classifier (hub id or folder), as it is."""
    from classifiers.training.classifier import import_classifier

    info = import_classifier(
        model, out, forget_label=forget_label, threshold=threshold, precision=precision, overwrite=force
    )
    click.echo(f"imported {model}, score: the probability of class {info.report['export']['forget_label']}")
    _describe(out, info)


@classifier.command("export")
@click.argument("model")
@click.option("--out", required=True, type=PATH, help="Folder to write the ONNX files to.")
@click.option("--forget-label", default=None, help="Index or name of the class to score.  [default: forget]")
@click.option("--precision", default="int8", show_default=True, type=click.Choice(["int8", "fp32"]))
def classifier_export(model: str, out: Path, forget_label: str | None, precision: Any) -> None:
    """Write MODEL, a fine-tuned checkpoint (train --keep-checkpoint), as model.onnx and tokenizer.json alone.

    For runtimes other than eco's: input_ids (batch, tokens), unpadded, gives log_odds (batch).
    """
    from classifiers import ClassifierError
    from classifiers.export.sequence import export_finetuned
    from classifiers.training.classifier import load_for_export

    if out.exists():
        raise ClassifierError(f"--out: {out} already exists; choose another folder")
    loaded, label = load_for_export(model, forget_label)
    settings = export_finetuned(loaded, out, label=label, precision=precision)
    click.echo(f"{out}: {_exported(settings.model_dump())}")


@classifier.command("score")
@click.argument("path", metavar="DIR", type=PATH)
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="One prompt a line: JSON with prompt, question, text or messages, a JSON string, or plain text; - for stdin.",
)
@click.option("--output", default=None, type=PATH, help="File to write.  [default: standard output]")
def classifier_score(path: Path, source: Path, output: Path | None) -> None:
    """Score prompts: for each line one JSON line with score (the probability) and flagged.

    A line that is JSON may have an answer too: then flagged_prompt and flagged_answer say which of the two is.
    """
    from classifiers import ClassifierError
    from classifiers.prompt_classifier import load_classifier
    from classifiers.prompt_lines import score_lines

    try:
        lines = click.open_file(str(source), "rb")
    except OSError as error:
        raise ClassifierError(f"--input: {source}: cannot be read ({error.strerror})") from error
    with lines, _written(output) as write:
        loaded = load_classifier(path)
        for line in score_lines(loaded, lines):
            write(line)


@classifier.command("evaluate")
@click.argument("path", metavar="DIR", type=PATH)
@click.option("--forget", required=True, type=PATH, help="JSON lines: prompts to be flagged.")
@click.option("--retain", required=True, type=PATH, help="JSON lines: prompts that must pass.")
@click.option("--out", default=None, type=PATH, help="Folder for assessment.json and the plots.")
def classifier_evaluate(path: Path, forget: Path, retain: Path, out: Path | None) -> None:
    """Measure a classifier on examples: error rates with 95 % intervals, ROC, precision and recall, reliability."""
    import json

    from classifiers.calibration.plots import write_plots
    from classifiers.training.classifier import evaluate_classifier, evaluate_pairs

    found = evaluate_classifier(path, forget, retain)
    pairs = evaluate_pairs(path, forget, retain)
    for name, rate in (("recall", found.rates.recall), ("false positives", found.rates.false_positives)):
        if rate is not None:
            click.echo(
                f"{name}: {rate.count} of {rate.total} ({rate.rate:.2%}; 95 % {rate.low:.2%} to {rate.high:.2%})"
            )
    click.echo(f"threshold {found.threshold:.6g}, ROC area {found.roc.auc:.5f}")
    for name, told in pairs.items():
        click.echo(
            f"{name} set, prompt or answer: {told.flagged} of {told.pairs} flagged "
            f"(prompts {told.flagged_prompt}, answers {told.flagged_answer})"
        )
    if out is not None:
        write_plots(found, out)
        with _written(out / "assessment.json") as write:
            answers = {name: asdict(told) for name, told in pairs.items()}
            write(json.dumps(asdict(found) | {"answers": answers}, indent=2))
        click.echo(f"assessment.json and plots written to {out}")


@classifier.command("calibrate")
@click.argument("path", metavar="DIR", type=PATH)
@click.option("--forget", required=True, type=PATH, help="JSON lines, none of them trained on.")
@click.option("--retain", required=True, type=PATH, help="JSON lines, none of them trained on.")
@calibration_options
def classifier_calibrate(path: Path, forget: Path, retain: Path, **options: Any) -> None:
    """Find another threshold for a classifier, on examples that it was not trained on."""
    from classifiers import DEFAULT_CALIBRATION
    from classifiers.training.classifier import calibrate_classifier

    found = calibrate_classifier(path, forget, retain, calibration_settings(options) or DEFAULT_CALIBRATION)
    click.echo(f"guarantee: {found.guarantee}")
    click.echo(
        f"on the calibration set: misses {found.rates.missed} of {found.rates.positives}, flags "
        f"{found.rates.false_positives} of {found.rates.negatives}"
    )
    click.echo(f"threshold {found.threshold:.6g}, written to {path}")


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[Callable[[str], None]]:
    """Writes a line to standard output, or to a file that appears under its name when all is written."""
    from classifiers import ClassifierError
    from storage.whole import whole_file

    def print_line(line: str) -> None:
        try:
            click.echo(line)
        except BrokenPipeError:  # whoever read the lines has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    if output is None:
        yield print_line
        return
    try:
        output.parent.stat()  # a folder that is not there is a slip of the pen: none is made
        with whole_file(output) as stream:
            yield lambda line: click.echo(line.encode(), file=stream)
    except OSError as error:
        raise ClassifierError(f"--output: {output}: cannot be written ({error.strerror})") from error


def _describe(out: Path, info: Any) -> None:
    if info.kind == "finetuned":
        click.echo(_exported(info.report["export"]))
    click.echo(f"threshold {info.threshold:.6g}, written to {out}")


def _exported(settings: dict[str, Any]) -> str:
    text = (
        f"exported in {settings['precision']}, probabilities within {settings['parity_max_difference']:.4f} of the "
        f"original's over {settings['parity_windows']} windows"
    )
    return f"{text} ({settings['fallback']})" if settings["fallback"] else text
