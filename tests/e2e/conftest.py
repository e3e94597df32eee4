"""The real thing once per session: plain vLLM and the guarded server beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recorded_gateway import FLAGS, RecordingGateway, environment, free_port, recording_gateway

from demo.probes import Probe, probes
from demo.servers import ServerProcess, plain_server
from demo.world import World

if TYPE_CHECKING:
    from demo.models import DemoBuild


@pytest.fixture(scope="session")
def asked() -> list[Probe]:
    return probes(World.generate())


@pytest.fixture(scope="session")
def servers(
    demo_build: "DemoBuild", demo_policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, RecordingGateway]]:
    """Plain vLLM and the guarded server, started together."""
    folder = tmp_path_factory.mktemp("servers")
    plain = plain_server(
        demo_build.model, port=free_port(), log=folder / "plain.log", flags=FLAGS, environment=environment(0)
    )
    gateway = recording_gateway(demo_build.model, [demo_policy], folder, flags=FLAGS)
    plain.start()
    gateway.server.start()
    try:
        plain.wait_until_healthy()
        gateway.server.wait_until_healthy()
        yield plain, gateway
    finally:
        gateway.server.stop()
        plain.stop()


@pytest.fixture(scope="session")
def plain(servers: tuple[ServerProcess, RecordingGateway]) -> ServerProcess:
    return servers[0]


@pytest.fixture
def gateway(servers: tuple[ServerProcess, RecordingGateway]) -> RecordingGateway:
    servers[1].received()
    return servers[1]
