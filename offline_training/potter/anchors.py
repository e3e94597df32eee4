"""Second step of Who's Harry Potter: the anchor terms of a text and their generic translations, as one file.

Section 2.2 of Eldan and Russinovich 2023 (arXiv 2310.02238). The file is for people too: what a model found is worth
reading before labels are made from it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from offline_training.errors import JobError, SettingsError
from offline_training.potter.anchor_file import load_anchors, write_anchors
from offline_training.potter.anchor_server import AnchorServer
from offline_training.potter.generic_names import generic_names
from offline_training.potter.passages import passages, read_texts, words_of
from offline_training.potter.recogniser import Recogniser
from offline_training.potter.translation import Translator

__all__ = ["AnchorOptions", "find_anchors", "progress"]


@dataclass(frozen=True)
class AnchorOptions:
    """Where anchors come from: exactly one of `file`, `ner` and `endpoint`."""

    text: str
    """The text to forget: FILE.txt, a folder of them, a table with a column of texts, or hf:name."""
    out: Path
    """The file to write, anchors.json."""
    file: Path | None = None
    """A dictionary of one's own, JSON or YAML."""
    ner: str | None = None
    """A token-classification model, folder or hub id; names are then invented for what it finds."""
    endpoint: str | None = None
    """An OpenAI-compatible server that is asked for both."""
    endpoint_model: str | None = None
    """None: the first that the server lists."""
    cache: Path | None = None
    """Folder for the server's replies; None: beside `out`."""
    concurrency: int = 8
    """Requests at once."""
    timeout_s: float = 120.0
    """For one reply."""
    passage_characters: int = 2000
    """Longest passage that a model is given."""
    min_occurrences: int = 1
    """Names that a recogniser finds more rarely are no anchors."""
    seed: int = 0
    """Decides which invented name goes where."""
    force: bool = False
    """Replace `out`."""


def find_anchors(options: AnchorOptions, console: Console) -> dict[str, str]:
    """Writes `options.out` and returns what is in it: anchor -> generic translation.

    Raises:
        JobError: the options contradict each other, the text or the dictionary cannot be read, a model or a server
            cannot be used, or nothing was found.
    """
    _check(options)
    own = load_anchors(options.file) if options.file is not None else None
    texts = read_texts(options.text)
    if own is not None:
        anchors = own
    elif options.ner is not None:
        anchors = _recognised(options.ner, texts, options, console)
    else:
        anchors = _served(str(options.endpoint), texts, options, console)
    if not anchors:
        raise JobError("anchors: none were found in the text; give a dictionary with --file")
    if not any(Translator(anchors).translate(text).replacements for text in texts):
        raise JobError(
            f"anchors: none of the {len(anchors)} anchors stands in the text; check --text and the dictionary"
        )
    write_anchors(anchors, options.out)
    console.print(f"{len(anchors)} anchors in {options.out}; read them before making labels")
    return anchors


def _check(options: AnchorOptions) -> None:
    if sum(source is not None for source in (options.file, options.ner, options.endpoint)) != 1:
        raise SettingsError("--file, --ner, --endpoint: give exactly one of them")
    limits = {
        "concurrency": (options.concurrency, 1),
        "passage-characters": (options.passage_characters, 100),
        "min-occurrences": (options.min_occurrences, 1),
    }
    for name, (value, least) in limits.items():
        if value < least:
            raise SettingsError(f"--{name}: must be at least {least}, not {value}")
    if options.timeout_s <= 0:
        raise SettingsError(f"--timeout-s: must be above 0, not {options.timeout_s}")
    if options.out.exists() and not options.force:
        raise JobError(f"--out: {options.out} exists; choose another file, or replace it with --force")


def _recognised(model: str, texts: list[str], options: AnchorOptions, console: Console) -> dict[str, str]:
    recogniser = Recogniser(model)
    pieces = [piece for text in texts for piece in passages(text, options.passage_characters)]
    with progress(console, "finding names") as on_progress:
        entities = recogniser.entities(pieces, min_occurrences=options.min_occurrences, on_progress=on_progress)
    return generic_names(entities, text_words=words_of(texts), seed=options.seed)


def _served(endpoint: str, texts: list[str], options: AnchorOptions, console: Console) -> dict[str, str]:
    cache = options.cache or options.out.with_name(f"{options.out.stem}-replies")
    pieces = [piece for text in texts for piece in passages(text, options.passage_characters)]
    server = AnchorServer(
        endpoint, options.endpoint_model, concurrency=options.concurrency, timeout_s=options.timeout_s
    )
    console.print(f"asking {server.model} about {len(pieces)} passages")
    with progress(console, "asking the model") as on_progress:
        found = server.find(pieces, cache, on_progress=on_progress)
    if found.unusable:
        console.print(f"{found.unusable} of {len(pieces)} replies hold no JSON object and were left out")
    return found.anchors


@contextmanager
def progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, and the function (done, total) that moves it."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
