"""Made-up answers for AltPO, written by a served model: `eco unlearn alternatives`.

Mekala et al. 2024 (arXiv 2409.13474) have the model that is to forget write them itself. Read were `generate.py`,
`prompts.py` and `config/generate.yaml` of molereddy/Alternate-Preference-Optimization: question and answer with the
instruction to write another version with other plausible facts, five answers a question drawn at temperature 1, 200
tokens at most, ended by "Question:" or "Q:", from one seed. Nothing else is said there, so transformers draws from the
50 likeliest tokens. Here it is the same but for four things. The wording of the
instruction is this project's (`--instruction` takes any); nothing is put into the model's mouth, where the reference
has its answer begin with "Alternate Answer :"; each answer has a seed of its own, so that it does not depend on what is
asked beside it; and an answer that is empty, or the true one, is drawn again.

Any server with OpenAI's /v1/chat/completions will do, `vllm serve` of the model itself for one. Replies are kept in a
folder, one file each, under a digest of the request: an interrupted job asks on where it stopped.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pydantic import Field
from rich.console import Console

from console.progress import shown_progress
from endpoints.server import EndpointError, Server, chat
from offline_training.data.sets import load_examples
from offline_training.errors import DataError, JobError, SettingsError
from offline_training.served import ENDPOINT_FLAG, ServedOptions, connected
from offline_training.settings import check_least
from sources.examples import Example
from storage.digests import sha256_of_file, sha256_of_json
from storage.whole import write_whole
from text.normalise import normalise

INSTRUCTION: Final = (
    "Make up another answer to this question. Put it in other words, and replace every fact that the answer above "
    "states by one that is just as plausible and contradicts it. Leave what the question itself says as it is. Reply "
    "with the new answer alone."
)
_STOPS: Final = ("Question:", "Q:")
#: Draws of one alternative: the first, and others where that one cannot be used.
_ATTEMPTS: Final = 4
_THOUGHTS: Final = re.compile(r"<think>.*?(?:</think>|\Z)|\A.*</think>", re.DOTALL)
_LABEL: Final = re.compile(r"\A[\W_]*(?:(?:new|other|alternat(?:e|ive))\s+)?answer\s*:\s*[*_]*\s*", re.IGNORECASE)


class AlternativeOptions(ServedOptions):
    """Whose answers are made up, and by whom."""

    forget: str = Field(min_length=1, description="What to forget, with answers: JSON lines or hf:name.")
    out: Path = Field(
        description="File to write: alternatives.jsonl, for --alternatives of altpo. Beside it stands how it was made."
    )
    endpoint: str = Field(
        description="An OpenAI-compatible server of the model that is to forget, or of another: "
        "http://localhost:8000/v1."
    )
    per_question: int = Field(5, description="Alternatives of each question (5: AltPO).")
    temperature: float = Field(1.0, description="At which they are drawn (1: AltPO).")
    top_k: int = Field(
        50,
        description="The likeliest tokens that each is drawn from (50: AltPO, as transformers' default); 0: not sent, "
        "for servers that do not know it, which then decide.",
    )
    max_new_tokens: int = Field(200, description="Of one alternative (200: AltPO).")
    instruction: str = Field(INSTRUCTION, description="What the model is told after question and answer.")
    seed: int = Field(0, description="Of the draws.")

    def check(self) -> None:
        """Raises `SettingsError` for what cannot be, `JobError` where `out` is there already."""
        check_least(self, {"per_question": 1, "max_new_tokens": 1, "top_k": 0, "seed": 0})
        if not 0 < self.temperature < math.inf:
            raise SettingsError(f"--temperature: must be above 0, not {self.temperature}")
        if not self.instruction.strip():
            raise SettingsError("--instruction: is empty; say what is to be made up")
        super().check()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One alternative: `number` of the question's."""

    example: Example
    number: int


