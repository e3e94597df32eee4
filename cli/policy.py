"""`eco policy`: build and inspect policies."""

from pathlib import Path
from typing import Any

import click

from cli.classifier import calibration_options, calibration_settings
from cli.corruption import scorer_options, search_options, search_settings
from cli.options import COUNT, PATH, SectionedCommand, filled, option_group
from cli.policy_service import activate, delete, listed, push, rollback, try_prompt
from sources.presets.names import TASKS


@click.group()
def policy() -> None:
    """Build and inspect policies, and bring them into service."""


for command in (push, listed, activate, rollback, delete, try_prompt):
    policy.add_command(command)


_examples = option_group(
    click.option("--model", default=None, help="The model to be served: a hub id or a folder."),
    click.option("--forget", default=None, type=PATH, help="JSON lines: what must be forgotten."),
    click.option("--retain", default=None, type=PATH, help="JSON lines: what must stay."),
    click.option("--out", default=None, type=PATH, help="Folder to write the policy to."),
    click.option(
        "--task", default=None, type=click.Choice(TASKS), help="A published task instead of --forget, --retain."
    ),
    click.option("--task-data", default=None, type=PATH, help="Folder with the task's files.  [default: the hub]"),
    click.option("--dry-run", is_flag=True, help="Print what --task would read and how it would be divided, and stop."),
    section="What it is built from",
)
_augmentation = option_group(
    click.option(
        "--augment-with", default=None, help="OpenAI-compatible server whose model writes paraphrases and aliases."
    ),
    click.option("--augment-model", default=None, help="Its model.  [default: the first it lists]"),
    click.option("--augment-per-example", default=3, show_default=True, type=COUNT),
    section="More phrasings, by a served model",
)
_classifier = option_group(
    click.option(
        "--classifier",
        "classifier_kind",
        default="head",
        show_default=True,
        help="head (on the shared encoder), finetuned (an encoder of its own), or a folder made by eco classifier.",
    ),
    click.option(
        "--encoder",
        default=None,
        help="Hub id or folder the classifier is trained on.  [default: sentence-transformers/all-MiniLM-L6-v2]",
    ),
    calibration_options,
    click.option(
        "--token-classifier",
        default=None,
        help="NER model (hub id or folder) for --scope entities.  [default: the names in the examples]",
    ),
    click.option("--strict", is_flag=True, help="Stop where the classifier misjudges any example."),
    section="The classifier: which prompts are flagged",
)
_corruption = option_group(
    click.option("--strength", default=None, type=float, help="Corruption strength.  [default: searched]"),
    click.option("--retain-model", default=None, help="A model that never saw the forget set, as the search's target."),
    search_options,
    section="The corruption: what is done to them",
)
_runner = option_group(scorer_options, section="How the model is run for the search")
_behaviour = option_group(
    click.option("--name", default=None, help="Name of the policy.  [default: the folder's name]"),
    click.option("--action", default="corrupt", show_default=True, type=click.Choice(["corrupt", "observe", "refuse"])),
    click.option(
        "--answers",
        default="restart",
        show_default=True,
        type=click.Choice(["restart", "end", "observe", "off"]),
        help="What becomes of an answer that gives away what must be forgotten: from a corrupted prompt, or no "
        "further.",
    ),
    click.option("--on-error", default="reject", show_default=True, type=click.Choice(["reject", "corrupt"])),
    section="What the policy does when it serves",
)
_course = option_group(
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0)),
    click.option("--force", is_flag=True, help="Replace the folder if it holds a policy."),
    click.option("--resume", is_flag=True, help="Go on with an interrupted build of the same options."),
    section="The build itself",
)
_EXAMPLE = """\b
Example:
  eco policy build --model Qwen/Qwen2.5-7B-Instruct --forget forget.jsonl --retain retain.jsonl --out policies/people
  eco serve Qwen/Qwen2.5-7B-Instruct --policy policies/people"""


