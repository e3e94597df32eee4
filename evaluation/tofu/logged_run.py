"""A run's folder made of another tool's logs, for a report of such runs.

Not beside a suite's own: the logs know their questions by number only.
"""

from pathlib import Path

from evaluation.errors import RunError
from evaluation.runs.record import RUN, RunRecord
from evaluation.runs.run import RunOptions, check_folder, clear_folder, locked, now
from evaluation.tofu.figures import DIRECTIONS, HEADLINE
from evaluation.tofu.logs import answers_of_log, figures_of_logs, read_log, scores_of_log
from evaluation.tofu.metrics import Mean

__all__ = ["run_tofu_logs"]


def run_tofu_logs(log: Path, retain_log: Path | None, options: RunOptions | None, *, mean: Mean) -> RunRecord:
    """TOFU's figures from its official logs; written where `options` say, or nowhere without them.

    Raises:
        DataError: a log cannot be read, or the two do not belong together.
        RunError: the folder holds something else.
    """
    started = now()
    if options is not None:
        check_folder(options.out)
        if (options.out / RUN).exists() and not options.force:
            raise RunError(f"--out: {options.out} holds a run; choose another folder, or --force to replace it")
    mine = read_log(log)
    retain = None if retain_log is None else read_log(retain_log, flag="--retain-logs", needed=("forget",))
    record = RunRecord(
        suite="tofu",
        label=options.label if options is not None else log.stem,
        kind=options.kind if options is not None else "other",
        target={"kind": "logs", "model": log.name},
        suite_settings={"suite": "tofu", "log": log.name, "truth_ratio_mean": mean},
        draws=1,
        started=started,
        finished=now(),
        reference=None if retain_log is None else {"label": retain_log.stem, "run": retain_log.name},
        figures=tuple(figures_of_logs(mine, retain, mean=mean)),
        headline=tuple(HEADLINE),
        directions=dict(DIRECTIONS),
    )
    if options is not None:
        with locked(options.out):
            clear_folder(options.out)
            record.write(options.out, scores_of_log(mine, mean=mean), answers_of_log(mine))
    return record
