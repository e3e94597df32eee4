import hashlib
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from classifiers.calibration.assessment import Assessment, assess
from classifiers.calibration.plots import write_plots
from classifiers.calibration.threshold import CalibrationError

NAMES = ["roc.svg", "precision_recall.svg", "scores.svg", "reliability.svg"]
IN_ANOTHER_PROCESS = """
import hashlib, sys
from pathlib import Path
import classifiers.calibration.plots, classifiers.calibration.threshold
assert not any(name.partition(".")[0] == "matplotlib" for name in sys.modules), "imported before it is needed"
sys.path.insert(0, sys.argv[2])
from test_plots import assessment
for path in classifiers.calibration.plots.write_plots(assessment(), sys.argv[1]):
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def assessment(threshold: float = 0.5) -> Assessment:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300, 60])
    return assess(1 / (1 + np.exp(-rng.normal(6 * labels - 3, 1.5))), labels, threshold)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Drawn while the user's own settings say otherwise."""
    import matplotlib

    with matplotlib.rc_context({"axes.grid": True, "font.size": 20, "svg.fonttype": "none"}):
        return write_plots(assessment(), tmp_path_factory.mktemp("plots") / "made" / "here")


def test_four_pictures_show_the_figures(paths: list[Path]) -> None:
    found = assessment()
    assert [path.name for path in paths] == NAMES
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(NAMES)
    pictures = [path.read_text(encoding="utf-8") for path in paths]
    for picture in pictures:
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
        assert "dc:date" not in picture
    # text is drawn as shapes, with the words beside it in a comment
    assert f"ROC, area {found.roc.auc:.4f}" in pictures[0]
    assert f"average precision {found.precision_recall.average_precision:.4f}" in pictures[1]
    assert all(words in pictures[2] for words in ("to keep (300)", "to forget (60)", "threshold 0.5"))
    assert f"calibration error {found.reliability.expected_calibration_error:.4f}" in pictures[3]
    assert all(f"<!-- {row.count} -->" in pictures[3] for row in found.reliability.bins)


def test_the_same_assessment_gives_the_same_bytes(paths: list[Path], tmp_path: Path) -> None:
    """In another process, with other hash seeds, and whatever the user's own settings say."""
    here = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "there"), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == here
    others = [hashlib.sha256(path.read_bytes()).hexdigest() for path in write_plots(assessment(0.6), tmp_path / "here")]
    assert [one != other for one, other in zip(here, others, strict=True)] == [True, False, True, False]


def test_a_perfect_and_a_useless_classifier_can_be_drawn(tmp_path: Path) -> None:
    for name, scores in (("perfect", [0.0, 0.0, 1.0]), ("useless", [0.5, 0.5, 0.5])):
        assert len(write_plots(assess(scores, [0, 0, 1], 0.5), tmp_path / name)) == 4


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(CalibrationError, match=r"file/roc\.svg: cannot be written"):
        write_plots(assessment(), in_the_way)
    (tmp_path / "plots" / "roc.svg").mkdir(parents=True)
    with pytest.raises(CalibrationError, match=r"plots/roc\.svg: cannot be written \(Is a directory\)"):
        write_plots(assessment(), tmp_path / "plots")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["roc.svg"]
