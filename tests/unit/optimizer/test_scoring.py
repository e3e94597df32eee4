"""Answer probabilities against a slow reference: one pair, one token at a time, nothing padded."""

from typing import Any

import pytest
import torch
from tiny_model import WIDTH, tiny_model, tiny_tokenizer

from corruption import CorruptionSpec, corrupt
from guard import row_seeds, template_of
from optimizer import AnswerScorer, Pair

QUESTIONS = {"Who is Ada?": "A poet.", "Where was the lighthouse keeper born?": "Ulm", "Why?": "Because it rained."}
NOISE = CorruptionSpec(method="rand_noise_first_n", strength=2.0)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def scorer(model: Any) -> AnswerScorer:
    tokenizer = tiny_tokenizer()
    return AnswerScorer(model, tokenizer, template_of(tokenizer))


@pytest.fixture(scope="module")
def pairs(scorer: AnswerScorer) -> list[Pair]:
    return [scorer.pair(question, answer) for question, answer in QUESTIONS.items()]


def reference(model: Any, pair: Pair, spec: CorruptionSpec | None = None, noise_seed: int = 0) -> float:
    """P(a|q)^(1/|a|), by one forward pass for each answer token. Bytes are content, the six special ids are not."""
    table = model.get_input_embeddings().weight.detach()
    prompt = table[list(pair.prompt_ids)]
    if spec is not None:
        content = torch.tensor([token >= 6 for token in pair.prompt_ids])
        seeds = row_seeds(noise_seed.to_bytes(32, "big"), "search", pair.prompt_ids)
        prompt = corrupt(prompt, content, spec, row_seeds=seeds)
    product = 1.0
    for count, token in enumerate(pair.answer_ids):
        rows = torch.cat([prompt, table[list(pair.answer_ids[:count])]])
        with torch.no_grad():
            last = model(inputs_embeds=rows.unsqueeze(0)).logits[0, -1]
        product *= float(last.double().softmax(-1)[token])
    return float(product ** (1 / len(pair.answer_ids)))


def test_a_pair_is_the_chat_templates_rendering(scorer: AnswerScorer) -> None:
    tokenizer = tiny_tokenizer()
    pair = scorer.pair("Who?", "Ada")
    assert tokenizer.decode(pair.prompt_ids) == "<s><user>Who?</s><assistant>"
    assert tokenizer.decode(pair.answer_ids) == "Ada"


def test_without_a_chat_template_question_and_answer_are_plain_text(model: Any) -> None:
    tokenizer = tiny_tokenizer(chat_template=False)
    pair = AnswerScorer(model, tokenizer, template_of(tokenizer)).pair("Who?", "Ada")
    assert tokenizer.decode(pair.prompt_ids + pair.answer_ids) == "Who? Ada"


def test_an_empty_answer_is_an_error(scorer: AnswerScorer) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        scorer.pair("Who?", "")


def test_probabilities_are_the_references(model: Any, scorer: AnswerScorer, pairs: list[Pair]) -> None:
    expected = [reference(model, pair) for pair in pairs]
    assert scorer.probabilities(pairs).tolist() == pytest.approx(expected, rel=1e-4)
    assert max(expected) > 1.2 * min(expected)  # so that another pair's value would not do
    assert scorer.probabilities(pairs, noise_seeds=(1, 2, 3)).equal(scorer.probabilities(pairs))


@pytest.mark.parametrize("method", ["rand_noise_first_n", "rand_noise_top_k", "add_value_least_k"])
def test_corrupted_probabilities_are_the_references(
    model: Any, scorer: AnswerScorer, pairs: list[Pair], method: str
) -> None:
    spec = CorruptionSpec.model_validate({"method": method, "strength": 2.0, "dims": 5})
    expected = [(reference(model, pair, spec, 1) + reference(model, pair, spec, 7)) / 2 for pair in pairs]
    found = scorer.probabilities(pairs, spec, noise_seeds=(1, 7))
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert not torch.allclose(found, scorer.probabilities(pairs), rtol=1e-2)


def test_padding_and_batches_change_no_value(scorer: AnswerScorer, pairs: list[Pair]) -> None:
    many = pairs * 7  # more than one batch
    alone = torch.cat([scorer.probabilities([pair], NOISE) for pair in many])
    assert torch.allclose(scorer.probabilities(many, NOISE), alone, rtol=1e-5)


def test_only_the_prompts_content_is_corrupted(model: Any, scorer: AnswerScorer) -> None:
    """Seen at the rows that reach the model: template and answer tokens keep theirs bit for bit."""
    pair = scorer.pair("Ada Ada?", "Ada wrote")
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["inputs_embeds"][0]), with_kwargs=True
    )
    try:
        scorer.probabilities([pair], NOISE)
    finally:
        handle.remove()
    ids = pair.prompt_ids + pair.answer_ids
    same = (seen[0] == model.get_input_embeddings().weight[list(ids)]).all(dim=1).tolist()
    content = range(2, 2 + len("Ada Ada?"))
    assert [position for position, kept in enumerate(same) if not kept] == list(content)
    assert seen[0][2].equal(seen[0][6])  # the same token, the same noise


def noise_of(scorer: AnswerScorer, pair: Pair, spec: CorruptionSpec, seed: int) -> torch.Tensor:
    return (scorer._rows(pair, spec, seed) - scorer._rows(pair, None, 0)) / spec.strength


def test_the_same_seeds_give_the_same_noise_at_every_strength(scorer: AnswerScorer, pairs: list[Pair]) -> None:
    weak, strong = (CorruptionSpec(method="rand_noise_first_n", strength=s) for s in (1.0, 8.0))
    noise = noise_of(scorer, pairs[0], weak, 1)
    assert torch.allclose(noise, noise_of(scorer, pairs[0], strong, 1), atol=1e-5)
    assert not torch.allclose(noise, noise_of(scorer, pairs[0], weak, 2), atol=0.1)
    twice = [scorer.probabilities(pairs, weak, noise_seeds=(1, 2)) for _ in range(2)]
    assert twice[0].equal(twice[1])


def test_no_strength_no_change(scorer: AnswerScorer, pairs: list[Pair]) -> None:
    nothing = CorruptionSpec(method="rand_noise_first_n", strength=0.0)
    assert scorer.probabilities(pairs, nothing).equal(scorer.probabilities(pairs))


def test_a_model_that_scales_inside_its_embedding_is_scored_as_it_embeds() -> None:
    """Gemma 3's embedding module multiplies its table; corruption is in the table's units."""

    class Scaled(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * 4.0

    plain, scaled = tiny_model(), tiny_model()
    module = Scaled(*plain.get_input_embeddings().weight.shape)
    module.weight.data = scaled.get_input_embeddings().weight.data
    scaled.set_input_embeddings(module)
    tokenizer = tiny_tokenizer()
    scorer = AnswerScorer(scaled, tokenizer, template_of(tokenizer))
    pair = scorer.pair("Who?", "Ada")
    ids = torch.tensor([pair.prompt_ids + pair.answer_ids])
    assert torch.allclose(scorer._rows(pair, None, 0), module(ids)[0])
    unscaled = AnswerScorer(plain, tokenizer, template_of(tokenizer))
    assert torch.allclose(scorer._rows(pair, NOISE, 1), unscaled._rows(pair, NOISE, 1) * 4.0)
    assert scorer._rows(pair, NOISE, 1).shape == (ids.shape[1], WIDTH)
