"""vLLM is imported when the first of these tests runs, not when they are collected: it takes ten seconds."""

import warnings

import pytest


@pytest.fixture(scope="session", autouse=True)
def _vllm() -> None:
    """vLLM and torch's compiler warn while they are imported; their warnings are not ours to turn into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.entrypoints.generate.beam_search.online
        import vllm.entrypoints.launchers.cli_args
        import vllm.v1.engine.async_llm  # noqa: F401


@pytest.fixture(autouse=True)
def _environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's command line sets a variable; monkeypatch takes it back."""
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
