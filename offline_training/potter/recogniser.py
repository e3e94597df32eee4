"""Names in texts and what kind of thing each is, by a token-classification model of transformers."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from classifiers.errors import EncoderError
from classifiers.export.hub import source_folder
from offline_training.errors import JobError
from offline_training.potter.generic_names import EntityKind

__all__ = ["Recogniser"]

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
            for entity in self._found(text):
                label = str(entity["entity_group"]).upper()
                name = " ".join(text[entity["start"] : entity["end"]].strip(_AROUND).split())
                if label not in _NO_NAMES and any(map(str.isalpha, name)):
                    kinds.setdefault(_bare(name), Counter())[_KINDS.get(label, "other")] += 1
            on_progress(number + 1, len(texts))
        often = [name for name, counts in kinds.items() if counts.total() >= min_occurrences]
        return {name: kinds[name].most_common(1)[0][0] for name in sorted(often, key=lambda n: (-kinds[n].total(), n))}

    def _found(self, text: str) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            # Pieces of no WordPiece tokenizer say whether they go on a word by the blank before them: good enough.
            warnings.filterwarnings("ignore", message="Tokenizer does not support real words")
            # Another kind of white space would not be seen as the end of a word; offsets stay.
            found: list[dict[str, Any]] = self._pipeline(re.sub(r"\s", " ", text))
        return found


def _bare(name: str) -> str:
    """Without a possessive ending and without its article."""
    name = name.removesuffix("'s").removesuffix("’s")
    return name[4:] if name[:4].lower() == "the " and len(name) > 4 else name
