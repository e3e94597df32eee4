"""`/v1` of the admin address: policies come, act, and go; a prompt is tried."""

import math
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from gateway.policies.activation import Activation
from gateway.policies.active import ActivePolicies
from gateway.policies.archive import TooLargeError, received, unpacked
from gateway.policies.described import UnknownError, acting, listed_policies, plot_of, shown_policy
from gateway.policies.records import FolderError
from gateway.protector import Protector
from gateway.scheduling import QueueFullError
from guard import Explanation, GuardError, PolicyBundle
from guard.bundle import Action, AnswerMode

FOLLOW = "folder"
_DIGEST_LEAST = 6
_EXPLAINED_US_PER_TOKEN = 50
_MOST_TOKENS, _MOST_CHARS = 200_000, 2_000_000
#: A picture comes with a policy, from whoever built it: opened by itself it is looked at and does nothing.
_PICTURE = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


By = Annotated[str, Header(alias="X-Eco-By", max_length=128, pattern=r"^[\x20-\x7e]+$")]
"""Who asks for a change, as it stands in the audit log."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ActivationChange(_Strict):
    """What is to change of how a policy acts; what is left out stays, and null takes a setting back to the bundle's."""

    active: bool = True
    version: str | None = None
    """Digest of a version, or its first digits; `folder` follows the policy's folder. The default is the version that
    acts, or else the newest."""
    action: Action | None = None
    answers: AnswerMode | None = None
    share: Annotated[float, Field(gt=0, le=100)] | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    tenants: Annotated[list[str], Field(min_length=1)] | None = None


class Prompt(_Strict):
    """A prompt: one of the three."""

    text: Annotated[str, Field(max_length=_MOST_CHARS)] | None = None
    messages: list[dict[str, Any]] | None = None
    token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=_MOST_TOKENS)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Prompt":
        if sum(given is not None for given in (self.text, self.messages, self.token_ids)) != 1:
            raise ValueError("give one of text, messages and token_ids")
        return self

    async def ids(self, render: "Render") -> list[int]:
        """Its token ids.

        Raises:
            FolderError: its messages cannot be read.
        """
        if self.token_ids is not None:
            return list(self.token_ids)
        said = self.text if self.text is not None else self.messages or []
        try:
            return list(await run_in_threadpool(render, said))
        except ValueError as error:
            raise FolderError(f"messages: {str(error).splitlines()[0][:200]}") from error


class Try(Prompt):
    """A prompt to be tried."""

    policies: list[str] | None = None
    """Names of those in force that are to be asked; all by default."""


#: Text or messages -> token ids, as the server would make them. Raises ValueError for what it cannot read.
Render = Callable[[str | list[dict[str, Any]]], Sequence[int]]


def policy_routes(
    policies: ActivePolicies,
    protector: Protector,
    render: Render,
    spell: Callable[[int], str],
    everywhere: Callable[[str], Awaitable[bool]],
    *,
    compares: bool = False,
) -> APIRouter:
    """Routes under `/v1`.

    Args:
        render: what a request's text or messages become.
        spell: what a token says.
        everywhere: whether all front ends have a set of policies in force, by its digest; waits a little.
        compares: prompts may be answered without the guard here too (`gateway.studio.comparison`).
    """
    routes = APIRouter(prefix="/v1", dependencies=[Depends(_only_json_or_archives)])

    @routes.get("/status")
    async def status() -> Response:
        current = policies.current
        return JSONResponse(
            {
                "models": list(policies.served_names),
                "policies": len(current.wanted),
                "set": current.digest,
                "since": current.since,
                "everywhere": await everywhere(current.digest),
                "refused": policies.refused,
                "policy_dir": None if policies.folder is None else policies.folder.address or str(policies.folder.path),
                "writable": policies.folder is not None and policies.folder.is_writable,
                "compares": compares,
            }
        )

    @routes.get("/policies")
    async def listed() -> Response:
        return JSONResponse(
            {"policies": await run_in_threadpool(listed_policies, policies), "refused": policies.refused}
        )

    @routes.get("/policies/{name}")
    async def shown(name: str) -> Response:
        return JSONResponse(await run_in_threadpool(shown_policy, policies, name))

    @routes.get("/policies/{name}/plots/{plot}")
    async def plotted(name: str, plot: str) -> Response:
        picture = await run_in_threadpool(plot_of, policies, name, plot)
        headers = {"Content-Security-Policy": _PICTURE, "X-Content-Type-Options": "nosniff"}
        return Response(picture, media_type="image/svg+xml", headers=headers)

    @routes.post("/policies", status_code=HTTPStatus.CREATED)
    async def uploaded(request: Request) -> Response:
        """The body is a gzipped tar of a policy folder. It is kept as a version and does not act yet."""
        with tempfile.TemporaryFile() as archive:
            await received(request.stream(), archive)
            bundle = await _kept(policies, archive)
        said = {"name": bundle.config.name, "version": bundle.config.version, "digest": bundle.digest}
        return JSONResponse(said, status_code=HTTPStatus.CREATED)

    @routes.post("/policies/{name}/activation")
    async def activated(name: str, change: ActivationChange, by: By = "admin") -> Response:
        await policies.say(name, partial(_changed, policies, name, change), by=by)
        return await in_force(name)

    @routes.post("/policies/{name}/rollback")
    async def rolled_back(name: str, by: By = "admin") -> Response:
        await policies.roll_back(name, by=by)
        return await in_force(name)

    @routes.delete("/policies/{name}")
    async def deleted(name: str, by: By = "admin") -> Response:
        await policies.delete(name, by=by)
        return JSONResponse({"deleted": name, "everywhere": await everywhere(policies.current.digest)})

    @routes.post("/classify")
    async def classified(prompt: Annotated[Try, Body()]) -> Response:
        """What the policies in force make of a prompt: verdicts, windows with scores, the tokens that are corrupted."""
        ids = await prompt.ids(render)
        guard = policies.among(prompt.policies)
        if guard is None or not ids:
            return JSONResponse({"token_ids": ids, "verdicts": [], "windows": [], "corrupted": []})
        try:
            expected_us = len(ids) * _EXPLAINED_US_PER_TOKEN
            found: Explanation = await protector.work(guard.explain(ids), expected_us, begun=False)
        except (GuardError, QueueFullError) as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return JSONResponse(await run_in_threadpool(_explained, found, spell))

    async def in_force(name: str) -> Response:
        said = await run_in_threadpool(shown_policy, policies, name)
        return JSONResponse({**said, "everywhere": await everywhere(policies.current.digest)})

    return routes


