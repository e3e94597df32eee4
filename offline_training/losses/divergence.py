"""How far a model has moved from the frozen reference, over the whole vocabulary."""

import torch
from torch import Tensor
from torch.nn import functional

from offline_training.data.answers import FullReference, Reference, TopKReference
from offline_training.errors import SettingsError

__all__ = ["kl_divergence"]


def kl_divergence(logits: Tensor, reference: Reference, temperature: float = 1.0) -> Tensor:
    """KL(reference ‖ model) of the next-token distributions: logits (A, V) -> (A,) nats.

    With temperature T both are softmax(logits / T) over the vocabulary, and the value is not multiplied by T². ECO's
    SCRUB takes that softmax over the positions of a padded batch (`DistillKL`, `dim=1`), so that its "distributions"
    say which position likes a token most; this is the distillation that SCRUB describes (Kurmanji et al. 2023,
    arXiv 2302.09880, equation 1).

    A `FullReference` gives the exact value. A `TopKReference` merges all but the reference's K likeliest tokens into
    one, in both distributions: merging outcomes never increases a divergence (data-processing inequality), so the
    value is a lower bound, near the exact one where the K tokens have nearly all of the probability. Its gradient
    cannot tell apart the merged tokens.

    Raises:
        SettingsError: a temperature other than 1 with a `TopKReference`, whose unlikely tokens are not known.
    """
    if isinstance(reference, TopKReference):
        if temperature != 1:
            raise SettingsError(
                f"reference_cache: a temperature ({temperature:g}) needs the reference's whole distribution; "
                "choose hidden or logits instead of top-k"
            )
        return _merged_divergence(logits, reference)
    return _full_divergence(logits, reference, temperature)


def _full_divergence(logits: Tensor, reference: FullReference, temperature: float) -> Tensor:
    model_logprobs = functional.log_softmax(logits / temperature, dim=-1)  # (A, V)
    reference_logprobs = functional.log_softmax(reference.logits / temperature, dim=-1)
    return functional.kl_div(model_logprobs, reference_logprobs, reduction="none", log_target=True).sum(-1)


def _merged_divergence(logits: Tensor, reference: TopKReference) -> Tensor:
    log_total = torch.logsumexp(logits, dim=-1)  # (A,)
    model_logprobs = logits.gather(-1, reference.indices) - log_total[:, None]  # (A, K)
    probabilities = reference.logprobs.exp()
    divergence = (probabilities * (reference.logprobs - model_logprobs)).sum(-1)
    if reference.indices.shape[-1] == logits.shape[-1]:
        return divergence  # nothing is merged, and the log of nothing would be -inf
    # The merged tokens' share by a logsumexp over them, not as 1 - sum(p): exact also where it is tiny.
    merged = torch.logsumexp(logits.scatter(-1, reference.indices, -torch.inf), dim=-1) - log_total  # (A,)
    rest = (1 - probabilities.sum(-1)).clamp(min=0)  # rounding can bring the sum above 1
    return divergence + torch.xlogy(rest, rest) - rest * merged
