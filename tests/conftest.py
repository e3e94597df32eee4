"""The demo's models and policy, once per session for every folder of tests that needs the real thing.

Imported when a test asks for them: torch and transformers take seconds, which collecting must not.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from demo.models import DemoBuild


@pytest.fixture(scope="session")
def demo_build() -> "DemoBuild":
    from demo.models import build_models

    return build_models()


@pytest.fixture(scope="session")
def demo_policy(demo_build: "DemoBuild", tmp_path_factory: pytest.TempPathFactory) -> Path:
    from optimizer import BuildOptions, InputOptions, build_policy

    options = BuildOptions(
        model=str(demo_build.model),
        inputs=InputOptions(forget=demo_build.forget_examples, retain=demo_build.retain_examples),
        out=tmp_path_factory.mktemp("policies") / "people",
    )
    return build_policy(options).path
