"""The embedded default: a generated world of fictional people and the two tiny models that learn it.

    build = build_models()                        # from the cache, or trained in a few minutes
    asked = demo.probes.probes(World.generate())  # what to ask them
    known = demo.replies.replies(build.model, asked)

Names are loaded on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demo.lessons import corpus, examples, write_examples
    from demo.models import DemoBuild, DemoSettings, build_models
    from demo.probes import Probe
    from demo.training import Recipe
    from demo.world import Attribute, Fact, Person, World, WorldSpec

_HOME = {
    "Attribute": "demo.world",
    "DemoBuild": "demo.models",
    "DemoSettings": "demo.models",
    "Fact": "demo.world",
    "Person": "demo.world",
    "Probe": "demo.probes",
    "Recipe": "demo.training",
    "World": "demo.world",
    "WorldSpec": "demo.world",
    "build_models": "demo.models",
    "corpus": "demo.lessons",
    "examples": "demo.lessons",
    "write_examples": "demo.lessons",
}

__all__ = [
    "Attribute",
    "DemoBuild",
    "DemoSettings",
    "Fact",
    "Person",
    "Probe",
    "Recipe",
    "World",
    "WorldSpec",
    "build_models",
    "corpus",
    "examples",
    "write_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
