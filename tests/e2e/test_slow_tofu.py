"""TOFU forget10 on a model that knows TOFU by heart: forgetting as deep as never having learned, others untouched.

Needs a folder with `data/tofu/*.jsonl` and the models `tofu-6m-full` and `tofu-6m-retain90` under `models/`:
$ECO_FIXTURES, by default `shared` beside the checkout. Skipped where there is none.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from recorded_gateway import environment, free_port

from demo.servers import ServerProcess, guarded_server, plain_server

pytestmark = pytest.mark.slow

FIXTURES = Path(os.environ.get("ECO_FIXTURES") or Path(__file__).parents[2].parent / "shared")
FULL, RETAIN = (FIXTURES / "models" / name for name in ("tofu-6m-full", "tofu-6m-retain90"))
TOFU = FIXTURES / "data" / "tofu"
#: One question in so many is asked.
_EVERY = {"forget10": 4, "retain90": 45}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (FULL.is_dir() and RETAIN.is_dir() and TOFU.is_dir()):
        pytest.skip(f"no TOFU fixtures in {FIXTURES}")
    from optimizer import BuildOptions, InputOptions, build_policy

    options = BuildOptions(
        model=str(FULL),
        inputs=InputOptions(forget=TOFU / "forget10.jsonl", retain=TOFU / "retain90.jsonl"),
        out=tmp_path_factory.mktemp("tofu") / "forget10",
    )
    return build_policy(options).path


def rows(name: str) -> list[dict[str, str]]:
    lines = (TOFU / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][:: _EVERY[name]]


def ask(server: ServerProcess, questions: list[str]) -> list[str]:
    """Greedy answers; one at a time, so that two servers compute the same batches."""

    async def all_of_them() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            answers = []
            for question in questions:
                body = {"model": "demo", "temperature": 0, "max_tokens": 64}
                messages = [{"role": "user", "content": question}]
                response = await client.post("/v1/chat/completions", json=body | {"messages": messages})
                answers.append(response.raise_for_status().json()["choices"][0]["message"]["content"].strip())
            return answers

    return asyncio.run(all_of_them())


def correct(answers: list[str], examples: list[dict[str, str]]) -> float:
    """Share of answers that are TOFU's, word for word: the model has learned them by heart."""
    pairs = zip(answers, examples, strict=True)
    return sum(answer == example["answer"].strip() for answer, example in pairs) / len(examples)


def check_effect(effect: dict[str, Any], answers: list[str], examples: list[dict[str, str]]) -> None:
    """The served answers' ROUGE-L is the report's, within the 95 % interval of each."""
    from scoring.metrics import rouge_l_recall

    pairs = zip(examples, answers, strict=True)
    recalls = np.array([rouge_l_recall(example["answer"], answer) for example, answer in pairs])
    low, high = effect["guarded_interval"]
    own = 1.96 * recalls.std(ddof=1) / len(recalls) ** 0.5
    assert abs(recalls.mean() - effect["guarded"]) <= (high - low) / 2 + own + 1e-6


def test_forget10(policy: Path, tmp_path: Path) -> None:
    from guard import load_bundle

    forget, others = rows("forget10"), rows("retain90")
    questions = [row["question"] for row in (*forget, *others)]

    def plain_answers(model: Path) -> list[str]:
        log = tmp_path / f"{model.name}.log"
        with plain_server(model, port=free_port(), log=log, environment=environment(0)) as server:
            return ask(server, questions)

    unguarded, never_knew = plain_answers(FULL), plain_answers(RETAIN)
    guarded = guarded_server(
        FULL,
        [policy],
        port=free_port(),
        admin_port=free_port(),
        log=tmp_path / "guarded.log",
        flags=("--eco-secret-file", str(tmp_path / "secret")),
        environment=environment(1),
    )
    with guarded as server:
        answers = ask(server, questions)
    known = len(forget)
    assert correct(unguarded[:known], forget) > 0.8
    assert correct(answers[:known], forget) <= correct(never_knew[:known], forget) + 0.01
    assert answers[known:] == unguarded[known:]
    effect = load_bundle(policy).report["effect"]
    check_effect(effect["forget"], answers[:known], forget)
    check_effect(effect["retain"], answers[known:], others)
    assert effect["forget"]["guarded"] < 0.3 < 0.9 < effect["retain"]["guarded"]
