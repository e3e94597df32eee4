"""The losses that several families share, each a pure function; and the terms of a method that are made of them.

Tensors of answer tokens come in, one value for each token or each answer goes out, in nats. No function takes a mean
over a batch: the trainer does (`data.answers.Term`). A is the number of answer tokens, S of answers, V of the
vocabulary. Nothing here, nor in the families, takes a logarithm of a probability: all of it works on
log-probabilities, so that float32 loses nothing where a model has forgotten.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from offline_training.data.answers import Answers, FullReference, Reference, Term, TopKReference
from offline_training.data.tokens import Stream
from offline_training.errors import SettingsError

Streams = Mapping[Stream, Answers]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target): logits (A, V), targets (A,) -> (A,) nats.

    With weight 1 it is fine-tuning, with weight -1 gradient ascent (TOFU, arXiv 2401.06121, `dataloader.py`). ECO's
    baseline script trains on prompts and padding too; what comes in here is decided by `prompt_tokens`.
    """
    return functional.cross_entropy(logits, targets, reduction="none")


def reference_logprobs(reference: Reference, targets: Tensor) -> Tensor:
    """log p(target) of the frozen model: targets (A,) -> (A,) nats, no gradient. Exact for either kind of reference."""
    if isinstance(reference, FullReference):
        return -cross_entropy(reference.logits, targets)
    return reference.target_logprobs


def sum_by_answer(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Values of tokens (A,), the answer of each token (A,) in 0 … S-1 -> their sums by answer (S,)."""
    return values.new_zeros(sequences).index_add(0, sequence, values)


def mean_by_answer(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Values of tokens (A,), the answer of each token (A,) -> their means by answer (S,); 0 for one without tokens."""
    lengths = torch.bincount(sequence, minlength=sequences).clamp(min=1)  # (S,)
    return sum_by_answer(values, sequence, sequences) / lengths


def kl_divergence(logits: Tensor, reference: Reference, temperature: float = 1.0) -> Tensor:
    """KL(reference ‖ model) of the next-token distributions: logits (A, V) -> (A,) nats.

    With temperature T both are softmax(logits / T) over the vocabulary, and the value is not multiplied by T². ECO's
    SCRUB takes that softmax over the positions of a padded batch (`DistillKL`, `dim=1`), so that its "distributions"
    say which position likes a token most; this is the distillation of SCRUB (Kurmanji et al. 2023,
    arXiv 2302.09880).

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


def cross_entropy_term(streams: Streams, stream: Stream, weight: float) -> Term:
    """The mean over a stream's answer tokens."""
    values = cross_entropy(streams[stream].logits, streams[stream].targets)
    return Term(f"{stream}_ce", values, weight, "token", stream)


def divergence_term(streams: Streams, stream: Stream, weight: float, temperature: float = 1.0) -> Term:
    """KL to the frozen model, the mean over a stream's answer tokens."""
    values = kl_divergence(streams[stream].logits, reference_of(streams[stream]), temperature)
    return Term(f"{stream}_kl", values, weight, "token", stream)


def retained(streams: Streams, weight: float, loss: Literal["nll", "kl"] = "nll") -> list[Term]:
    """Cross entropy or KL on the retain set, where it has a weight (see `method.retain_if_weighted`)."""
    term = divergence_term if loss == "kl" else cross_entropy_term
    return [term(streams, "retain", weight)] if weight else []


def reference_of(answers: Answers) -> Reference:
    """What the frozen model says to the same tokens; ValueError where whoever made the answers left it out."""
    if answers.reference is None:
        raise ValueError("reference: this method compares with the frozen model; give its outputs with the answers")
    return answers.reference
