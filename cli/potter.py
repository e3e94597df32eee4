"""`eco potter`: the steps of Who's Harry Potter, each a job of its own that can be interrupted and gone on with."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.job_options import (
    DeferredCommand,
    JobCommand,
    Values,
    collect,
    config_options,
    names_of,
    options_of,
)
from cli.launcher import LaunchOptions, launcher_options, run_or_launch, take_launch

if TYPE_CHECKING:
    from pydantic import BaseModel

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


def _reinforce() -> click.Command:
    from offline_training.settings import FinetuneJob, TrainingSettings

    fields = [
        *options_of(FinetuneJob, "Job", leave_out=("training", "from_scratch")),
        *options_of(TrainingSettings, "Training"),
    ]
    next(option for option in fields if option.name == "data").opts.append("--text")  # as the other steps call it
    known = names_of(fields)

    def run(ctx: click.Context, **options: Any) -> None:
        launching = take_launch(options)
        values = _values(options, known, "reinforce", launching)
        job = values.build(FinetuneJob, training=values.build(TrainingSettings))

        def start(console: Any) -> None:
            from offline_training.job import run_finetuning

            run_finetuning(job, console=console)

        run_or_launch(ctx, launching, start)

    return JobCommand(
        "reinforce",
        params=[*fields, *config_options(_PRESETS), *launcher_options()],
        callback=click.pass_context(run),
        help="Step 1: train the model further on the text, so that it shows what it would say of it.",
    )


def _anchors() -> click.Command:
    from offline_training.potter.anchors import AnchorOptions

    schema = _schema(AnchorOptions, _ANCHORS_HELP)
    fields = options_of(schema, "Job")

    def run(**options: Any) -> None:
        from rich.console import Console

        from offline_training.potter.anchors import find_anchors

        values = collect(options, names_of(fields), options.pop("config"))
        find_anchors(AnchorOptions(**values.build(schema).model_dump()), Console(stderr=True))

    return JobCommand(
        "anchors",
        params=[*fields, *config_options()],
        callback=run,
        help="Step 2: a dictionary from the text's own terms to generic ones: your own, by a model that recognises "
        "names, or by asking a language model. Read it before the next step.",
    )


def _labels() -> click.Command:
    from offline_training.potter.labels import LabelOptions

    schema = _schema(LabelOptions, _LABELS_HELP)
    fields = options_of(schema, "Job")

    def run(**options: Any) -> None:
        from rich.console import Console

        from offline_training.potter.labels import make_labels

        values = _values(options, names_of(fields), "labels", None)
        make_labels(LabelOptions(**values.build(schema).model_dump()), Console(stderr=True))

    return JobCommand(
        "labels",
        params=[*fields, *config_options(_PRESETS)],
        callback=run,
        help="Step 3: for each token of the text, what a model that never read it would have said.",
    )


def _unlearn() -> click.Command:
    from pydantic import Field, create_model

    from offline_training.settings import Job, TrainingSettings

    description = "Folder that eco potter labels wrote."
    schema = create_model("PotterJob", __base__=Job, labels=(Path, Field(description=description)))
    fields = [*options_of(schema, "Job", leave_out=("training",)), *options_of(TrainingSettings, "Training")]
    known = names_of(fields)

    def run(ctx: click.Context, **options: Any) -> None:
        launching = take_launch(options)
        values = _values(options, known, "unlearn", launching)
        job: Any = values.build(schema, training=values.build(TrainingSettings))
        run_or_launch(ctx, launching, lambda console: _train_on_labels(job, console))

    return JobCommand(
        "unlearn",
        params=[*fields, *config_options(_PRESETS), *launcher_options()],
        callback=click.pass_context(run),
        help="Step 4: train the baseline on the generic labels.",
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


def _schema(options: type, help_texts: Mapping[str, str]) -> "type[BaseModel]":
    """A pydantic model with the fields of a dataclass, so that flags and files are judged as they are elsewhere."""
    import dataclasses
    import typing

    from pydantic import ConfigDict, Field, create_model

    kinds = typing.get_type_hints(options)
    fields: dict[str, Any] = {
        field.name: (
            kinds[field.name],
            Field(
                ... if field.default is dataclasses.MISSING else field.default,
                description=help_texts[field.name],
            ),
        )
        for field in dataclasses.fields(options)
    }
    return create_model(options.__name__, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def _values(options: dict[str, Any], known: Any, step: Any, launching: LaunchOptions | None) -> Values:
    name = options.pop("preset")
    settings: dict[str, Any] = {}
    if name is not None:
        import torch

        from offline_training.potter.presets import preset

        told = launching is None and os.environ.get("RANK", "0") == "0"  # once, however many processes
        notify: Callable[[str], None] = (lambda text: click.echo(text, err=True)) if told else (lambda _: None)
        settings = preset(name, step, cuda=torch.cuda.is_available(), notify=notify)
    return collect(options, known, options.pop("config"), settings)


for _name, _make, _help in (
    ("reinforce", _reinforce, "1. Train the model further on the text."),
    ("anchors", _anchors, "2. A dictionary from the text's own terms to generic ones."),
    ("labels", _labels, "3. What a model that never read the text would have said."),
    ("unlearn", _unlearn, "4. Train the baseline on these labels."),
):
    potter.add_command(DeferredCommand(_name, _make, short_help=_help))
