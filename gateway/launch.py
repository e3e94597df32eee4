"""Start a guarded server: vLLM's own flags, application and lifecycle, with the wrapped engine client inside.

Follows `vllm.entrypoints.launchers.api_server.entry` (vLLM 0.32): parser plugins, logging, signals and shutdown
are as there. Everything that can be known before the model loads is checked before it loads.
"""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from classifiers.encoders.runtime import Device
from console.errors import EcoError
from gateway import LaunchError, ServerDiedError
from gateway.admin import AdminServer, build_admin_app
from gateway.admin_key import AdminKeys, check_admin_address
from gateway.admin_policies import Render, policy_routes
from gateway.audit import Audit, AuditFile
from gateway.authentication import api_keys, authenticate_every_route
from gateway.flags import check_environment, check_flags, lora_targets
from gateway.front_ends import FrontEnd, OneOfSeveral, Shared, count_of, run_front_ends
from gateway.logs import LogFormat, apply_flags, log_format, tell_requests, uvicorn_config
from gateway.metrics import GuardMetrics
from gateway.nodes import serve_workers
from gateway.plain import serve_plain
from gateway.policies import Activation
from gateway.policies.active import ActivePolicies, MakeGuard, check_names
from gateway.policies.folder import PolicyFolder, Wanted
from gateway.policies.loading import PolicyLoader
from gateway.policies.store import open_folder
from gateway.summed_metrics import keep_apart
from gateway.tenants import MOST_COUNTED, TenantLabels, tenants_by
from gateway.tracing import SpanTracing, Tracing
from gateway.traffic import FrontDoor, Traffic
from guard import LoadedPolicy, PolicyBundle, load_bundle, load_or_create_secret
from guard.bundle import AnswerMode

logger = logging.getLogger("vllm.eco_gateway")  # under vLLM's own logging configuration

#: What vLLM serves where no model is named; a guard serves the model its policies were built for.
_DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
#: vLLM's own default is to cut running answers off at SIGTERM. Ten seconds less than Kubernetes waits before it kills.
SHUTDOWN_TIMEOUT_S = 20
#: What uvicorn waits for connections to end once the engine has stopped and nothing can follow on them.
_HTTP_SHUTDOWN_TIMEOUT_S = 3
#: Many proxies and load balancers keep an idle connection for 60 seconds, and lose the request that they send on one
#: just as the server closes it: the server has to be the one that waits longer. vLLM's own default is 5.
_KEEP_ALIVE_S = 75
#: What the admin address has to end in, whatever its clients do.
_ADMIN_SHUTDOWN_S = 10


@dataclass(frozen=True, slots=True)
class EcoOptions:
    """`eco serve`'s own options; all others are vLLM's."""

    policies: tuple[Path, ...]
    secret_file: Path
    policy_dir: str | None = None
    """A folder, or the address of one in an object store."""
    admin_host: str = "127.0.0.1"
    admin_port: int = 8001
    admin_key_file: Path | None = None
    tenant_header: str | None = None
    """Set by a proxy that is trusted to say whose a request is."""
    audit_log: Path | None = None
    audit_max_mb: int = 100
    audit_files: int = 10
    """Older files of the audit log that are kept."""
    audit_prompts: bool = False
    compare_answers: bool = False
    """The admin address answers prompts without the guard too, to compare."""
    log_format: LogFormat = "text"
    tenants: tuple[str, ...] = ()
    """Those that are counted by name, beside those that activations name."""
    guard_timeout_s: float = 10.0
    guard_queue_ms: float = 5000.0
    guard_threads: int | None = None
    encoder_device: Device = "cpu"
    answers: AnswerMode | Literal["policy"] = "policy"
    """What becomes of answers: what each policy says, or this for all."""
    tell_ended: bool = False
    refuse_steering: bool = False
    allow_multimodal: bool = False
    allow_untested: bool = False
    no_guard: bool = False
    """Plain vLLM, to compare with; there are no policies then."""


