"""Several front ends before one or more engines: `--api-server-count`, as vLLM's `run_multi_api_server` (vLLM 0.32).

Each front end is a process with a guard of its own over the same policies and secret. They test the engines one after
the other, so that no test's numbers hang on another's batch, and none serves before all have passed.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
import tempfile
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from prometheus_client import REGISTRY, generate_latest

from gateway import LaunchError, ServerDiedError
from gateway.admin import AdminServer
from gateway.engine_config import created_config, said_in_one_line
from gateway.metrics import GuardMetrics
from gateway.summed_metrics import keep_apart, summed
from guard import PolicyBundle

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

_BEAT_S = 0.5
#: A front end whose loop has stood still for so long is not ready.
_STALE_S = 10.0
_POLL_S = 0.05
#: A change of policies is waited for as long, in all front ends.
_SAME_POLICIES_S = 10.0


@dataclass(frozen=True, slots=True)
class Shared:
    """What the processes of one server have in common; pickled to each as it starts."""

    signs_of_life: Any
    """One float for each front end: 0 before its self-test has passed, -1 while it is not healthy, else a monotonic
    time, which all processes of a machine agree on."""
    reasons: Any
    """Takes the one line that says why a front end gave up."""
    metrics_folder: Path
    digests: Mapping[str, str]
    """Of every policy of `--policy`, by name."""
    sets: Any
    """One number for each front end: the first digits of the digest of the policies that it has in force."""


class FrontEnd:
    """The only front end of a server; one of several differs in what is below.

    Attributes:
        client: what vLLM's engine client needs to reach engines that run already; None: it starts them.
        peer_loads: vLLM's shared table of open connections, and this front end's place in it.
    """

    index = 0
    client: Mapping[str, Any] | None = None
    peer_loads: tuple[Any, int] | None = None

    @contextlib.asynccontextmanager
    async def testing(self) -> AsyncIterator[None]:
        """Around the self-test."""
        yield

    async def all_tested(self) -> None:
        """Wait until every front end may serve."""

    def has(self, digest: str) -> None:
        """This front end has the set of policies of that digest in force."""

    async def all_have(self, digest: str) -> bool:
        """Whether all front ends have it in force; waits a little for it."""
        del digest
        return True

    async def check_health(self, check_own: Callable[[], Awaitable[None]]) -> None:
        """Raise unless engines and guards answer, this front end's and all others'."""
        await check_own()

    def metrics_text(self, own: GuardMetrics) -> bytes:
        """vLLM's metrics and the guard's, over all front ends."""
        return generate_latest(REGISTRY) + generate_latest(own.registry) + generate_latest(own.policies)

    async def administer(
        self, admin: AdminServer, sock: socket.socket, check_own: Callable[[], Awaitable[None]]
    ) -> None:
        """Serve the admin address until `admin.should_exit`."""
        del check_own
        await admin.serve_on(sock)


class OneOfSeveral(FrontEnd):
    """A front end that has peers; the first serves the admin address for all.

    Args:
        client: as vLLM gives it to an API server's process.
    """

    def __init__(self, client: Mapping[str, Any], shared: Shared) -> None:
        self.client = dict(client)
        self.index: int = client["client_index"]
        self.peer_loads = (self.client.pop("api_server_loads"), self.index)
        self._shared = shared
        keep_apart(shared.metrics_folder)

    def set_up_process(self, args: Namespace) -> None:
        """Its name, its logs, and the parser plugins, which the first process has loaded for itself alone."""
        from vllm.logger import configure_logging_from_args
        from vllm.reasoning import ReasoningParserManager
        from vllm.tool_parsers import ToolParserManager
        from vllm.utils.system_utils import decorate_logs, set_process_title

        configure_logging_from_args(args)
        set_process_title("APIServer", str(self.index))
        decorate_logs()
        if args.tool_parser_plugin:
            ToolParserManager.import_tool_parser(args.tool_parser_plugin)
        if args.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)

    def check_policies(self, bundles: Sequence[PolicyBundle]) -> None:
        """Raise `LaunchError` unless these are the policies that the first process checked."""
        if {bundle.config.name: bundle.digest for bundle in bundles} != self._shared.digests:
            raise LaunchError("--policy: a policy changed while the server started; start it again")

    def has(self, digest: str) -> None:
        self._shared.sets[self.index] = _number(digest)

    async def all_have(self, digest: str) -> bool:
        self.has(digest)
        deadline = time.monotonic() + _SAME_POLICIES_S
        while not (same := all(number == _number(digest) for number in self._shared.sets)):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_S)
        return same

    def failed(self, reason: str) -> NoReturn:
        self._shared.reasons.put(reason)
        raise SystemExit(2)

    @contextlib.asynccontextmanager
    async def testing(self) -> AsyncIterator[None]:
        await self._until(lambda: all(self._shared.signs_of_life[: self.index]))
        yield
        self._sign(time.monotonic())

    async def all_tested(self) -> None:
        await self._until(lambda: all(self._shared.signs_of_life))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - of other processes; one that fails ends the whole server
            await asyncio.sleep(_POLL_S)

    def _sign(self, value: float) -> None:
        self._shared.signs_of_life[self.index] = value

    def _are_alive(self) -> bool:
        oldest = time.monotonic() - _STALE_S
        return all(sign > oldest for sign in self._shared.signs_of_life)

    async def check_health(self, check_own: Callable[[], Awaitable[None]]) -> None:
        await check_own()
        if not self._are_alive():
            raise ServerDiedError("a front end does not answer")

    def metrics_text(self, own: GuardMetrics) -> bytes:
        return summed(self._shared.metrics_folder, self._are_alive) + generate_latest(own.policies)

    async def administer(
        self, admin: AdminServer, sock: socket.socket, check_own: Callable[[], Awaitable[None]]
    ) -> None:
        serving = asyncio.create_task(admin.serve_on(sock)) if self.index == 0 else None
        while not admin.should_exit:
            try:
                await check_own()
            except Exception:  # noqa: BLE001 - whatever it is, this front end is not ready
                self._sign(-1.0)
            else:
                self._sign(time.monotonic())
            await asyncio.sleep(_BEAT_S)
        if serving is not None:
            await serving


def count_of(args: Namespace) -> int:
    """How many front ends `vllm serve` would start: as many as data-parallel engines, unless it is told."""
    if args.api_server_count is None and (args.data_parallel_external_lb or args.data_parallel_rank is not None):
        return 1
    return int(args.api_server_count or args.data_parallel_size or 1)


def run_front_ends(
    args: Namespace, public: tuple[str, socket.socket], bundles: Sequence[PolicyBundle], target: Callable[..., None]
) -> None:
    """Start engines and front ends, and wait until the server is stopped.

    Args:
        target: what a front end's process runs: called with an address, a socket, `args`, vLLM's settings of a
            client, and `Shared`.

    Raises:
        LaunchError: a front end gave up before it served.
        ServerDiedError: a process died.
    """
    from vllm.v1.metrics.prometheus import setup_multiprocess_prometheus

    signs_of_life = multiprocessing.get_context("spawn").RawArray("d", args.api_server_count)
    sets = multiprocessing.get_context("spawn").RawArray("Q", args.api_server_count)
    reasons = multiprocessing.get_context("spawn").SimpleQueue()
    digests = {bundle.config.name: bundle.digest for bundle in bundles}
    setup_multiprocess_prometheus()
    with tempfile.TemporaryDirectory(prefix="eco-metrics-") as folder:
        shared = Shared(signs_of_life, reasons, Path(folder), digests, sets)
        try:
            with _quiet_failures(), said_in_one_line():
                _run(args, public, _Target(target, shared))
        except RuntimeError as error:  # vLLM's, for whatever process ended
            if not reasons.empty():
                raise LaunchError(reasons.get()) from error
            if not all(signs_of_life):
                raise
            raise ServerDiedError(f"the server stopped: {error}") from error


@dataclass(frozen=True, slots=True)
class _Target:
    """What vLLM's process manager calls, with what it does not know of."""

    function: Callable[..., None]
    shared: Shared

    def __call__(self, address: str, sock: socket.socket, args: Namespace, client: dict[str, Any]) -> None:
        self.function(address, sock, args, client, self.shared)


