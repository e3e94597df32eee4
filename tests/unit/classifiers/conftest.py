"""Encoders that many tests only read: exported once per session."""

from pathlib import Path

import pytest
from tiny_encoders import write_tiny, write_tiny_tokens

from classifiers import Encoder, resolve_encoder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve_encoder(cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.open(encoder_folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face files of a random sequence classifier."""
    return write_tiny("bert", tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def exported_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a fine-tuned encoder's folder."""
    from classifiers.export.sequence import export_finetuned, load_sequence_model

    folder = tmp_path_factory.mktemp("exported") / "encoder"
    export_finetuned(load_sequence_model(tiny_bert, "tiny"), folder, label=1)
    return folder


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face files of a random token classifier."""
    return write_tiny_tokens("bert", tmp_path_factory.mktemp("tiny") / "tokens")


@pytest.fixture(scope="session")
def exported_tokens(tiny_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from classifiers.export.tokens import export_token_classifier

    folder = tmp_path_factory.mktemp("exported") / "tokens"
    export_token_classifier(tiny_tokens, folder)
    return folder
