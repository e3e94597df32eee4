"""vLLM's routes over a model in this process, for a scripted endpoint."""

from typing import Any

import torch
from scripted_endpoint import Answer, Rule, ok

from scoring.scorer import Request
from scoring.transformers_scorer import TransformersScorer


def serving(model: Any, tokenizer: Any) -> Rule:
    """What vLLM would answer: ids of texts, greedy texts after a plain prompt, log-probabilities of a prompt of ids."""

    def rule(path: str, body: dict[str, Any]) -> Answer:
        if path == "/tokenize":
            return ok({"tokens": tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])})
        if "prompt_logprobs" not in body:
            (answer,) = TransformersScorer(model, tokenizer).generate(
                [Request(tuple(tokenizer.encode(body["prompt"])))], body["max_tokens"]
            )
            text = tokenizer.decode(list(answer), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            ends = [text.find(stop) for stop in body.get("stop", ()) if stop in text]
            return ok({"choices": [{"text": text[: min(ends, default=None)]}]})
        ids = body["prompt"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places: list[dict[str, Any] | None] = [None]
        for place, token in enumerate(ids[1:], 1):
            row = logprobs[place - 1]
            rank = int((row > row[token]).sum()) + 1
            likeliest = {str(int(row.argmax())): {"logprob": float(row.max()), "rank": 1}}
            places.append(likeliest | {str(token): {"logprob": float(row[token]), "rank": rank}})
        return ok({"choices": [{"text": "", "prompt_logprobs": places}]})

    return rule