def _run(args: Namespace, public: tuple[str, socket.socket], target: _Target) -> None:
    """vLLM's `run_multi_api_server`, with our socket and our processes."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import propagate_flash_late_interaction
    from vllm.v1.engine.utils import bind_engine_zmq_listeners, launch_core_engines
    from vllm.v1.executor import Executor
    from vllm.v1.utils import APIServerProcessManager, wait_for_completion_or_failure

    stopping = _stop_on_signals()
    count = args.api_server_count
    engine_args = AsyncEngineArgs.from_cli_args(args)
    propagate_flash_late_interaction(args, engine_args)
    engine_args._api_process_count, engine_args._api_process_rank = count, -1
    config = created_config(engine_args)
    listeners = bind_engine_zmq_listeners(config, count)
    with launch_core_engines(
        config, Executor.get_class(config), not engine_args.disable_log_stats, listeners.addresses
    ) as engines:
        coordinator = engines.coordinator
        front_ends = APIServerProcessManager(
            *public,
            args,
            count,
            listeners.inputs,
            listeners.outputs,
            target_server_fn=target,
            stats_update_address=coordinator.get_stats_publish_address() if coordinator else None,
            tensor_queue=engines.tensor_queue,
        )
        engines.watched_frontend_processes = front_ends.processes
    try:
        wait_for_completion_or_failure(front_ends, engines.engine_manager, coordinator)
    finally:
        deadline = time.monotonic() + config.shutdown_timeout
        for part in (front_ends, engines.engine_manager, coordinator):
            if part is not None:
                part.shutdown(timeout=max(deadline - time.monotonic(), 0.0) if stopping.is_set else None)


def _number(digest: str) -> int:
    return int(digest[:16] or "0", 16)


@dataclass(slots=True)
class _Stopping:
    is_set: bool = field(default=False)


def _stop_on_signals() -> _Stopping:
    """From here on SIGTERM and SIGINT end the main thread's waiting, once."""
    stopping = _Stopping()

    def stop(*_: object) -> None:
        if not stopping.is_set:
            stopping.is_set = True
            raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping


@contextlib.contextmanager
def _quiet_failures() -> Iterator[None]:
    """vLLM logs a traceback of its own waiting when a process ends; the process has said why."""

    def without_traceback(record: logging.LogRecord) -> bool:
        record.exc_info = None
        return True

    watcher = logging.getLogger("vllm.v1.utils")
    watcher.addFilter(without_traceback)
    try:
        yield
    finally:
        watcher.removeFilter(without_traceback)
