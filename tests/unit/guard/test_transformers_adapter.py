"""The guard's prompts in a transformers model: no hooks, so one model serves several threads."""

import threading
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from corruption import CorruptionSpec
from guard import ProtectedPrompt
from guard.transformers_adapter import ModelRows, corrupted_prompt, generate, prompt_inputs, row_scale_of

PROMPT = [3, 14, 15, 9, 26, 5]
MASK = [False, True, True, False, True, False]
SPEC = CorruptionSpec(method="rand_noise_first_n", dims=1, strength=100.0)
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, pad_token_id=0, eos_token_id=1, bos_token_id=2)).eval()


def test_an_untouched_prompt_generates_what_its_ids_do(llama: Any) -> None:
    ids = torch.tensor([PROMPT])
    wanted = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    found = generate(llama, ProtectedPrompt(PROMPT), max_new_tokens=8, do_sample=False)
    assert found[0].tolist() == wanted[0, len(PROMPT) :].tolist()


def test_masked_rows_only_and_in_their_first_dimension_only(llama: Any) -> None:
    clean = prompt_inputs(llama, ProtectedPrompt(PROMPT))["inputs_embeds"][0]
    prompt = corrupted_prompt(llama, PROMPT, MASK, SPEC, seed=0)
    changed = prompt_inputs(llama, prompt)["inputs_embeds"][0]
    where = torch.tensor(MASK)
    assert torch.equal(changed[~where], clean[~where])
    assert torch.equal(changed[:, 1:], clean[:, 1:])
    assert (changed[where, 0] - clean[where, 0]).abs().max() > 1.0


def test_real_ids_under_the_mask_are_inert(llama: Any) -> None:
    prompt = corrupted_prompt(llama, PROMPT, MASK, SPEC, seed=0)
    swapped = [39 if masked else token for token, masked in zip(PROMPT, MASK, strict=True)]
    other = ProtectedPrompt(swapped, mask=prompt.mask, embeddings=prompt.embeddings)
    logits = [llama(**prompt_inputs(llama, p)).logits for p in (prompt, other)]
    assert torch.equal(logits[0], logits[1])


def test_threads_with_other_prompts_do_not_disturb_each_other(llama: Any) -> None:
    prompts = [corrupted_prompt(llama, PROMPT, MASK, SPEC, seed=n) for n in range(4)] + [ProtectedPrompt(PROMPT)]
    wanted = [generate(llama, p, max_new_tokens=6, do_sample=False).tolist() for p in prompts]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = generate(llama, prompts[number], max_new_tokens=6, do_sample=False).tolist()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(prompts))] == wanted


def test_a_refused_prompt_is_not_generated_from(llama: Any) -> None:
    with pytest.raises(ValueError, match="'people' refuses"):
        prompt_inputs(llama, ProtectedPrompt(PROMPT, refused_by="people"))


def test_scale_of_models_that_scale_in_their_embedding(llama: Any) -> None:
    assert row_scale_of(llama) == 1.0
    gemma = Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=8))
    assert row_scale_of(gemma) == pytest.approx(4.0, rel=1e-3)
    assert torch.equal(ModelRows(gemma).rows([5]), gemma.get_input_embeddings().weight[[5]].detach())
