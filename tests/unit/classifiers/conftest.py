from pathlib import Path

import pytest

from classifiers import Encoder, resolve_encoder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve_encoder(cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.open(encoder_folder)
