"""A classifier folder against examples it was not trained on: how well it tells them apart, and another threshold."""

import hashlib
from pathlib import Path

import numpy as np

from classifiers.calibration.assessment import Assessment, assess
from classifiers.calibration.conformal import CalibrationError
from classifiers.calibration.threshold import Calibration, CalibrationSettings, calibrate
from classifiers.prompt_classifier import change_threshold, load_classifier, read_classifier_info
from sources.examples import check_disjoint, read_examples

__all__ = ["calibrate_classifier", "evaluate_classifier"]


def evaluate_classifier(path: Path, forget: Path, retain: Path) -> Assessment:
    """Score the prompts of both files at the folder's threshold; groups are the files' names.

    Raises:
        ClassifierError: the folder or a file cannot be read, or a prompt is in both files.
    """
    scores, labels = _scores(path, forget, retain)
    groups = [forget.stem if label else retain.stem for label in labels]
    return assess(scores, labels, read_classifier_info(path).threshold, groups)


def calibrate_classifier(path: Path, forget: Path, retain: Path, settings: CalibrationSettings) -> Calibration:
    """Give the folder the threshold that `settings` asks for on these prompts, the present one being preferred.

    Raises:
        CalibrationError: the files are those it was trained on, or too small for the level, or no useful threshold
            holds it.
        ClassifierError: as `evaluate_classifier`, or the folder cannot be written.
    """
    info = read_classifier_info(path)
    trained_on = {info.provenance.get("forget_sha256"), info.provenance.get("retain_sha256")}
    for flag, file in (("--forget", forget), ("--retain", retain)):
        if _sha256(file) in trained_on:
            raise CalibrationError(f"{flag}: {file} is what the classifier was trained on; calibrate on other prompts")
    settings.check_size(positives=len(read_examples(forget)), negatives=len(read_examples(retain)))
    scores, labels = _scores(path, forget, retain)
    found = calibrate(scores, labels, settings, preferred=info.threshold)
    changed = {**found.as_dict(), "calibrated_on": {"forget_sha256": _sha256(forget), "retain_sha256": _sha256(retain)}}
    change_threshold(path, found.threshold, changed)
    return found


def _scores(path: Path, forget: Path, retain: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N,) probabilities and (N,) labels of the prompts of both files, those to forget first."""
    positives, negatives = read_examples(forget), read_examples(retain)
    check_disjoint(positives, negatives, forget_name=str(forget), retain_name=str(retain))
    classifier = load_classifier(path)
    scores = classifier.scores([example.prompt for example in (*positives, *negatives)])
    return scores, np.repeat([1.0, 0.0], [len(positives), len(negatives)])


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error
