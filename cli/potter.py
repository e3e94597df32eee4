"""`eco potter`: the steps of Who's Harry Potter, each a job of its own that can be interrupted and gone on with."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click

from cli.launcher import rank
from cli.options import DeferredCommand, JobCommand, collect, config_options, names_of, options_of
from cli.unlearn import training_command

__all__ = ["potter"]

#: `offline_training.potter.presets` has the settings; the names are needed before it is imported.
_PRESETS = ("hp",)

_TEXT = "The text to forget: FILE.txt, a folder of them, a table with a column of texts, or hf:name."
_ANCHORS_HELP = {
    "text": _TEXT,
    "out": "File to write: anchors.json.",
    "file": "A dictionary of one's own, JSON or YAML: term to generic term.",
    "ner": "A token-classification model, folder or hub id, that finds the names; generic ones are invented.",
    "endpoint": "An OpenAI-compatible server that is asked for terms and translations: http://localhost:8000/v1.",
    "endpoint_model": "The server's model; None: the first that it lists.",
    "cache": "Folder for the server's replies; None: beside --out. An interrupted job asks for the missing ones only.",
    "concurrency": "Requests at once.",
    "timeout_s": "Longest wait for one reply, in seconds.",
    "passage_characters": "Longest passage that a model is given.",
    "min_occurrences": "Names that --ner finds more rarely are no anchors.",
    "seed": "Decides which invented name goes where.",
    "force": "Replace --out.",
}
_LABELS_HELP = {
    "model": "The baseline, which is to forget: a folder or a hub id.",
    "reinforced": "What eco potter reinforce made of it.",
    "anchors": "What eco potter anchors wrote, or a dictionary of one's own.",
    "text": _TEXT,
    "out": "Folder for the labels.",
    "alpha": "Weight of what the reinforced model adds; 5 as published.",
    "context_tokens": "Longest block of text; 512 as published.",
    "max_tokens": "Labels for about so many tokens from the text's start; None: for all of it.",
    "given_penalty": "Nats that the start of a translation loses once its anchor has been read.",
    "precision": "auto: bf16 on a GPU that has it, fp32 elsewhere.",
    "batch_tokens": "Tokens in one forward.",
    "part_blocks": "Blocks that an interrupted job may have to compute again.",
    "resume": "Go on where an interrupted run of the same job stopped.",
    "force": "Replace what --out holds.",
}


class _InOrder(click.Group):
    """Lists its commands in the order in which they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_InOrder)
def potter() -> None:
    """Who's Harry Potter: make a model forget a text (Eldan and Russinovich 2023, arXiv 2310.02238).

    reinforce, anchors, labels and unlearn are run in this order; the text may be any.
    """


def _step(name: str, short_help: str) -> Callable[[Callable[[], click.Command]], None]:
    """Add a step to the group; its command is made when it is called."""
    return lambda make: potter.add_command(DeferredCommand(name, make, short_help=short_help))


@_step("reinforce", "1. Train the model further on the text.")
def _reinforce() -> click.Command:
    from offline_training.settings import FinetuneJob

    def run(job: FinetuneJob, console: Any) -> None:
        from offline_training.job import run_finetuning

        run_finetuning(job, console=console)

    command = training_command(
        "reinforce",
        FinetuneJob,
        run,
        help_text="Step 1: train the model further on the text, so that it shows what it would say of it.",
        leave_out=("from_scratch",),
        presets=_PRESETS,
        preset=lambda name, tells: _preset(name, "reinforce", tells),
    )
    # As the other steps call it.
    next(option for option in command.params if option.name == "data").opts.append("--text")
    return command


@_step("anchors", "2. A dictionary from the text's own terms to generic ones.")
def _anchors() -> click.Command:
    from offline_training.potter.anchors import AnchorOptions, find_anchors

    return _from_dataclass(
        "anchors",
        AnchorOptions,
        _ANCHORS_HELP,
        find_anchors,
        help_text="Step 2: a dictionary from the text's own terms to generic ones: your own, by a model that "
        "recognises names, or by asking a language model. Read it before the next step.",
    )


@_step("labels", "3. What a model that never read the text would have said.")
def _labels() -> click.Command:
    from offline_training.potter.labels import LabelOptions, make_labels

    return _from_dataclass(
        "labels",
        LabelOptions,
        _LABELS_HELP,
        make_labels,
        help_text="Step 3: for each token of the text, what a model that never read it would have said.",
        presets=_PRESETS,
    )


def _from_dataclass(
    name: str,
    options_class: type,
    help_texts: Mapping[str, str],
    run: Callable[[Any, Any], object],
    *,
    help_text: str,
    presets: Collection[str] = (),
) -> JobCommand:
    """A step in this process. Its options are a dataclass: a schema with the same fields judges flags and files."""
    import dataclasses
    import typing

    from pydantic import ConfigDict, Field, create_model

    kinds = typing.get_type_hints(options_class)
    defaults = {field.name: field.default for field in dataclasses.fields(options_class)}
    fields: dict[str, Any] = {
        field: (kinds[field], Field(... if default is dataclasses.MISSING else default, description=help_texts[field]))
        for field, default in defaults.items()
    }
    schema = create_model(options_class.__name__, __config__=ConfigDict(extra="forbid", frozen=True), **fields)
    flags = options_of(schema, "Job")

    def start(**options: Any) -> None:
        from rich.console import Console

        preset = options.pop("preset", None)
        settings = {} if preset is None else _preset(preset, name, rank() == 0)
        values = collect(options, names_of(flags), options.pop("config"), settings)
        run(options_class(**values.build(schema).model_dump()), Console(stderr=True))

    return JobCommand(name, params=[*flags, *config_options(presets)], callback=start, help=help_text)


@_step("unlearn", "4. Train the baseline on these labels.")
def _unlearn() -> click.Command:
    from pydantic import Field, create_model

    from offline_training.settings import Job

    description = "Folder that eco potter labels wrote."
    return training_command(
        "unlearn",
        create_model("PotterJob", __base__=Job, labels=(Path, Field(description=description))),
        _train_on_labels,
        help_text="Step 4: train the baseline on the generic labels.",
        presets=_PRESETS,
        preset=lambda name, tells: _preset(name, "unlearn", tells),
    )


def _train_on_labels(job: Any, console: Any) -> None:
    import json

    from offline_training.checkpoint import open_checkpoint
    from offline_training.data.encoding import EncodedSet, digest_of
    from offline_training.errors import DataError
    from offline_training.job import run_prepared
    from offline_training.potter.labels import META_FILE, load_labels
    from offline_training.preparation import job_encoder

    # A block whose anchors are all repetitions has no label at all.
    examples = tuple(example for example in load_labels(job.labels) if example.target_count)
    base = open_checkpoint(job.model)
    meta = json.loads((job.labels / META_FILE).read_text(encoding="utf-8"))
    made_for = meta.get("key", {}).get("model")
    if made_for != base.digest:
        raise DataError(
            f"--labels: {job.labels}: made for another model than {job.model}; give the baseline as --model"
        )
    labels = EncodedSet(
        name="labels", source=str(job.labels), digest=digest_of(examples), examples=examples, texts=(), cut=0
    )
    run_prepared(job, labels, base, job_encoder(job, base), console=console)


def _preset(name: str, step: Any, tells: bool) -> dict[str, Any]:
    """A step's settings; `tells` whether what this machine cannot do is said."""
    import torch

    from offline_training.potter.presets import preset

    notify: Callable[[str], None] = (lambda text: click.echo(text, err=True)) if tells else (lambda _: None)
    return preset(name, step, cuda=torch.cuda.is_available(), notify=notify)
