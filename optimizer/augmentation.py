"""Paraphrases and aliases written by a served model: `eco policy build --augment-with ENDPOINT`.

Any server with OpenAI's /v1/models and /v1/chat/completions will do, the guarded model's own included. Replies are
kept in a cache file as they come, under a digest of the request: an interrupted run continues where it stopped, and
a rebuild from the same examples, model and seed gives the same texts whatever the server would say today.

A model may reply with a JSON list, a list in a code fence, numbered lines, half a list, thoughts, or a refusal.
Whatever is not clearly a usable item is dropped: a lost paraphrase costs little, a wrong one mislabels the training.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console

from console.progress import shown_progress
from endpoints.server import EndpointError, RefusedError, chat, chat_server, listed_models
from optimizer.errors import AugmentationError
from sources.examples import Example, comparison_key
from storage.digests import sha256_of_json
from storage.whole import write_whole

SYSTEM_PROMPT = "You write texts for a data set. Reply with a JSON list of strings and nothing else."

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*</think>", re.DOTALL)
_FENCE = re.compile(r"```\w*\n?(.*?)(?:```|\Z)", re.DOTALL)
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BULLET = re.compile(r"\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
_QUOTES = "\"'“”‘’«»*`"
_PUNCTUATION = re.compile(r"[\W_]+")
_LONG_WORD = re.compile(r"\w{4,}")
#: A paraphrase may be this many times as long as its original, or as long as a short text anyway.
_LENGTH_RATIO, _SHORT_CHARACTERS = 3, 200
_ALIAS_WORDS, _ALIAS_CHARACTERS, _ALIAS_LETTERS = 6, 60, 3


def paraphrase_prompt(text: str, count: int) -> str:
    """Ask for `count` paraphrases of one text."""
    return (
        f"Write {count} different ways to say or ask the following. Keep its meaning, its language and every name in "
        f"it; vary wording, length and tone. Do not answer it.\n\n{text}"
    )


def alias_prompt(examples: Sequence[Example]) -> str:
    """Ask for other names of what some examples are about."""
    texts = "\n".join(f"- {' '.join((example.prompt, example.answer or '')).strip()}" for example in examples)
    return (
        "List other names of the people, organisations and works that these texts are about: nicknames, pen names, "
        "initials, earlier names, other spellings and transliterations, titles in other languages. Only names that "
        "identify one of them: no places, no common words. Reply with an empty list if there are none.\n\n" + texts
    )


def paraphrases_in(reply: str, original: str, count: int, taken: Collection[str] = ()) -> list[str]:
    """Up to `count` paraphrases in a reply.

    Dropped are empty ones, echoes of the original, what is far longer than it, what shares no word of four letters
    or more with it (a refusal, an introduction), and what has its `plain_key` in `taken` or came before.
    """
    seen = {plain_key(original), *taken}
    longest = max(_SHORT_CHARACTERS, _LENGTH_RATIO * len(original))
    # Where words are not divided by spaces a long word is a clause, and two wordings need not share one.
    words = set(_LONG_WORD.findall(original.casefold())) if " " in original.strip() else set()
    paraphrases: list[str] = []
    for item in _items(reply, single=count == 1):
        key = plain_key(item)
        related = not words or not words.isdisjoint(_LONG_WORD.findall(item.casefold()))
        if key and key not in seen and len(item) <= longest and related:
            seen.add(key)
            paraphrases.append(item)
    return paraphrases[:count]


def aliases_in(reply: str, texts: Sequence[str]) -> list[str]:
    """Names in a reply that are new: none of the texts has them already.

    Dropped are what is too long for a name, has fewer than three letters, or has no capital in a script with case.
    """
    known = [f" {plain_key(text)} " for text in texts]
    seen: set[str] = set()
    names: list[str] = []
    for item in _items(reply, single=True):
        key = plain_key(item)
        short = len(item) <= _ALIAS_CHARACTERS and len(item.split()) <= _ALIAS_WORDS
        lettered = sum(map(str.isalpha, item)) >= _ALIAS_LETTERS and not item.islower()
        if not short or not lettered or item[-1] in ".?!:":
            continue
        if key not in seen and not any(f" {key} " in text for text in known):
            seen.add(key)
            names.append(item)
    return names


def plain_key(text: str) -> str:
    """The text as compared for sameness here: `comparison_key` without punctuation."""
    return " ".join(_PUNCTUATION.sub(" ", comparison_key(text)).split())


def _items(reply: str, *, single: bool) -> Iterator[str]:
    """The items of the list in a reply, white space collapsed; `single`: one line alone may be the whole list."""
    text = _THOUGHTS.sub("", reply).strip()
    if fenced := _FENCE.search(text):
        text = fenced[1].strip()
    items = _json_items(text)
    if items is None:
        lines = [line for line in text.splitlines() if line.strip() and not line.rstrip().endswith(":")]
        bulleted = [_BULLET.sub("", line, count=1) for line in lines if _BULLET.match(line)]
        items = bulleted or (lines if single or len(lines) > 1 else [])
    for item in items:
        item = item.encode("utf-8", "ignore").decode()  # half a surrogate pair, which JSON may hold, is no text
        if cleaned := " ".join(item.split()).strip(_QUOTES).strip():
            yield cleaned


def _json_items(text: str) -> list[str] | None:
    """The strings of the JSON list in a text, and the first one of each object in it; None where there is none."""
    start, end = text.find("["), text.rfind("]")
    if start < 0:
        return None
    values: list[Any] = []
    try:
        values = json.loads(text[start : end + 1])
    except (json.JSONDecodeError, RecursionError):
        if text[start + 1 :].lstrip().startswith('"'):  # cut off by the token limit: its complete strings are good
            for string in _JSON_STRING.findall(text[start:]):
                with contextlib.suppress(json.JSONDecodeError):
                    values.append(json.loads(string))
    firsts = [next(iter(filter(_is_text, v.values())), "") if isinstance(v, dict) else v for v in values]
    return list(filter(_is_text, firsts)) or None


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


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
    with contextlib.closing(ReplyCache(Path(cache_file))) as cache:
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

    def close(self) -> None:
        self._stream.close()

    def add(self, digest: str, model: str, reply: str) -> None:
        """Keep a reply; it is in the file when this returns."""
        self._stream.write(json.dumps({"digest": digest, "model": model, "reply": reply}) + "\n")
        self._stream.flush()
        self.replies[digest] = reply
