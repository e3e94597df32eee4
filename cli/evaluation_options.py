"""The options that every suite of `eco evaluate` takes: what is evaluated, and where the run goes."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from cli.options import COUNT, PATH, filled, option_group

if TYPE_CHECKING:
    from rich.console import Console

    from evaluation.runs.run import RunOptions
    from evaluation.targets.options import TargetOptions

_AskerOf = Callable[..., Any]

_options = option_group(
    click.option(
        "--target",
        default=None,
        help="What is evaluated: the URL of an OpenAI-compatible server, or a model (hub id or folder).",
    ),
    click.option("--out", default=None, type=PATH, help="Folder for the run, in which the same command goes on."),
    click.option(
        "--policy",
        "policies",
        multiple=True,
        type=PATH,
        help="Policy folder to apply offline, as eco serve would; may be given several times.",
    ),
    click.option("--strength", default=None, type=float, help="Corruption strength instead of the policy's own."),
    click.option(
        "--secret-file",
        default=None,
        type=PATH,
        help="Noise secret of eco serve, for its very noise.  [default: a fixed one]",
    ),
    click.option(
        "--draws",
        default=None,
        type=COUNT,
        help="Noise draws with --policy.  [default: 3 with --policy, else 1]",
    ),
    click.option(
        "--answers",
        default=None,
        type=click.Choice(["served", "eco", "clean"]),
        help="What a policy does to given answers that are scored. served: corrupts them with the prompt, as eco "
        "serve; eco: as ECO's own code; clean: nothing.  [default: served]",
    ),
    click.option("--prompting", is_flag=True, help="The prompting baseline: tell the model to pretend not to know."),
    click.option("--prompt-prefix", default=None, help="What --prompting tells it."),
    click.option(
        "--prompt-subject",
        default=None,
        help='What --prompting tells it, in ECO\'s words, with this as the subject: "Wendell Fairlocke".',
    ),
    click.option(
        "--runner",
        default="transformers",
        show_default=True,
        type=click.Choice(["transformers", "vllm"]),
        help="What runs a model.",
    ),
    click.option(
        "--dtype", default=None, help="float32, bfloat16 …  [default: float32 on a CPU, else the checkpoint's]"
    ),
    click.option("--tensor-parallel-size", default=1, show_default=True, type=COUNT, help="vllm only."),
    click.option("--model", "served_model", default=None, help="The server's model.  [default: the one it lists]"),
    click.option(
        "--api-key-env", default="OPENAI_API_KEY", show_default=True, help="Environment variable with the server's key."
    ),
    click.option("--concurrency", default=32, show_default=True, type=COUNT, help="Requests in flight."),
    click.option(
        "--timeout-s",
        default=300.0,
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
        help="Of one request.",
    ),
    click.option("--retries", default=8, show_default=True, type=click.IntRange(min=0), help="Of one request."),
    click.option(
        "--generated-only",
        is_flag=True,
        help="Measure only what is generated: for servers without logprobs.",
    ),
    click.option("--label", default=None, help="The run's row in a report.  [default: after target and policy]"),
    click.option(
        "--kind",
        default=None,
        type=click.Choice(["original", "retain", "guarded", "prompting", "method", "other"]),
        help="What sort of row it is; say it of a server.  [default: by policy and the checkpoint's record, or other]",
    ),
    click.option("--retain-run", default=None, type=PATH, help="Run of the same suite on a model that never learned."),
    click.option(
        "--limit",
        default=None,
        type=COUNT,
        help="Examples of each set, drawn with --seed; choice: the first of each task.  [default: all]",
    ),
    click.option(
        "--seed", default=None, type=click.IntRange(min=0), help="[default: 0; choice: lm-evaluation-harness's own]"
    ),
    click.option("--force", is_flag=True, help="Replace the run in the folder."),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of targets and runs to a suite's command; it also gets `seed_given`."""

    @functools.wraps(command)
    def with_seed(**options: Any) -> Any:
        given = options["seed"] is not None
        return command(**options | {"seed": options["seed"] if given else 0, "seed_given": given})

    return _options(with_seed)


