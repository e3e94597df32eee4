"""`eco potter`: the steps of Who's Harry Potter, each a job of its own that can be interrupted and gone on with."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import click

from cli.launcher import rank
from cli.options import DeferredCommand, JobCommand, collect, config_options, names_of, options_of
from cli.unlearn import finetune, training_command

if TYPE_CHECKING:
    from pydantic import BaseModel


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
    from offline_training.potter.presets import PRESETS
    from offline_training.settings import FinetuneJob

    command = training_command(
        "reinforce",
        FinetuneJob,
        finetune,
        help_text="Step 1: train the model further on the text, so that it shows what it would say of it.",
        leave_out=("from_scratch",),
        presets=PRESETS,
        preset=lambda name, tells: _preset(name, "reinforce", tells),
    )
    # As the other steps call it.
    next(option for option in command.params if option.name == "data").opts.append("--text")
    return command


@_step("anchors", "2. A dictionary from the text's own terms to generic ones.")
def _anchors() -> click.Command:
    from offline_training.potter.anchors import AnchorOptions, find_anchors

    return _command(
        "anchors",
        AnchorOptions,
        find_anchors,
        help_text="Step 2: a dictionary from the text's own terms to generic ones: your own, by a model that "
        "recognises names, or by asking a language model. Read it before the next step.",
    )


@_step("labels", "3. What a model that never read the text would have said.")
def _labels() -> click.Command:
    from offline_training.potter.labels import LabelOptions, make_labels
    from offline_training.potter.presets import PRESETS

    help_text = "Step 3: for each token of the text, what a model that never read it would have said."
    return _command("labels", LabelOptions, make_labels, help_text=help_text, presets=PRESETS)


def _command(
    name: str,
    schema: "type[BaseModel]",
    run: Callable[[Any, Any], object],
    *,
    help_text: str,
    presets: Collection[str] = (),
) -> JobCommand:
    """A step that runs in this process, with a flag for each setting."""
    flags = options_of(schema, "Job")

    def start(**options: Any) -> None:
        from rich.console import Console

        preset = options.pop("preset", None)
        settings = {} if preset is None else _preset(preset, name, rank() == 0)
        values = collect(options, names_of(flags), options.pop("config"), settings)
        run(values.build(schema), Console(stderr=True))

    return JobCommand(name, params=[*flags, *config_options(presets)], callback=start, help=help_text)


@_step("unlearn", "4. Train the baseline on these labels.")
def _unlearn() -> click.Command:
    from offline_training.potter.presets import PRESETS
    from offline_training.potter.training import LabelJob, train_on_labels

    return training_command(
        "unlearn",
        LabelJob,
        train_on_labels,
        help_text="Step 4: train the baseline on the generic labels.",
        presets=PRESETS,
        preset=lambda name, tells: _preset(name, "unlearn", tells),
    )


def _preset(name: str, step: Any, tells: bool) -> dict[str, Any]:
    """A step's settings; `tells` whether what this machine cannot do is said."""
    import torch

    from offline_training.potter.presets import preset

    notify: Callable[[str], None] = (lambda text: click.echo(text, err=True)) if tells else (lambda _: None)
    return preset(name, step, cuda=torch.cuda.is_available(), notify=notify)
