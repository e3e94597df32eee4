"""The offline target against transformers itself: ids, log-probabilities, greedy flags, sampling, logits."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted_endpoint import running
from tiny_model import tiny_model, tiny_tokenizer
from tiny_server import serving

from evaluation.errors import TargetError
from evaluation.replies import Ask, Reply
from evaluation.targets.endpoint import EndpointTarget
from evaluation.targets.offline import OfflineTarget, tokenizer_digest
from evaluation.targets.options import PromptingTarget
from scoring.transformers_scorer import TransformersScorer


@pytest.fixture(scope="module")
def target() -> Iterator[OfflineTarget]:
    target = OfflineTarget(TransformersScorer(tiny_model(), tiny_tokenizer()))
    yield target
    target.close()


def replies(target: OfflineTarget | PromptingTarget, *asks: Ask) -> list[Reply]:
    found = dict(target.replies(list(asks)))
    return [found[number] for number in range(len(asks))]


def whole_logits(text: str) -> tuple[list[int], torch.Tensor]:
    """The ids of a text as the tokenizer encodes it, and the model's logits (T, V)."""
    ids = tiny_tokenizer().encode(text)
    with torch.inference_mode():
        return ids, tiny_model()(torch.tensor([ids])).logits[0].double()


def test_a_scored_answer_is_what_the_model_gives_its_tokens(target: OfflineTarget) -> None:
    ids, logits = whole_logits("<s><user>Who?</s><assistant>Nobody")
    (reply,) = replies(target, Ask("Who?", "Nobody", vocabulary=True))
    answer = tiny_tokenizer().encode("Nobody", add_special_tokens=False)
    assert reply.token_ids == tuple(answer) == tuple(ids[-len(answer) :])
    logprobs = logits.log_softmax(dim=-1)[-len(answer) - 1 : -1]  # (A, V)
    np.testing.assert_allclose(reply.logprobs, logprobs[range(len(answer)), answer], atol=1e-5)
    assert reply.greedy == tuple((logprobs.argmax(dim=-1) == torch.tensor(answer)).tolist())
    p = logprobs.exp()
    mean = (p * logprobs).sum(dim=-1)
    std = ((p * logprobs**2).sum(dim=-1) - mean**2).sqrt()
    np.testing.assert_allclose(reply.vocabulary_mean, mean, atol=1e-5)
    np.testing.assert_allclose(reply.vocabulary_std, std, atol=1e-4)


def test_text_is_continued_as_it_stands(target: OfflineTarget) -> None:
    """Spaces at the end of the context belong to the continuation, as in lm-evaluation-harness."""
    ids, logits = whole_logits("A man and his dog")
    spaced, plain = replies(
        target, Ask("A man and ", "his dog", style="text"), Ask("A man and", " his dog", style="text")
    )
    assert spaced.logprobs == plain.logprobs
    assert spaced.token_ids == tuple(ids[len("A man and") :])
    logprobs = logits.log_softmax(dim=-1)[len("A man and") - 1 : -1]
    np.testing.assert_allclose(plain.logprobs, logprobs[range(len(" his dog")), ids[len("A man and") :]], atol=1e-5)


@pytest.mark.parametrize("template", [True, False])
def test_an_answer_that_is_begun_is_one_text_with_the_prompt(template: bool) -> None:
    target = OfflineTarget(TransformersScorer(tiny_model(), tiny_tokenizer(chat_template=template)))
    begun = Ask("Who?", " no", begun="It is")
    text = "<s><user>Who?</s><assistant>It is" if template else "Who?\nIt is"
    written = replace(begun, prompt=text, begun="", style="text")
    answers = [replace(ask, answer=None, max_new_tokens=8) for ask in (begun, written)]
    found = replies(target, begun, written, *answers)
    assert found[0].token_ids == found[1].token_ids
    assert found[0].logprobs == pytest.approx(found[1].logprobs, abs=1e-5)
    assert found[2] == found[3]
    assert found[2] != replies(target, replace(answers[0], begun=""))[0]
    target.close()


@pytest.mark.parametrize("template", [True, False])
def test_a_server_goes_on_with_and_scores_behind_what_is_begun_as_a_model_here_does(template: bool) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer(chat_template=template)
    asks = [
        Ask("Who?", " no", begun="It is"),
        Ask("Who?", " no", system="Be brief.", begun="It is"),
        Ask("Who?", "no"),
        Ask("Who?", begun="It is", max_new_tokens=8),
        Ask("Who?", max_new_tokens=8),
    ]
    target = OfflineTarget(TransformersScorer(model, tokenizer))
    here = replies(target, *asks)
    with running() as server:
        server.models = [{"id": "m", "owned_by": "vllm", "max_model_len": 256}]
        server.rule = serving(model, tokenizer)
        endpoint = EndpointTarget(server.url)
        endpoint.check(asks)
        there = dict(endpoint.replies(asks))
        server.models = [{"id": "m"}]
        if template:  # who is not known to go on would answer anew, and be scored behind it
            with pytest.raises(TargetError, match=r"go on with an answer that is begun; .*--no-prefill"):
                EndpointTarget(server.url).check(asks[:1])
    for number, reply in enumerate(here):
        assert there[number].token_ids == reply.token_ids
        assert there[number].logprobs == pytest.approx(reply.logprobs, abs=1e-5)
        assert there[number].texts == reply.texts
    assert here[0].logprobs != pytest.approx(here[2].logprobs[-len(here[0].logprobs) :], abs=1e-3)
    target.close()