def run_suite_command(
    options: dict[str, Any],
    make: Callable[[_AskerOf], Any],
    *,
    needs_target: bool = True,
    wrap: Callable[[Any], Any] | None = None,
) -> Any:
    """Run a suite as the options of `run_options` say, print its figures, and return the run's record.

    Args:
        make: builds the suite. Takes what makes an asker of the model or server that an option of this name gives
            (a reference, a judge), or None where the option is not given.
        needs_target: whether the suite has nothing to measure without --target.
        wrap: what is put around the target; it is closed too.
    """
    from rich.console import Console

    from evaluation.runs.run import run_suite, show_run
    from evaluation.targets.options import DeferredTarget, NoTarget

    console = Console()
    measured = _measured(options) if options["target"] is not None or needs_target else None
    run = _run(options, measured, console)
    with ExitStack() as opened:

        def target_of(of: "TargetOptions", flag: str) -> Any:
            target = DeferredTarget(of, flag)
            opened.callback(target.close)
            return target

        target = NoTarget() if measured is None else target_of(measured, "--target")
        if wrap is not None:
            target = wrap(target)
            opened.callback(target.close)

        def make_suite(asker_of: Callable[[Any], Any]) -> Any:
            def named(option: str, **more: Any) -> Any:
                beside = _beside(options, option, **more)
                return None if beside is None else asker_of(target_of(beside, f"--{option.replace('_', '-')}"))

            return make(named)

        try:
            record = run_suite(make_suite, target, run, console)
        except KeyboardInterrupt:
            console.print(f"stopped; what was answered is in {run.out}, and the same command goes on", highlight=False)
            raise
    show_run(record, run.out, console)
    return record


def _measured(options: dict[str, Any]) -> "TargetOptions":
    """What is evaluated."""
    from evaluation.targets.options import TargetOptions

    if options["target"] is None:
        raise click.UsageError("Missing option '--target'.")
    return filled(TargetOptions, options, policies=tuple(options["policies"]), prompt_prefix=_told(options))


def _told(options: dict[str, Any]) -> str | None:
    """What the prompting baseline tells the model; None without one."""
    from evaluation.targets.options import ECO_PROMPT_PREFIX, PROMPT_PREFIX

    prefix: str | None = options["prompt_prefix"]
    if (subject := options["prompt_subject"]) is not None:
        if prefix is not None:
            raise click.UsageError("--prompt-subject: --prompt-prefix says what is told; leave one of them out")
        if not subject.strip():
            raise click.UsageError("--prompt-subject: empty; say what the model is to forget")
        return ECO_PROMPT_PREFIX.format(subject=subject.strip())
    return PROMPT_PREFIX if prefix is None and options["prompting"] else prefix


def _run(options: dict[str, Any], measured: "TargetOptions | None", console: "Console") -> "RunOptions":
    """Where the run goes, and what row of a table it is; of a policy alone where nothing else is measured."""
    from evaluation.runs.run import RunOptions
    from evaluation.targets.options import TargetRow, row_of

    row = TargetRow("policy", "guarded") if measured is None else row_of(measured)
    guarded = measured is not None and bool(measured.policies)
    if options["out"] is None:
        raise click.UsageError("Missing option '--out'.")
    draws = options["draws"] or (3 if guarded else 1)
    if draws > 1 and not guarded:
        raise click.UsageError("--draws: counts the noise draws of a policy; give --policy, or leave it out")
    if measured is not None and row.kind == "other" and options["kind"] is None:
        console.print(
            '--kind: a server does not say whether a guard is in it; this run stands as "other" in reports. Give '
            "--kind guarded, original or retain, and a --label, to say what it is",
            highlight=False,
            soft_wrap=True,
        )
    return filled(
        RunOptions,
        options,
        label=options["label"] or row.label,
        kind=options["kind"] or row.kind,
        method=row.method,
        strength=row.strength,
        draws=draws,
        reference=options["retain_run"],
    )


def _beside(options: dict[str, Any], option: str, **more: Any) -> "TargetOptions | None":
    """A judge or a reference that an option names, run like the target; None where it names none."""
    from evaluation.targets.options import TargetOptions

    if options[option] is None:
        return None
    same = {name: options[name] for name in ("runner", "dtype", "tensor_parallel_size", "concurrency")}
    return TargetOptions(target=options[option], answers="clean", **same, **more)  # nothing of theirs is corrupted
