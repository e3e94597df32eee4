"""vLLM's routes over a model in this process, for a scripted endpoint."""

from typing import Any

import torch
from scripted_endpoint import Answer, Rule, error, ok, texts

from scoring.scorer import Request
from scoring.transformers_scorer import TransformersScorer


def serving(model: Any, tokenizer: Any) -> Rule:
    """What vLLM would answer: ids of texts and chats, greedy answers, log-probabilities of a prompt of ids."""

    def chat_ids(body: dict[str, Any]) -> list[int]:
        goes_on = body.get("continue_final_message", False)
        options = {"continue_final_message": goes_on, "add_generation_prompt": not goes_on}
        text = tokenizer.apply_chat_template(body["messages"], tokenize=False, **options)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    def generated(ids: list[int], body: dict[str, Any]) -> str:
        (answer,) = TransformersScorer(model, tokenizer).generate([Request(tuple(ids))], body["max_tokens"])
        text: str = tokenizer.decode(list(answer), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text[: min((text.find(stop) for stop in body.get("stop", ()) if stop in text), default=None)]

    def rule(path: str, body: dict[str, Any]) -> Answer:
        if "messages" in body and not tokenizer.chat_template:
            return error(400, "As of transformers v4.44, default chat template is no longer allowed")
        if path == "/tokenize":
            if "messages" in body:
                return ok({"tokens": chat_ids(body)})
            return ok({"tokens": tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])})
        if "messages" in body:
            return ok(texts(generated(chat_ids(body), body)))
        if "prompt_logprobs" not in body:
            return ok({"choices": [{"text": generated(tokenizer.encode(body["prompt"]), body)}]})
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
