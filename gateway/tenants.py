"""Whose a request is: the API key it came with, or what a trusted proxy says."""

import hashlib
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers

_KEY_DIGITS = 12


def tenant_of_key(key: str) -> str:
    """The tenant that an API key is: a name that does not give the key away."""
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:_KEY_DIGITS]}"


def tenants_by(header: str | None, keys: Sequence[str]) -> Callable[[Headers], str | None]:
    """How to tell whose a request is.

    Args:
        header: one that the proxy in front sets, and takes away where a client sends it. It decides where it is given.
        keys: the server's API keys; without any, a key that a client sends says nothing.
    """
    known = {key: tenant_of_key(key) for key in keys}

    def tenant(headers: Headers) -> str | None:
        if header is not None and (named := headers.get(header)):
            return named
        return known.get(key_of(headers) or "")

    return tenant


def key_of(headers: Headers) -> str | None:
    """The API key of a request."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" else None
