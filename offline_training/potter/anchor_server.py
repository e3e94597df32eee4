"""Anchor terms and their generic translations written by a served model, passage by passage.

Section 2.2 of Eldan and Russinovich 2023 (arXiv 2310.02238), who asked GPT-4; any server with OpenAI's
/v1/chat/completions will do. Replies are kept in a folder, one file each, under a digest of model and passage: an
interrupted job asks on where it stopped.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from endpoints.server import EndpointError, chat
from offline_training.errors import JobError
from offline_training.served import ENDPOINT_FLAG, connected
from storage.digests import sha256_of_json
from storage.whole import write_whole

_MAX_ANSWER_TOKENS = 2048
_MAX_ANCHOR_CHARACTERS = 80
_SYSTEM = "You prepare texts for research. You answer with one JSON object and nothing else."
_PROMPT = """Find in the passage below the names and expressions that belong to this work alone: its persons, places, \
organisations, invented words, objects and titles. For each, invent a replacement that reads as naturally at the same \
place but says nothing of this work, nor of any other that is known. Replace a person's first name by one first name \
and the surname by one surname, everywhere. Leave ordinary words out.

Answer with a JSON object from each expression, exactly as it stands in the passage, to its replacement; for example \
{"Baker Street": "Mill Road"}. If there is none, answer {}.

Passage:

"""


@dataclass(frozen=True)
class ServedAnchors:
    """What a model found in the passages of a text."""

    anchors: dict[str, str]
    unusable: int
    """Replies without a JSON object of texts."""
    cached: int
    """Replies that an earlier run had kept."""


class AnchorServer:
    """One model on one OpenAI-compatible server."""

    def __init__(self, endpoint: str, model: str | None, *, concurrency: int, timeout_s: float) -> None:
        """Finds out which model to ask: `model`, or the first the server lists. Asks once, without patience.

        Raises:
            JobError: `endpoint` is no URL, nobody answers there, or no model is listed and none named.
        """
        self._endpoint = endpoint
        self._server, self.model = connected(endpoint, model, concurrency=concurrency, timeout_s=timeout_s)

    def find(self, passages: Sequence[str], cache: Path, *, on_progress: Callable[[int, int], None]) -> ServedAnchors:
        """Ask about every passage that `cache` has no reply for.

        Raises:
            JobError: the server fails a request for good, or the cache cannot be used; what came before is kept.
        """
        digests = [sha256_of_json([_SYSTEM, _PROMPT, self.model, passage]) for passage in passages]
        files = [cache / f"{digest}.json" for digest in digests]
        try:
            cache.mkdir(parents=True, exist_ok=True)
            waiting = {file: passage for file, passage in zip(files, passages, strict=True) if not file.exists()}
            cached = len(passages) - len(waiting)
            places, done = list(waiting), cached

            def keep(place: int, reply: str) -> None:
                nonlocal done
                write_whole(places[place], json.dumps({"model": self.model, "reply": reply}))
                done += 1
                on_progress(done, len(passages))

            requests = [
                {
                    "model": self.model,
                    "messages": [
                        {"role": "system", "content": _SYSTEM},
                        {"role": "user", "content": _PROMPT + passage},
                    ],
                    "temperature": 0.0,
                    "seed": 0,
                    "max_tokens": _MAX_ANSWER_TOKENS,
                }
                for passage in waiting.values()
            ]
            chat(self._server, requests, keep)
            found = []
            for file in files:
                try:
                    found.append(anchors_in(str(json.loads(file.read_text(encoding="utf-8"))["reply"])))
                except (ValueError, KeyError, TypeError) as error:
                    raise JobError(f"--cache: {file}: no kept reply; delete this file and run again") from error
        except EndpointError as error:
            raise JobError(
                f"{ENDPOINT_FLAG}: {self._endpoint}: {error.problem}; replies so far are kept, run again to go on"
            ) from error
        except OSError as error:
            raise JobError(f"--cache: {cache}: cannot be used ({error.strerror}); give another folder") from error
        usable = [anchors for anchors in found if anchors is not None]
        return ServedAnchors(merged(usable), len(found) - len(usable), cached)


def anchors_in(reply: str) -> dict[str, str] | None:
    """The anchors of a reply, which may have words or a code fence around its object; None where there is no object."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        found = json.loads(reply[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    plain = {
        " ".join(anchor.split()): " ".join(generic.split())
        for anchor, generic in found.items()
        if isinstance(generic, str) and max(len(anchor), len(generic)) <= _MAX_ANCHOR_CHARACTERS
    }
    return {
        anchor: generic
        for anchor, generic in plain.items()
        if anchor and generic and anchor.casefold() != generic.casefold()
    }


def merged(replies: Sequence[dict[str, str]]) -> dict[str, str]:
    """One dictionary: for each anchor, whatever its case, the commonest spelling and the commonest translation.

    What was found first wins a tie, so the result does not depend on the order in which replies came.
    """
    spellings: dict[str, Counter[str]] = {}
    generics: dict[str, Counter[str]] = {}
    for reply in replies:
        for anchor, generic in reply.items():
            spellings.setdefault(anchor.casefold(), Counter())[anchor] += 1
            generics.setdefault(anchor.casefold(), Counter())[generic] += 1
    return {counts.most_common(1)[0][0]: generics[key].most_common(1)[0][0] for key, counts in spellings.items()}
