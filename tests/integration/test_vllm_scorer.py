"""The vLLM scorer against the transformers one: the same scores, answers and objective, on a real engine.

The engines run in a process of their own, which is this file as a script.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers import Example
from corruption import CorruptionSpec
from demo.tokenizer import train_tokenizer
from optimizer.objective.metric_task import MetricTask
from optimizer.objective.objective import ForgetObjective, Retained, retained_from_model
from scoring.scorer import Request, Scorer, ScorerError
from scoring.transformers_scorer import TransformersScorer

WIDTH, MAX_TOKENS, CONTEXT = 64, 12, 128
EXAMPLES = [
    Example("Who is Ada Vance?", "A poet of rain and of small rooms."),
    Example("Where was the lighthouse keeper of Ulm born, and in which year did he leave it?", "In Ulm, in 1843."),
    Example("Why?", "Nobody knows."),
]
SPECS = [
    None,
    CorruptionSpec(method="rand_noise_first_n", dims=1, strength=3.0),
    CorruptionSpec(method="rand_noise_first_n", strength=0.0),
    CorruptionSpec(method="rand_noise_top_k", dims=9, strength=1.5),
    CorruptionSpec(method="set_rand_noise_first_n", strength=0.7),
    CorruptionSpec(method="reverse_order"),
]
NOISE_SEEDS = (1, 2)
#: What vLLM multiplies the checkpoint's rows by.
SCALES = {"llama": 1.0, "gemma": math.sqrt(WIDTH)}


def save_models(folder: Path) -> None:
    from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

    texts = [text for example in EXAMPLES for text in (example.prompt, str(example.answer))]
    tokenizer = train_tokenizer(texts, vocab_size=400, context_tokens=CONTEXT)
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,  # a default-sized random model answers almost uniformly
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    made: dict[str, Any] = {"llama": (LlamaForCausalLM, LlamaConfig), "gemma": (GemmaForCausalLM, GemmaConfig)}
    for name, (model_class, config_class) in made.items():
        torch.manual_seed(0)
        model_class(config_class(**shared)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def measured(scorer: Scorer, retained: list[float]) -> dict[str, Any]:
    """Everything that a search asks of a scorer, as JSON values."""
    pairs = [scorer.pair(example.prompt, str(example.answer)) for example in EXAMPLES]
    requests = [
        Request(p.prompt_ids, p.answer_ids, spec, seed) for spec in SPECS for seed in NOISE_SEEDS for p in pairs
    ]
    task = MetricTask("rouge_l", EXAMPLES, max_new_tokens=MAX_TOKENS)
    objective = ForgetObjective(scorer, task, Retained(torch.tensor(retained).double().numpy(), {}))
    found = objective.measure([spec for spec in SPECS if spec is not None], NOISE_SEEDS)
    refusal = ""
    try:
        scorer.answer_logprobs([Request(pairs[0].prompt_ids * CONTEXT, pairs[0].answer_ids)])
    except ScorerError as error:
        refusal = str(error)
    before = scorer.forward_passes
    return {
        "logprobs": [logprobs.tolist() for logprobs in scorer.answer_logprobs(requests)],
        "score_passes": scorer.forward_passes - before,
        "answers": scorer.generate(requests, MAX_TOKENS),
        "passes": scorer.forward_passes - before,
        "retained": retained_from_model(scorer, task).values.tolist(),
        "objective": [[m.value, m.distance, m.gap, m.standard_error, m.gibberish] for m in found],
        "costs": [[m.seconds, m.forward_passes] for m in found],
        "refusal": refusal,
        "texts": [scorer.decode(pair.answer_ids) for pair in pairs],
        "startup_s": scorer.startup_s,
    }


def children() -> set[str]:
    """Processes of this one's group that run, by their command."""
    listed = subprocess.run(
        ["ps", "-o", "stat=,comm=", "-g", str(os.getpgrp())], capture_output=True, text=True, check=True
    )
    return {line.split(None, 1)[1] for line in listed.stdout.splitlines() if not line.startswith("Z")}


def main(folder: Path) -> None:
    """One JSON line for each model: what vLLM measured, its scale, and its processes while open and after."""
    from scoring.vllm_scorer import VllmScorer

    for name in SCALES:
        with contextlib.closing(
            VllmScorer(
                str(folder / name),
                dtype="float32",
                enforce_eager=True,
                max_model_len=CONTEXT,
                max_num_seqs=64,
                kv_cache_memory_bytes=2**26,
            )
        ) as scorer:
            found = measured(scorer, [0.25] * len(EXAMPLES))
            found |= {"model": name, "scale": scorer._scale, "open": sorted(children())}
        print(json.dumps(found | {"closed": sorted(children())}), flush=True)  # noqa: T201


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


@pytest.fixture(scope="module")
def by_vllm(folder: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        start_new_session=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"logprobs"')]
    assert len(answers) == len(SCALES), done.stderr[-3000:]
    return {answer["model"]: answer for answer in answers}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALES)
def test_both_scorers_measure_the_same(folder: Path, by_vllm: dict[str, dict[str, Any]], name: str) -> None:
    theirs = by_vllm[name]
    ours = measured(TransformersScorer.load(str(folder / name), device="cpu"), [0.25] * len(EXAMPLES))
    assert theirs["scale"] == pytest.approx(SCALES[name], rel=1e-6)
    for mine, other in zip(ours["logprobs"], theirs["logprobs"], strict=True):
        assert other == pytest.approx(mine, abs=1e-3)
    assert theirs["answers"] == [list(answer) for answer in ours["answers"]]
    assert theirs["retained"] == ours["retained"]
    for mine, other in zip(ours["objective"], theirs["objective"], strict=True):
        assert other == pytest.approx(mine, abs=1e-3)
    assert theirs["texts"] == ours["texts"] == [example.answer for example in EXAMPLES]
    # So that agreeing says something: the corruptions differ from each other and from none.
    means = [round(sum(logprobs) / len(logprobs), 3) for logprobs in ours["logprobs"]]
    assert len(set(means)) >= len(EXAMPLES) * 7
    size = len(EXAMPLES) * len(NOISE_SEEDS)
    assert means[:size] == means[2 * size : 3 * size]  # no strength, no change


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALES)
def test_an_engine_counts_its_steps_and_ends_with_its_scorer(by_vllm: dict[str, dict[str, Any]], name: str) -> None:
    found = by_vllm[name]
    requests = len(SPECS) * len(NOISE_SEEDS) * len(EXAMPLES)
    assert 1 <= found["score_passes"] < requests  # they share batches
    assert MAX_TOKENS <= found["passes"] - found["score_passes"] < requests
    assert sum(passes for _, passes in found["costs"]) >= MAX_TOKENS
    assert all(seconds > 0 for seconds, _ in found["costs"])
    assert found["startup_s"] > 1
    assert "the model's context has 128" in found["refusal"]
    assert any("VLLM" in command for command in found["open"])
    assert not any("VLLM" in command for command in found["closed"])


def test_a_checkpoint_without_rows_is_refused_before_an_engine_starts(tmp_path: Path) -> None:
    from corruption import CheckpointError
    from scoring.vllm_scorer import VllmScorer

    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        VllmScorer(str(tmp_path))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
