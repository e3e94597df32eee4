"""All that a response of OpenAI's API says, in whatever field: every text, and the tokens named at every place.

An attacker reads what he likes, so nothing is left out but what the server writes about the response itself. A stream's
events are put together: its pieces belong to one text where they stand at the same place of the same choice.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from evaluation.replies import Reply

_OK: Final = 200
_SERVER_ERROR: Final = 500
#: Fields that the server fills in itself, and repeats in every event of a stream.
_OWN: Final = frozenset(
    {"id", "object", "model", "role", "type", "finish_reason", "service_tier", "system_fingerprint"}
)
_LOGPROBS: Final = frozenset({"logprobs", "prompt_logprobs"})

_Path = tuple[str | int, ...]
_Places = list[tuple[str, ...]]


def read_response(status: int, content: str) -> Reply:
    """The reply that a body is: JSON, or server-sent events. Its `status` is 0 where it is neither, and that of an
    error which came in a stream."""
    if status != _OK:
        return Reply(status=status)
    try:
        parts = list(_parts(content))
        texts: dict[_Path, str] = {}
        places: dict[_Path, _Places] = {}
        for part in parts:
            if isinstance(error := part.get("error"), dict):
                code = error.get("code")
                return Reply(status=code if isinstance(code, int) and code != _OK else _SERVER_ERROR)
            _read(part, (), texts, places)
    except (ValueError, RecursionError, AttributeError):
        return Reply(status=0)
    if not any("choices" in part for part in parts):
        return Reply(status=0)
    alternatives: _Places = []
    for found in places.values():
        alternatives += [(), *found] if alternatives else found
    return Reply(texts=tuple(text for text in texts.values() if text), status=_OK, alternatives=tuple(alternatives))


def _parts(content: str) -> Iterator[dict[str, Any]]:
    """The one object of a body, or the objects of a stream's events. Raises ValueError where it is no JSON."""
    if not content.lstrip().startswith(("data:", "event:", ":")):
        yield json.loads(content)
        return
    for line in content.splitlines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _read(value: Any, path: _Path, texts: dict[_Path, str], places: dict[_Path, _Places]) -> None:
    """Add what stands below a place of the response."""
    if isinstance(value, str):
        texts[path] = texts.get(path, "") + value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            index = item.get("index") if isinstance(item, dict) else None
            _read(item, (*path, index if isinstance(index, int) else number), texts, places)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in _LOGPROBS:
                places.setdefault((*path, name), []).extend(_alternatives(item))
            elif name not in _OWN:
                _read(item, (*path, name), texts, places)


def _alternatives(logprobs: Any) -> Iterator[tuple[str, ...]]:
    """The tokens at each place of any form of log-probabilities: a chat's, a completion's, those of vLLM's prompts."""
    if isinstance(logprobs, list):  # prompt_logprobs: None, then {id: {decoded_token, …}}
        yield from (_tokens_of(place) for place in logprobs)
    elif isinstance(logprobs, dict) and isinstance(logprobs.get("tokens"), list):  # completions
        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
        yield from ((str(token), *(top or {})) for token, top in zip(logprobs["tokens"], tops, strict=False))
    elif isinstance(logprobs, dict):  # chat: content, refusal
        for entries in logprobs.values():
            yield from (_tokens_of(entry) for entry in entries or ())


def _tokens_of(place: Any) -> tuple[str, ...]:
    if not isinstance(place, dict):
        return ()
    if "token" in place:
        return (str(place["token"]), *(str(top["token"]) for top in place.get("top_logprobs") or () if "token" in top))
    return tuple(
        str(entry["decoded_token"]) for entry in place.values() if isinstance(entry, dict) and "decoded_token" in entry
    )
