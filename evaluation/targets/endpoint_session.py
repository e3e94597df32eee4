"""One model of one server, asked to answer or to score: what `EndpointTarget` and its checks send.

An answer is scored as the same token ids that the offline scorers use (`scoring.Renderer`), so the figures are the
same: the server renders and tokenizes the prompt, the answer is tokenized alone, and both go back as one list of ids.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from endpoints.server import Connection, RefusedError
from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply
from evaluation.targets.endpoint_replies import (
    Abilities,
    GeneratedTokens,
    answer_text,
    choices_of,
    echoed_reply,
    generated_reply,
    generated_tokens,
    generation,
    messages,
    plain_prompt,
    scored_reply,
    texts_of,
)

__all__ = ["Session"]

_BAD_REQUEST: Final = 400
#: One more token is always asked for: not every server takes 0.
_SCORED_EXTRA: Final = {"temperature": 0.0, "max_tokens": 1}


class Session:
    """Requests about one model over one connection; what is learned of the server stays in `abilities`."""

    def __init__(self, connection: Connection, model: str, abilities: Abilities) -> None:
        self.abilities = abilities
        self._connection = connection
        self._model = model
        self._prompts: dict[tuple[str, str | None, str], asyncio.Task[list[int]]] = {}

    async def close(self) -> None:
        for task in self._prompts.values():
            task.cancel()
        await asyncio.gather(*self._prompts.values(), return_exceptions=True)

    async def reply(self, ask: Ask) -> Reply:
        """A generated or a scored answer.

        Raises:
            TargetError: the server cannot be reached, refused it, or answered with something else.
        """
        if ask.answer is None:
            return await self.generate(ask)
        found = await (self.score_by_ids(ask) if self.abilities.scoring == "ids" else self.score_by_echo(ask))
        if found is None:
            raise TargetError("--target: the server returned no logprobs for an answer, though it did before")
        return found

    async def generate(self, ask: Ask) -> Reply:
        path, body = generation(ask, self._model, self.abilities)
        try:
            answer = await self._connection.post(path, body, texts_of(ask))
        except RefusedError as error:
            # OpenAI's newer models know the limit under this name alone, and say so.
            renamed = "max_completion_tokens" in error.reason and "max_tokens" in body
            if error.status != _BAD_REQUEST or path != "/chat/completions" or not renamed:
                raise
            self.abilities.tokens_field = "max_completion_tokens"
            path, body = generation(ask, self._model, self.abilities)
            answer = await self._connection.post(path, body, texts_of(ask))
        return generated_reply(answer, ask)

    async def score_by_ids(self, ask: Ask) -> Reply | None:
        """None where the server gives no log-probabilities of a prompt's tokens."""
        if ask.style == "text":
            prompt_ids, answer_ids = await self._continuation(ask)
        else:
            prompt_ids = await self.prompt_ids(ask)
            answer_ids = await self.tokenize(answer_text(ask, self.abilities), texts_of(ask), special=False)
        return await self.score_ids(prompt_ids, answer_ids, texts_of(ask))

    async def _continuation(self, ask: Ask) -> tuple[list[int], list[int]]:
        """A text and what follows it, divided as `scoring.Renderer.continuation` does: encoded together, spaces at the
        end of the text being the continuation's."""
        prompt = plain_prompt(ask)
        bare = Ask(prompt.rstrip(), style="text")
        prompt_ids = await self.prompt_ids(bare)
        whole = await self.tokenize(prompt + answer_text(ask, self.abilities), texts_of(ask), special=True)
        return prompt_ids, whole[len(prompt_ids) :]

    async def score_ids(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int], texts: Sequence[str], after: Sequence[int] = ()
    ) -> Reply | None:
        """The reply for `answer_ids`, with the ids of `after` behind them in the same request."""
        if not prompt_ids or not answer_ids:
            raise TargetError("a prompt or an answer has no tokens; give it text")
        ids = [*prompt_ids, *answer_ids, *after]
        body = {"model": self._model, "prompt": ids, "prompt_logprobs": 1, **_SCORED_EXTRA}
        answer = await self._connection.post("/completions", body, texts)
        return scored_reply(answer, answer_ids, len(prompt_ids))

    async def score_by_echo(self, ask: Ask) -> Reply | None:
        """None where the server echoes no log-probabilities."""
        prompt, scored = plain_prompt(ask), answer_text(ask, self.abilities)
        body = {"model": self._model, "prompt": prompt + scored, "echo": True, "logprobs": 1, **_SCORED_EXTRA}
        answer = await self._connection.post("/completions", body, texts_of(ask))
        return echoed_reply(answer, prompt, scored)

    async def continue_ids(
        self, prompt_ids: Sequence[int], tokens: int, texts: Sequence[str], **options: Any
    ) -> GeneratedTokens | None:
        """Up to `tokens` greedy tokens after a prompt of ids; None where the server does not name them."""
        body = {
            "model": self._model,
            "prompt": list(prompt_ids),
            "max_tokens": tokens,
            "temperature": 0.0,
            "logprobs": 1,
            "repetition_penalty": 1.0,
            "return_tokens_as_token_ids": True,
        }
        return generated_tokens(await self._connection.post("/completions", body | options, texts))

    async def continue_text(self, ask: Ask, tokens: int) -> tuple[str, list[float]] | None:
        """Greedy text after a plain prompt and the log-probability of each of its tokens; None without them."""
        body = {"model": self._model, "prompt": plain_prompt(ask), "max_tokens": tokens, "temperature": 0.0}
        answer = await self._connection.post("/completions", body | {"logprobs": 1}, texts_of(ask))
        choice = choices_of(answer)[0]
        values = (choice.get("logprobs") or {}).get("token_logprobs")
        return (choice["text"], values) if values and choice.get("text") else None

    async def prompt_ids(self, ask: Ask) -> list[int]:
        """The rendered prompt; prompts of several answers are tokenized once."""
        key = (ask.style, ask.system, ask.prompt)
        task = self._prompts.get(key)
        if task is None:
            task = self._prompts[key] = asyncio.ensure_future(self._render(ask))
        return await asyncio.shield(task)

    async def _render(self, ask: Ask) -> list[int]:
        if self.abilities.is_chat(ask):
            body = {"model": self._model, "messages": messages(ask), "add_generation_prompt": True}
            return _ids(await self._connection.post("/tokenize", body, texts_of(ask)))
        return await self.tokenize(plain_prompt(ask), texts_of(ask), special=True)

    async def tokenize(self, text: str, texts: Sequence[str], *, special: bool) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer puts around a prompt or without."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": special}
        return _ids(await self._connection.post("/tokenize", body, texts))


def _ids(answer: dict[str, Any]) -> list[int]:
    """Other servers have a /tokenize of their own, which answers with another shape or nothing."""
    ids = answer.get("tokens")
    return ids if isinstance(ids, list) and all(isinstance(token, int) for token in ids) else []
