"""vLLM and torch's compiler warn while they are imported; their warnings are not ours to turn into errors."""

import warnings

import pytest


@pytest.fixture(scope="session", autouse=True)
def quietly_imported_vllm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.v1.engine.async_llm  # noqa: F401
