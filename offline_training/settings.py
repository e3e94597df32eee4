"""What a job is told: one schema for flags, YAML files and Python. Unknown keys are errors."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offline_training.errors import SettingsError
from offline_training.methods.method import MethodSettings


class Schema(BaseModel):
    """Settings as flags, YAML files and Python give them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_least(settings: Schema, least: Mapping[str, int]) -> None:
    """Raise SettingsError where one of the fields is below its least value, or endless; None is none of them."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not bound <= value < math.inf:
            raise SettingsError(f"--{name.replace('_', '-')}: must be at least {bound}, not {value}")


class TrainingSettings(Schema):
    """How any job trains. Defaults are TOFU's unlearning recipe (arXiv 2401.06121; `config/forget.yaml`, `forget.py`
    and the README's batch of 4, accumulated 4 times, on two GPUs) where it has one."""

    learning_rate: float = Field(1e-5, gt=0, lt=1, description="Peak learning rate.")
    epochs: int = Field(5, ge=1, description="Passes over the forget set, or over the data where there is none.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps; epochs repeat or end early to give as many.")
    batch_size: int = Field(32, ge=1, description="Examples of each stream in one optimizer step, over all processes.")
    gradient_accumulation: int = Field(1, ge=1, description="Parts into which each process splits its share of a step.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Course of the learning rate after the warm-up; linear and cosine end at 0."
    )
    warmup: float = Field(0.2, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, description="The optimizer's, of all but biases and norms.")
    optimizer: Literal["adamw", "sophia"] = Field(
        "adamw", description="sophia: second-order steps by a diagonal of the Hessian, as SOUL takes them."
    )
    sophia_rho: float = Field(
        0.04, gt=0, description="ρ, how much of the curvature Sophia divides by; lower clips more (0.04: SOUL)."
    )
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    seed: int = Field(0, ge=0, description="Decides the order of examples, random answers, and dropout.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "pure-bf16"] = Field(
        "auto",
        description="bf16 and fp16 compute in mixed precision over float32 weights, pure-bf16 keeps weights in bf16 "
        "too; auto: bf16 where the GPU has it, fp32 elsewhere.",
    )
    save_dtype: Literal["source", "fp32", "bf16", "fp16"] = Field(
        "source", description="Of the saved weights; source: the checkpoint's own. Rounding can undo tiny changes."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, a third more time.")
    lora_rank: int = Field(0, ge=0, description="Train LoRA adapters of this rank, merged at the end; 0: all weights.")
    lora_alpha: int = Field(32, ge=1, description="LoRA's scale: alpha / rank.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="LoRA's dropout.")
    lora_targets: str = Field(
        "all-linear", min_length=1, description="Modules that get adapters: all-linear, or names with commas between."
    )
    context_tokens: int | None = Field(
        None, ge=2, description="Longest sequence; None: the model's own limit, at most 2,048."
    )
    long_examples: Literal["cut", "refuse"] = Field(
        "cut", description="Examples longer than that: cut the answer's end (and say how many), or refuse to start."
    )
    prompt_tokens: Literal["none", "kl", "all"] = Field(
        "none",
        description="Where losses are also over the prompt's tokens: none; kl, in the KL on the retain set (as the "
        "code of TOFU, NPO and open-unlearning has it, which averages over padding too); all (as ECO's baselines).",
    )
    sample_retain: bool = Field(
        False, description="Draw as many retain examples as there are to forget, once and with replacement (ECO)."
    )
    packing: bool = Field(True, description="Several sequences in one row without padding, where the model allows it.")
    row_tokens: int = Field(256, ge=1, description="Length of such a row; longer sequences make longer rows.")
    reference_cache: Literal["auto", "hidden", "logits", "top-k"] = Field(
        "auto",
        description="How the frozen reference's outputs are kept: final hidden states or logits (both exact), or the "
        "likeliest tokens; auto: the first of them that works and fits.",
    )
    reference_top_k: int = Field(256, ge=1, description="Tokens kept at each position with top-k.")
    reference_gib: float = Field(16.0, gt=0, description="Disk that auto may fill with logits, in GiB.")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="Steps between checkpoints; None: a tenth of the steps, at most 200."
    )
    evaluate_steps: int | None = Field(
        None, ge=1, description="Steps between evaluations; None: only before the first step and after the last."
    )
    evaluate_examples: int = Field(
        64, ge=0, description="Examples of each set that evaluations use at most; 0: no evaluation."
    )
    stop_forget_probability: float | None = Field(
        None, gt=0, lt=1, description="Stop when the mean answer probability on the forget set falls to this."
    )
    stop_retain_probability: float | None = Field(
        None, gt=0, lt=1, description="Stop when the mean answer probability on the retain set falls to this."
    )
    stop_forget_loss: float | None = Field(
        None, gt=0, description="Stop when a step's mean cross entropy on forget answers reaches this, in nats."
    )
    tensorboard: bool = Field(True, description="Also write the log for TensorBoard.")
    threads: int | None = Field(None, ge=1, description="CPU threads; None: torch's own choice.")
    deepspeed: Path | None = Field(None, description="DeepSpeed configuration (JSON), with a launcher.")
    fsdp: str | None = Field(None, description="FSDP options as transformers takes them: 'full_shard auto_wrap' …")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stops = self.stop_forget_probability is not None or self.stop_retain_probability is not None
        if stops and (self.evaluate_steps is None or self.evaluate_examples == 0):
            raise ValueError("stop_forget_probability and stop_retain_probability need evaluate_steps and examples")
        if self.deepspeed is not None and self.fsdp is not None:
            raise ValueError("deepspeed and fsdp exclude each other")
        if self.deepspeed is not None and self.optimizer == "sophia":
            raise ValueError("deepspeed brings its own optimizer; leave optimizer at adamw")
        return self


class Job(Schema):
    """What all jobs have in common."""

    model: str = Field(min_length=1, description="Checkpoint to start from: a folder or a hub id.")
    out: Path = Field(description="Folder for the new checkpoint.")
    system_prompt: str | None = Field(None, description="System message of every training conversation.")
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    resume: bool = Field(False, description="Go on where an interrupted run of the same job stopped.")
    force: bool = Field(False, description="Replace --out if it holds an earlier job's checkpoint, and its leavings.")


class UnlearnJob(Job):
    """One unlearning run."""

    method: str
    method_settings: MethodSettings
    """An instance of the method's own `settings` class."""
    forget: str | None = Field(None, description="What to forget: JSON lines, text, a folder of texts, or hf:name.")
    retain: str | None = Field(None, description="What to keep, in the same forms.")
    idk: str | None = Field(None, description="File of refusals, one a line; None: those shipped with the project.")
    alternatives: str | None = Field(
        None,
        description="Made-up answers to the questions to forget, as AltPO's generate.py writes them: question, and "
        "alternate or sub_answer, one or a list; None: those columns of the forget set.",
    )


class FinetuneJob(Job):
    """Plain fine-tuning, or training from scratch."""

    data: str = Field(min_length=1, description="What to learn: JSON lines, text, a folder of texts, or hf:name.")
    from_scratch: bool = Field(False, description="Start from random weights of the model's configuration.")