async def refused(request: Request, error: Exception) -> Response:
    """A problem of the request, or of what it asks for, as its answer. Nothing that was sent is repeated."""
    del request
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "header"))
        return _error(HTTPStatus.UNPROCESSABLE_ENTITY, f"{field or 'body'}: {problem['msg']}")
    if isinstance(error, HTTPException):
        return _error(HTTPStatus(error.status_code), str(error.detail))
    status = HTTPStatus.CONFLICT
    if isinstance(error, TooLargeError):
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    elif isinstance(error, UnknownError):
        status = HTTPStatus.NOT_FOUND
    return _error(status, str(error))


async def _only_json_or_archives(request: Request) -> None:
    """No form of a web page makes a request with such a body without asking first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.method == "POST" and kind not in {"application/json", "application/gzip", ""}:
        raise FolderError(f"Content-Type: {kind[:80]}: expected application/json, or application/gzip for an upload")


def _error(status: HTTPStatus, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "code": status.value}}, status_code=status)


async def _kept(policies: ActivePolicies, archive: Any) -> PolicyBundle:
    """Unpack in a thread, and keep what it holds."""
    context = unpacked(archive)
    bundle = await run_in_threadpool(context.__enter__)
    try:
        return await policies.add(bundle)
    finally:
        await run_in_threadpool(partial(context.__exit__, None, None, None))


def _changed(policies: ActivePolicies, name: str, change: ActivationChange, holds: Activation) -> Activation:
    """The activation that a change makes of what holds."""
    given = change.model_dump(exclude={"version", "active"}, exclude_unset=True)
    if given.get("share", 0) is None:
        given["share"] = 100.0
    digest = _version(policies, name, change.version, holds) if change.active else holds.digest
    return Activation.model_validate({**holds.model_dump(), **given, "active": change.active, "digest": digest})


def _version(policies: ActivePolicies, name: str, asked: str | None, holds: Activation) -> str | None:
    folder = policies.folder
    assert folder is not None
    versions = folder.versions(name)
    one = acting(policies, name)
    if asked == FOLLOW:
        return None
    if asked is not None:
        known = {*versions, *([one.bundle.digest] if one is not None else [])}
        found = [digest for digest in known if digest.startswith(asked)]
        if len(asked) < _DIGEST_LEAST or len(found) != 1:
            raise UnknownError(f"version: {asked!r} names {len(found)} versions of policy {name!r}; give its digest")
        return found[0]
    if holds.digest is not None or folder.has(name):
        return holds.digest
    newest = folder.newest(name)
    if newest is None:
        raise UnknownError(f"policy {name!r}: not known here; upload it first")
    return newest


def _explained(found: Explanation, spell: Callable[[int], str]) -> dict[str, Any]:
    prompt = found.prompt
    return {
        "token_ids": prompt.token_ids,
        "tokens": [spell(token) for token in prompt.token_ids],
        "verdicts": [
            {
                "policy": v.policy,
                "action": v.action,
                "flagged": v.flagged,
                "score": v.score if math.isfinite(v.score) else None,
            }
            for v in prompt.verdicts
        ],
        "refused_by": prompt.refused_by,
        "windows": [{"positions": positions, "scores": scores} for positions, scores in found.windows],
        "corrupted": [number for number, masked in enumerate(prompt.mask or []) if masked],
    }
