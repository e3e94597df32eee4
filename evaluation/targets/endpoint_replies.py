"""Asks as bodies of OpenAI's API, and its answers as replies. No network in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply

__all__ = [
    "Abilities",
    "GeneratedTokens",
    "answer_text",
    "choices_of",
    "echoed_reply",
    "generated_reply",
    "generated_tokens",
    "generation",
    "messages",
    "plain_prompt",
    "scored_reply",
    "texts_of",
]

Scoring = Literal["ids", "echo"]
"""How an answer is scored. ids: vLLM's prompt_logprobs of token ids. echo: completions that echo their prompt's."""


@dataclass
class Abilities:
    """What is known of a server; filled in as asks need it.

    Attributes:
        vllm: whether it is vLLM, which takes parameters of its own.
        template: whether the model has a chat template; None: not known yet.
        tokens_field: the name of the longest answer in a chat's body.
        scoring: None: not known yet.
    """

    vllm: bool = False
    template: bool | None = None
    tokens_field: str = "max_tokens"
    scoring: Scoring | None = None

    def is_chat(self, ask: Ask) -> bool:
        """Whether an ask goes through a chat template."""
        return ask.style == "chat" and self.template is not False


class GeneratedTokens(NamedTuple):
    """(A,) what a server generated, with the log-probabilities it drew them by."""

    ids: list[int]
    logprobs: list[float]


def texts_of(ask: Ask) -> list[str]:
    """What no error message may repeat."""
    return [text for text in (ask.prompt, ask.system, ask.answer) if text]


def messages(ask: Ask) -> list[dict[str, str]]:
    system = [] if ask.system is None else [{"role": "system", "content": ask.system}]
    return [*system, {"role": "user", "content": ask.prompt}]


def plain_prompt(ask: Ask) -> str:
    """The prompt where there is no chat template."""
    return ask.prompt if ask.system is None else f"{ask.system}\n\n{ask.prompt}"


def answer_text(ask: Ask, abilities: Abilities) -> str:
    """The answer as it is tokenized: without a chat template a chat's gets its space here (`scoring.Renderer`)."""
    if ask.answer is None:
        raise TargetError("an ask without an answer has nothing to score")
    return f" {ask.answer}" if ask.style == "chat" and not abilities.is_chat(ask) else ask.answer


def generation(ask: Ask, model: str, abilities: Abilities) -> tuple[str, dict[str, Any]]:
    """Path and body of a request for an answer."""
    body: dict[str, Any] = {"model": model, "temperature": ask.temperature}
    if ask.samples > 1:
        body["n"] = ask.samples
    if ask.stop:
        body["stop"] = list(ask.stop)
    if ask.temperature > 0:
        body |= {"seed": ask.seed, "top_p": 1.0}
    if abilities.vllm:  # else a model's generation_config.json decides, and an offline engine would answer otherwise
        body |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    if abilities.is_chat(ask):
        return "/chat/completions", body | {"messages": messages(ask), abilities.tokens_field: ask.max_new_tokens}
    return "/completions", body | {"prompt": plain_prompt(ask), "max_tokens": ask.max_new_tokens}


def generated_reply(answer: Mapping[str, Any], ask: Ask) -> Reply:
    """The texts of an answer to `generation`; "" where a choice has none (only thoughts, a refusal field).

    Raises:
        TargetError: it is no completion, or has fewer texts than asked for.
    """
    texts = []
    for choice in choices_of(answer):
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        texts.append(text if isinstance(text, str) else "")
    if len(texts) != ask.samples:
        raise TargetError(f"--target: answered with {len(texts)} texts where {ask.samples} were asked for")
    return Reply(texts=tuple(texts))


def generated_tokens(answer: Mapping[str, Any]) -> GeneratedTokens | None:
    """The tokens of a completion asked for with `return_tokens_as_token_ids`, without the one that ends it; None where
    the server does not name them."""
    choice = choices_of(answer)[0]
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    try:
        ids = [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
        values = [float(value) for value in logprobs["token_logprobs"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    end = len(ids) - (choice.get("finish_reason") == "stop")
    return GeneratedTokens(ids[:end], values[:end])


def scored_reply(answer: Mapping[str, Any], answer_ids: Sequence[int], start: int) -> Reply | None:
    """The answer's tokens, which begin at `start` of a completion's prompt; None without vLLM's `prompt_logprobs`."""
    entries = choices_of(answer)[0].get("prompt_logprobs")
    if not isinstance(entries, list) or len(entries) < start + len(answer_ids):
        return None
    try:
        places = entries[start : start + len(answer_ids)]  # each holds the token that stands there and the likeliest
        logprobs = tuple(float(place[str(token)]["logprob"]) for place, token in zip(places, answer_ids, strict=True))
        # Not by rank: vLLM ranks both of two tokens second that share the first place.
        tops = [max(float(entry["logprob"]) for entry in place.values()) for place in places]
        greedy = tuple(own >= top for own, top in zip(logprobs, tops, strict=True))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return Reply(logprobs=logprobs, greedy=greedy, token_ids=tuple(answer_ids))


def echoed_reply(answer: Mapping[str, Any], prompt: str, scored: str) -> Reply | None:
    """The tokens of `scored` in an echoed `prompt` + `scored`; None where the server echoes no logprobs.

    A token that reaches over the border counts as the answer's. Where a start token is echoed as text of its own, the
    offsets begin after it.
    """
    choice = choices_of(answer)[0]
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    try:
        tokens, values, tops = (logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs"))
        offsets = logprobs["text_offset"]
        shift = offsets[1] if len(offsets) > 1 and not prompt.startswith(tokens[0]) else 0
        first, end = len(prompt) + shift, len(prompt) + len(scored) + shift
        ends = [*offsets[1:], offsets[-1] + len(tokens[-1])]
        places = [i for i, (at, to) in enumerate(zip(offsets, ends, strict=True)) if to > first and at < end]
        found = [float(values[i]) for i in places]
        greedy = tuple(value >= max(tops[i].values()) - 1e-9 for i, value in zip(places, found, strict=True))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return Reply(logprobs=tuple(found), greedy=greedy) if found else None


def choices_of(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """At least one. Raises `TargetError` where the answer is no completion."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise TargetError("--target: answered with no completion; give an OpenAI-compatible server's base URL")
    return choices
