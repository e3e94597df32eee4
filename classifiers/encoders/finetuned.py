"""A fine-tuned encoder at request time: texts to probabilities, by ONNX Runtime and tokenizers alone.

A folder of three files, made by `classifiers.export.sequence`: model.onnx (input_ids (B, S) -> log_odds (B,)),
tokenizer.json and encoder.json. A text's score does not depend on the texts scored with it (to 1e-6).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from classifiers.encoders.runtime import (
    Device,
    Session,
    largest_of_each,
    open_tokenizer,
    prepare,
    probability,
    split_text,
)
from classifiers.encoders.settings import (
    MODEL_FILE,
    OVERLAP_TOKENS,
    TOKENIZER_FILE,
    WINDOW_TOKENS,
    FinetunedSettings,
    read_settings,
)
from classifiers.errors import EncoderError

# int8 rounding may flip where another CPU adds in another order: seen differences are below 0.05.
_PROBE_TOLERANCE = 0.5


class WindowTokenizer:
    """Texts to the windows of token ids that are scored: the same in training, in export and when served."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.encode_special_tokens = True  # a text that spells "[SEP]" or "</s>" does not get that token
        self._tokenizer = tokenizer
        self._specials: int = tokenizer.num_special_tokens_to_add(is_pair=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a tokenizer.json.

        Raises:
            EncoderError: it is missing or damaged.
        """
        return cls(open_tokenizer(path))

    def save(self, path: Path) -> None:
        """Write tokenizer.json, without padding and truncation."""
        self._tokenizer.save(str(path))

    def windows(self, text: str) -> list[list[int]]:
        """Token ids of each window, special tokens added; at least one window. Together they hold every word."""
        return [self._tokenizer.encode(piece).ids for piece in self.split_windows(text)]

    def split_windows(self, text: str) -> list[str]:
        """The text, normalised, as overlapping windows: see `Encoder.split_windows`."""
        return split_text(self._tokenizer, prepare(text), WINDOW_TOKENS - self._specials, OVERLAP_TOKENS)


class FinetunedClassifier:
    """A prompt classifier with an encoder of its own. All methods may be called from several threads at once."""

    kind: Literal["finetuned"] = "finetuned"

    def __init__(
        self, session: Session, tokenizer: WindowTokenizer, settings: FinetunedSettings, threshold: float
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.settings = settings
        self.digest = settings.digest
        """sha256 (hex) of everything that determines a score; the threshold does not."""
        self.threshold = threshold
        """Scores of this and above mean: must be forgotten."""

    @classmethod
    def open(cls, path: str | Path, threshold: float, threads: int = 1, device: Device = "cpu") -> Self:
        """Open an exported folder; `threads` is how many cores one call of `scores` may use.

        Raises:
            EncoderError: a file is missing or damaged, its digest is not the recorded one, or this machine
                computes something else than was exported.
        """
        folder = Path(path)
        settings = read_settings(folder, FinetunedSettings)
        tokenizer = WindowTokenizer.open(folder / TOKENIZER_FILE)
        classifier = cls(
            Session(folder / MODEL_FILE, "fine-tuned encoder", threads, device), tokenizer, settings, threshold
        )
        answer = float(classifier.log_odds([settings.probe_text])[0])
        if not abs(answer - settings.probe_log_odds) <= _PROBE_TOLERANCE:
            raise EncoderError(f"{folder}: on this machine the model does not compute what was exported")
        return classifier

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) probabilities that each text must be forgotten: that of its most suspicious window.

        Raises:
            EncoderError: ONNX Runtime fails.
        """
        return probability(self.log_odds(texts))

    def log_odds(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) largest log odds over each text's windows: `scores` before the sigmoid.

        Raises:
            EncoderError: ONNX Runtime fails, or the graph gives something that is no number.
        """
        pieces = [self._tokenizer.windows(text) for text in texts]
        if not pieces:
            return np.empty(0)
        answers = self._session.run([ids for windows in pieces for ids in windows])
        if any(answer.shape != () or not np.isfinite(answer) for answer in answers):
            raise EncoderError("the fine-tuned encoder gave a score that is no number")
        return largest_of_each(np.array(answers, dtype=np.float64), pieces)