def write_alternatives(options: AlternativeOptions, console: Console) -> int:
    """Writes `options.out`, a row for each alternative with `question`, `answer` and `alternate`; gives their number.

    Beside it, `<name>.made.json` says how: model, sampling, instruction, and digests of the questions and of the file.

    Questions that come twice are asked once. The same forget set, model, settings and kept replies give the same file.

    Raises:
        SettingsError: a setting cannot be.
        DataError: the forget set cannot be read, or is plain text.
        JobError: the server cannot be used, fails a request for good (what came before is kept), or has no usable
            answer to a question; the file or the folder cannot be written.
    """
    options.check()
    examples = _questions(options.forget)
    server, model = connected(
        options.endpoint, options.endpoint_model, concurrency=options.concurrency, timeout_s=options.timeout_s
    )
    console.print(f"asking {model} for {options.per_question} answers to each of {len(examples)} questions")
    wanted = [_Wanted(example, number) for example in examples for number in range(options.per_question)]
    found: dict[_Wanted, str] = {}
    with shown_progress(console) as show:
        for attempt in range(_ATTEMPTS):
            missing = [one for one in wanted if one not in found]
            requests = [_request(one, attempt, model, options) for one in missing]
            title = "making answers up" if attempt == 0 else f"again, {attempt}"
            replies = _replies(server, options.endpoint, requests, options.replies, functools.partial(show, title))
            for one, reply in zip(missing, replies, strict=True):
                if (text := usable(reply, one.example.answer or "")) is not None:
                    found[one] = text
    for number, example in enumerate(examples, 1):
        if not any(one.example is example for one in found):
            raise JobError(
                f"{ENDPOINT_FLAG}: {options.endpoint}: no usable answer to question {number} of --forget in "
                f"{_ATTEMPTS * options.per_question} replies; ask a larger model, or give another --instruction"
            )
    rows = [
        {"question": one.example.prompt, "answer": one.example.answer, "alternate": found[one]}
        for one in wanted
        if one in found
    ]
    try:
        write_whole(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        made = _made(options, model, examples, len(rows))
        write_whole(options.out.with_name(f"{options.out.stem}.made.json"), json.dumps(made, indent=1) + "\n")
    except OSError as error:
        raise JobError(f"--out: {options.out}: cannot be written ({error.strerror})") from error
    if len(rows) < len(wanted):
        console.print(f"{len(wanted) - len(rows)} of {len(wanted)} replies could not be used, and were left out")
    console.print(f"{len(rows)} answers in {options.out}; read some of them before training")
    return len(rows)


def usable(reply: str, answer: str) -> str | None:
    """The alternative in a reply, without thoughts, a label before it and a question after it; None where nothing is
    left, or the true answer."""
    text = _LABEL.sub("", _THOUGHTS.sub("", reply).strip(), count=1)
    for stop in _STOPS:
        text = text.partition(stop)[0]
    text = text.encode("utf-8", "ignore").decode().strip()  # half a surrogate pair is no text
    same = normalise(text).casefold().split() == normalise(answer).casefold().split()
    return None if same or not text else text


def _questions(forget: str) -> list[Example]:
    loaded = load_examples(forget, name="forget")
    if loaded.is_text:
        raise DataError(f"--forget: {forget}: plain text has no questions; give questions with answers")
    first: dict[str, Example] = {}
    for example in loaded.examples:
        first.setdefault(normalise(example.prompt), example)
    return list(first.values())


def _request(one: _Wanted, attempt: int, model: str, options: AlternativeOptions) -> dict[str, Any]:
    asked = f"Question: {one.example.prompt}\nAnswer: {one.example.answer}\n\n{options.instruction.strip()}"
    seed = int(sha256_of_json([options.seed, one.number, attempt])[:8], 16) >> 1  # of 31 bits, which every server takes
    return {
        "model": model,
        "messages": [{"role": "user", "content": asked.encode("utf-8", "replace").decode()}],
        "seed": seed,
        **_sampling(options),
    }


def _sampling(options: AlternativeOptions) -> dict[str, Any]:
    """What is the same in all requests. What is not said a server takes from the model's generation_config.json."""
    return {
        "temperature": options.temperature,
        "top_p": 1.0,
        **({"top_k": options.top_k} if options.top_k else {}),
        "max_tokens": options.max_new_tokens,
        "stop": list(_STOPS),
    }


def _made(options: AlternativeOptions, model: str, examples: Sequence[Example], answers: int) -> dict[str, Any]:
    """How the file was made."""
    return {
        "kind": "eco unlearn alternatives",
        "version": version("eco-gateway"),
        "forget": options.forget,
        "questions_sha256": sha256_of_json([[one.prompt, one.answer] for one in examples]),
        "endpoint": options.endpoint,
        "model": model,
        "sampling": _sampling(options),
        "instruction": options.instruction,
        "seed": options.seed,
        "per_question": options.per_question,
        "questions": len(examples),
        "answers": answers,
        "sha256": sha256_of_file(options.out),
    }


def _replies(
    server: Server,
    endpoint: str,
    requests: Sequence[dict[str, Any]],
    cache: Path,
    on_progress: Callable[[int, int], None],
) -> list[str]:
    """The reply to each request, from the cache where it is there."""
    files = [cache / f"{sha256_of_json(request, sort_keys=True)}.json" for request in requests]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        waiting = {file: request for file, request in zip(files, requests, strict=True) if not file.exists()}
        places, done = list(waiting), len(requests) - len(waiting)

        def keep(place: int, reply: str) -> None:
            nonlocal done
            write_whole(places[place], json.dumps({"reply": reply}))
            done += 1
            on_progress(done, len(requests))

        if waiting:
            chat(server, list(waiting.values()), keep)
        return [_kept(file) for file in files]
    except EndpointError as error:
        raise JobError(
            f"{ENDPOINT_FLAG}: {endpoint}: {error.problem}; replies so far are kept, run again to go on"
        ) from error
    except OSError as error:
        raise JobError(f"--cache: {cache}: cannot be used ({error.strerror}); give another folder") from error


def _kept(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["reply"])
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"--cache: {file}: no kept reply; delete this file and run again") from error
