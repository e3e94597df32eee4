"""The demo's line of TOFU's test, on its real models and policy."""

from pathlib import Path

from demo.forget_quality import demo_forget_quality
from demo.models import DemoBuild
from demo.world import World


def test_the_guarded_model_cannot_be_told_from_one_that_never_knew(demo_build: DemoBuild, demo_policy: Path) -> None:
    found = demo_forget_quality(demo_build, demo_policy, World.generate())
    assert found.questions == 48
    assert found.unguarded < 1e-15  # every ratio of the model is below all of the other's
    # By the draw, and by the processor that trained the model: 0.25 to 0.85 where it was looked at.
    assert 1e-4 < found.guarded_least <= found.guarded <= found.guarded_most
    assert found.guarded > 0.01
