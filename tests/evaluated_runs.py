"""Run folders as an evaluation leaves them, written from invented scores: what reports are made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.intervals import mean_figures
from evaluation.runs.record import RunRecord
from evaluation.suite import Answer, Figure, Score

AUTHORS = ("Ilse Vantar", "Bodo Krenn", "Maru Tešić", "Ann_Ley $x$ | <b>")
#: kind, label, method, strength, how much of the forget set it knows, how much of the rest
TOFU_RUNS: tuple[tuple[str, str, str | None, float | None, float, float], ...] = (
    ("original", "original", None, None, 0.92, 0.90),
    ("retain", "retain", None, None, 0.16, 0.90),
    ("guarded", "guarded, weak", None, 0.5, 0.70, 0.90),
    ("guarded", "guarded, searched", None, 2.6, 0.18, 0.89),
    ("guarded", "guarded, strong", None, 12.0, 0.05, 0.89),
    ("prompting", "prompting", None, None, 0.60, 0.80),
    ("method", "npo, 1 epoch", "npo", 1.0, 0.5, 0.8),
    ("method", "npo, 5 epochs", "npo", 5.0, 0.25, 0.6),
    ("method", "gradient ascent", "grad_ascent", None, 0.02, 0.1),
)


def tofu_scores(forget: float, retain: float, draws: int = 1, examples: int = 24) -> list[Score]:
    rng = np.random.default_rng(0)
    return [
        Score(subset, metric, str(number), float(np.clip(knows + rng.normal(0, 0.05), 0, 1)), group, draw)
        for draw in range(draws)
        for subset, knows in (("forget", forget), ("retain", retain))
        for number in range(examples)
        for group in (AUTHORS[number % len(AUTHORS)],)
        for metric in ("probability", "rouge_l")
    ]


def tofu_answers(knows: float, examples: int = 24) -> list[Answer]:
    return [
        Answer(subset, str(number), f"Where does {AUTHORS[number % 4]} live, {number}?", said, "In Ostrava | by <sea>.")
        for subset in ("forget", "retain")
        for number in range(examples)
        for said in ("In Ostrava | by <sea>." if knows > 0.5 else "<script>alert('x')</script>\n# I cannot say.",)
    ]


def write_run(
    folder: Path,
    suite: str,
    label: str,
    scores: Sequence[Score],
    answers: Sequence[Answer] = (),
    extra: Sequence[Figure] = (),
    **record: Any,
) -> Path:
    """A finished run of these scores; `record` is the rest of its `RunRecord`."""
    folder.mkdir(parents=True)
    found: dict[str, Any] = {
        "suite": suite,
        "label": label,
        "kind": "other",
        "target": {"kind": "transformers", "model": "/models/tiny", "policies": []},
        "suite_settings": {"forget": {"source": "forget.jsonl", "sha256": "a" * 64}, "seed": 0},
        "draws": 1 + max((score.draw for score in scores), default=0),
        "started": "2026-01-02T10:00:00+00:00",
        "finished": "2026-01-02T10:20:00+00:00",
        "versions": {"eco-gateway": "0.1.0"},
        "figures": (*mean_figures(scores), *extra),
        **record,
    }
    RunRecord(**found).write(folder, scores, answers)
    return folder


def write_tofu_runs(parent: Path) -> list[Path]:
    """One folder for each of `TOFU_RUNS`."""
    folders = []
    for kind, label, method, strength, forget, retain in TOFU_RUNS:
        quality = 10 ** (-30 * abs(forget - 0.16)) if kind != "retain" else float("nan")
        note = "two-sample KS test, p-value" if kind != "retain" else "needs another model as the reference"
        folder = write_run(
            parent / f"tofu-{len(folders)}",
            "tofu",
            label,
            tofu_scores(forget, retain, draws=3 if kind == "guarded" else 1),
            tofu_answers(forget),
            [
                Figure("model_utility", retain * 0.8, 72, retain * 0.8 - 0.02, retain * 0.8 + 0.02),
                Figure("forget_quality", quality, 24, note=note),
            ],
            kind=kind,
            method=method,
            strength=strength,
            reference=None if kind == "retain" else {"label": "retain", "run": "tofu-1"},
            headline=["model_utility", "forget_quality", "forget/probability", "retain/probability", "forget/rouge_l"],
            directions={
                "model_utility": "up",
                "forget_quality": "up",
                "forget/probability": "down",
                "retain/probability": "up",
                "forget/rouge_l": "down",
            },
        )
        folders.append(folder)
    return folders


def gate_scores(examples: int = 60) -> list[Score]:
    rng = np.random.default_rng(1)
    rows = []
    for subset, centre in (("forget", 0.8), ("retain", 0.3), ("general", 0.15)):
        for number in range(examples):
            value = float(np.clip(rng.normal(centre, 0.18), 0, 1))
            kind = ("plain", "typos", "role play")[number % 3]
            rows.append(Score(subset, "gate_score", str(number), value, kind))
            rows.append(Score(subset, "flagged", str(number), float(value >= 0.5), kind))
    return rows


def write_gate_run(folder: Path) -> Path:
    return write_run(
        folder,
        "attacks",
        "policy people",
        gate_scores(),
        kind="guarded",
        headline=["forget/flagged", "retain/flagged", "general/flagged"],
        directions={"forget/flagged": "up", "retain/flagged": "down", "general/flagged": "down"},
    )
