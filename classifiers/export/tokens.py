"""A token-classification model to the folder that `classifiers.encoders.tokens` serves. Offline only: needs torch."""

from pathlib import Path
from typing import Any

from classifiers.encoders.runtime import probability
from classifiers.encoders.settings import (
    MIN_TOKENS,
    TOKEN_SETTINGS_FILE,
    TOKENIZER_FILE,
    Precision,
    TokenSettings,
    write_settings,
)
from classifiers.encoders.tokens import OffsetTokenizer
from classifiers.errors import EncoderError
from classifiers.export.hub import source_folder
from classifiers.export.traced import (
    Parity,
    Tracing,
    label_names,
    load_model,
    load_tokenizer,
    longest_input,
    parity_texts,
)
from console.errors import first_line
from storage.whole import whole_folder

DEFAULT_RECOGNISER = "dslim/bert-base-NER"
"""The named-entity recogniser that ECO uses."""
MAX_DECIDED_OTHERWISE = 0.01
"""Largest share of tokens that an int8 graph may take for an entity where the torch model does not, or the reverse
(see `Parity.decided_otherwise`)."""

_PROBE = "Angela Merkel met J. K. Rowling at the British Museum in London on Monday."
_NAMED = (
    "Who wrote The Old Man and the Sea, Ernest Hemingway or John Steinbeck?",
    "In which town was Hsiao Yun-Hwa born, and does she work for the University of Taipei?",
    "harry potter and hermione granger go to hogwarts with mr. dumbledore.",
    "¿Dónde nació Gabriel García Márquez? En Aracataca, Colombia.",
)
"""Everyday prompts hold few names: these have some."""


def export_token_classifier(
    name: str | Path, out: str | Path, *, precision: Precision = "int8", overwrite: bool = False
) -> TokenSettings:
    """Export the token classifier `name`, a folder of Hugging Face files or a hub id, as the folder `out`, whole or
    not at all. Every label but O counts as entity.

    The graph is compared with the torch model on a few dozen built-in texts. Where int8 decides more than
    `MAX_DECIDED_OTHERWISE` of the tokens otherwise, fp32 is written and the settings say so (`fallback`).

    Raises:
        EncoderError: `out` must not be written; no fast tokenizer, no token classifier, no label O, or files are
            missing; the architecture cannot be exported, or even fp32 computes something else.
    """
    import torch
    from transformers import AutoModelForTokenClassification

    source, out = str(name), Path(out)
    if out.exists() and not (out / TOKEN_SETTINGS_FILE).is_file():
        raise EncoderError(f"{out}: exists and is no token classifier folder; choose another folder")
    if out.exists() and not overwrite:
        raise EncoderError(f"{out}: already exists; choose another folder, or say that it is to be replaced")
    folder = source_folder(source)
    config, outside = _read_config(folder, source)
    entities = [index for index in range(config.num_labels) if index != outside]
    max_tokens = longest_input(config)
    tokenizer = load_tokenizer(folder, source)
    refusal = f"{source}: cannot be loaded as a token classifier"
    model, missing = load_model(AutoModelForTokenClassification, folder, refusal)
    if missing:
        raise EncoderError(f"{source}: not a trained token classifier (no weights for {', '.join(missing[:3])})")

    def log_odds(logits: torch.Tensor) -> torch.Tensor:  # (B, S, C) -> (B, S)
        """Of all entity labels together against O: softmax's logit of their sum."""
        return torch.logsumexp(logits[..., entities], dim=-1) - logits[..., outside]

    def too_far(parity: Parity) -> str:
        if parity.decided_otherwise <= MAX_DECIDED_OTHERWISE:
            return ""
        share = f"{parity.decided_otherwise:.1%} of the tokens otherwise"
        return f"int8 decides {share}, above {MAX_DECIDED_OTHERWISE:.0%}"

    try:
        with whole_folder(out) as work:
            tokenizer.save(work / TOKENIZER_FILE)
            cut = OffsetTokenizer(work / TOKENIZER_FILE, max_tokens).windows
            windows = [window.ids for text in (_PROBE, *_NAMED, *parity_texts()) for window in cut(text)]
            traced = Tracing(source, model, log_odds, windows, tokenwise=True).write(work, precision, too_far)
            probabilities = probability(traced.parity.log_odds)
            settings = TokenSettings(
                source=source,
                entity_labels=[label_names(config)[index] for index in entities],
                precision=traced.precision,
                fallback=traced.fallback,
                max_tokens=max_tokens,
                parity_tokens=len(probabilities),
                parity_max_difference=round(traced.parity.max_difference, 6),
                parity_decided_otherwise=round(traced.parity.decided_otherwise, 6),
                probe_text=_PROBE,
                probe_probabilities=[round(value, 5) for value in probabilities[: len(windows[0])].tolist()],
                digest="",
            )
            return write_settings(work, settings)
    except OSError as error:
        raise EncoderError(f"{out}: cannot be written ({error.strerror})") from error


def _read_config(folder: Path, source: str) -> tuple[Any, int]:
    """The configuration of a token classifier and the index of its label O, read before any weights are."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many unrelated classes
        raise EncoderError(f"{source}: config.json cannot be used ({first_line(error)})") from error
    made_for = [str(name) for name in config.architectures or []]
    if not any(name.endswith("ForTokenClassification") for name in made_for):
        raise EncoderError(
            f"{source}: no token classifier ({', '.join(made_for) or 'config.json names no architecture'}); "
            f"choose a model such as {DEFAULT_RECOGNISER}"
        )
    names = label_names(config)
    outside = [index for index, name in enumerate(names) if name.upper() == "O"]
    if len(outside) != 1 or len(names) < 2:
        raise EncoderError(
            f"{source}: config.json: id2label: needs one label O beside those of entities, found {', '.join(names)}"
        )
    if longest_input(config) < MIN_TOKENS:
        raise EncoderError(f"{source}: takes {longest_input(config)} tokens; at least {MIN_TOKENS} are needed")
    return config, outside[0]
