"""Hidden states steered to a random vector: RMU (Li et al. 2024, arXiv 2403.03218)."""

import re

import torch
from pydantic import Field, field_validator
from torch import Tensor

from offline_training.data.answers import Term
from offline_training.methods.losses import Streams
from offline_training.methods.method import Method, MethodSettings


class RmuSettings(MethodSettings):
    """`rmu`."""

    hidden_layer: int = Field(
        -2,
        description="Decoder layer whose outputs are steered; 0 is the first, negative counts from the last. The "
        "default is the last but one, in any model; the authors' for 7B models is 7.",
    )
    steering_coefficient: float | None = Field(
        None,
        gt=0,
        description="c, length of the control vector (6.5: the authors, Zephyr-7B). None: steering_scale times the "
        "length that each state of the forget set had before, so that it fits any model.",
    )
    steering_scale: float = Field(5.0, gt=0, description="Used without steering_coefficient (5: Adaptive RMU's code).")
    retain_weight: float = Field(
        1.0,
        gt=0,
        description="α, weight of keeping the retain set's hidden states (1: open-unlearning; the authors' 1200 for "
        "Zephyr-7B, whose two sets are of different kinds, keeps a small model where it is).",
    )
    vector_seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of the control vector's direction.")
    trained_parameters: str | None = Field(
        None,
        description="Regular expression of the whole names of the weights to train. Default: the MLP output "
        "projections of hidden_layer and the two layers before it, as the paper; with a negative hidden_layer, those "
        "of all layers (the later ones get no gradient).",
    )

    @field_validator("trained_parameters")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression ({error}); give one such as .*mlp.*") from None
        return pattern


def control_vector(size: int, coefficient: float, seed: int) -> Tensor:
    """c u: u drawn uniformly from [0, 1)^D and scaled to length 1, c = `coefficient`: -> (D,) float32 on the CPU.

    The same size and seed give the same direction in every step, process and resumed run.
    """
    drawn: Tensor = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return drawn * (coefficient / float(drawn.norm()))


def activation_distance(hidden: Tensor, target: Tensor) -> Tensor:
    """Mean over the D dimensions of (hidden - target)²: (A, D) and (A, D) or (D,) -> (A,), in squared activations.

    The two losses are those of ‖h - c u‖² on forget tokens and α ‖h - h_ref‖² on retain tokens, D times smaller both:
    the code (`rmu/unlearn.py` of centerforaisafety/wmdp) takes means over the dimensions, and so does this.
    """
    return (hidden - target).square().mean(-1)


def rmu(streams: Streams, settings: RmuSettings) -> list[Term]:
    forget, retain, before = streams["forget"].hidden, streams["retain"].hidden, streams["retain"].reference_hidden
    if forget is None or retain is None or before is None:
        raise ValueError("hidden: this method steers hidden states; give them with the answers")
    vector = control_vector(forget.shape[-1], settings.steering_coefficient or 1.0, settings.vector_seed).to(forget)
    if settings.steering_coefficient is None:
        vector = settings.steering_scale * lengths_before(streams) * vector  # (A, D)
    return [
        Term("forget_distance", activation_distance(forget, vector), 1.0, "token", "forget"),
        Term("retain_distance", activation_distance(retain, before), settings.retain_weight, "token", "retain"),
    ]


def lengths_before(streams: Streams) -> Tensor:
    """‖h_ref‖ of each forget token: (A, 1), no gradient.

    Adaptive RMU (Dang et al. 2024, arXiv 2408.06223); its code (RebelsNLU-jaist/llm-unlearning,
    `baselines/adap_rmu/unlearn.py`) takes one mean length, of the first batch, for all.
    """
    before = streams["forget"].reference_hidden
    if before is None:
        raise ValueError("hidden: this method steers hidden states; give the frozen model's with the answers")
    lengths: Tensor = before.norm(dim=-1, keepdim=True)
    return lengths


def rmu_parameters(settings: RmuSettings) -> str:
    """The MLP output projections of the steered layer and the two before it, under the names that architectures have
    for them."""
    if settings.trained_parameters is not None:
        return settings.trained_parameters
    last = settings.hidden_layer
    layers = "|".join(str(layer) for layer in range(max(last - 2, 0), last + 1)) if last >= 0 else r"\d+"
    blocks = "mlp|ffn|feed_forward|block_sparse_moe"
    projections = "down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2"
    return rf".*\.(?:{layers})\.(?:(?:{blocks})\.(?:.*\.)?(?:{projections})|fc2)(?:\.weight)?$"


RMU = Method(
    name="rmu",
    summary="steer hidden states of the forget set to a random vector, keep those of the retain set",
    source="Li et al. 2024, arXiv 2403.03218; centerforaisafety/wmdp, rmu/unlearn.py; the vector's length as Adaptive "
    "RMU's, Dang et al. 2024, arXiv 2408.06223",
    settings=RmuSettings,
    streams=("forget", "retain"),
    terms=rmu,
    reference=frozenset({"forget", "retain"}),
    hidden_layer=lambda chosen: chosen.hidden_layer,
    trained_parameters=rmu_parameters,
)