@policy.command("build", cls=SectionedCommand, epilog=_EXAMPLE)
@_examples
@_augmentation
@_classifier
@_corruption
@_runner
@_behaviour
@_course
def policy_build(**options: Any) -> None:
    """Train the prompt classifier, search the corruption, and write a policy folder.

    What it is built from is either --forget and --retain or --task. The first group and nothing else is needed; all
    other options have defaults that the build finds or that suit. The report in the folder says what was measured.
    """
    search = search_settings(options)
    if options["dry_run"]:
        from sources.presets.plan import plan_task

        if options["task"] is None:
            raise click.UsageError("--dry-run: prints the plan of a --task; name one")
        click.echo(plan_task(options["task"], options["task_data"], options["seed"]).describe())
        return
    for needed in ("model", "out"):
        if options[needed] is None:
            raise click.UsageError(f"Missing option '--{needed}'.")
    from rich.console import Console

    from classifiers import DEFAULT_ENCODER
    from optimizer import BuildOptions, ClassifierOptions, InputOptions, ScorerOptions, build_policy
    from optimizer.findings import next_steps

    kind = options["classifier_kind"]
    existing = None if kind in ("head", "finetuned") else Path(kind)
    classifier = ClassifierOptions(
        kind="head" if existing else kind,
        existing=existing,
        encoder=options["encoder"] or DEFAULT_ENCODER,
        calibration=calibration_settings(options),
        token_classifier=options["token_classifier"],
    )
    settings = filled(
        BuildOptions,
        options,
        inputs=filled(InputOptions, options),
        classifier=classifier,
        search=search,
        scoring=filled(ScorerOptions, options),
    )
    console = Console()
    bundle = build_policy(settings, console=console)
    console.print(f"policy [bold]{bundle.config.name}[/bold] written to {bundle.path}  digest {bundle.digest[:12]}")
    console.print("\n".join(next_steps(options["model"], bundle.path)), highlight=False, soft_wrap=True, markup=False)


@policy.command("verify")
@click.argument("path", type=PATH)
@click.option("--model", default=None, help="Also check that the policy belongs to this model.")
def policy_verify(path: Path, model: str | None) -> None:
    """Check a policy's files, schema and, with --model, that it belongs to a model."""
    from guard import PolicyMismatchError, load_bundle

    bundle = load_bundle(path)
    if model is not None:
        from corruption import EmbeddingRows

        if EmbeddingRows.open(model).digest() != bundle.config.model.embedding_digest:
            raise PolicyMismatchError(
                f"{path}: model.embedding_digest: built for {bundle.config.model.name}, "
                f"not for {model}; build the policy for this model"
            )
    click.echo(f"{path}: ok  {bundle.config.name} {bundle.config.version}  digest {bundle.digest}")


@policy.command("show")
@click.argument("path", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="All of policy.yaml and report.json, and the digest, as JSON.")
def policy_show(path: Path, as_json: bool) -> None:
    """Print a policy on a page: what it does, what was measured, what that guarantees."""
    import json

    from guard import load_bundle
    from guard.page import page_of

    bundle = load_bundle(path)
    if as_json:
        config = bundle.config.model_dump(mode="json")
        everything = {"digest": bundle.digest, "policy": config, "report": bundle.report}
        click.echo(json.dumps(everything, indent=2, ensure_ascii=False))
        return
    click.echo("\n".join(page_of(bundle)))


@policy.command("report")
@click.argument("path", type=PATH)
@click.option("--out", default=None, type=PATH, help="File to write.  [default: PATH's name with .html, here]")
@click.option("--force", is_flag=True, help="Replace the file.")
def policy_report(path: Path, out: Path | None, force: bool) -> None:
    """Write a policy as one HTML file with its plots, which needs nothing else to be read."""
    from guard import BundleError, load_bundle
    from guard.page import html_of
    from storage.whole import write_whole

    bundle = load_bundle(path)
    out = out or Path(f"{path.resolve().name}.html")
    if out.exists() and not force:
        raise BundleError(f"--out: {out} already exists; choose another file or pass --force to replace it")
    try:
        write_whole(out, html_of(bundle))
    except OSError as error:
        raise BundleError(f"--out: {out} cannot be written ({error.strerror})") from error
    click.echo(f"report of policy {bundle.config.name} written to {out}")


@policy.command("evidence")
@click.argument("path", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder to write evidence.html into.")
@click.option(
    "--audit-log", "logs", multiple=True, type=PATH, help="Audit log of a server that served it; as often as needed."
)
@click.option("--run", "runs", multiple=True, type=PATH, help="Folder of an eco evaluate run; as often as needed.")
@click.option("--forget", default=None, type=PATH, help="Show the forget set in clear: the file it was built from.")
def policy_evidence(path: Path, out: Path, logs: tuple[Path, ...], runs: tuple[Path, ...], forget: Path | None) -> None:
    """Write one document for a legal or audit reader: what is forgotten, how well, since when, and what this is not.

    It is one HTML file that fetches nothing; print it to PDF to file it.
    """
    from evaluation.evidence.document import Sources, write_evidence
    from guard import load_bundle

    try:
        written = write_evidence(Sources(load_bundle(path), logs, runs, forget), out)
    except OSError as error:
        raise click.UsageError(f"--out: {out}: cannot be written ({error.strerror})") from error
    click.echo(f"{written}: written")
