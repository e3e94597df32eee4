"""Whose a request is."""

import pytest
from starlette.datastructures import Headers

from gateway.tenants import tenant_of_key, tenants_by

KEYS = ["key-one", "key-two"]


@pytest.mark.parametrize(
    ("header", "headers", "tenant"),
    [
        (None, {"authorization": "Bearer key-one"}, tenant_of_key("key-one")),
        (None, {"authorization": "Bearer unknown"}, None),
        (None, {"x-tenant": "acme"}, None),
        (None, {}, None),
        ("X-Tenant", {"x-tenant": "acme", "authorization": "Bearer key-one"}, "acme"),
        ("X-Tenant", {"authorization": "Bearer key-two"}, tenant_of_key("key-two")),
    ],
)
def test_by_key_or_by_what_the_proxy_says(header: str | None, headers: dict[str, str], tenant: str | None) -> None:
    assert tenants_by(header, KEYS)(Headers(headers)) == tenant


def test_a_tenant_does_not_give_its_key_away() -> None:
    assert tenant_of_key("key-one") != tenant_of_key("key-two")
    assert "one" not in tenant_of_key("key-one")


def test_without_keys_a_key_says_nothing() -> None:
    assert tenants_by(None, [])(Headers({"authorization": "Bearer x"})) is None
