"""`eco report`: what it says, and what it refuses in one line."""

from pathlib import Path

from click.testing import CliRunner
from evaluated_runs import write_run

from cli.evaluate import report
from evaluation.errors import EvaluationError
from evaluation.suite import Figure


def a_run(folder: Path) -> Path:
    return write_run(folder, "tofu", folder.name, [], extra=[Figure("x", 0.5, 3)], headline=["x"])


def test_a_report_is_written_and_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(a_run(tmp_path / "a")), str(a_run(tmp_path / "b")), "--out", str(out), "--title", "My title"]
    done = CliRunner().invoke(report, arguments)
    assert done.exit_code == 0
    assert done.output == f"report of 2 runs written to {out}; open {out / 'report.html'}\n"
    assert "<h1>My title</h1>" in (out / "report.html").read_text(encoding="utf-8")


def test_without_a_title_the_help_tells_which(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(a_run(tmp_path / "a")), "--out", str(tmp_path / "out")])
    assert done.output.startswith("report of 1 run written")
    title = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    assert f"[default: {title}]" in " ".join(CliRunner().invoke(report, ["--help"]).output.split())


def test_bad_input_is_an_error_of_the_evaluation(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(tmp_path), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, EvaluationError)
    assert "run.json" in str(done.exception)


def test_force_writes_among_other_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("")
    arguments = [str(a_run(tmp_path / "a")), "--out", str(out)]
    assert isinstance(CliRunner().invoke(report, arguments).exception, EvaluationError)
    assert CliRunner().invoke(report, [*arguments, "--force"]).exit_code == 0


def test_runs_and_a_folder_are_needed() -> None:
    for arguments, missing in ((["--out", "o"], "RUN"), (["run"], "--out")):
        done = CliRunner().invoke(report, arguments)
        assert done.exit_code == 2
        assert missing in done.output
