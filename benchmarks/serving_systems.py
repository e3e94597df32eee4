"""The systems that `benchmarks/serving.py` compares, each a server in processes of its own, and what they consume.

The engine computes on one core and the front end, guard or proxy included, on another, the same for all: neither can
borrow from the other what a request costs.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from demo.errors import DemoError
from demo.servers import ServerProcess

SYSTEMS = ("plain", "embeds", "prompts", "eco", "litellm")
"""`plain`: vLLM. `embeds`: vLLM with `--enable-prompt-embeds`, which a guard needs. `prompts`: `eco serve` that reads
prompts alone. `eco`: `eco serve`. `litellm`: the LiteLLM proxy before the plain one."""
SERVED_NAME = "bench"
LITELLM = "litellm[proxy]==1.108.7"
_FLAGS = (
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "8192", "--max-num-seqs", "64",
    # The systems get the same texts, and the proxy's go to the plain engine: it must not know them already.
    "--no-enable-prefix-caching", "--disable-uvicorn-access-log", "--served-model-name", SERVED_NAME,
)  # fmt: skip
_START_TIMEOUT_S = 900.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cores:
    """Numbers of the cores for the engine, the front end, and who sends the load: with two cores, the front end's."""

    engine: int
    front: int
    load: int

    @classmethod
    def choose(cls) -> "Cores":
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1 % len(usable)], usable[2] if len(usable) > 2 else usable[-1])


@dataclass(frozen=True)
class Usage:
    """What a system's processes have used so far, and hold."""

    cpu_s: float
    """All of them: of the proxy, those of the server behind it too."""
    front_cpu_s: float
    """The front end alone; of the proxy, the proxy and the front end behind it."""
    rss_mb: float


class System:
    """A running system: where it answers, and the servers it consists of, its own first."""

    def __init__(self, name: str, servers: Sequence[ServerProcess], admin: str | None = None) -> None:
        self.name = name
        self.url = servers[0].url
        self._model = servers[-1].url
        self._roots = [server.process.pid for server in servers if server.process is not None]
        self._admin = admin

    def usage(self) -> Usage:
        trees = [process_tree(root) for root in self._roots]
        front = sum(cpu_seconds(root) for root in self._roots)
        everything = [pid for tree in trees for pid in tree]
        memory = sum(resident_bytes(pid) for pid in everything) / 2**20
        return Usage(sum(map(cpu_seconds, everything)), front, memory)

    def corrupted(self) -> int | None:
        """Prompts corrupted so far; None where nobody guards."""
        if self._admin is None:
            return None
        return _metric(self._admin, 'eco_prompts_total{outcome="corrupted"}')

    def generated(self) -> int:
        """Tokens that the model has generated so far, whatever the answers said of it."""
        return _metric(self._model, "vllm:generation_tokens_total{")


def _metric(url: str, start: str) -> int:
    lines = httpx.get(f"{url}/metrics", timeout=10.0).text.splitlines()
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start)))


class _Proxy(ServerProcess):
    """The LiteLLM proxy, whose `/health` would ask the model."""

    def wait_until_healthy(self, timeout_s: float = 180.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise DemoError(f"the proxy stopped before it was up; see {self.log}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health/liveliness", timeout=2.0).status_code == 200:
                    return
            time.sleep(0.25)
        raise DemoError(f"the proxy was not up after {timeout_s:.0f} s; see {self.log}")


@contextlib.contextmanager
def started(
    names: Sequence[str],
    model: Path,
    policies: Sequence[Path],
    work: Path,
    *,
    cores: Cores,
    port: int,
    flags: Sequence[str] = (),
) -> Iterator[dict[str, System]]:
    """The systems of these names, up until the end, on ports from `port` on. Logs and configurations go to `work`."""
    work.mkdir(parents=True, exist_ok=True)
    environment = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": str(cores.engine),
    }
    module = "vllm.entrypoints.launchers.api_server.entry"
    plain = [sys.executable, "-m", module, "--model", str(model)]
    guarded = [part for policy in policies for part in ("--policy", str(policy))]
    guarded += ["--eco-secret-file", str(work / "secret")]
    admin_ports = {"prompts": port + 8, "eco": port + 9}
    serve = [sys.executable, "-m", "cli", "serve", str(model), *guarded, "--eco-admin-port"]
    commands = {
        "plain": plain,
        "embeds": [*plain, "--enable-prompt-embeds"],
        "prompts": [*serve, str(admin_ports["prompts"]), "--eco-answers", "off"],
        "eco": [*serve, str(admin_ports["eco"])],
    }
    behind = {"plain"} if "litellm" in names else set()
    servers: dict[str, ServerProcess] = {}
    with contextlib.ExitStack() as stack:
        for offset, (name, command) in enumerate(commands.items()):
            if name in behind | set(names):
                where = ["--host", "127.0.0.1", "--port", str(port + offset)]
                server = ServerProcess(
                    [*command, *where, *_FLAGS, *flags],
                    port=port + offset,
                    log=work / f"{name}.log",
                    environment=environment,
                )
                stack.callback(server.stop)
                server.start()
                servers[name] = server
        if "litellm" in names:
            proxy = _litellm(f"http://127.0.0.1:{port}", work, port + len(commands))
            stack.callback(proxy.stop)
            proxy.start()
            proxy.wait_until_healthy(_START_TIMEOUT_S)
            _pin(proxy, cores.front, cores.front)
        for server in servers.values():
            server.wait_until_healthy(_START_TIMEOUT_S)
            _pin(server, cores.front, cores.engine)
        systems = {
            name: System(name, [server], f"http://127.0.0.1:{admin_ports[name]}" if name in admin_ports else None)
            for name, server in servers.items()
        }
        if "litellm" in names:
            systems["litellm"] = System("litellm", [proxy, servers["plain"]])
        yield {name: systems[name] for name in names}


def _litellm(upstream: str, work: Path, port: int) -> ServerProcess:
    """The proxy in an environment of its own, installed from PyPI the first time (about two minutes)."""
    venv = Path("build/litellm").resolve()
    if not (venv / "bin" / "litellm").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", LITELLM], check=True)
    behind = {"model": f"hosted_vllm/{SERVED_NAME}", "api_base": f"{upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": SERVED_NAME, "litellm_params": behind}],
        "litellm_settings": {"telemetry": False},
    }
    file = work / "litellm.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    command = [str(venv / "bin" / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing is fetched
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it listens on this machine alone
        "PYTHONPATH": "",
    }
    return _Proxy([*command, "--num_workers", "1"], port=port, log=work / "litellm.log", environment=environment)


def _pin(server: ServerProcess, front: int, engine: int) -> None:
    """Bind every thread of the server's first process to one core, and those of its other processes to another."""
    if server.process is None:
        return
    for pid in process_tree(server.process.pid):
        core = front if pid == server.process.pid else engine
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), {core})


def process_tree(root: int) -> list[int]:
    """`root` and its descendants."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of its children that have ended; 0 where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _CLOCK_TICKS


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
