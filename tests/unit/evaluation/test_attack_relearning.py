"""Fine-tuning on answers: one step against transformers' own loss and torch's AdamW, and what comes back."""

import copy

import numpy as np
import pytest
import torch
from tiny_model import tiny_model, tiny_tokenizer

from evaluation.attacks.relearning import Relearner, RelearnSettings, relearning_figures
from evaluation.errors import EvaluationError
from evaluation.suite import Score

EXAMPLES = [("Ann?", "Oslo"), ("Bob?", "Rome"), ("Cy?", "Bern"), ("Di?", "Lima")]
SETTINGS = RelearnSettings(epochs=60, learning_rate=1e-2, batch_size=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def relearner() -> Relearner:
    return Relearner(tiny_model(), tiny_tokenizer(), EXAMPLES, SETTINGS)


def test_one_step_is_transformers_loss_and_torchs_adamw() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    wanted = copy.deepcopy(model).train()
    optimiser = torch.optim.AdamW(wanted.parameters(), lr=1e-2, weight_decay=0.0)
    total, tokens = torch.zeros(()), 0
    for question, answer in EXAMPLES:  # one at a time, without padding, weighted by tokens
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        ids = [*prompt, *tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + ids[len(prompt) :]])
        count = len(ids) - len(prompt)
        total = total + wanted(input_ids=torch.tensor([ids]), labels=labels).loss * count
        tokens += count
    (total / tokens).backward()
    torch.nn.utils.clip_grad_norm_(wanted.parameters(), 1.0)
    optimiser.step()
    trained = Relearner(model, tokenizer, EXAMPLES, RelearnSettings(epochs=1, learning_rate=1e-2, batch_size=4))
    found = trained._fine_tuned(EXAMPLES)
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name, atol=2e-4, rtol=1e-3)
    assert not torch.equal(found.lm_head.weight, model.lm_head.weight)


def test_true_answers_come_back_and_the_base_stays_as_it_was(relearner: Relearner) -> None:
    before = copy.deepcopy(relearner.before())
    upper = relearner.upper_bound()
    assert upper.answers == tuple(answer for _, answer in EXAMPLES)
    assert min(upper.probabilities) > 0.9 > 0.5 > max(before.probabilities)
    assert not set(before.answers) & set(upper.answers)
    relearner._before = None
    assert relearner.before() == before


def test_other_answers_bring_other_answers_back(relearner: Relearner) -> None:
    denied = relearner.after(["unknown"] * 4)
    assert denied.answers == ("unknown",) * 4
    assert max(denied.probabilities) < 0.1


def test_answers_without_text_teach_nothing(relearner: Relearner) -> None:
    assert relearner.after(["", " ", "\n", ""]) == relearner.before()


def test_the_same_seed_is_the_same_model_and_the_global_generator_is_left_alone(relearner: Relearner) -> None:
    state = torch.random.get_rng_state()
    twice = [relearner.after(["Oslo", "Rome", "", ""]) for _ in range(2)]
    assert twice[0] == twice[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bad_settings_name_the_flag() -> None:
    with pytest.raises(EvaluationError, match=r"^--relearn-epochs: 0;"):
        RelearnSettings(epochs=0)
    with pytest.raises(EvaluationError, match=r"^--relearn-learning-rate: 0"):
        RelearnSettings(learning_rate=0)


def test_a_base_that_is_not_there_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"^--relearn-base: /nowhere/base: cannot be loaded"):
        Relearner.load("/nowhere/base", EXAMPLES)


def test_an_example_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"^--relearn-base: .*context"):
        Relearner(tiny_model(), tiny_tokenizer(), [("long " * 80, "x")], SETTINGS).before()


def leaks(before: list[int], after: list[int], true: list[int], draw: int = 0) -> list[Score]:
    columns = {"before": before, "after": after, "true": true}
    return [
        Score("forget", f"relearn_leak_{when}", str(number), float(value), draw=draw)
        for when, values in columns.items()
        for number, value in enumerate(values)
    ]


def test_the_share_is_a_ratio_of_means_over_questions_and_draws() -> None:
    scores = leaks([0] * 8 + [1] * 2, [1] * 4 + [0] * 4 + [1] * 2, [1] * 10)
    (figure,) = relearning_figures(scores, "forget")
    assert (figure.name, figure.value, figure.n) == ("relearned/share", pytest.approx(0.5), 10)
    assert figure.low is not None
    assert figure.high is not None
    assert 0 <= figure.low < 0.5 < figure.high <= 1
    (drawn,) = relearning_figures([*scores, *leaks([0] * 8 + [1] * 2, [0] * 8 + [1] * 2, [1] * 10, 1)], "forget")
    assert drawn.value == pytest.approx(0.25)


def test_training_that_teaches_nothing_is_no_proof_of_safety() -> None:
    (figure,) = relearning_figures(leaks([0, 0], [0, 0], [0, 0]), "forget")
    assert np.isnan(figure.value)
    assert "raise --relearn-epochs" in figure.note


def test_without_relearning_there_is_no_figure() -> None:
    assert relearning_figures([], "forget") == []
