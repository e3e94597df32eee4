"""vLLM and torch's compiler warn while they are imported; their warnings are not ours to turn into errors."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import vllm.entrypoints.generate.beam_search.online
    import vllm.entrypoints.launchers.cli_args
    import vllm.v1.engine.async_llm  # noqa: F401


@pytest.fixture(autouse=True)
def _environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's command line sets a variable; monkeypatch takes it back."""
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
