"""`llmu-original --strict` against the losses of the script, written out again with a row for each sequence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import byte_tokenizer
from tiny_jobs import log_lines, run, save_model, tiny_job
from torch.nn import functional
from transformers import AutoModelForCausalLM

from offline_training.data.encoding import ExampleEncoder
from offline_training.data.llmu_script import ScriptEncoder, answer_pool
from offline_training.errors import DataError, SettingsError
from offline_training.preparation import prepare_unlearning
from sources.examples import Example

STRICT: dict[str, Any] = {"method": "llmu-original", "strict": True, "prompt_tokens": "kl", "evaluate_examples": 0}


def script_loss(model: Any, ids: list[int], start: int) -> float:
    """`get_answer_loss` for one row without padding: weights from `start` on, which are normalised before the last of
    them is dropped."""
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = model(row).logits[0, :-1]
    losses = functional.cross_entropy(logits, row[0, 1:], reduction="none")
    weights = torch.zeros(len(ids))
    weights[start:] = 1
    return float(((weights / weights.sum())[:-1] * losses).sum())


def truthful(path: Path) -> str:
    """Nine rows like TruthfulQA's, each with 1 best, 2 correct and 1 incorrect answer."""
    rows = [
        {
            "question": f"Is it {n}?",
            "best_answer": f"Yes {n}.",
            "correct_answers": [f"Sure {n}", f"It is {n}"],
            "incorrect_answers": [f"No {n}"],
        }
        for n in range(9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_first_steps_losses_are_the_scripts(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    job = tiny_job(tmp_path, **STRICT, retain=truthful(tmp_path / "t.jsonl"), batch_size=2, random_answers=3, steps=2)
    prepared = prepare_unlearning(job)
    step, pool = prepared.plan.steps[0], prepared.sets.answers
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = prepared.base.tokenizer

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    forget = [json.loads(line) for line in Path(str(job.forget)).read_text(encoding="utf-8").splitlines()[:2]]
    bad, mismatched = [], []
    shared = [answer for prompt, answer in step.random_pairs if prompt == 0]
    assert step.random_pairs == tuple((prompt, answer) for prompt in (0, 1) for answer in shared)
    assert len(set(shared)) == 3
    for row in forget:
        before = f"### Question: {row['question']}\n ### Answer: "
        bad.append(script_loss(model, tokens(before + row["answer"]), len(tokens(before)) - 1))
        mismatched += [script_loss(model, tokens(before + str(pool[n].answer)), 2) for n in shared]
    run(job)

    first = next(line for line in log_lines(job.out) if "loss" in line)
    assert first["forget_ce"] == pytest.approx(sum(bad) / 2, rel=1e-5)
    assert first["random_ce"] == pytest.approx(sum(mismatched) / 6, rel=1e-5)
    assert first["retain_kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_sets_are_what_the_script_reaches(tmp_path: Path) -> None:
    """Six of nine to retain; three batches of two to forget, in order, again and again."""
    save_model(tmp_path / "model")
    job = tiny_job(tmp_path, **STRICT, retain=truthful(tmp_path / "t.jsonl"), batch_size=2, steps=5)
    prepared = prepare_unlearning(job)
    sets = prepared.sets.by_stream
    assert len(sets["retain"].examples) == 6
    assert [text.prompt for text in sets["forget"].texts] == [f"What did Ann do in {n}?" for n in range(6)]
    assert [step.numbers["forget"] for step in prepared.plan.steps] == [(0, 1), (2, 3), (4, 5), (0, 1), (2, 3)]
    assert len(prepared.sets.answers) == 9 * 4
    for example in prepared.sets.trained_on("retain", sets["retain"].examples):
        assert example.targets == example.ids[1:]


def test_answers_with_semicolons_between(tmp_path: Path) -> None:
    """TruthfulQA's own CSV."""
    (tmp_path / "t.csv").write_text(
        "Question,Best Answer,Correct Answers,Incorrect Answers\nIs it?,Yes,Sure; It is,No; Never\n", encoding="utf-8"
    )
    assert [one.answer for one in answer_pool(str(tmp_path / "t.csv"))] == ["Yes", "Sure", "It is", "No", "Never"]


def test_the_format_has_no_end() -> None:
    tokenizer = byte_tokenizer(bos=True)
    text = "### Question: Who?\n ### Answer: He"
    example = ScriptEncoder(tokenizer, context_tokens=99).encode(Example("Who?", "He"))
    assert example.ids == tuple(tokenizer(text)["input_ids"])
    assert example.target_count == len(example.targets) - 1
    plain = ExampleEncoder(tokenizer, context_tokens=99).encode(Example("Who?", "He"))
    assert plain.ids[-1] == tokenizer.eos_token_id != example.ids[-1]
    assert ScriptEncoder(tokenizer, context_tokens=len(example.ids) - 2).encode(Example("Who?", "He")).target_count == 0
    with pytest.raises(DataError, match="leaves no room for an answer in 20 tokens"):
        ScriptEncoder(tokenizer, context_tokens=20).encode(Example("Who?", "He"))


def test_strict_needs_the_scripts_kl(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--strict: .* give --prompt-tokens kl"):
        run(tiny_job(tmp_path, **{**STRICT, "prompt_tokens": "none"}))
