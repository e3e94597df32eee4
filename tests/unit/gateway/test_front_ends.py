"""One of several front ends: whose turn it is, who is alive, which policies are served."""

import asyncio
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from gateway_fakes import policy

from gateway import LaunchError, ServerDiedError
from gateway.front_ends import OneOfSeveral, Shared


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared([0.0, 0.0], SimpleQueue(), tmp_path, {"people": "c" * 64}, [0, 0])


@pytest.fixture(autouse=True)
def _metrics_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client import values

    monkeypatch.setattr(values, "ValueClass", values.ValueClass)


def front_end(shared: Shared, index: int) -> OneOfSeveral:
    return OneOfSeveral({"client_index": index, "client_count": 2, "api_server_loads": [0, 0]}, shared)


async def fine() -> None: ...


async def broken() -> None:
    raise RuntimeError("the guard does not answer")


async def test_they_test_one_after_the_other_and_serve_together(shared: Shared) -> None:
    first, second = front_end(shared, 0), front_end(shared, 1)
    order: list[str] = []

    async def start(one: OneOfSeveral) -> None:
        async with one.testing():
            order.append(f"{one.index} tests")
            await asyncio.sleep(0.1)
            order.append(f"{one.index} passed")
        await one.all_tested()
        order.append("serves")

    await asyncio.gather(start(second), start(first))
    assert order == ["0 tests", "0 passed", "1 tests", "1 passed", "serves", "serves"]


async def test_a_failed_self_test_leaves_the_others_waiting(shared: Shared) -> None:
    with pytest.raises(LaunchError):
        async with front_end(shared, 0).testing():
            raise LaunchError("leaks")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(front_end(shared, 1).all_tested(), 0.2)


async def test_ready_while_every_front_end_gives_a_sign_of_life(shared: Shared) -> None:
    one = front_end(shared, 0)
    for signs, alive in (
        ([time.monotonic()] * 2, True),
        ([time.monotonic(), 0.0], False),
        ([time.monotonic(), -1.0], False),
        ([time.monotonic(), time.monotonic() - 60], False),
    ):
        shared.signs_of_life[:] = signs
        if alive:
            await one.check_health(fine)
        else:
            with pytest.raises(ServerDiedError):
                await one.check_health(fine)
        with pytest.raises(RuntimeError):
            await one.check_health(broken)


@pytest.mark.parametrize(("check_own", "healthy"), [(fine, True), (broken, False)])
async def test_a_front_end_says_how_it_is_until_it_is_stopped(shared: Shared, check_own: Any, healthy: bool) -> None:
    class Admin:
        should_exit = False

        async def serve_on(self, sock: Any) -> None:
            raise AssertionError("only the first front end serves the admin address")

    admin: Any = Admin()
    task = asyncio.create_task(front_end(shared, 1).administer(admin, None, check_own))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert (shared.signs_of_life[1] > 0) is healthy
    admin.should_exit = True
    await asyncio.wait_for(task, 5)


def test_another_digest_is_refused(shared: Shared) -> None:
    one = front_end(shared, 0)
    one.check_policies([policy("people").bundle])
    for bundles in ([], [policy("others").bundle], [policy("people").bundle, policy("others").bundle]):
        with pytest.raises(LaunchError, match="changed"):
            one.check_policies(bundles)


def test_a_reason_to_give_up_reaches_the_first_process(shared: Shared) -> None:
    with pytest.raises(SystemExit) as stopped:
        front_end(shared, 0).failed("it leaks")
    assert stopped.value.code == 2
    assert shared.reasons.get() == "it leaks"