def test_an_empty_context_stands_on_the_first_token(target: OfflineTarget) -> None:
    (reply,) = replies(target, Ask("", "abc", style="text"))
    assert len(reply.logprobs) == 3


def test_answers_are_greedy_or_drawn(target: OfflineTarget) -> None:
    ask = Ask("Who?", max_new_tokens=8)
    greedy, drawn, again, other = replies(
        target, ask, *(replace(ask, temperature=2.0, samples=3, seed=seed) for seed in (0, 0, 7))
    )
    ids = tiny_tokenizer().encode("<s><user>Who?</s><assistant>", add_special_tokens=False)
    expected = tiny_model().generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert greedy.text == tiny_tokenizer().decode(expected, skip_special_tokens=True)
    assert len(drawn.texts) == 3
    assert len(set(drawn.texts)) > 1
    assert drawn.texts == again.texts != other.texts


def test_runs_with_neighbouring_seeds_share_no_answers(target: OfflineTarget) -> None:
    ask = Ask("Who?", max_new_tokens=8, temperature=3.0, samples=6)
    one, next_one = replies(target, ask, replace(ask, seed=1))
    assert not set(one.texts) & set(next_one.texts)


def test_what_does_not_fit_is_found_before_the_first_answer(target: OfflineTarget) -> None:
    asks = [Ask("Who?"), Ask("x" * 190, max_new_tokens=80)]
    with pytest.raises(TargetError, match="1 of 2 prompts with their answers take up to"):
        next(iter(target.replies(asks)))


def test_a_drawn_answer_does_not_depend_on_its_batch(target: OfflineTarget) -> None:
    ask = Ask("Where?", max_new_tokens=6, temperature=1.0, seed=3)
    alone = replies(target, ask)[0]
    assert replies(target, Ask("Something else", max_new_tokens=6), ask)[1] == alone


def test_drawn_tokens_follow_the_models_distribution() -> None:
    """Frequencies of 4,000 first tokens against the softmax at that temperature."""
    target = OfflineTarget(TransformersScorer(tiny_model(), tiny_tokenizer(), batch_size=1000))
    (reply,) = replies(target, Ask("Q", style="text", max_new_tokens=1, temperature=0.7, samples=4000))
    logits = whole_logits("Q")[1][-1]
    p = (logits / 0.7).softmax(dim=-1)
    tokenizer = tiny_tokenizer()
    ranked = [token for token in p.argsort(descending=True).tolist() if token not in tokenizer.all_special_ids]
    likeliest = [token for token in ranked if tokenizer.decode([token]).isascii()][:3]
    for token in likeliest:
        share = reply.texts.count(tokenizer.decode([token], skip_special_tokens=True)) / 4000
        assert abs(share - float(p[token])) < 4 * float((p[token] * (1 - p[token]) / 4000).sqrt()) + 1e-3


def test_stops_end_an_answer(target: OfflineTarget) -> None:
    ask = Ask("Who?", max_new_tokens=8)
    whole = replies(target, ask)[0].text
    stop = whole[3]
    assert replies(target, replace(ask, stop=(stop,)))[0].text == whole[: whole.index(stop)]


def test_next_logits_are_those_of_the_last_position(target: OfflineTarget) -> None:
    short, long = replies(
        target, Ask("Q", style="text", next_logits=True), Ask("Question", style="text", next_logits=True)
    )
    np.testing.assert_allclose(short.next_logits, whole_logits("Q")[1][-1], atol=1e-4)
    np.testing.assert_allclose(long.next_logits, whole_logits("Question")[1][-1], atol=1e-4)


def test_the_draw_makes_no_difference_without_a_policy(target: OfflineTarget) -> None:
    assert target.canonical([Ask("Who?", draw=3)]) == [Ask("Who?")]


def test_a_prompt_longer_than_the_context_is_an_error(target: OfflineTarget) -> None:
    with pytest.raises(TargetError, match="context has 256"):
        target.check([Ask("x" * 300)])


def test_the_prefix_of_the_prompting_baseline_is_part_of_the_message(target: OfflineTarget) -> None:
    told = PromptingTarget(target, "Forget it.")
    asks = [Ask("Who?", "Nobody"), Ask("Who?")]
    written = [replace(ask, prompt="Forget it.\n\nWho?") for ask in asks]
    assert replies(told, *asks) == replies(target, *written)
    assert told.canonical(asks) == asks
    assert told.describe() == {**target.describe(), "prompt_prefix": "Forget it."}


def test_a_whole_text_goes_on_from_the_prefix_which_is_not_scored(target: OfflineTarget) -> None:
    told = PromptingTarget(target, "Forget it.")
    text = Ask("", "A man and his dog", style="whole")
    (plain,), (behind,) = replies(target, text), replies(told, text)
    assert [behind] == replies(target, Ask("Forget it.\n\n", "A man and his dog", style="text"))
    assert behind.logprobs is not None
    assert plain.logprobs is not None
    assert not np.allclose(plain.logprobs[:5], behind.logprobs[:5])


def test_a_tokenizer_is_known_by_vocabulary_and_template() -> None:
    assert tokenizer_digest(tiny_tokenizer()) == tokenizer_digest(tiny_tokenizer())
    assert tokenizer_digest(tiny_tokenizer()) != tokenizer_digest(tiny_tokenizer(chat_template=False))
