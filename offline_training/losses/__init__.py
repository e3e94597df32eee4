"""One pure function for each loss: tensors of answer tokens in, one value for each token or each answer out.

No function takes a mean over a batch: the trainer does (`data.answers.Term`). A is the number of answer
tokens, S of answers, V of the vocabulary, D of the hidden size. All values are in nats, except those of `steering`.
Nothing here takes a logarithm of a probability: all of it works on log-probabilities, so that float32 loses nothing
where a model has forgotten.
"""

from offline_training.losses.divergence import kl_divergence
from offline_training.losses.likelihood import (
    cross_entropy,
    mean_by_answer,
    places_in_answer,
    reference_logprobs,
    sum_by_answer,
)
from offline_training.losses.preference import direct_preference, negative_preference, simple_negative_preference
from offline_training.losses.reweighting import importance_and_saturation, likelihood_power
from offline_training.losses.soft_targets import adjusted_distillation, cross_entropy_unlearning
from offline_training.losses.steering import activation_distance, control_vector

__all__ = [
    "activation_distance",
    "adjusted_distillation",
    "control_vector",
    "cross_entropy",
    "cross_entropy_unlearning",
    "direct_preference",
    "importance_and_saturation",
    "kl_divergence",
    "likelihood_power",
    "mean_by_answer",
    "negative_preference",
    "places_in_answer",
    "reference_logprobs",
    "simple_negative_preference",
    "sum_by_answer",
]
