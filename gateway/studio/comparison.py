"""`POST /v1/compare` of the admin address: a prompt answered as a client gets it, and beside it by the model alone.

The one way to an answer without the guard. It is there where the operator started the server with
`--eco-compare-answers`, which needs keys and an audit log, and nowhere on the public address. Each use is in that log
before the first token.
"""

import asyncio
import contextlib
import functools
import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Response
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from gateway.admin_policies import By, Prompt, Render
from gateway.audit import Audit
from gateway.traffic import Traffic

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

_MOST_ANSWER_TOKENS = 4096
Side = Literal["guarded", "unguarded"]
#: A prompt, sampling parameters, a request's id -> outputs: `EngineClient.generate`.
Generate = Callable[[Any, SamplingParams, str], AsyncGenerator[Any, None]]


class Comparison(Prompt):
    """A prompt to be answered twice."""

    max_tokens: Annotated[int, Field(ge=1, le=_MOST_ANSWER_TOKENS)] = 128
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Answers prompts twice.

    Attributes:
        guarded: of the guarded engine: what every request of a client goes through.
        unguarded: of vLLM's own.
        traffic: a draining server waits for answers that have begun, and begins none.
    """

    guarded: Generate
    unguarded: Generate
    traffic: Traffic
    audit: Audit
    decode: Callable[[list[int]], str]

    async def events(self, token_ids: list[int], asked: Comparison, by: str) -> AsyncGenerator[dict[str, Any], None]:
        """Pieces of both answers as they come: `side` with `text`, and at its end a `finish_reason` or an `error`.

        Args:
            token_ids: T >= 1 ids.
            by: who asks.
        """
        if not self.traffic.enter():
            for side in ("guarded", "unguarded"):
                yield {"side": side, "error": "The server is shutting down."}
            return
        try:
            request = f"eco-compare-{uuid.uuid4().hex}"
            said: dict[str, Any] = {"prompt": self.audit.prompt_digest(token_ids)}
            if self.audit.keeps_text:
                said["text"] = self.decode(token_ids)
            recorded = functools.partial(self.audit.recorded, "compared", request=request, by=by, **said)
            if not await asyncio.to_thread(recorded):
                for side in ("guarded", "unguarded"):
                    yield {"side": side, "error": "The audit log cannot be written, so nothing is answered."}
                return
            async with contextlib.aclosing(self._merged(token_ids, asked, request)) as events:
                async for event in events:
                    yield event
        finally:
            self.traffic.leave()

    async def _merged(
        self, token_ids: list[int], asked: Comparison, request: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        sides: dict[Side, Generate] = {"guarded": self.guarded, "unguarded": self.unguarded}
        tasks = [
            asyncio.create_task(_answer(side, generate, token_ids, asked, f"{request}-{side}", events))
            for side, generate in sides.items()
        ]
        try:
            running = len(tasks)
            while running:
                event = await events.get()
                running -= "text" not in event  # the last of a side
                yield event
        finally:
            for task in tasks:
                task.cancel()  # which aborts what still runs
            await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(
    side: Side,
    generate: Generate,
    token_ids: list[int],
    asked: Comparison,
    request: str,
    events: "asyncio.Queue[dict[str, Any]]",
) -> None:
    """Put the events of one side; the last of them, and no other, has a `finish_reason` or an `error`."""
    params = SamplingParams(
        max_tokens=asked.max_tokens, temperature=asked.temperature, output_kind=RequestOutputKind.DELTA
    )
    finish_reason = None
    try:
        async with contextlib.aclosing(generate(tokens_input(token_ids), params, request)) as outputs:
            async for output in outputs:
                completion = output.outputs[0]
                finish_reason = completion.finish_reason
                if completion.text:
                    events.put_nowait({"side": side, "text": completion.text})
    except (VLLMValidationError, GracefulHTTPError) as error:
        events.put_nowait({"side": side, "error": str(error.args[0])})
    except Exception as error:  # noqa: BLE001 - told below; its own words may be the prompt's
        logger.error("compare: no %s answer (%s)", side, type(error).__name__)
        events.put_nowait({"side": side, "error": f"the engine failed ({type(error).__name__})"})
    else:
        events.put_nowait({"side": side, "finish_reason": finish_reason})


def comparison_routes(side_by_side: SideBySide | None, render: Render) -> APIRouter:
    """Routes under `/v1`.

    Args:
        side_by_side: None where the operator does not allow it.
        render: what a request's text or messages become.
    """
    routes = APIRouter(prefix="/v1")

    @routes.post("/compare")
    async def compared(asked: Annotated[Comparison, Body()], by: By = "admin") -> Response:
        """Server-sent events: both answers, guarded and unguarded, piece by piece."""
        if side_by_side is None:
            message = "this server gives no answers without the guard; start it with --eco-compare-answers to compare"
            raise HTTPException(HTTPStatus.FORBIDDEN, message)
        token_ids = await asked.ids(render)
        if not token_ids:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "text: is empty")
        events = _as_stream(side_by_side.events(token_ids, asked, by))
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    return routes


async def _as_stream(events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    async with contextlib.aclosing(events):
        async for event in events:
            yield f"data: {json.dumps(event)}\n\n"
