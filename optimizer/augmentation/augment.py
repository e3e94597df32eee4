"""Paraphrases and aliases written by a served model: `eco policy build --augment-with ENDPOINT`.

Any server with OpenAI's /v1/models and /v1/chat/completions will do, the guarded model's own included. Replies are
kept in a cache file as they come, under a digest of the request: an interrupted run continues where it stopped, and
a rebuild from the same examples, model and seed gives the same texts whatever the server would say today.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from console.progress import shown_progress
from endpoints.server import EndpointError, RefusedError, chat, chat_server, listed_models
from optimizer.augmentation.replies import (
    SYSTEM_PROMPT,
    alias_prompt,
    aliases_in,
    paraphrase_prompt,
    paraphrases_in,
    plain_key,
)
from optimizer.errors import AugmentationError
from sources.examples import Example
from storage.digests import sha256_of_json
from storage.whole import write_whole

__all__ = ["Augmentation", "ServedModel", "augment_examples", "served_model"]

_FLAG = "--augment-with"
_PARAPHRASE_TEMPERATURE = 0.8
_ALIAS_TEMPERATURE = 0.0
_ALIAS_BATCH = 8  # examples in one request for aliases
#: A longer prompt (an article, a page) is not paraphrased.
_MAX_PROMPT_CHARACTERS = 2000
#: Prompts and answers are cut to this where aliases are asked for: who is meant is said early.
_ALIAS_TEXT_CHARACTERS = 300
_MAX_TOKENS = 2048
_ANSWER_TIMEOUT_S = 120.0
_LINE_START = '{"digest": "'


@dataclass(frozen=True)
class ServedModel:
    """A model a server has."""

    name: str
    context_tokens: int | None
    """How much fits into prompt and answer together, where the server says it (vLLM does)."""

    def request(self, prompt: str, temperature: float, seed: int) -> dict[str, Any]:
        """The body of a chat completion, in full: what the server may choose is not left to it.

        Half a surrogate pair, which no encoder takes, becomes a question mark. The longest answer to ask for is half
        the context, for a server refuses what might not fit.
        """
        contents = {"system": SYSTEM_PROMPT, "user": prompt.encode("utf-8", "replace").decode()}
        return {
            "model": self.name,
            "messages": [{"role": role, "content": content} for role, content in contents.items()],
            "temperature": temperature,
            "seed": seed,
            "max_tokens": min(_MAX_TOKENS, (self.context_tokens or 2 * _MAX_TOKENS) // 2),
        }


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


def served_model(endpoint: str, model: str | None = None) -> ServedModel:
    """The model to ask: `model` if the server has it, else the first of /v1/models.

    Asks once and without patience, so that a wrong endpoint is known before anything else starts. A server without
    /v1/models will do if `model` is given.

    Raises:
        AugmentationError: no URL, nobody answers there, or the server has no such model.
    """
    no_models = f"{_FLAG}: {endpoint}: lists no models at /v1/models; check the URL, or name the model"
    try:
        server = chat_server(endpoint, _FLAG, concurrency=1, timeout_s=_ANSWER_TIMEOUT_S)
    except EndpointError as error:
        raise AugmentationError(str(error)) from error
    try:
        entries = listed_models(server)
    except EndpointError as error:
        if isinstance(error, RefusedError) and error.status == HTTPStatus.NOT_FOUND:
            if model is not None:
                return ServedModel(model, None)
            raise AugmentationError(no_models) from error
        raise AugmentationError(f"{_FLAG}: {endpoint}: {error.problem}; start the server or fix the URL") from error
    if not entries:
        raise AugmentationError(no_models)
    matching = [entry for entry in entries if model in (None, entry["id"])]
    if not matching:
        names = ", ".join(entry["id"] for entry in entries)
        raise AugmentationError(f"{_FLAG}: {endpoint}: no model {model!r}; it serves {names}")
    context = matching[0].get("max_model_len")
    return ServedModel(matching[0]["id"], context if isinstance(context, int) and context > 1 else None)


def augment_examples(
    endpoint: str,
    examples: Sequence[Example],
    per_example: int,
    seed: int,
    cache_file: str | Path,
    *,
    model: str | None = None,
    concurrency: int = 8,
    timeout_s: float = _ANSWER_TIMEOUT_S,
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
        timeout_s: longest wait for one answer, before it is asked for again.

    Raises:
        AugmentationError: see `served_model`; the cache file is something else or cannot be written; or the server
            fails for good, with all replies so far kept.
        ValueError: nothing to augment, or numbers that are not positive.
    """
    if not examples or per_example < 1 or concurrency < 1 or timeout_s <= 0:
        raise ValueError("expected examples, and per_example, concurrency and timeout_s above 0")
    served = served_model(endpoint, model)
    paraphrasing = {
        index: served.request(paraphrase_prompt(example.prompt, per_example), _PARAPHRASE_TEMPERATURE, seed)
        for index, example in enumerate(examples)
        if len(example.prompt) <= _MAX_PROMPT_CHARACTERS
    }
    cut = _ALIAS_TEXT_CHARACTERS
    short = [Example(example.prompt[:cut], (example.answer or "")[:cut]) for example in examples]
    batches = [short[start : start + _ALIAS_BATCH] for start in range(0, len(short), _ALIAS_BATCH)]
    naming = [served.request(alias_prompt(batch), _ALIAS_TEMPERATURE, seed) for batch in batches]

    wanted = {_digest(request): request for request in (*paraphrasing.values(), *naming)}
    with ReplyCache(Path(cache_file)) as cache:
        pending = [(digest, request) for digest, request in wanted.items() if digest not in cache.replies]
        server = chat_server(endpoint, _FLAG, concurrency=concurrency, timeout_s=timeout_s)
        done = 0
        with shown_progress(console or Console(stderr=True)) as show:

            def keep(place: int, reply: str) -> None:
                nonlocal done
                cache.add(pending[place][0], served.name, reply)
                done += 1
                show("asking the model", done, len(pending))

            try:
                chat(server, [request for _, request in pending], keep)
            except EndpointError as error:
                raise AugmentationError(
                    f"{_FLAG}: {endpoint}: {error.problem} ({done} of {len(pending)} replies kept); "
                    "run again to continue from there"
                ) from error
        replies = cache.replies

    taken = {plain_key(example.prompt) for example in examples}
    paraphrases: list[tuple[int, str]] = []
    unusable = 0
    for index, request in paraphrasing.items():
        texts = paraphrases_in(replies[_digest(request)], examples[index].prompt, per_example, taken)
        taken.update(map(plain_key, texts))
        paraphrases += [(index, text) for text in texts]
        unusable += not texts
    known = [f"{example.prompt} {example.answer or ''}" for example in examples]
    aliases: dict[str, str] = {}  # by what they are compared by
    for request in naming:
        for name in aliases_in(replies[_digest(request)], known):
            aliases.setdefault(plain_key(name), name)
    return Augmentation(
        paraphrases, list(aliases.values()), served.name, len(wanted), len(wanted) - len(pending), unusable
    )


