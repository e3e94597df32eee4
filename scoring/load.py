"""A scorer by the name of what runs it."""

from pathlib import Path
from typing import Final, Literal

from classifiers.export.hub import MODEL_FILES
from scoring.scorer import ContentFinder, Scorer, ScorerError
from storage.digests import folder_digest

Runner = Literal["transformers", "vllm"]
RUNNERS: Final[tuple[Runner, ...]] = ("transformers", "vllm")


def open_scorer(
    model: str,
    *,
    runner: Runner = "transformers",
    dtype: str | None = None,
    tensor_parallel_size: int = 1,
    content: ContentFinder | None = None,
) -> Scorer:
    """Load a model.

    Args:
        model: a local folder or hub id.
        runner: vLLM's offline engine, or transformers in this process.
        dtype: torch's name of it; None: float32 on a CPU, the checkpoint's own on a GPU.
        tensor_parallel_size: vLLM's.
        content: finds what gets corrupted; None: what the chat template calls content.

    Raises:
        ScorerError: the dtype is none, or the model cannot be loaded.
    """
    import torch

    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ScorerError(f"--dtype: {dtype!r} is no dtype; expected float32, bfloat16 or float16")
    if runner == "vllm":
        from scoring.vllm_scorer import VllmScorer

        on_gpu = torch.cuda.is_available()
        return VllmScorer(
            model,
            dtype=dtype or ("auto" if on_gpu else "float32"),
            tensor_parallel_size=tensor_parallel_size,
            enforce_eager=not on_gpu,
            content=content,
        )
    from scoring.transformers_scorer import TransformersScorer

    return TransformersScorer.load(model, dtype=getattr(torch, dtype) if dtype else None, content=content)


def weights_digest(model: str) -> str | None:
    """sha256 in hex over the files that a loaded model came from; None where they are not found. Reads all weights."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(model, "config.json")
        except HFValidationError:  # neither a folder nor a name; loading it says so
            return None
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    return folder_digest(folder, MODEL_FILES)
