"""vLLM and torch's compiler warn while they are imported; their warnings are not ours to turn into errors."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import vllm.v1.engine.async_llm  # noqa: F401
