"""Run the same command in several processes: `--launcher accelerate|torchrun|ray --processes N`.

The command checks its flags, then starts the launcher, which starts N times the same command; those see from the
environment that they are workers. Signals go down to the workers, the workers' exit code comes back up, and the reason
of a failure is printed once, however many workers found it.
"""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli.options import JobOption, raw_arguments

#: Set for workers: the folder in which they leave the reason of their failure.
_WORKER_FOLDER = "ECO_LAUNCHER_FAILURES"

_SECTION = "Several processes"


@dataclass(frozen=True)
class LaunchOptions:
    """Which launcher, how many processes on this machine, and the launcher's own arguments."""

    launcher: str
    processes: int
    arguments: tuple[str, ...] = ()


def launcher_options() -> list[click.Option]:
    """The options that `take_launch` takes."""
    return [
        JobOption(
            ["--launcher"],
            type=click.Choice(["accelerate", "torchrun", "ray"]),
            help="Run in several processes, started by this launcher (ray must be installed: extra ray).",
            section=_SECTION,
        ),
        JobOption(
            ["--processes"],
            type=click.IntRange(min=1),
            help="How many on this machine (ray: in the cluster); on GPUs one for each.",
            section=_SECTION,
        ),
        JobOption(
            ["--launcher-args"],
            default="",
            help="More arguments for it, in quotes: '--nnodes 2 --rdzv-endpoint …', '--use_deepspeed …'.",
            section=_SECTION,
        ),
    ]


def take_launch(options: dict[str, Any]) -> LaunchOptions | None:
    """Remove the launcher's options from `options`; None where this process is to do the work itself.

    Raises:
        SettingsError: they do not fit together, or ray is not installed.
    """
    from offline_training.errors import SettingsError

    launcher, processes, text = (options.pop(name) for name in ("launcher", "processes", "launcher_args"))
    if _WORKER_FOLDER in os.environ:
        return None
    if launcher is None:
        for name, value in (("--processes", processes), ("--launcher-args", text)):
            if value:
                raise SettingsError(f"{name}: needs --launcher accelerate, torchrun or ray")
        return None
    if processes is None:
        raise SettingsError(f"--processes: is missing; say how many {launcher} is to start")
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as error:
        raise SettingsError(f"--launcher-args: {text!r}: {error}") from error
    if launcher == "ray":
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("--launcher ray: ray is not installed; pip install 'ray[train]', or use torchrun")
        if arguments:
            raise SettingsError("--launcher-args: ray takes none; RAY_ADDRESS names the cluster")
    return LaunchOptions(launcher, processes, arguments)


def run_or_launch(ctx: click.Context, options: LaunchOptions | None, run: Callable[[Any], None]) -> None:
    """Run a job with a console, or start the launcher and exit with its code."""
    if options is not None:
        sys.exit(launch(options, raw_arguments(ctx)))
    from rich.console import Console

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        # Where several processes share no accelerator, accelerate has to be told so: it then joins them with gloo.
        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
    run(Console(stderr=True, quiet=rank() != 0))


def rank() -> int:
    """The number of this process among those that a launcher started; 0 where there is none."""
    return int(os.environ.get("RANK", "0"))


def launch(options: LaunchOptions, arguments: Sequence[str], module: str = "cli") -> int:
    """Run `python -m module arguments` in every process; the exit code, and on stderr why the lowest rank failed.

    Ctrl-C and SIGTERM reach the workers, which may end in good order; a second one ends everything at once.
    """
    with tempfile.TemporaryDirectory(prefix="eco-launch-") as folder:
        environment = {**os.environ, _WORKER_FOLDER: folder}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // options.processes)))
        if options.launcher == "ray":
            code = _ray(options, arguments, module, environment)
        else:
            code = _supervise(_command(options, arguments, module), environment)
        failures = sorted(Path(folder).glob("*.json"))
        if not failures:
            return code
        failure = json.loads(failures[0].read_text(encoding="utf-8"))
        click.echo(failure["text"], err=True)
        return int(failure["code"])


