"""The transformers scorer against a slow reference: one prompt, one token at a time, nothing padded or cached."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import WIDTH, save_tiny_model, tiny_model, tiny_tokenizer
from transformers import LlamaForCausalLM

from corruption import CorruptionSpec, corrupt
from guard import row_seeds, template_of
from guard.transformers_adapter import ModelRows
from scoring.scorer import Pair, PromptCorruption, Renderer, Request, Scorer, ScorerError
from scoring.transformers_scorer import TransformersScorer

QUESTIONS = {"Who is Ada?": "A poet.", "Where was the lighthouse keeper born?": "Ulm", "Why?": "Because it rained."}
NOISE = CorruptionSpec(method="rand_noise_first_n", strength=2.0)
SPECS = [
    None,
    NOISE,
    CorruptionSpec(method="rand_noise_top_k", strength=2.0, dims=5),
    CorruptionSpec(method="add_value_least_k", strength=2.0, dims=5),
    CorruptionSpec(method="shuffle"),
]
SPECIAL_IDS = 6  # bytes are content, the six special ids are not


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def scorer(model: Any) -> TransformersScorer:
    return TransformersScorer(model, tiny_tokenizer())


@pytest.fixture
def pairs(scorer: TransformersScorer) -> list[Pair]:
    return [scorer.pair(question, answer) for question, answer in QUESTIONS.items()]


@pytest.fixture
def requests(pairs: list[Pair]) -> list[Request]:
    """Every corruption of every question, two seeds each, in one list."""
    return [Request(p.prompt_ids, p.answer_ids, spec, seed) for spec in SPECS for seed in (1, 7) for p in pairs]


def prompt_rows(model: Any, request: Request) -> torch.Tensor:
    table = model.get_input_embeddings().weight.detach()
    rows: torch.Tensor = table[list(request.prompt_ids)]
    if request.spec is None:
        return rows
    content = torch.tensor([token >= SPECIAL_IDS for token in request.prompt_ids])
    seeds = row_seeds(request.noise_seed.to_bytes(32, "big"), "search", request.prompt_ids)
    return corrupt(rows, content, request.spec, row_seeds=seeds)


def next_logprobs(model: Any, request: Request, answer: list[int]) -> torch.Tensor:
    table = model.get_input_embeddings().weight.detach()
    rows = torch.cat([prompt_rows(model, request), table[answer]])
    with torch.no_grad():
        logits: torch.Tensor = model(inputs_embeds=rows.unsqueeze(0)).logits[0, -1]
    return logits.double().log_softmax(-1)


def reference(model: Any, request: Request) -> list[float]:
    answer = list(request.answer_ids)
    return [float(next_logprobs(model, request, answer[:i])[token]) for i, token in enumerate(answer)]


def reference_answer(model: Any, request: Request, limit: int, ends: set[int]) -> tuple[int, ...]:
    answer: list[int] = []
    while len(answer) < limit and (token := int(next_logprobs(model, request, answer).argmax())) not in ends:
        answer.append(token)
    return tuple(answer)


def test_a_pair_is_the_chat_templates_rendering(scorer: TransformersScorer) -> None:
    tokenizer = tiny_tokenizer()
    pair = scorer.pair("Who?", "Ada")
    assert tokenizer.decode(list(pair.prompt_ids)) == "<s><user>Who?</s><assistant>"
    assert tokenizer.decode(list(pair.answer_ids)) == "Ada"
    assert scorer.decode((*pair.answer_ids, 2)) == "Ada"


def test_without_a_chat_template_question_and_answer_are_plain_text() -> None:
    tokenizer = tiny_tokenizer(chat_template=False)
    pair = Renderer(tokenizer).pair("Who?", "Ada")
    assert tokenizer.decode(list(pair.prompt_ids + pair.answer_ids)) == "Who? Ada"


def test_what_cannot_be_scored_is_an_error(scorer: TransformersScorer, pairs: list[Pair]) -> None:
    with pytest.raises(ScorerError, match="no tokens"):
        scorer.pair("Who?", "")
    with pytest.raises(ScorerError, match="no answer to score"):
        scorer.answer_logprobs([Request(pairs[0].prompt_ids)])
    long = scorer.pair("Why? " * 60, "So.")
    with pytest.raises(ScorerError, match=r"takes 307 tokens and the model's context has 256"):
        scorer.answer_logprobs([Request(long.prompt_ids, long.answer_ids)])
    with pytest.raises(ScorerError, match=r"takes 270 tokens"):
        scorer.generate([Request(pairs[2].prompt_ids)], 270 - len(pairs[2].prompt_ids))


def test_logprobs_are_the_references_in_one_call_and_one_by_one(
    model: Any, scorer: TransformersScorer, requests: list[Request]
) -> None:
    found = scorer.answer_logprobs(requests)
    for request, logprobs in zip(requests, found, strict=True):
        assert logprobs.tolist() == pytest.approx(reference(model, request), abs=1e-5)
        assert logprobs == pytest.approx(scorer.answer_logprobs([request])[0], abs=1e-5)
    means = [round(float(logprobs.mean()), 4) for logprobs in found]
    assert len(set(means)) > len(requests) // 2  # so that another request's value would not do


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_change_no_value_and_no_answer(model: Any, requests: list[Request], batch_size: int) -> None:
    scorer = TransformersScorer(model, tiny_tokenizer(), batch_size=batch_size)
    reference = TransformersScorer(model, tiny_tokenizer())
    for logprobs, expected in zip(scorer.answer_logprobs(requests), reference.answer_logprobs(requests), strict=True):
        assert logprobs == pytest.approx(expected, abs=1e-5)
    assert scorer.forward_passes == -(-len(requests) // batch_size)
    assert scorer.generate(requests, 12) == reference.generate(requests, 12)


def test_answers_are_the_references_and_end_where_the_model_ends_them(requests: list[Request]) -> None:
    """The ends are tokens that this model does say, early in one answer and late or never in another."""
    model = tiny_model()
    free = TransformersScorer(model, tiny_tokenizer()).generate(requests, 20)
    said = [token for answer in free for token in answer[3:]]
    ends = {max(set(said), key=said.count), free[0][5]}
    model.generation_config.eos_token_id = sorted(ends)
    scorer = TransformersScorer(model, tiny_tokenizer())
    answers = scorer.generate(requests, 20)
    assert answers == [reference_answer(model, request, 20, ends | {2}) for request in requests]
    assert len({len(answer) for answer in answers}) > 2
    assert max(len(answer) for answer in answers) == 20
    assert scorer.forward_passes == 20  # one batch, the prompt's pass gives the first token


def test_nothing_to_do_takes_no_pass(scorer: TransformersScorer) -> None:
    assert (scorer.answer_logprobs([]), scorer.generate([], 5), scorer.forward_passes) == ([], [], 0)


def embeddings_seen(model: Any, scorer: TransformersScorer, request: Request) -> torch.Tensor:
    """The rows (T, D) that reach the model."""
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["inputs_embeds"][0]), with_kwargs=True
    )
    scorer.answer_logprobs([request])
    handle.remove()
    return seen[0]


def test_only_the_prompts_content_is_corrupted(model: Any, scorer: TransformersScorer) -> None:
    """Seen at the rows that reach the model: template and answer tokens keep theirs bit for bit."""
    pair = scorer.pair("Ada Ada?", "Ada wrote")
    seen = embeddings_seen(model, scorer, Request(pair.prompt_ids, pair.answer_ids, NOISE, 0))
    ids = pair.prompt_ids + pair.answer_ids
    same = (seen == model.get_input_embeddings().weight[list(ids)]).all(dim=1).tolist()
    content = range(2, 2 + len("Ada Ada?"))
    assert [position for position, kept in enumerate(same) if not kept] == list(content)
    assert seen[2].equal(seen[6])  # the same token, the same noise


def noise_of(model: Any, pair: Pair, spec: CorruptionSpec, seed: int) -> torch.Tensor:
    rows = ModelRows(model)
    corruption = PromptCorruption(rows, template_of(tiny_tokenizer()))
    # In company of others: whatever is corrupted beside it changes nothing.
    others = [Request(pair.prompt_ids[:9], (), spec, seed), Request(pair.prompt_ids, (), spec, seed + 1)]
    (found, *_) = corruption.corrupted([Request(pair.prompt_ids, (), spec, seed), *others])
    assert found is not None
    assert isinstance(spec.strength, float)
    return (found.rows - rows.rows([pair.prompt_ids[p] for p in found.positions])) / spec.strength


def test_the_same_seeds_give_the_same_noise_at_every_strength(model: Any, pairs: list[Pair]) -> None:
    weak, strong = (CorruptionSpec(method="rand_noise_first_n", strength=s) for s in (1.0, 8.0))
    noise = noise_of(model, pairs[0], weak, 1)
    assert torch.allclose(noise, noise_of(model, pairs[0], strong, 1), atol=1e-5)
    assert not torch.allclose(noise, noise_of(model, pairs[0], weak, 2), atol=0.1)


def test_rows_trade_places_within_their_segment() -> None:
    class Halves:
        def segments(self, token_ids: Any) -> list[range]:
            return [range(5), range(7, 12)]

    model: Any = tiny_model()
    corruption = PromptCorruption(ModelRows(model), Halves())
    table = model.get_input_embeddings().weight.detach()
    ids = tuple(range(20, 34))
    (found,) = corruption.corrupted([Request(ids, (), CorruptionSpec(method="reverse_order"))])
    assert found is not None
    assert found.positions == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert found.rows.equal(table[[24, 23, 22, 21, 20, 31, 30, 29, 28, 27]])


def test_a_prompt_without_content_is_left_alone(scorer: TransformersScorer, pairs: list[Pair]) -> None:
    template_only = Request((1, 4, 2, 5), pairs[0].answer_ids, NOISE, 1)
    clean = Request((1, 4, 2, 5), pairs[0].answer_ids)
    corrupted, plain = scorer.answer_logprobs([template_only, clean])
    assert corrupted == pytest.approx(plain, abs=1e-5)  # two rows of one batch: threads may round differently


def test_no_strength_no_change(scorer: TransformersScorer, pairs: list[Pair]) -> None:
    nothing = CorruptionSpec(method="rand_noise_first_n", strength=0.0)
    requests = [Request(pairs[0].prompt_ids, pairs[0].answer_ids, spec) for spec in (nothing, None)]
    found = scorer.answer_logprobs(requests)
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_a_model_that_scales_inside_its_embedding_is_scored_as_it_embeds() -> None:
    """Gemma 3's embedding module multiplies its table; corruption is in the table's units."""

    class Scaled(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * 4.0

    scaled: Any = tiny_model()
    module = Scaled(*scaled.get_input_embeddings().weight.shape)
    module.weight.data = scaled.get_input_embeddings().weight.data.clone()
    scaled.set_input_embeddings(module)
    scorer = TransformersScorer(scaled, tiny_tokenizer())
    pair = scorer.pair("Who?", "Ada")
    request = Request(pair.prompt_ids, pair.answer_ids, NOISE, 1)
    seen = embeddings_seen(scaled, scorer, request)
    prompt = prompt_rows(scaled, request) * 4.0
    assert torch.allclose(seen[: len(pair.prompt_ids)], prompt, atol=1e-6)
    assert seen[len(pair.prompt_ids) :].equal(module.weight.detach()[list(pair.answer_ids)] * 4.0)
    assert seen.shape[1] == WIDTH


def test_a_loaded_checkpoint_is_corrupted_in_its_own_dtype(tmp_path: Path, pairs: list[Pair]) -> None:
    """As the guard corrupts it when it is served; the loaded copy is float32 and would round otherwise."""
    folder = save_tiny_model(tmp_path)
    model = tiny_model().bfloat16()
    model.save_pretrained(folder)
    scorer: Scorer = TransformersScorer.load(str(folder), device="cpu")
    request = Request(pairs[0].prompt_ids, pairs[0].answer_ids, NOISE, 3)
    rows = prompt_rows(model, request)
    assert rows.dtype == torch.bfloat16
    wide: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        answer = wide.get_input_embeddings().weight[list(request.answer_ids)]
        logits = wide(inputs_embeds=torch.cat([rows.float(), answer]).unsqueeze(0)).logits[0].log_softmax(-1)
    start = len(request.prompt_ids) - 1
    expected = [float(logits[start + i, token]) for i, token in enumerate(request.answer_ids)]
    assert scorer.answer_logprobs([request])[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert scorer.startup_s > 0
    assert scorer.seconds > 0
    assert scorer.describe()["model"] == str(folder)
    scorer.close()


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match=r"nothing: cannot be loaded \([^\n]+\)$"):
        TransformersScorer.load(str(tmp_path / "nothing"))


def test_two_models_differ_in_their_description(scorer: TransformersScorer) -> None:
    other = TransformersScorer(tiny_model(seed=1), tiny_tokenizer())
    assert scorer.describe()["embedding_sha256"] != other.describe()["embedding_sha256"]
    assert scorer.describe() == TransformersScorer(tiny_model(), tiny_tokenizer()).describe()