def serve(vllm_args: Sequence[str], options: EcoOptions) -> None:
    """Serve until SIGINT or SIGTERM. `vllm_args` are the arguments of `vllm serve`.

    Raises:
        LaunchError, GuardError and the errors of `corruption` and `classifiers`: one line; nothing was served.
    """
    with log_format(options.log_format):
        _serve(vllm_args, options)


def _serve(vllm_args: Sequence[str], options: EcoOptions) -> None:
    if options.no_guard:
        args = _parse(vllm_args)
        apply_flags(args, options.log_format)
        serve_plain(args)
        return
    check_environment()
    if "--headless" in vllm_args:
        args = _parse(vllm_args)
        apply_flags(args, options.log_format)
        _check_engine(args, options)
        serve_workers(args)
    if len(set(options.tenants)) > MOST_COUNTED:
        raise LaunchError(f"--eco-tenant: {len(set(options.tenants))} tenants; name {MOST_COUNTED} at most")
    bundles = _load_bundles(options)
    load_or_create_secret(options.secret_file)
    check_admin_address(options.admin_host, AdminKeys(options.admin_key_file))
    _check_comparison(options)
    args = _parse(vllm_args)
    apply_flags(args, options.log_format)
    _check_engine(args, options)
    if args.headless:  # a configuration file says so
        serve_workers(args)
    front_ends = count_of(args)
    args.api_server_count = front_ends if front_ends > 1 else None
    with _bind_admin(options) as admin_socket:
        address, public_socket = _bind_public(args)
        with public_socket:
            prepared = _prepare(args, bundles, options)
            if front_ends > 1:
                del prepared  # it fits; each front end loads its own
                process = functools.partial(_serve_front_end, options, admin_socket)
                run_front_ends(args, (address, public_socket), bundles, process)
                return
            import uvloop

            keep_apart(None)
            tell_requests(options.log_format)
            uvloop.run(_run(args, options, prepared, (address, public_socket), admin_socket, FrontEnd()))


def _check_engine(args: Namespace, options: EcoOptions) -> None:
    """Refuse what a guarded engine cannot honour, and give it the settings that a guard needs."""
    check_flags(args, allow_untested=options.allow_untested, allow_multimodal=options.allow_multimodal)
    from gateway.engine import WORKER_EXTENSION

    args.enable_prompt_embeds = True
    args.worker_extension_cls = WORKER_EXTENSION
    if args.enable_lora:
        args.lora_target_modules = lora_targets(args)


def _serve_front_end(
    options: EcoOptions,
    admin_socket: socket.socket,
    address: str,
    public_socket: socket.socket,
    args: Namespace,
    client: dict[str, Any],
    shared: Shared,
) -> None:
    """One of several front ends, in a process of its own: vLLM's `run_api_server_worker_proc` with a guard inside."""
    import uvloop

    front_end = OneOfSeveral(client, shared)
    try:
        front_end.set_up_process(args)
        tell_requests(options.log_format)
        bundles = _load_bundles(options)
        front_end.check_policies(bundles)
        prepared = _prepare(args, bundles, options)
        uvloop.run(_run(args, options, prepared, (address, public_socket), admin_socket, front_end))
    except EcoError as error:
        front_end.failed(str(error))
    except KeyboardInterrupt:  # SIGTERM while starting
        raise SystemExit(1) from None


def _load_bundles(options: EcoOptions) -> list[PolicyBundle]:
    if not options.policies and options.policy_dir is None:
        raise LaunchError("--policy: give a policy folder, which eco policy build makes, or a --policy-dir of them")
    bundles = [load_bundle(path) for path in options.policies]
    check_names(Wanted(bundle, Activation()) for bundle in bundles)
    return bundles


