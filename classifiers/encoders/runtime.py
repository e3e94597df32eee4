"""Tokenizer and ONNX Runtime session as every kind of encoder uses them: opened, run, and texts cut into windows.

Only texts of one length share a run: nothing is padded, so an answer does not depend on the texts beside it.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classifiers.errors import EncoderError
from console.errors import first_line
from text.normalise import normalise

# Bounds the memory of one run: 2048 tokens of a 384-dimensional encoder were seen to take 30 to 90 MB.
_RUN_TOKENS = 2048
# WordPiece turns a word of more than 100 characters into one [UNK]: a question without spaces would vanish.
_LONG_WORD = re.compile(r"\S{80}(?=\S)")


def probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function."""
    return 0.5 * (1 + np.tanh(log_odds / 2))


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Its inverse; finite for certainties."""
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return np.log(clipped / (1 - clipped))


def largest_of_each(values: NDArray[np.float64], pieces: Sequence[Sequence[object]]) -> NDArray[np.float64]:
    """(N, …) the largest of each text's values, given those of all its pieces in order: it has one at least."""
    firsts = np.cumsum([0, *(len(own) for own in pieces[:-1])])
    largest: NDArray[np.float64] = np.maximum.reduceat(values, firsts)
    return largest


def open_tokenizer(path: Path) -> Any:
    """A tokenizer.json, without the padding and truncation it may ask for.

    Raises:
        EncoderError: it is missing or damaged.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise EncoderError(f"{path}: cannot be loaded ({first_line(error)})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


Device = Literal["cpu", "cuda"]
_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Session:
    """A graph that takes `input_ids` (B, S). May be run by several threads at once."""

    def __init__(self, path: Path, called: str, threads: int = 1, device: Device = "cpu") -> None:
        """Open model.onnx; `called` is its name in errors, `threads` how many cores one run may use.

        Raises:
            EncoderError: the graph cannot be loaded, or not on this device.
        """
        import onnxruntime

        wanted, there = _PROVIDERS[device], onnxruntime.get_available_providers()
        if wanted not in there:
            raise EncoderError(
                f"the {called} cannot run on {device}: onnxruntime has {', '.join(there)} here; "
                "install onnxruntime-gpu in its place, or leave encoders on the CPU"
            )

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # keeps the largest batch ever seen allocated, and is no faster
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # vLLM needs the cores
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=list(dict.fromkeys((wanted, _PROVIDERS["cpu"])))
            )
        except Exception as error:  # onnxruntime raises bare Exceptions of its own
            raise EncoderError(f"{path}: cannot be loaded ({first_line(error)})") from error
        if self._session.get_providers()[0] != wanted:  # it falls back without an error
            raise EncoderError(f"the {called} cannot run on {device}: its libraries cannot be loaded")
        self._called = called

    def run(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.floating[Any]]]:
        """For each text's token ids (S,) what the graph gives for it, in order.

        Raises:
            EncoderError: ONNX Runtime fails.
        """
        of_length: dict[int, list[int]] = defaultdict(list)
        for index, text in enumerate(texts):
            of_length[len(text)].append(index)
        answers: dict[int, NDArray[np.floating[Any]]] = {}
        for length, indices in of_length.items():
            # On one core batching gains little (a tenth at 32 tokens): many batches of one cost next to nothing.
            size = max(1, _RUN_TOKENS // length)
            for batch in (indices[start : start + size] for start in range(0, len(indices), size)):
                ids = np.array([texts[index] for index in batch], dtype=np.int64)  # (B, S)
                try:
                    answers |= zip(batch, self._session.run(None, {"input_ids": ids})[0], strict=True)
                except Exception as error:  # onnxruntime has no error class of its own to catch
                    reason = first_line(error)
                    raise EncoderError(f"the {self._called} failed on {ids.shape} tokens: {reason}") from error
        return [answers[index] for index in range(len(texts))]


def prepare(text: str) -> str:
    """A text as tokenizers get it: normalised, and very long words in parts."""
    return _LONG_WORD.sub(r"\g<0> ", normalise(text))


def split_text(tokenizer: Any, text: str, budget: int, overlap: int) -> list[str]:
    """A prepared text as windows of at most `budget` tokens, special ones not counted, that overlap by `overlap`.

    They are cut between words and together hold every word; only a word longer than a window is cut inside.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    words, offsets = encoding.word_ids, encoding.offsets
    if len(words) <= budget:
        return [text]
    windows: list[str] = []
    start = covered = 0
    while covered < len(words):
        end = min(start + budget, len(words))
        cut = _word_start(words, end)
        end = cut if cut > covered else end  # else: one word fills the window, cut inside it
        windows.append(text[offsets[start][0] if start else 0 : offsets[end][0] if end < len(words) else len(text)])
        covered = end
        following = _word_start(words, max(end - overlap, 0)) if overlap else end
        if end - following > (budget + overlap) // 2:  # a very long word: cut inside it, or barely advance
            following = end - overlap
        start = max(following, start + 1)
    return windows


def _word_start(words: Sequence[int | None], index: int) -> int:
    """The first token of the word that token `index` belongs to; `index` itself past the end."""
    if index >= len(words) or words[index] is None:
        return index
    while index > 0 and words[index - 1] == words[index]:
        index -= 1
    return index
