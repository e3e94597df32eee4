"""Whose a request is, and who is counted by name."""

import pytest
from starlette.datastructures import Headers

from gateway.metrics import GuardMetrics
from gateway.tenants import MOST_COUNTED, OTHER, UNKNOWN, TenantLabels, tenant_of_key, tenants_by

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


def test_who_is_named_by_the_operator_is_counted_by_name_and_nobody_else() -> None:
    labels = TenantLabels(["acme"])
    labels.name(["bolt"])
    assert [labels.of(tenant) for tenant in ("acme", "bolt", "crane", None)] == ["acme", "bolt", OTHER, UNKNOWN]


def test_no_number_of_tenants_makes_more_series_than_the_bound() -> None:
    metrics = GuardMetrics(TenantLabels(f"t{number:04}" for number in range(60)))
    for round_ in range(20):  # activations come and go
        metrics.tenants.name(f"r{round_}-{number}" for number in range(60))
        for number in range(60):
            metrics.prompt_of(f"r{round_}-{number}", "passed", 3)
            metrics.prompt_of(f"client-{round_}-{number}", "passed", 3)
    metrics.prompt_of("t0000", "corrupted", 4, flagged=True)
    (prompts,) = [family for family in metrics.registry.collect() if family.name == "eco_tenant_prompts"]
    tenants = {sample.labels["tenant"] for sample in prompts.samples}
    assert len(tenants) <= MOST_COUNTED + 2
    assert OTHER in tenants
    assert not any(tenant.startswith("client") for tenant in tenants)
    value = metrics.registry.get_sample_value
    assert value("eco_tenant_flagged_total", {"tenant": "t0000"}) == 1
    assert value("eco_tenant_flagged_total", {"tenant": OTHER}) == 0
    assert value("eco_tenant_prompt_tokens_total", {"tenant": "t0000"}) == 4


def test_once_counted_by_name_always_counted_by_name() -> None:
    labels = TenantLabels(["acme"])
    labels.name([])
    labels.name(f"x{number}" for number in range(1000))
    assert labels.of("acme") == "acme"
