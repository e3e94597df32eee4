"""Bundles that are whole, with a head that nobody reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corruption import CorruptionSpec
from guard import ClassifierConfig, ModelConfig, PolicyBundle, PolicyConfig, write_bundle

MakeBundle = Callable[..., PolicyBundle]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """(folder, name, version, report, plots) -> a bundle in it."""
    head = tmp_path / "head"
    head.write_bytes(b"not read here")

    def make(
        folder: Path, name: str = "people", version: str = "1", report: Any = None, plots: Any = ()
    ) -> PolicyBundle:
        config = PolicyConfig(
            schema_version=1,
            name=name,
            version=version,
            model=ModelConfig(name="m", hidden_size=8, embedding_digest="a" * 64),
            corruption=CorruptionSpec(method="rand_noise_first_n", strength=3.0),
            classifier=ClassifierConfig(encoder="e", encoder_digest="b" * 64, threshold=0.5),
            answers="off",
        )
        return write_bundle(folder, config, head, report or {"recall": 1.0}, plots=plots, overwrite=True)

    return make