def _check_comparison(options: EcoOptions) -> None:
    """Nobody gets an answer without the guard who has no key, nor without leaving a line."""
    if not options.compare_answers:
        return
    needed = {"--eco-admin-key-file": options.admin_key_file, "--eco-audit-log": options.audit_log}
    if missing := [flag for flag, given in needed.items() if given is None]:
        raise LaunchError(f"--eco-compare-answers: gives answers without the guard; {' and '.join(missing)} is missing")


def _parse(vllm_args: Sequence[str]) -> Namespace:
    """vLLM's own parser and checks, their complaints as one line."""
    import yaml
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.exceptions import VLLMError
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            message = " ".join(message.split())
            raise LaunchError(f"{message}; the flags are those of vllm serve and of eco serve --help")

    named = {part.split("=")[0].lstrip("-").replace("-", "_") for part in vllm_args if part.startswith("--")}
    try:
        parser = make_arg_parser(Parser(prog="eco serve"))
        parser.set_defaults(shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        args: Namespace = parser.parse_args(list(vllm_args))
        args.subparser = "serve"
        args.api_key = _all_api_keys(vllm_args) or args.api_key
        if args.model_tag is not None:
            args.model = args.model_tag
        elif "model" not in named and not ("config" in named and args.model != _DEFAULT_MODEL):
            raise LaunchError("MODEL is missing: eco serve MODEL --policy DIR")
        validate_parsed_serve_args(args)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError, VLLMError) as error:
        raise LaunchError(" ".join(str(error).removeprefix("Error: ").split())) from error
    except yaml.YAMLError as error:
        raise LaunchError("--config: not valid YAML") from error
    return args


def _all_api_keys(vllm_args: Sequence[str]) -> list[str]:
    """The keys of every `--api-key`: of several, argparse keeps those of the last."""
    keys = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--api-key", "--api_key"):
        keys.add_argument(name, dest="keys", nargs="*", action="extend", default=[])
    return list(keys.parse_known_args(list(vllm_args))[0].keys)


