"""Second step of Who's Harry Potter: the anchor terms of a text and their generic translations, as one file.

Section 2.2 of Eldan and Russinovich 2023 (arXiv 2310.02238). The file, {"Hogwarts": "Mystic Academy", …} as JSON or
YAML, is for people too: what a model found is worth reading, and editing, before labels are made from it.
"""

import json
from pathlib import Path

from pydantic import Field
from rich.console import Console

from console.errors import first_line
from console.progress import shown_progress
from offline_training.errors import DataError, JobError, SettingsError
from offline_training.potter.anchor_server import AnchorServer
from offline_training.potter.names import Recogniser, generic_names
from offline_training.potter.texts import TEXT_DESCRIPTION, Translator, passages, read_texts, words_of
from offline_training.served import ServedOptions
from offline_training.settings import check_least
from storage.whole import write_whole

_MAX_BYTES = 64 * 2**20


class AnchorOptions(ServedOptions):
    """Where anchors come from: exactly one of `file`, `ner` and `endpoint`."""

    text: str = Field(description=TEXT_DESCRIPTION)
    out: Path = Field(description="File to write: anchors.json.")
    file: Path | None = Field(None, description="A dictionary of one's own, JSON or YAML: term to generic term.")
    ner: str | None = Field(
        None,
        description="A token-classification model, folder or hub id, that finds the names; generic ones are invented.",
    )
    endpoint: str | None = Field(
        None,
        description="An OpenAI-compatible server that is asked for terms and translations: http://localhost:8000/v1.",
    )
    passage_characters: int = Field(2000, description="Longest passage that a model is given.")
    min_occurrences: int = Field(1, description="Names that --ner finds more rarely are no anchors.")
    seed: int = Field(0, description="Decides which invented name goes where.")


def find_anchors(options: AnchorOptions, console: Console) -> dict[str, str]:
    """Writes `options.out` and returns what is in it: anchor -> generic translation.

    Raises:
        JobError: the options contradict each other, the text or the dictionary cannot be read, a model or a server
            cannot be used, or nothing was found.
    """
    if sum(source is not None for source in (options.file, options.ner, options.endpoint)) != 1:
        raise SettingsError("--file, --ner, --endpoint: give exactly one of them")
    check_least(options, {"passage_characters": 100, "min_occurrences": 1})
    options.check()
    anchors = load_anchors(options.file) if options.file is not None else {}
    texts = read_texts(options.text)
    pieces = [piece for text in texts for piece in passages(text, options.passage_characters)]
    if options.ner is not None:
        recogniser = Recogniser(options.ner)
        with shown_progress(console) as show:
            entities = recogniser.entities(
                pieces,
                min_occurrences=options.min_occurrences,
                on_progress=lambda done, total: show("finding names", done, total),
            )
        anchors = generic_names(entities, text_words=words_of(texts), seed=options.seed)
    elif options.endpoint is not None:
        server = AnchorServer(
            options.endpoint, options.endpoint_model, concurrency=options.concurrency, timeout_s=options.timeout_s
        )
        console.print(f"asking {server.model} about {len(pieces)} passages")
        with shown_progress(console) as show:
            served = server.find(
                pieces, options.replies, on_progress=lambda done, total: show("asking the model", done, total)
            )
        if served.unusable:
            console.print(f"{served.unusable} of {len(pieces)} replies hold no JSON object and were left out")
        anchors = served.anchors
    if not anchors:
        raise JobError("anchors: none were found in the text; give a dictionary with --file")
    if not any(Translator(anchors).translate(text).replacements for text in texts):
        raise JobError(
            f"anchors: none of the {len(anchors)} anchors stands in the text; check --text and the dictionary"
        )
    try:
        write_whole(options.out, json.dumps(anchors, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise JobError(f"--out: {options.out}: cannot be written ({error.strerror})") from error
    console.print(f"{len(anchors)} anchors in {options.out}; read them before making labels")
    return anchors


def load_anchors(path: Path) -> dict[str, str]:
    """Anchors and their generic translations, in the file's order; white space within them made plain.

    Raises:
        DataError: the file cannot be read, is no mapping of texts to texts, or is empty; an anchor or a translation
            is empty, both are the same, or two anchors differ in case at most.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES >> 20} MiB; a dictionary of anchors is expected")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a dictionary of anchors ({first_line(error)})") from error
    anchors: dict[str, str] = {}
    known: dict[str, str] = {}
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    for key, value in _yaml_entries(text, path) if is_yaml else _json_entries(text, path):
        if not isinstance(key, str) or not isinstance(value, str):
            raise DataError(f"{path}: {str(key)[:60]!r}: the translation must be a text")
        anchor, generic = " ".join(key.split()), " ".join(value.split())
        if not anchor or not generic:
            raise DataError(f"{path}: {anchor or generic!r}: anchor and translation must not be empty")
        if anchor.casefold() == generic.casefold():
            raise DataError(f"{path}: {anchor!r} is its own translation; give another or remove it")
        if anchor.casefold() in known:
            raise DataError(f"{path}: {anchor!r} and {known[anchor.casefold()]!r} are one anchor; remove one")
        known[anchor.casefold()] = anchor
        anchors[anchor] = generic
    if not anchors:
        raise DataError(f"{path}: holds no anchors")
    return anchors


def _json_entries(text: str, path: Path) -> list[tuple[object, object]]:
    # Pairs, not a dict: of two equal keys a dict would keep one without a word.
    try:
        entries = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({first_line(error)})") from error
    if not isinstance(entries, _Pairs):
        raise DataError(f'{path}: expected one object, {{"anchor": "generic translation", …}}')
    return entries


class _Pairs(list[tuple[object, object]]):
    """A JSON object."""


def _yaml_entries(text: str, path: Path) -> list[tuple[object, object]]:
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: no YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(node, yaml.MappingNode):
        raise DataError(f"{path}: expected one mapping, anchor: generic translation")
    scalar = yaml.ScalarNode  # taken as it is written: `No` and `1984` are names here
    return [
        (key.value if isinstance(key, scalar) else key, value.value if isinstance(value, scalar) else value)
        for key, value in node.value
    ]
