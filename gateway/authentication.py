"""API keys on every route that is not public, from OpenAI's clients and from Anthropic's."""

from argparse import Namespace
from http import HTTPStatus
from typing import Any

from gateway.traffic import PUBLIC_PATHS, path_of

#: Where Anthropic's clients send their key, to /v1/messages and its like.
_ANTHROPIC_HEADER = "x-api-key"


def authenticate_every_route(app: Any, args: Namespace) -> None:
    """vLLM's `--api-key` covers four path prefixes; a guarded server asks for it on all that is not public."""
    from starlette.datastructures import Headers
    from starlette.responses import JSONResponse
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    tokens = api_keys(args)
    if not tokens:
        return

    class Authentication(AuthenticationMiddleware):  # type: ignore[misc]
        def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
            if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
                return self.app(scope, receive, send)
            headers = Headers(scope=scope)
            if path_of(scope) in PUBLIC_PATHS or self.verify_token(headers):
                return self.app(scope, receive, send)
            if (key := headers.get(_ANTHROPIC_HEADER)) is not None:
                bearer = f"Bearer {key}".encode("latin-1")  # as headers are decoded
                others = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
                scope = {**scope, "headers": [*others, (b"authorization", bearer)]}  # vLLM's own check is inside
                if self.verify_token(Headers(scope=scope)):
                    return self.app(scope, receive, send)
            return JSONResponse(_refusal(path_of(scope)), status_code=HTTPStatus.UNAUTHORIZED)(scope, receive, send)

    # Outermost: who has no key learns nothing else.
    app.middleware_stack = Authentication(app.middleware_stack or app.build_middleware_stack(), tokens=tokens)


def _refusal(path: str) -> dict[str, Any]:
    """In the shape of the API that was asked."""
    message = "The API key is missing or wrong; send it as Authorization: Bearer KEY, or as x-api-key."
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return {"type": "error", "error": {"type": "authentication_error", "message": message}}
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    return {"error": error}


def api_keys(args: Namespace) -> list[str]:
    """The keys that clients may have; none where everybody may ask."""
    from vllm import envs

    return [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