def _bind_admin(options: EcoOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.admin_host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((options.admin_host, options.admin_port))
    except OSError as error:
        sock.close()
        raise LaunchError(
            f"--eco-admin-port: cannot listen on {options.admin_host}:{options.admin_port} ({error.strerror})"
        ) from error
    return sock


def _bind_public(args: Namespace) -> tuple[str, socket.socket]:
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.logger import configure_logging_from_args

    configure_logging_from_args(args)
    try:
        address, sock = setup_server(args, reuse_port=False)
    except OSError as error:
        where = args.uds or f"{args.host or 'any address'}, port {args.port}"
        raise LaunchError(f"--port: cannot listen on {where} ({error.strerror})") from error
    except KeyError as error:
        raise LaunchError(str(error.args[0])) from error
    return address, sock


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is loaded before the engine: it fails fast where the policies do not fit the model."""

    bundles: tuple[PolicyBundle, ...]
    folder: PolicyFolder | None
    loader: PolicyLoader
    wanted: tuple[Wanted, ...]


def _prepare(args: Namespace, bundles: Sequence[PolicyBundle], options: EcoOptions) -> _Prepared:
    # The guard's threads work in Python: what else the process does waits for a turn this long, not five milliseconds.
    sys.setswitchinterval(0.0005)
    folder = None if options.policy_dir is None else open_folder(options.policy_dir)
    loader = PolicyLoader.open(args, options.encoder_device)
    wanted = ActivePolicies.prepare(bundles, folder, loader)
    return _Prepared(tuple(bundles), folder, loader, wanted)


async def _run(
    args: Namespace,
    options: EcoOptions,
    prepared: _Prepared,
    public: tuple[str, socket.socket],
    admin_socket: socket.socket,
    front_end: FrontEnd,
) -> None:
    from gateway.answers import GuardedAnswers
    from gateway.engine import GuardedEngine, open_engine
    from gateway.protector import Protector, default_threads
    from gateway.selftest import run_self_test
    from gateway.studio.comparison import SideBySide, comparison_routes

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt("terminated")

    # Before the HTTP server has its own handlers, SIGTERM interrupts start-up, as in vLLM.
    signal.signal(signal.SIGTERM, interrupt)
    metrics = GuardMetrics(TenantLabels(options.tenants))
    audit = _audit(options, metrics, front_end.index)
    async with open_engine(args, front_end.client) as engine:
        dtype, rows = engine.model_config.dtype, prepared.loader.rows
        # A pool: the guard decodes in another thread than vLLM tokenizes in.
        tokenizer = engine.renderer.get_tokenizer()
        async with front_end.testing():
            scale = await run_self_test(engine, rows, vocab_size=min(rows.vocab_size, len(tokenizer)), dtype=dtype)
        keys = AdminKeys(options.admin_key_file)
        policies = ActivePolicies(
            prepared.bundles,
            prepared.folder,
            prepared.loader,
            args.served_model_name or [args.model],
            functools.partial(load_or_create_secret, options.secret_file),
            metrics,
            audit,
            keys.refresh,
        )
        policies.start(_guard_maker(args, options, prepared.loader, tokenizer, scale, dtype), prepared.wanted)
        protector = Protector(
            metrics,
            timeout_s=options.guard_timeout_s,
            queue_ms=options.guard_queue_ms,
            threads=options.guard_threads or default_threads(),
        )
        protector.start()
        traffic = Traffic()
        answers = GuardedAnswers(
            engine,
            protector,
            metrics,
            audit,
            eos=tokenizer.eos_token_id,
            decode=functools.partial(tokenizer.decode, skip_special_tokens=True),
            tells=options.tell_ended,
        )
        client = GuardedEngine(
            engine,
            protector,
            metrics,
            traffic,
            policies,
            audit,
            answers=answers,
            tracing=_tracing(args),
            refuse_steering=options.refuse_steering,
            allow_multimodal=options.allow_multimodal,
        )

        def unready_because() -> str | None:
            return traffic.closed_because or ("overloaded" if protector.is_overloaded else None)

        tenant_of = tenants_by(options.tenant_header, api_keys(args))

        def door(app: Any) -> FrontDoor:
            return FrontDoor(app, traffic, turned_away=lambda: metrics.turned_away("draining"), tenant_of=tenant_of)

        render, compares = _renderer(args, tokenizer), options.compare_answers
        side_by_side = SideBySide(client.generate, engine.generate, traffic, audit, tokenizer.decode)
        routes = [
            policy_routes(policies, protector, render, tokenizer.decode, front_end.all_have, compares=compares),
            comparison_routes(side_by_side if compares else None, render),
        ]
        metrics_text = functools.partial(front_end.metrics_text, metrics)
        check_health = functools.partial(front_end.check_health, client.check_health)
        admin = AdminServer(build_admin_app(routes, metrics_text, check_health, unready_because), keys)
        admin_task = asyncio.create_task(front_end.administer(admin, admin_socket, client.check_health))
        watch_task = asyncio.create_task(policies.watch(front_end.has))
        await front_end.all_tested()
        logger.info("guard: %d policies, self-test passed, row scale %g", len(policies.current.wanted), scale)
        audit.event("started", model=args.model, policies=policies.current.digest)
        try:
            shutdown = await _serve_http(client, args, door, *public, front_end.peer_loads)
            died = engine.errored and not traffic.is_draining  # one that is told to stop may look dead
        finally:
            watch_task.cancel()
            admin.should_exit = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(admin_task, _ADMIN_SHUTDOWN_S)
            protector.stop()
            policies.close()
            audit.event("stopped")
            audit.close()
    # As in vLLM: the HTTP server's shutdown is awaited after the engine's.
    await shutdown
    if died:  # vLLM ends as if it had been asked to, and what watches it would not start it again
        raise ServerDiedError("the engine died, and the server with it; what its last lines above say tells why")


def _guard_maker(
    args: Namespace, options: EcoOptions, loader: PolicyLoader, tokenizer: Any, scale: float, dtype: Any
) -> MakeGuard:
    """What makes a guard of policies, for the model that was started."""
    from vllm.renderers.chat_utils import load_chat_template

    from guard import Guard, decoder_of, template_of

    decode = decoder_of(tokenizer)
    template = template_of(tokenizer, load_chat_template(args.chat_template))

    def make(policies: Sequence[LoadedPolicy], secret: bytes) -> Guard:
        return Guard(
            policies,
            encoder=loader.encoder,
            decode=decode,
            template=template,
            rows=loader.rows,
            secret=secret,
            row_scale=scale,
            dtype=dtype,
            features=loader.features,
            answers=None if options.answers == "policy" else options.answers,
            watched=True,
        )

    return make


def _renderer(args: Namespace, tokenizer: Any) -> Render:
    """Text or messages as ids, for the admin address to try."""
    from vllm.renderers.chat_utils import load_chat_template

    chat_template = load_chat_template(args.chat_template)

    def render(said: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(said, str):
            return list(tokenizer.encode(said))
        try:
            return list(
                tokenizer.apply_chat_template(
                    said, chat_template=chat_template, add_generation_prompt=True, return_dict=False
                )
            )
        except Exception as error:  # a template is a program, and fails as it likes
            raise ValueError(str(error)) from error

    return render


def _tracing(args: Namespace) -> Tracing:
    """Call once the engine has set up where spans go."""
    if args.otlp_traces_endpoint is None:
        return Tracing()
    from vllm.exceptions import VLLMClientError

    return SpanTracing(VLLMClientError)


def _audit(options: EcoOptions, metrics: GuardMetrics, front_end: int) -> Audit:
    if options.audit_log is None:
        return Audit()
    path = options.audit_log
    if front_end:  # a file of its own: they are rotated by who writes them
        path = path.with_name(f"{path.stem}-{front_end}{path.suffix}")
    return AuditFile(
        path,
        max_bytes=options.audit_max_mb << 20,
        backups=options.audit_files,
        secret=load_or_create_secret(options.secret_file),
        lost=metrics.audit_lost,
        keeps_text=options.audit_prompts,
    )


def keep_alive_s() -> int:
    """How long an idle connection is kept: `VLLM_HTTP_TIMEOUT_KEEP_ALIVE`, or longer than clients do."""
    from vllm import envs

    return envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE if envs.is_set("VLLM_HTTP_TIMEOUT_KEEP_ALIVE") else _KEEP_ALIVE_S


async def _serve_http(
    client: Any,
    args: Namespace,
    door: Callable[[Any], FrontDoor],
    address: str,
    sock: socket.socket,
    peer_loads: tuple[Any, int] | None,
) -> Any:
    """vLLM's `build_and_serve`, with our front door and our authentication around its application."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import serve_http
    from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config

    tasks = await client.get_supported_tasks()
    if "generate" not in tasks:
        raise LaunchError(f"{args.model}: not a generating model (it supports {', '.join(tasks)})")
    app = build_app(args, tasks, client.model_config)
    # Around the finished stack: vLLM's last step has built it, and then nothing can be added.
    app.middleware_stack = door(app.middleware_stack or app.build_middleware_stack())
    authenticate_every_route(app, args)
    await init_app_state(client, app.state, args, tasks)
    logger.info("guarded server listening on %s", address)
    return await serve_http(
        app,
        sock=sock,
        enable_ssl_refresh=args.enable_ssl_refresh,
        peer_loads=peer_loads,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_graceful_shutdown=_HTTP_SHUTDOWN_TIMEOUT_S,
        timeout_keep_alive=keep_alive_s(),
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
        log_config=uvicorn_config(get_uvicorn_log_config(args)),
    )
