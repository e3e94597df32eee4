"""The requests of a sequence, in the order in which they come: a policy each, and what it was to make forgotten."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from evaluation.errors import DataError
from evaluation.rows import answered_examples, read_rows
from guard import GuardError, load_bundle
from sources import SourceError
from sources.examples import Example, check_disjoint

_COLUMNS = ("policy", "forget")


@dataclass(frozen=True, slots=True)
class Addition:
    """One request: the policy folder that is added, and its forget file."""

    policy: Path
    forget: Path


@dataclass(frozen=True, slots=True)
class ForgetSequence:
    """What is asked at every step.

    Attributes:
        names: of the policies, in the order in which they are added.
        forget: the examples of each, with answers.
        retain: those that are to stay, with answers.
    """

    names: tuple[str, ...]
    forget: tuple[list[Example], ...]
    retain: list[Example]


def read_additions(source: Path) -> list[Addition]:
    """Rows with `policy` and `forget`, in order; relative paths are from the folder of the file.

    Raises:
        DataError: the source cannot be read, or a row lacks one of them; file and column are named.
    """
    found = []
    for where, row in read_rows(str(source), name="additions", columns=_COLUMNS):
        for column in _COLUMNS:
            if not isinstance(row.get(column), str) or not str(row[column]).strip():
                raise DataError(f"{where}: column {column}: found {row.get(column)!r}; expected a path")
        policy, forget = (source.parent / str(row[column]) for column in _COLUMNS)
        found.append(Addition(policy, forget))
    return found


def read_sequence(additions: Sequence[Addition], retain: Path, *, limit: int | None, seed: int) -> ForgetSequence:
    """The policies' names and the examples; nothing of a policy is loaded but its configuration.

    Raises:
        DataError: fewer than two additions, a folder that is no policy, a name that two policies have, a file that
            cannot be used, or a prompt in two of the sets.
    """
    if len(additions) < 2:
        raise DataError(
            f"--add: {len(additions)} policies are no sequence; give two or more, each with its forget file"
        )
    try:
        names = [load_bundle(addition.policy).config.name for addition in additions]
    except GuardError as error:
        raise DataError(f"--add: {error}") from error
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"--add: {names.count(name)} policies are called {name!r}; a gateway has one of a name")
    forget = tuple(answered_examples(one.forget, name="add", limit=limit, seed=seed) for one in additions)
    kept = answered_examples(retain, name="retain", limit=limit, seed=seed)
    sets = [(f"forget set of {name}", one) for name, one in zip(names, forget, strict=True)]
    try:
        for (name, one), (other_name, other) in combinations([*sets, ("retain set", kept)], 2):
            check_disjoint(one, other, forget_name=name, retain_name=other_name)
    except SourceError as error:
        raise DataError(f"--add: {error}") from error
    return ForgetSequence(tuple(names), forget, kept)
