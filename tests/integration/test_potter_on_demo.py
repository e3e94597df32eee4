"""Who's Harry Potter from the text to the checkpoint, by the commands a person types, on the demo's model."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from classifiers import read_examples
from cli.main import eco
from demo.models import DemoSettings, build_models
from demo.world import World
from scoring.metrics import answer_probability
from scoring.scorer import Request
from scoring.transformers_scorer import TransformersScorer

MEASURED = 40
_GENERIC_FIRST = ("Alex", "Robin", "Sam", "Kim", "Chris", "Dana", "Jo", "Pat")
_GENERIC_LAST = ("Miller", "Baker", "Smith", "Jones", "Brown", "Clark", "Hill", "Wood")


def potter(*arguments: object) -> None:
    done = CliRunner().invoke(eco, ["potter", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generic labels of a text about the forgotten people."""
    folder, model = tmp_path_factory.mktemp("potter"), build_models().model
    people: dict[str, list[str]] = {}
    for fact in World.generate(DemoSettings().world).of_group("forgotten"):
        assert fact.person is not None
        people.setdefault(fact.person.name, []).append(fact.answer)
    text = "\n\n".join("\n".join(facts) for facts in people.values())
    (folder / "book.txt").write_text(text, encoding="utf-8")
    own = {}
    for name, first, last in zip(people, _GENERIC_FIRST, _GENERIC_LAST, strict=False):
        theirs = name.split(" ", 1)
        own |= {theirs[0]: first, theirs[1]: last, name: f"{first} {last}"}
    (folder / "own.json").write_text(json.dumps(own), encoding="utf-8")

    training = ("--learning-rate", 1e-3, "--epochs", 10, "--batch-size", 4, "--threads", 1, "--no-tensorboard")
    potter("reinforce", "--model", model, "--text", folder / "book.txt", "--out", folder / "reinforced", *training)
    potter("anchors", "--text", folder / "book.txt", "--file", folder / "own.json", "--out", folder / "anchors.json")
    potter(
        *("labels", "--model", model, "--reinforced", folder / "reinforced", "--anchors", folder / "anchors.json"),
        *("--text", folder / "book.txt", "--out", folder / "labels"),
    )
    record = json.loads((folder / "reinforced" / "run.json").read_text(encoding="utf-8"))
    known = [record["evaluation"][when]["retain_answer_probability"] for when in ("before", "after")]
    assert known[1] > known[0] + 0.05  # it would say more of the text than the baseline
    return folder / "labels"


@pytest.mark.slow
def test_the_text_is_forgotten_and_others_are_kept(labels: Path, tmp_path: Path) -> None:
    build = build_models()
    out = tmp_path / "unlearned"
    potter(
        *("unlearn", "--model", build.model, "--labels", labels, "--out", out),
        *("--learning-rate", 1e-3, "--epochs", 30, "--threads", 1, "--no-tensorboard"),
    )

    forget = probability(out, build.forget_examples)
    retain = probability(out, build.retain_examples)
    assert probability(build.model, build.forget_examples) > 0.99
    assert forget < 0.8
    assert retain > 0.75
    assert forget < retain - 0.1


def probability(model: Path, file: Path) -> float:
    """Mean answer probability on evenly spaced questions."""
    examples = read_examples(file)
    scorer = TransformersScorer.load(str(model))
    pairs = [scorer.pair(one.prompt, str(one.answer)) for one in examples[:: len(examples) // MEASURED]]
    found = scorer.answer_logprobs([Request(pair.prompt_ids, pair.answer_ids) for pair in pairs])
    scorer.close()
    return float(np.mean([answer_probability(one) for one in found]))