def _command(options: LaunchOptions, arguments: Sequence[str], module: str) -> list[str]:
    if options.launcher == "torchrun":
        joins_machines = any(
            argument.replace("_", "-").startswith(("--nnodes", "--rdzv", "--master", "--standalone"))
            for argument in options.arguments
        )
        # --standalone takes a free port, so that two jobs of one machine do not meet.
        own = [] if joins_machines else ["--standalone"]
        launcher = ["torch.distributed.run", *own, f"--nproc-per-node={options.processes}"]
    else:
        given = {argument.partition("=")[0].replace("-", "_").lstrip("_") for argument in options.arguments}
        kinds = {"config_file", "cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm"}
        defaults = {"mixed_precision": "no", "dynamo_backend": "no"}
        if "num_machines" not in given:  # port 0 is a free one, so that two jobs of one machine do not meet
            defaults |= {"num_machines": "1", "main_process_port": "0"}
        own = [f"--{name}={value}" for name, value in defaults.items() if not given & {name, "config_file"}]
        if options.processes > 1 and not given & kinds:
            # Its word for "several processes that torch joins", with or without GPUs; it refuses the word for one.
            own.append("--multi_gpu")
        launcher = ["accelerate.commands.launch", f"--num_processes={options.processes}", *own]
    # After -m both launchers take everything as the module's: no argument of a job is mistaken for theirs.
    worker = ["-m", "cli.launched", module, *arguments]
    return [sys.executable, "-m", "cli.launched", *launcher, *options.arguments, *worker]


def _supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launcher, with the signals to this process sent on; the second one as SIGKILL, which its workers follow."""
    # In a session of its own the launcher gets a Ctrl-C once, from here, and not a second time from the terminal.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    received = 0

    def forward(number: int, _: Any) -> None:
        nonlocal received
        received += 1
        if process.poll() is None:
            os.kill(process.pid, number if received == 1 else signal.SIGKILL)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def record_failure(text: str, code: int) -> bool:
    """In a worker: leave the reason of a failure for the process that started the launcher. False elsewhere."""
    folder = os.environ.get(_WORKER_FOLDER)
    if folder is None or not Path(folder).is_dir():  # another machine's, under ray
        return False
    work = Path(folder) / f".{os.getpid()}"
    work.write_text(json.dumps({"rank": rank(), "text": text, "code": code}), encoding="utf-8")
    work.rename(Path(folder) / f"{rank():06d}.json")
    return True


def _ray(options: LaunchOptions, arguments: Sequence[str], module: str, environment: Mapping[str, str]) -> int:
    import ray
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    names = (_WORKER_FOLDER, "OMP_NUM_THREADS")
    settings = {
        "folder": str(Path.cwd()),
        "module": module,
        "arguments": list(arguments),
        "environment": {name: environment[name] for name in names},
    }
    try:
        ray.init()
        has_gpu = ray.cluster_resources().get("GPU", 0) > 0  # this machine may be the one that has none
        TorchTrainer(
            ray_worker,
            train_loop_config=settings,
            torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=options.processes, use_gpu=has_gpu),
        ).fit()
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 (ray wraps what its workers raise)
        if not any(Path(environment[_WORKER_FOLDER]).glob("*.json")):
            click.echo(f"eco: error: ray: {' '.join(str(error).split())[:500]}", err=True)
        return 1
    return 0


def ray_worker(settings: dict[str, Any]) -> None:
    """One worker under ray, which has set RANK and joined the processes before it calls this."""
    import runpy

    os.chdir(settings["folder"])
    os.environ.update(settings["environment"])
    sys.argv = [settings["module"], *settings["arguments"]]
    try:
        runpy.run_module(settings["module"], run_name="__main__", alter_sys=False)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"a worker exited with code {stop.code}") from stop
