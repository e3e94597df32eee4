"""Names in texts, found by a token-classification model of transformers; and invented names to put in their place."""

import itertools
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Literal

from classifiers.errors import EncoderError
from classifiers.export.hub import source_folder
from offline_training.errors import JobError

EntityKind = Literal["person", "place", "organisation", "other"]

_KINDS: dict[str, EntityKind] = {
    "PER": "person", "PERSON": "person",
    "LOC": "place", "LOCATION": "place", "GPE": "place", "FAC": "place",
    "ORG": "organisation", "ORGANIZATION": "organisation", "NORP": "organisation",
}  # fmt: skip
# OntoNotes has labels for numbers and times: not names of anything.
_NO_NAMES = {"O", "CARDINAL", "DATE", "MONEY", "ORDINAL", "PERCENT", "QUANTITY", "TIME"}
_STRIDE_TOKENS = 32
_MAX_TOKENS = 512
_AROUND = " \t\n\r\"'’‘“”.,;:!?()[]-–—"
_TITLES = frozenset(
    "mr mrs ms miss mx dr prof professor sir lady lord dame madam madame king queen prince princess count countess "  # noqa: SIM905  a list of quoted words reads worse
    "duke duchess captain colonel general major sergeant uncle aunt aunty father mother brother sister saint st the "
    "de la le van von der den di da del and of jr sr".split()
)
_INITIALS = re.compile(r"(\w\.?)(-?\w\.)*")


class Recogniser:
    """A named-entity recogniser, loaded from a folder or the hub."""

    def __init__(self, source: str) -> None:
        """Load model and tokenizer.

        Raises:
            JobError: nothing of that name, or no token classifier with a fast tokenizer.
        """
        try:
            folder = source_folder(source)
        except EncoderError as error:
            raise JobError(f"--ner: {error}") from error
        from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, pipeline

        try:
            config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
            if not any(str(name).endswith("ForTokenClassification") for name in config.architectures or []):
                raise JobError(f"--ner: {source}: no token classifier; choose a model such as dslim/bert-base-NER")
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise JobError(f"--ner: {source}: cannot be loaded as a token classifier ({reason})") from error
        if not tokenizer.is_fast:
            raise JobError(
                f"--ner: {source}: its tokenizer has no character offsets; one with tokenizer.json is needed"
            )
        limit = getattr(config, "max_position_embeddings", None) or _MAX_TOKENS
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit, _MAX_TOKENS)
        make: Any = pipeline
        self._pipeline: Any = make(
            "token-classification",
            model=model,
            tokenizer=tokenizer,
            aggregation_strategy="first",  # a word has one label, whatever its pieces say
            stride=min(_STRIDE_TOKENS, tokenizer.model_max_length // 4),
        )

    def entities(
        self, texts: Sequence[str], *, min_occurrences: int, on_progress: Callable[[int, int], None]
    ) -> dict[str, EntityKind]:
        """The names in the texts that occur at least so often, the most frequent first, each with its usual kind."""
        kinds: dict[str, Counter[EntityKind]] = {}
        for number, text in enumerate(texts):
            with warnings.catch_warnings():
                # Pieces of no WordPiece tokenizer say whether they go on a word by the blank before them: good enough.
                warnings.filterwarnings("ignore", message="Tokenizer does not support real words")
                # Another kind of white space would not be seen as the end of a word; offsets stay.
                entities: list[dict[str, Any]] = self._pipeline(re.sub(r"\s", " ", text))
            for entity in entities:
                label = str(entity["entity_group"]).upper()
                name = " ".join(text[entity["start"] : entity["end"]].strip(_AROUND).split())
                if label in _NO_NAMES or not any(map(str.isalpha, name)):
                    continue
                name = name.removesuffix("'s").removesuffix("’s")
                if name[:4].lower() == "the " and len(name) > 4:
                    name = name[4:]
                kinds.setdefault(name, Counter())[_KINDS.get(label, "other")] += 1
            on_progress(number + 1, len(texts))
        often = [name for name, counts in kinds.items() if counts.total() >= min_occurrences]
        return {name: kinds[name].most_common(1)[0][0] for name in sorted(often, key=lambda n: (-kinds[n].total(), n))}


def generic_names(entities: Mapping[str, EntityKind], *, text_words: set[str], seed: int) -> dict[str, str]:
    """A generic translation for each entity, and for each part of a person's name.

    A word of persons' names has one translation wherever it stands: {"Harry Potter": "Robin Ashdown", "Harry":
    "Robin", "Potter": "Ashdown"}. Titles and initials stay. First names are such that both women and men have, so
    that pronouns still fit.

    Args:
        entities: name -> kind; the order decides who gets which name.
        text_words: the words of the text, casefolded; no name is given that has one of them.
        seed: shuffles the names.
    """
    supply = _Supply(seed, text_words)
    parts = {
        name: [
            word
            for word in name.split()
            if word.rstrip(".").casefold() not in _TITLES and not _INITIALS.fullmatch(word)
        ]
        for name, kind in entities.items()
        if kind == "person"
    }
    surnames = {words[-1].casefold() for words in parts.values() if len(words) > 1}
    given: dict[str, str] = {}
    anchors: dict[str, str] = {}
    for name, words in parts.items():
        for word in words:
            if word.casefold() not in given:
                given[word.casefold()] = supply.take("surname" if word.casefold() in surnames else "first name")
        if words:
            anchors[name] = " ".join(given.get(word.casefold(), word) for word in name.split())
    for words in list(parts.values()):
        for word in words:
            anchors.setdefault(word, given[word.casefold()])
    for name, kind in entities.items():
        if kind != "person":
            anchors.setdefault(name, supply.take(kind))
    known: dict[str, str] = {}
    return {name: generic for name, generic in anchors.items() if known.setdefault(name.casefold(), name) == name}


class _Supply:
    """Names of each kind, none twice, in an order that the seed decides; without end, for two make another."""

    def __init__(self, seed: int, text_words: set[str]) -> None:
        data = resources.files("offline_training.potter").joinpath("data", "generic_names.json")
        listed: dict[str, list[str]] = json.loads(data.read_text(encoding="utf-8"))
        shuffled = random.Random(seed)  # noqa: S311  the same names for the same seed
        self._names: dict[str, Iterator[str]] = {}
        for kind, names in listed.items():
            usable = [name for name in names if not set(name.casefold().split()) & text_words]
            shuffled.shuffle(usable)
            self._names[kind] = _joined(usable or names, "-" if kind in ("first name", "surname") else " ")

    def take(self, kind: str) -> str:
        return next(self._names[kind])


def _joined(names: list[str], joint: str) -> Iterator[str]:
    for count in itertools.count(1):
        yield from (joint.join(words) for words in itertools.permutations(names, min(count, len(names))))
