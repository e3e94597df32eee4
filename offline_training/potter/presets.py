"""Settings as published, for each step of Who's Harry Potter.

Sources: "paper" is Eldan and Russinovich 2023 (arXiv 2310.02238), section 3; "card" is the model card of
microsoft/Llama2-7b-WhoIsHarryPotter. The paper trains both models on books of 2.1 million tokens and a million tokens
of texts about them, with 8 sequences in a batch and 16 batches accumulated.

Neither says anything of warm-up, schedule or weight decay: those stay at the project's own defaults.
"""

from collections.abc import Callable
from typing import Any, Literal

from offline_training.errors import SettingsError

Step = Literal["reinforce", "labels", "unlearn"]

PRESETS: dict[str, dict[Step, dict[str, Any]]] = {
    "hp": {
        "reinforce": {
            "learning_rate": 3e-6,  # paper
            "epochs": 3,  # paper
            "batch_size": 128,  # paper: 8 x 16
            "gradient_accumulation": 16,  # paper
            "context_tokens": 512,  # paper
            "precision": "fp16",  # card
        },
        "labels": {
            "alpha": 5.0,  # paper
            "context_tokens": 512,  # paper
            "max_tokens": 4_000_000,  # card: "Fine-tuning tokens: 4M tokens"
            "precision": "fp16",  # card
        },
        "unlearn": {
            "learning_rate": 1e-6,  # paper
            # Section 4 reports models after up to 120 steps; two passes, as section 3 has it, are fewer.
            "steps": 120,
            "batch_size": 128,  # paper: 8 x 16
            "gradient_accumulation": 16,  # paper
            "context_tokens": 512,  # paper
            "precision": "fp16",  # card
        },
    },
}
"""Name -> step -> settings: of `TrainingSettings` for reinforce and unlearn, of `LabelOptions` for labels."""


def preset(name: str, step: Step, *, cuda: bool, notify: Callable[[str], None]) -> dict[str, Any]:
    """The settings of one step. Without a GPU fp16 becomes fp32, and `notify` is told.

    Raises:
        SettingsError: no preset of that name.
    """
    if name not in PRESETS:
        raise SettingsError(f"--preset: {name!r} is not known; choose one of {', '.join(PRESETS)}")
    settings = dict(PRESETS[name][step])
    if settings.get("precision") == "fp16" and not cuda:
        settings["precision"] = "fp32"
        notify(f"--preset {name}: fp16 needs a GPU; computing in fp32")
    return settings
