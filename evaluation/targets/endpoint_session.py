"""One model of one server, asked to answer or to score: what `EndpointTarget` and its checks send, and read.

An answer is scored as the same token ids that the offline scorers use (`scoring.Renderer`), so the figures are the
same: the server renders and tokenizes the prompt, the answer is tokenized alone, and both go back as one list of ids.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from endpoints.server import Connection, RefusedError
from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply, Request
from evaluation.targets.responses import read_response
from scoring.scorer import begin_answer

Scoring = Literal["ids", "echo"]
"""How an answer is scored. ids: vLLM's prompt_logprobs of token ids. echo: completions that echo their prompt's."""

_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
#: Tried again when a request is sent as it stands: 500 is what the server makes of it.
_BUSY: Final = frozenset({408, 425, 429, 502, 503, 504})
#: vLLM's sampling parameters where they change nothing; a model's generation_config.json would set others.
_NEUTRAL: Final[dict[str, Any]] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
#: One more token is always asked for: not every server takes 0.
_SCORED_EXTRA: Final = {"temperature": 0.0, "max_tokens": 1}
#: Likeliest tokens that are asked for at each place of a scored answer.
_ALTERNATIVES: Final = 2
#: What reading an answer of another shape raises.
_ILL_SHAPED: Final = (KeyError, TypeError, ValueError, IndexError, AttributeError)


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


class Session:
    """Requests about one model over one connection; what is learned of the server stays in `abilities`."""

    def __init__(self, connection: Connection, model: str, abilities: Abilities) -> None:
        self.abilities = abilities
        self._connection = connection
        self._model = model
        self._prompts: dict[tuple[str, str | None, str, str], asyncio.Task[list[int]]] = {}

    async def close(self) -> None:
        for task in self._prompts.values():
            task.cancel()
        await asyncio.gather(*self._prompts.values(), return_exceptions=True)

    async def reply(self, ask: Ask) -> Reply:
        """A generated or a scored answer.

        Raises:
            EndpointError: the server cannot be reached, or refused it.
            TargetError: it answered with something else.
        """
        if ask.request is not None:
            return await self.send(ask.request)
        if ask.answer is None:
            return await self.generate(ask)
        reply = await (self.score_by_ids(ask) if self.abilities.scoring == "ids" else self.score_by_echo(ask))
        if reply is None:
            raise TargetError("--target: the server returned no logprobs for an answer, though it did before")
        return reply

    async def generate(self, ask: Ask) -> Reply:
        """Texts; "" where a choice has none (only thoughts, a refusal field)."""
        body: dict[str, Any] = {"temperature": ask.temperature}
        if ask.samples > 1:
            body["n"] = ask.samples
        if ask.stop:
            body["stop"] = list(ask.stop)
        if ask.temperature > 0:
            body |= {"seed": ask.seed, "top_p": 1.0}
        if self.abilities.vllm:  # else its generation_config.json decides, and an offline engine would answer otherwise
            body |= _NEUTRAL
        if not self.abilities.is_chat(ask):
            body |= {"prompt": _plain_prompt(ask), "max_tokens": ask.max_new_tokens}
            choices = await self._choices("/completions", body, texts_of(ask))
        else:
            body |= {**self._chat(ask), self.abilities.tokens_field: ask.max_new_tokens}
            try:
                choices = await self._choices("/chat/completions", body, texts_of(ask))
            except RefusedError as error:
                # OpenAI's newer models know the limit under this name alone, and say so.
                renamed = "max_completion_tokens" in error.reason and "max_tokens" in body
                if error.status != _BAD_REQUEST or not renamed:
                    raise
                self.abilities.tokens_field = "max_completion_tokens"
                body["max_completion_tokens"] = body.pop("max_tokens")
                choices = await self._choices("/chat/completions", body, texts_of(ask))
        texts = []
        for choice in choices:
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else choice.get("text")
            texts.append(text if isinstance(text, str) else "")
        if len(texts) != ask.samples:
            raise TargetError(f"--target: answered with {len(texts)} texts where {ask.samples} were asked for")
        return Reply(texts=tuple(texts))

    async def send(self, request: Request) -> Reply:
        """What the server makes of a request; a status that is not 200 is an answer too.

        Raises:
            TargetError: it wants another API key.
            EndpointError: it cannot be reached.
        """
        body = (_NEUTRAL if self.abilities.vllm else {}) | {"model": self._model, **request.body}
        try:
            if request.allowed:
                body["allowed_token_ids"] = await self._ids_of(request.allowed)
            if request.biased:
                body["logit_bias"] = dict.fromkeys(map(str, await self._ids_of(request.biased)), request.bias)
        except RefusedError as error:  # it has no /tokenize
            return Reply(status=error.status)
        path = "/chat/completions" if request.route == "chat" else "/completions"
        response, _ = await self._connection.exchange(path, body, temporary=_BUSY)
        if response.status_code == _BAD_REQUEST and "max_completion_tokens" in response.text and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
            response, _ = await self._connection.exchange(path, body, temporary=_BUSY)
        if response.status_code == _UNAUTHORIZED:
            raise TargetError("--target: answered 401 to a request; give its API key")
        return read_response(response.status_code, response.text)

    async def _ids_of(self, texts: Sequence[str]) -> list[int]:
        """The ids of the tokens of any of these texts, sorted.

        Raises:
            RefusedError: the server has no /tokenize of vLLM's kind.
        """
        found = await asyncio.gather(*(self.tokenize(text, texts, special=False) for text in texts))
        if not all(found):
            raise RefusedError("--target: /tokenize: names no token ids", "names no token ids", 404)
        return sorted({token for ids in found for token in ids})

    async def score_by_ids(self, ask: Ask) -> Reply | None:
        """None where the server gives no log-probabilities of a prompt's tokens."""
        return await self.score_ids(*await self.divided(ask), texts_of(ask))

    async def divided(self, ask: Ask) -> tuple[list[int], list[int]]:
        """The ids of what is given and of what is scored, divided as `scoring.Renderer` does for each style."""
        if ask.style == "chat":
            return await self.prompt_ids(ask), await self.answer_ids(ask)
        prompt = _plain_prompt(ask)
        whole = await self.tokenize(prompt + self._answer_text(ask), texts_of(ask), special=True)
        if ask.style == "whole":
            return whole[:1], whole[1:]
        # Encoded together, spaces between them being the answer's.
        prompt_ids = await self.prompt_ids(Ask(prompt.rstrip(), style="text"))
        return prompt_ids, whole[len(prompt_ids) :]

    async def score_ids(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int], texts: Sequence[str], after: Sequence[int] = ()
    ) -> Reply | None:
        """The reply for `answer_ids`, with the ids of `after` behind them in the same request; None without vLLM's
        `prompt_logprobs`."""
        if not prompt_ids or not answer_ids:
            raise TargetError(f"{texts[-1][:40]!r}: it, or what is asked, has no tokens, or a whole text only one")
        body = {"prompt": [*prompt_ids, *answer_ids, *after], "prompt_logprobs": _ALTERNATIVES, **_SCORED_EXTRA}
        entries = (await self._choices("/completions", body, texts))[0].get("prompt_logprobs")
        start, end = len(prompt_ids), len(prompt_ids) + len(answer_ids)
        if not isinstance(entries, list) or len(entries) < end:
            return None
        try:
            places = entries[start:end]  # each holds the token that stands there and the likeliest
            own = [place[str(token)] for place, token in zip(places, answer_ids, strict=True)]
            logprobs = [float(entry["logprob"]) for entry in own]
            greedy = [_is_likeliest(entry, place) for entry, place in zip(own, places, strict=True)]
        except _ILL_SHAPED:
            return None
        return Reply(logprobs=tuple(logprobs), greedy=tuple(greedy), token_ids=tuple(answer_ids))

    async def score_by_echo(self, ask: Ask) -> Reply | None:
        """None where the server echoes no log-probabilities.

        A token that reaches over the border to the answer counts as the answer's. Where a start token is echoed as
        text of its own, the offsets begin after it. A whole text's first token counts where something predicts it.
        """
        prompt, scored = _plain_prompt(ask), self._answer_text(ask)
        body = {"prompt": prompt + scored, "echo": True, "logprobs": 1, **_SCORED_EXTRA}
        logprobs = (await self._choices("/completions", body, texts_of(ask)))[0].get("logprobs")
        if not isinstance(logprobs, dict):
            return None
        try:
            tokens, values, tops = (logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs"))
            offsets = logprobs["text_offset"]
            shift = offsets[1] if len(offsets) > 1 and not (prompt + scored).startswith(tokens[0]) else 0
            first, end = len(prompt) + shift, len(prompt) + len(scored) + shift
            ends = [*offsets[1:], offsets[-1] + len(tokens[-1])]
            places = [i for i, (at, to) in enumerate(zip(offsets, ends, strict=True)) if to > first and at < end]
            if ask.style == "whole" and places[:1] == [0] and values[0] is None:
                del places[0]
            own = [float(values[i]) for i in places]
            greedy = tuple(value >= max(tops[i].values()) - 1e-9 for i, value in zip(places, own, strict=True))
        except _ILL_SHAPED:
            return None
        return Reply(logprobs=tuple(own), greedy=greedy) if own else None

    async def continue_ids(
        self, prompt_ids: Sequence[int], tokens: int, texts: Sequence[str], **options: Any
    ) -> GeneratedTokens | None:
        """Up to `tokens` greedy tokens after a prompt of ids, without the one that ends the answer; None where the
        server does not name them."""
        body = {
            "prompt": list(prompt_ids),
            "max_tokens": tokens,
            "temperature": 0.0,
            "logprobs": 1,
            "repetition_penalty": 1.0,
            "return_tokens_as_token_ids": True,
        }
        choice = (await self._choices("/completions", body | options, texts))[0]
        try:
            logprobs = choice["logprobs"]
            ids = [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
            values = [float(value) for value in logprobs["token_logprobs"]]
        except _ILL_SHAPED:
            return None
        end = len(ids) - (choice.get("finish_reason") == "stop")
        return GeneratedTokens(ids[:end], values[:end])

    async def continue_text(self, ask: Ask, tokens: int) -> tuple[str, list[float]] | None:
        """Greedy text after a plain prompt and the log-probability of each of its tokens; None without them."""
        body = {"prompt": _plain_prompt(ask), "max_tokens": tokens, "temperature": 0.0, "logprobs": 1}
        choice = (await self._choices("/completions", body, texts_of(ask)))[0]
        values = (choice.get("logprobs") or {}).get("token_logprobs")
        return (choice["text"], values) if values and choice.get("text") else None

    async def prompt_ids(self, ask: Ask) -> list[int]:
        """The rendered prompt; prompts of several answers are tokenized once."""
        key = (ask.style, ask.system, ask.prompt, ask.begun)
        if key not in self._prompts:
            if self.abilities.is_chat(ask):
                rendered = self._ids({"add_generation_prompt": True, **self._chat(ask)}, texts_of(ask))
            else:
                rendered = self.tokenize(_plain_prompt(ask), texts_of(ask), special=True)
            self._prompts[key] = asyncio.ensure_future(rendered)
        return await asyncio.shield(self._prompts[key])

    async def answer_ids(self, ask: Ask) -> list[int]:
        return await self.tokenize(self._answer_text(ask), texts_of(ask), special=False)

    async def tokenize(self, text: str, texts: Sequence[str], *, special: bool) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer puts around a prompt or without."""
        return await self._ids({"prompt": text, "add_special_tokens": special}, texts)

    async def _ids(self, body: dict[str, Any], texts: Sequence[str]) -> list[int]:
        """Other servers have a /tokenize of their own, which answers with another shape or nothing: no ids."""
        ids = (await self._connection.post("/tokenize", {"model": self._model} | body, texts)).get("tokens")
        return ids if isinstance(ids, list) and all(isinstance(token, int) for token in ids) else []

    async def _choices(self, path: str, body: dict[str, Any], texts: Sequence[str]) -> list[dict[str, Any]]:
        """At least one. Raises `TargetError` where the answer is no completion."""
        choices = (await self._connection.post(path, {"model": self._model} | body, texts)).get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
            raise TargetError("--target: answered with no completion; give an OpenAI-compatible server's base URL")
        return choices

    def _answer_text(self, ask: Ask) -> str:
        """The answer as it is tokenized: without a chat template a chat's gets its space here (`scoring.Renderer`)."""
        if ask.answer is None:
            raise TargetError("an ask without an answer has nothing to score")
        spaced = ask.style == "chat" and not ask.begun and not self.abilities.is_chat(ask)
        return f" {ask.answer}" if spaced else ask.answer

    def _chat(self, ask: Ask) -> dict[str, Any]:
        """A chat's messages, an answer that is begun among them.

        Raises:
            TargetError: one is begun, and the server is not known to go on with it.
        """
        if not ask.begun:
            return {"messages": _messages(ask)}
        if not self.abilities.vllm:  # others start another answer, or say so with an error
            raise TargetError(
                "--target: only vLLM, and eco serve, are known to go on with an answer that is begun; leave it out of "
                "what is asked (eco evaluate rwku --no-prefill)"
            )
        messages = [*_messages(ask), {"role": "assistant", "content": ask.begun}]
        return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def _is_likeliest(own: Mapping[str, Any], place: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether no token is likelier than that of entry `own` at a place of vLLM's `prompt_logprobs`.

    Not by rank alone: vLLM ranks both of two tokens second that share the first place. But where a guard withheld an
    alternative that gives something away, fewer are left than were asked for, and only the rank tells of it.
    """
    top = max(float(entry["logprob"]) for entry in place.values())
    return float(own["logprob"]) >= top and (len(place) >= _ALTERNATIVES or own["rank"] == 1)


def _messages(ask: Ask) -> list[dict[str, str]]:
    system = [] if ask.system is None else [{"role": "system", "content": ask.system}]
    return [*system, {"role": "user", "content": ask.prompt}]


def _plain_prompt(ask: Ask) -> str:
    """The prompt where there is no chat template."""
    prompt = ask.prompt if ask.system is None else f"{ask.system}\n\n{ask.prompt}"
    return begin_answer(prompt, ask.begun)
