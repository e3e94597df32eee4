"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): the bert_score library with a model of one's choice."""

from collections.abc import Sequence
from typing import Any

from evaluation.errors import DataError

__all__ = ["BertScore"]

#: Positions that RoBERTa's table has beyond its tokens.
_SPARE_POSITIONS = 2


class BertScore:
    """One loaded encoder.

    No rescaling with a baseline and no idf weights, as ECO uses it (with `distilbert-base-uncased`). Texts are cut at
    the encoder's length.

    Args:
        model: a name of the hub, or a folder.
        layers: whose output is compared, counted from 1; None: the one that bert_score's authors chose for the model.
        device: as torch names it; None: a GPU where there is one.

    Raises:
        DataError: the model cannot be loaded, or its layer is not known.
    """

    def __init__(
        self, model: str, layers: int | None = None, *, batch_size: int = 16, device: str | None = None
    ) -> None:
        self.model = model
        self.layers = _checked_layers(model, layers)
        self._batch_size = batch_size
        self._scorer = _load(model, self.layers, device)

    def f1(self, references: Sequence[str], answers: Sequence[str]) -> list[float]:
        """F1 of each answer against its reference, at most 1; 0 where either has no words.

        Raises:
            ValueError: not as many answers as references.
        """
        # The library counts an empty text as 0 too, but asks transformers 5 for what that no longer has.
        pairs = list(zip(references, answers, strict=True))
        worded = [i for i, (reference, answer) in enumerate(pairs) if reference.strip() and answer.strip()]
        scores = [0.0] * len(pairs)
        if worded:
            _, _, found = self._scorer.score(
                [pairs[i][1] for i in worded], [pairs[i][0] for i in worded], batch_size=self._batch_size
            )
            for i, value in zip(worded, found.tolist(), strict=True):
                scores[i] = float(value)
        return scores


def _checked_layers(model: str, layers: int | None) -> int:
    from bert_score.utils import model2layers  # type: ignore[import-untyped]
    from transformers import AutoConfig

    if layers is None:
        layers = model2layers.get(model)
    if layers is None:
        raise DataError(f"--bert-layers: bert_score knows no layer for {model}; say which of its layers to compare")
    try:
        depth = AutoConfig.from_pretrained(model).num_hidden_layers
    except (OSError, ValueError, AttributeError) as error:
        raise _unloadable(model, error) from error
    if not 1 <= layers <= depth:
        raise DataError(f"--bert-layers: {layers} is not a layer of {model}; give 1 to {depth}")
    return layers


def _load(model: str, layers: int, device: str | None) -> Any:
    from bert_score import BERTScorer  # type: ignore[import-untyped]

    try:
        scorer: Any = BERTScorer(model_type=model, num_layers=layers, device=device)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise _unloadable(model, error) from error
    if scorer._tokenizer.pad_token_id is None:
        raise DataError(f"--bert-model: {model}: its tokenizer has no padding token; choose a BERT or RoBERTa")
    _limit_length(scorer)
    return scorer


def _limit_length(scorer: Any) -> None:
    """The library cuts texts where the tokenizer says; one saved without a length says nowhere."""
    positions = getattr(scorer._model.config, "max_position_embeddings", None)
    if positions is not None and scorer._tokenizer.model_max_length > positions:
        scorer._tokenizer.model_max_length = positions - _SPARE_POSITIONS


def _unloadable(model: str, error: Exception) -> DataError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return DataError(f"--bert-model: {model}: cannot be loaded ({reason}); give a name of the hub or a model's folder")
