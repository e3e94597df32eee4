"""The `eco` command. Subcommands import what they need when they run: `eco --help` stays instant."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from cli.classifier import classifier
from cli.corruption import corruption
from cli.evaluate import evaluate, report
from cli.launcher import record_failure
from cli.options import COUNT, PATH, DeferredCommand
from cli.policy import policy
from cli.potter import potter
from cli.unlearn import FINETUNE_HELP, finetune_command, unlearn
from console.errors import EcoError
from storage.places import config_dir


@click.group(context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="eco-gateway", prog_name="eco")
def eco() -> None:
    """ECO Gateway: vllm serve with a guard inside.

    A served model forgets, at inference time, what its policies say, and nothing else.
    """


@eco.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "allow_interspersed_args": True,
    },
    options_metavar="MODEL [--policy DIR …] [--policy-dir DIR] [any vllm serve flag]",
)
@click.option("--policy", "policies", multiple=True, type=PATH, help="Policy folder to serve.")
@click.option(
    "--policy-dir",
    "policy_dir",
    default=None,
    help="Folder of policies, or s3://… and the like, watched: what is put there acts at once, and what is taken away "
    "does no more.",
)
@click.option(
    "--no-guard",
    "no_guard",
    is_flag=True,
    help="Plain vLLM instead, to compare with: takes no policies, guards nothing.",
)
@click.option(
    "--eco-secret-file",
    "secret_file",
    type=PATH,
    envvar="ECO_SECRET_FILE",
    default=lambda: config_dir() / "secret",
    show_default="~/.config/eco-gateway/secret",
    help="Noise secret, made on first use; the same on all replicas.",
)
@click.option(
    "--eco-admin-host", "admin_host", default="127.0.0.1", show_default=True, help="Address of metrics and admin API."
)
@click.option("--eco-admin-port", "admin_port", default=8001, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--eco-admin-key-file",
    "admin_key_file",
    default=None,
    type=PATH,
    envvar="ECO_ADMIN_KEY_FILE",
    help="Keys of the admin API, one a line; needed where it is open to other machines.",
)
@click.option(
    "--eco-tenant-header",
    "tenant_header",
    default=None,
    help="Header by which a trusted proxy says whose a request is.  [default: its API key]",
)
@click.option(
    "--eco-tenant",
    "tenants",
    multiple=True,
    metavar="NAME",
    help="A tenant that metrics count by name, as those that activations name; may be repeated, 100 in all.",
)
@click.option("--eco-audit-log", "audit_log", default=None, type=PATH, help="File of the audit log, lines of JSON.")
@click.option(
    "--eco-audit-max-mb", "audit_max_mb", default=100, show_default=True, type=COUNT, help="It is rotated at this size."
)
@click.option(
    "--eco-audit-files",
    "audit_files",
    default=10,
    show_default=True,
    type=click.IntRange(min=0),
    help="Older files of it that are kept.",
)
@click.option("--eco-audit-prompts", "audit_prompts", is_flag=True, help="Write flagged prompts into it in clear.")
@click.option(
    "--eco-compare-answers",
    "compare_answers",
    is_flag=True,
    help="Let the admin address answer a prompt without the guard too, beside the guarded answer; each use is audited.",
)
@click.option(
    "--eco-log-format",
    "log_format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="What the lines of the log are; each says which request it came of.",
)
@click.option(
    "--eco-guard-timeout-s",
    "guard_timeout_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Longest wait for a short prompt's verdict, to which a long one's work is added; past it on_error decides.",
)
@click.option(
    "--eco-guard-queue-ms",
    "guard_queue_ms",
    default=5000.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Work that may run before a newcomer, in estimated milliseconds; where it is more, the newcomer is refused.",
)
@click.option(
    "--eco-guard-threads",
    "guard_threads",
    default=None,
    show_default="one for eight cores",
    type=click.IntRange(min=1),
    help="Prompts classified at the same time.",
)
@click.option(
    "--eco-encoder-device",
    "encoder_device",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "cuda"]),
    help="Where prompt encoders run; cuda needs onnxruntime-gpu.",
)
@click.option(
    "--eco-answers",
    "answers",
    default="policy",
    show_default=True,
    type=click.Choice(["policy", "restart", "end", "observe", "off"]),
    help="What becomes of an answer that gives away what a policy forgets: what each policy says, or this for all.",
)
@click.option(
    "--eco-tell-ended",
    "tell_ended",
    is_flag=True,
    help="Such an answer ends with finish_reason content_filter, instead of reading like one that stopped.",
)
@click.option(
    "--eco-refuse-steering",
    "refuse_steering",
    is_flag=True,
    help="Refuse requests that say which tokens may come: structured outputs, forced tools, allowed tokens, biases.",
)
@click.option(
    "--eco-allow-multimodal",
    "allow_multimodal",
    is_flag=True,
    help="Classify the text of multimodal prompts and refuse flagged ones (needs --eco-allow-untested).",
)
@click.option(
    "--eco-allow-untested", "allow_untested", is_flag=True, help="Allow vLLM features that no test covers with a guard."
)
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED, metavar="")
def serve(vllm_args: tuple[str, ...], **options: Any) -> None:
    """Serve MODEL with vLLM's OpenAI-compatible API, guarded by policies.

    Every other flag goes to vLLM's serve command as it is; those that would go around the guard are refused.
    """
    if not vllm_args:
        raise click.UsageError("MODEL is missing: eco serve MODEL --policy DIR")
    given = bool(options["policies"]) or options["policy_dir"] is not None
    if "--headless" in vllm_args and (given or options["no_guard"]):
        flag = "--no-guard" if options["no_guard"] else "--policy and --policy-dir"
        raise click.UsageError(
            f"--headless: a node of workers alone has no guard, the first node has it; leave {flag} out"
        )
    if options["no_guard"] and given:
        raise click.UsageError("--no-guard: takes no --policy and no --policy-dir; leave one of them out")
    if not (options["no_guard"] or given or "--headless" in vllm_args):
        raise click.UsageError(
            "--policy or --policy-dir: is missing; eco policy build makes a policy, --no-guard does without"
        )
    from gateway.launch import EcoOptions
    from gateway.launch import serve as run

    run(vllm_args, EcoOptions(**options))


eco.add_command(classifier)
eco.add_command(corruption)
eco.add_command(policy)
eco.add_command(unlearn)
eco.add_command(DeferredCommand("finetune", finetune_command, short_help=FINETUNE_HELP))
eco.add_command(potter)
eco.add_command(evaluate)
eco.add_command(report)


@eco.command()
@click.option("--once", is_flag=True, help="Stop after the table.")
@click.option("--streamed", is_flag=True, help="Read the servers' answers as streams.")
@click.option("--json", "json_file", default=None, type=PATH, help="Write table and figures here.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--admin-port", default=8001, show_default=True, type=click.IntRange(0, 65535))
@click.option("--cache-dir", default=None, type=PATH, help="Where world, models and policy stay.")
def demo(**options: Any) -> None:
    """Build a world, models and a policy, serve them guarded, and show what is forgotten."""
    from demo.run import DemoOptions, run_demo

    run_demo(DemoOptions(**options))


def _fail(message: str, code: int) -> NoReturn:
    """One line for the user; a launcher's workers leave it to the process that started the launcher."""
    text = f"eco: error: {' '.join(message.split())}"
    if not record_failure(text, code):
        click.echo(text, err=True)
    sys.exit(code)


def main(args: Sequence[str] | None = None) -> None:
    """Run `eco`: exit code 2 and one line where input or surroundings are wrong, 130 on Ctrl-C."""
    try:
        eco.main(args=list(args) if args is not None else None, prog_name="eco", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except EcoError as error:
        _fail(str(error), 2)
