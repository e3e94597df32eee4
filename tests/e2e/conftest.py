"""The real thing once per session: plain vLLM and the guarded server beside it."""

import os
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


@pytest.fixture(scope="session")
def v2_runner() -> dict[str, str]:
    """What makes a server take vLLM's V2 model runner; skips where there is no Triton.

    Triton (docs/dependencies.md) is in no CPU lock: it is taken from the folder $ECO_TRITON, 1 GB, which no other test
    or server shall see.
    """
    if not (triton := os.environ.get("ECO_TRITON")):
        pytest.skip("ECO_TRITON names no folder that has Triton: make test-v2-runner fetches it")
    paths = (str(Path(__file__).parent / "v2_runner"), triton, os.environ.get("PYTHONPATH", ""))
    return {
        "PYTHONPATH": ":".join(filter(None, paths)),
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    }
