"""The examples a policy is built from: two files, or a task preset; and what a served model adds to them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from optimizer.errors import BuildError
from sources.examples import Example, check_disjoint, read_examples
from sources.presets.data import TEST_SETS
from sources.presets.plan import load_task, plan_task
from storage.digests import sha256_of_file


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Where the examples come from: `forget` and `retain`, or `task`."""

    forget: Path | None = None
    retain: Path | None = None
    task: str | None = None
    task_data: Path | None = None
    augment_with: str | None = None
    """Base address of an OpenAI-compatible server; its model writes paraphrases and names aliases."""
    augment_model: str | None = None
    augment_per_example: int = 3


@dataclass(frozen=True)
class BuildInputs:
    """Forget and retain sets, sets that only judge, and where all of it came from.

    Attributes:
        rephrased: the forget set with the paraphrases a served model wrote, for the classifier alone.
        tests: name -> examples that are in no training or calibration set.
        provenance: digests and names for the bundle.
    """

    forget: list[Example]
    retain: list[Example]
    rephrased: list[Example]
    aliases: tuple[str, ...] = ()
    tests: Mapping[str, list[Example]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def read_inputs(options: InputOptions, seed: int, *, console: Console) -> BuildInputs:
    """Read the sets, check them against each other, and check that the server to augment them with answers.

    Raises:
        BuildError: neither or both of files and task are given.
        SourceError, AugmentationError: a set or the server cannot be had, or the sets overlap.
    """
    if options.task is None:
        if options.forget is None or options.retain is None:
            missing = "--forget" if options.forget is None else "--retain"
            raise BuildError(f"{missing}: give --forget and --retain, or --task")
        forget, retain = read_examples(options.forget), read_examples(options.retain)
        check_disjoint(forget, retain, forget_name=str(options.forget), retain_name=str(options.retain))
        digests = {"forget_sha256": sha256_of_file(options.forget), "retain_sha256": sha256_of_file(options.retain)}
        inputs = BuildInputs(forget, retain, forget, provenance=digests)
    elif options.forget is not None or options.retain is not None:
        raise BuildError("--task: it brings its own sets; leave out --forget and --retain")
    else:
        plan = plan_task(options.task, options.task_data, seed)
        data = load_task(plan)
        console.print(data.summary(), highlight=False)
        tests = {name: examples for name in TEST_SETS if (examples := getattr(data, name))}
        provenance = {
            "task": plan.name,
            "forget_sha256": _digest(data.forget),
            "retain_sha256": _digest(data.retain),
            "task_notes": list(data.notes),
        }
        inputs = BuildInputs(data.forget, data.retain, data.forget, tests=tests, provenance=provenance)
    if options.augment_with is not None:
        from optimizer.augmentation import served_model

        served_model(options.augment_with, options.augment_model)
    return inputs


def augment_inputs(
    inputs: BuildInputs, options: InputOptions, seed: int, folder: Path, console: Console
) -> BuildInputs:
    """The inputs with what a served model writes about them, where `augment_with` names one.

    Its replies are kept in `folder`, so that an interrupted build asks for none of them again.

    Raises:
        AugmentationError: the server fails for good.
    """
    if options.augment_with is None:
        return inputs
    from optimizer.augmentation import augment_examples

    made = augment_examples(
        options.augment_with,
        inputs.forget,
        options.augment_per_example,
        seed,
        folder / "replies.jsonl",
        model=options.augment_model,
        console=console,
    )
    # A paraphrase has the answer of its example: rephrasings stay together in cross-fitting.
    written = [Example(text, inputs.forget[index].answer) for index, text in made.paraphrases]
    console.print(
        f"{made.model} wrote {len(written)} paraphrases and named {len(made.aliases)} aliases", highlight=False
    )
    provenance = {
        "augmented_by": made.model,
        "paraphrases": len(written),
        "aliases": made.aliases,
        "paraphrases_sha256": _digest(written),
    }
    return replace(
        inputs,
        rephrased=[*inputs.forget, *written],
        aliases=tuple(made.aliases),
        provenance={**inputs.provenance, **provenance},
    )


def _digest(examples: list[Example]) -> str:
    return hashlib.sha256(repr(examples).encode()).hexdigest()