def _digest(request: dict[str, Any]) -> str:
    """The same question to the same model, wherever it is served."""
    return sha256_of_json(request, sort_keys=True)


class ReplyCache:
    """Replies by request digest: JSON lines that are appended; one that a kill cut off is dropped at the next opening.

    Raises:
        AugmentationError: on opening, the file holds anything else, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.replies: dict[str, str] = {}
        text = ""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise AugmentationError(f"{path}: cannot be read as a cache file; give another") from error
        *lines, last = text.split("\n")
        if not _LINE_START.startswith(last[: len(_LINE_START)]):
            lines.append(last)  # not ours: to be refused below, never dropped
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                self.replies[str(record["digest"])] = str(record["reply"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise AugmentationError(
                    f"{path}:{number}: no cached reply; give another cache file, or delete this one"
                ) from error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if last:
                write_whole(path, text.removesuffix(last))
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise AugmentationError(f"{path}: cannot be written ({error.strerror}); give another cache file") from error

    def __enter__(self) -> "ReplyCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, digest: str, model: str, reply: str) -> None:
        """Keep a reply; it is in the file when this returns."""
        self._stream.write(json.dumps({"digest": digest, "model": model, "reply": reply}) + "\n")
        self._stream.flush()
        self.replies[digest] = reply
