"""`make observe`: a guarded demo server, Prometheus that watches it, and load, on one machine until Ctrl-C.

What Prometheus gathers is what the dashboards and alerts of this folder are about.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import httpx
import yaml
from rich.console import Console

from console.errors import EcoError, first_line
from demo.errors import DemoError
from demo.models import DemoBuild, build_models
from demo.probes import Probe, probes
from demo.run import ask
from demo.servers import ServerProcess, guarded_server
from demo.world import World
from optimizer import BuildOptions, InputOptions, build_policy

DEPLOY = Path(__file__).resolve().parent
#: Each with a client. Two are counted by name.
_TENANTS = ("acme", "bolt", "crane", "dune")
#: Flags of a gateway for which these say who they are.
TENANT_FLAGS = ("--eco-tenant-header", "X-Tenant", "--eco-tenant", "acme", "--eco-tenant", "bolt")
_REFUSED = {"model": "demo", "prompt": "x", "kv_transfer_params": {"x": 1}}
_GRAFANA = """docker run --rm --network host -e PROMETHEUS_URL={prometheus} \\
    -v {deploy}/compose/grafana/provisioning:/etc/grafana/provisioning:ro \\
    -v {deploy}/grafana/dashboards:/etc/grafana/dashboards:ro grafana/grafana:12.2.0"""


def prometheus_server(
    program: Path, folder: Path, *, port: int, admin_ports: Sequence[int], interval: str = "5s"
) -> ServerProcess:
    """Prometheus with this folder's rules, for gateways on this machine; what it gathers lies in `folder`."""
    targets = [f"127.0.0.1:{admin}" for admin in admin_ports]
    configuration = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
        "rule_files": [str(DEPLOY / "prometheus" / "rules.yaml")],
        "scrape_configs": [{"job_name": "eco-gateway", "static_configs": [{"targets": targets}]}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    command = [
        str(program),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    return ServerProcess(command, port=port, log=folder / "prometheus.log", health="/-/ready")


async def load(url: str, asked: Iterable[Probe], *, pause_s: float = 0.2) -> None:
    """Ask forgotten and other questions, and now and then what is refused, until cancelled or `asked` is through.

    Raises:
        DemoError: the server does not answer any more.
    """
    rest = iter(asked)

    async def client(tenant: str) -> None:
        async with httpx.AsyncClient(base_url=f"{url}/v1", timeout=120.0, headers={"X-Tenant": tenant}) as http:
            for number, probe in enumerate(rest):
                try:
                    await ask(http, probe)
                except httpx.HTTPStatusError as error:
                    if error.response.status_code not in {429, 503}:
                        raise
                if number % 20 == 0:
                    await http.post("/completions", json=_REFUSED)
                await asyncio.sleep(pause_s)

    try:
        await asyncio.gather(*(client(tenant) for tenant in _TENANTS))
    except httpx.TransportError as error:
        raise DemoError(f"{url} does not answer any more: {first_line(error)}") from error


def _policy(build: DemoBuild, folder: Path, console: Console) -> Path:
    """Built once: `make clean` removes it with the folder."""
    out = folder / "policy"
    if not out.exists():
        console.print("building the demo's policy (one to three minutes) …")
        inputs = InputOptions(forget=build.forget_examples, retain=build.retain_examples)
        build_policy(
            BuildOptions(model=str(build.model), inputs=inputs, out=out, name="forgotten-people", strength=2.0)
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.observe", description=__doc__)
    parser.add_argument("--prometheus", type=Path, required=True, help="the program")
    parser.add_argument("--folder", type=Path, required=True, help="for the policy, logs and what is gathered")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--admin-port", type=int, default=8001)
    parser.add_argument("--prometheus-port", type=int, default=9090)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    folder = options.folder.resolve()
    build = build_models(console=console)
    policy = _policy(build, folder, console)
    gateway = guarded_server(
        build.model,
        [policy],
        port=options.port,
        admin_port=options.admin_port,
        log=folder / "gateway.log",
        flags=TENANT_FLAGS,
    )
    watching = prometheus_server(
        options.prometheus.resolve(), folder, port=options.prometheus_port, admin_ports=[options.admin_port]
    )
    console.print(f"starting the gateway (about a minute; its log is {gateway.log}) …")
    with watching, gateway:
        console.print(f"gateway     {gateway.url}/v1, model demo")
        console.print(f"metrics     http://127.0.0.1:{options.admin_port}/metrics")
        console.print(f"Prometheus  {watching.url}/api/v1/alerts")
        console.print("Grafana     http://127.0.0.1:3000 (admin, admin), where Docker is, with")
        console.print(_GRAFANA.format(prometheus=watching.url, deploy=DEPLOY), soft_wrap=True, highlight=False)
        console.print("asking questions until Ctrl-C …")
        asked = probes(World.generate())
        random.Random(0).shuffle(asked)  # noqa: S311 - an order, no secret
        asyncio.run(load(gateway.url, itertools.cycle(asked)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except EcoError as error:
        Console(stderr=True).print(f"eco: error: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
