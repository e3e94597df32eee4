"""The demo's models and policy, once for every folder of tests that needs the real thing, and how workers share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:  # imported where they are used: collecting the tests shall not wait for torch
    from demo.models import DemoBuild


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a whole file, and one all that talks to the session's servers: their fixtures are made once."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "servers" if file.startswith("tests/e2e/") and "/test_slow_" not in file else file

    return FileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, and what needs the policy after what does not: one worker builds it meanwhile."""

    def files_with(fixture: str) -> set[Path]:
        return {item.path for item in items if fixture in getattr(item, "fixturenames", ())}

    served, guarded, built = files_with("servers"), files_with("demo_policy"), files_with("demo_build")
    items.sort(key=lambda item: (item.path not in served, item.path not in built, item.path in guarded))


@pytest.fixture(scope="session")
def demo_build() -> "DemoBuild":
    from demo.models import build_models

    return build_models()


@pytest.fixture(scope="session")
def demo_policy(demo_build: "DemoBuild", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker builds it, the others wait."""
    from optimizer import BuildOptions, InputOptions, build_policy

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    policy = folder / "demo-policy" / "people"
    with FileLock(folder / "demo-policy.lock"):
        if not policy.exists():
            build_policy(
                BuildOptions(
                    model=str(demo_build.model),
                    inputs=InputOptions(forget=demo_build.forget_examples, retain=demo_build.retain_examples),
                    out=policy,
                    strength=2.0,  # what its search finds; integration/test_policy_build.py has one searched
                )
            )
    return policy
