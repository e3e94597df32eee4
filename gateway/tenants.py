"""Whose a request is: the API key it came with, or what a trusted proxy says; and which tenants are counted by name."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from starlette.datastructures import Headers

_KEY_DIGITS = 12
#: Tenants with series of their own in a front end's metrics. All further ones are counted as `other`.
MOST_COUNTED = 100
#: Labels of requests whose tenant is not counted by name, and of those that say none.
OTHER, UNKNOWN = "other", "unknown"


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


class TenantLabels:
    """How metrics call a tenant: by its name where the operator has said that name, and as `other` where only a request
    has. So there are never more than `MOST_COUNTED` of them and these two.
    """

    def __init__(self, named: Iterable[str] = ()) -> None:
        self._counted: set[str] = set()
        self.name(named)

    def name(self, tenants: Iterable[str]) -> None:
        """The operator speaks of these tenants. Once counted by name, one always is: a counter must not fall."""
        for tenant in sorted(set(tenants) - self._counted):
            if len(self._counted) < MOST_COUNTED:
                self._counted.add(tenant)

    def of(self, tenant: str | None) -> str:
        if tenant is None:
            return UNKNOWN
        return tenant if tenant in self._counted else OTHER
