"""Paraphrases and aliases written by a served model: `eco policy build --augment-with ENDPOINT`.

Any server with OpenAI's /v1/models and /v1/chat/completions will do, the guarded model's own included. Replies are
kept in a cache file as they come, under a digest of the request: an interrupted run continues where it stopped, and
a rebuild from the same examples, model and seed gives the same texts whatever the server would say today.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from optimizer.augmentation.cache import ReplyCache
from optimizer.augmentation.replies import (
    SYSTEM_PROMPT,
    alias_prompt,
    aliases_in,
    paraphrase_prompt,
    paraphrases_in,
    plain_key,
)
from optimizer.augmentation.server import AugmentationError, ChatRequest, ServedModel, ask, served_model
from sources.examples import Example

__all__ = ["Augmentation", "AugmentationError", "ServedModel", "augment_examples", "served_model"]

_PARAPHRASE_TEMPERATURE = 0.8
_ALIAS_TEMPERATURE = 0.0
_ALIAS_BATCH = 8  # examples in one request for aliases
#: A longer prompt (an article, a page) is not paraphrased.
_MAX_PROMPT_CHARACTERS = 2000
#: Prompts and answers are cut to this where aliases are asked for: who is meant is said early.
_ALIAS_TEXT_CHARACTERS = 300


@dataclass(frozen=True)
class Augmentation:
    """What a model wrote about some examples."""

    paraphrases: list[tuple[int, str]]
    """Index of the example, and another way to say its prompt; in the order of the examples."""
    aliases: list[str]
    """Other names of what the examples are about, none of which the examples have."""
    model: str
    requests: int
    """Requests whose replies this was made of, those answered by the cache included."""
    cached: int
    """How many of them the cache answered."""
    unusable: int
    """Replies to a request for paraphrases with nothing usable in them."""


def augment_examples(
    endpoint: str,
    examples: Sequence[Example],
    per_example: int,
    seed: int,
    cache_file: str | Path,
    *,
    model: str | None = None,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    console: Console | None = None,
) -> Augmentation:
    """Have a served model paraphrase every prompt and name aliases.

    Args:
        endpoint: base URL of an OpenAI-compatible server, with or without its /v1. The API key is
            OPENAI_API_KEY's, or "none".
        per_example: paraphrases wanted of each prompt; fewer where the model's are not usable.
        seed: sent with every request, beside an explicit temperature.
        cache_file: JSON lines, made if missing; replies are added one by one.
        model: name on the server; None is the first it lists.
        concurrency: requests under way at once, at most.
        timeout_s: longest wait for one answer, before it is asked for again (see `ask`).

    Raises:
        AugmentationError: see `served_model`; the cache file is something else or cannot be written; or the server
            fails for good, with all replies so far kept.
        ValueError: nothing to augment, or numbers that are not positive.
        RuntimeError: called from a running event loop.
    """
    if not examples or per_example < 1 or concurrency < 1 or timeout_s <= 0:
        raise ValueError("expected examples, and per_example, concurrency and timeout_s above 0")
    asked = served_model(endpoint, model)
    paraphrasing = {
        index: ChatRequest(
            asked, SYSTEM_PROMPT, paraphrase_prompt(example.prompt, per_example), _PARAPHRASE_TEMPERATURE, seed
        )
        for index, example in enumerate(examples)
        if len(example.prompt) <= _MAX_PROMPT_CHARACTERS
    }
    batches = [examples[start : start + _ALIAS_BATCH] for start in range(0, len(examples), _ALIAS_BATCH)]
    naming = [ChatRequest(asked, SYSTEM_PROMPT, _alias_prompt(batch), _ALIAS_TEMPERATURE, seed) for batch in batches]
    wanted = {request.digest: request for request in (*paraphrasing.values(), *naming)}
    with ReplyCache(Path(cache_file)) as cache:
        pending = [request for digest, request in wanted.items() if digest not in cache.replies]

        def keep(request: ChatRequest, reply: str) -> None:
            cache.add(request.digest, request.model.name, reply)

        ask(endpoint, pending, keep, concurrency, timeout_s, console or Console(stderr=True))
        replies = cache.replies
    paraphrases, unusable = _paraphrases(examples, {i: replies[r.digest] for i, r in paraphrasing.items()}, per_example)
    aliases = _aliases(examples, [replies[request.digest] for request in naming])
    return Augmentation(paraphrases, aliases, asked.name, len(wanted), len(wanted) - len(pending), unusable)


def _alias_prompt(batch: Sequence[Example]) -> str:
    cut = _ALIAS_TEXT_CHARACTERS
    return alias_prompt([Example(example.prompt[:cut], (example.answer or "")[:cut]) for example in batch])


def _paraphrases(
    examples: Sequence[Example], replies: Mapping[int, str], per_example: int
) -> tuple[list[tuple[int, str]], int]:
    taken = {plain_key(example.prompt) for example in examples}
    found: list[tuple[int, str]] = []
    unusable = 0
    for index, reply in replies.items():
        texts = paraphrases_in(reply, examples[index].prompt, per_example, taken)
        taken.update(map(plain_key, texts))
        found += [(index, text) for text in texts]
        unusable += not texts
    return found, unusable


def _aliases(examples: Sequence[Example], replies: Iterable[str]) -> list[str]:
    texts = [f"{example.prompt} {example.answer or ''}" for example in examples]
    first: dict[str, str] = {}
    for reply in replies:
        for name in aliases_in(reply, texts):
            first.setdefault(plain_key(name), name)
    return list(first.values())
