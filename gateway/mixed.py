"""A prompt with corrupted rows, as vLLM takes it (0.32)."""

import hashlib
from collections.abc import Mapping
from typing import Any

from vllm.inputs.engine import embeds_input

from guard import ProtectedPrompt


def mixed_prompt(safe: ProtectedPrompt, prompt: Mapping[str, Any]) -> Any:
    """The engine input that has `safe`'s rows where its mask is set, in place of the engine input `prompt`.

    vLLM's prefix cache tells mixed prompts apart by their rows, zeros where no row is given, and not by which tokens
    are masked (vllm-project/vllm#56655): where corrupted rows may be zeros too, the mask goes into the salt.
    """
    if safe.mask is None:
        raise ValueError("nothing of the prompt is masked")
    salt = prompt.get("cache_salt")
    if safe.has_zero_rows:
        salt = f"{salt or ''}|{hashlib.sha256(bytes(safe.mask)).hexdigest()}"
    replaced = embeds_input(
        safe.embeddings,
        prompt=prompt.get("prompt"),
        cache_salt=salt,
        prompt_token_ids=safe.token_ids,
        is_token_ids=[not masked for masked in safe.mask],
    )
    if "arrival_time" in prompt:
        replaced["arrival_time"] = prompt["arrival_time"]
    return replaced
