import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM as AutoModel
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
)

from offline_training.data.answers import FullReference
from offline_training.data.packing import pack, unpacked
from offline_training.data.tokens import IGNORED, TokenizedExample, answered
from offline_training.errors import JobError
from offline_training.forward import AnswerForward, check_packing

VOCABULARY = 61
_SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_HEADS = {"num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(vocab_size=VOCABULARY, **_SHAPE),
    "gemma2": Gemma2Config(
        vocab_size=VOCABULARY,
        **_SHAPE,
        **_HEADS,
        sliding_window=4,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=5.0,
    ),
    "gpt-neox": GPTNeoXConfig(vocab_size=VOCABULARY, **_SHAPE),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3),
    "mixtral": MixtralConfig(vocab_size=VOCABULARY, **_SHAPE, num_key_value_heads=1, num_local_experts=3),
}
APART = {  # these see their neighbours in a row, or count positions through it
    "opt": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=32, num_hidden_layers=3, num_attention_heads=2, init_std=0.3,
        max_position_embeddings=64, word_embed_proj_dim=16,
    ),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=3),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=3, n_head=2, initializer_range=0.3),
}  # fmt: skip


def tiny(config, **options):
    torch.manual_seed(0)
    return AutoModel.from_config(config, **options).eval()


def streams():
    rng = torch.Generator().manual_seed(1)

    def sequence(length, answer):
        ids = torch.randint(3, VOCABULARY, (length,), generator=rng).tolist()
        return answered(ids[:-answer], ids[-answer:])

    cut = TokenizedExample(tuple(range(3, 11)), (IGNORED, 9, IGNORED, 10))
    return {
        "forget": [sequence(9, 4), sequence(5, 2), cut],
        "retain": [sequence(12, 5), sequence(4, 1), sequence(6, 3)],
    }


def own_logits(model, sequences):
    """(A, V): each sequence alone through the model itself, nothing of ours between."""
    rows = []
    for examples in sequences.values():
        for example in examples:
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].float()
            wanted = [i for i, target in enumerate(example.targets) if target != IGNORED]
            rows.append(logits[[example.prompt_length - 1 + i for i in wanted]])
    return torch.cat(rows)


def targets_loss(logits, batch):
    return torch.nn.functional.cross_entropy(logits, batch.targets)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_logits_are_the_models_own(name, attention):
    model = tiny(CONFIGS[name], attn_implementation=attention)
    batch = pack(streams(), row_tokens=24)
    assert len(batch.input_ids) < 6
    packed = AnswerForward(model).forward(model, batch)
    assert packed.logits.shape == (len(batch.targets), VOCABULARY)
    assert packed.head_inputs.shape == (len(batch.targets), 16)
    torch.testing.assert_close(packed.logits, own_logits(model, streams()), atol=1e-5, rtol=1e-5)
    assert check_packing(model, batch)
    assert check_packing(model, pack(streams(), row_tokens=None))


@pytest.mark.parametrize("name", [*CONFIGS, *APART])
def test_logits_of_rows_of_one_sequence_are_the_models_own(name):
    model = tiny((CONFIGS | APART)[name])
    batch = pack(streams(), row_tokens=None)
    torch.testing.assert_close(
        AnswerForward(model).forward(model, batch).logits, own_logits(model, streams()), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", APART)
def test_a_model_that_mixes_sequences_of_one_row_is_found_out(name):
    model = tiny(APART[name])
    assert not check_packing(model, pack(streams(), row_tokens=24))
    assert not check_packing(model, pack(streams(), row_tokens=None))
    assert not check_packing(model, pack({"forget": streams()["forget"][:1]}, row_tokens=None))


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 0.02), (torch.bfloat16, 0.3), (torch.float16, 0.3)])
def test_packing_is_judged_by_what_the_dtype_rounds(dtype, scale):
    honest = LlamaConfig(vocab_size=VOCABULARY, **_SHAPE | {"initializer_range": scale})
    assert check_packing(tiny(honest).to(dtype), pack(streams(), row_tokens=24))
    assert not check_packing(tiny(APART["opt"]).to(dtype), pack(streams(), row_tokens=24))


def test_the_check_leaves_the_model_as_it_was():
    model = tiny(CONFIGS["llama"]).train()
    check_packing(model, pack(streams(), row_tokens=24))
    assert model.training
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_models_own_logits(name):
    model = tiny(CONFIGS[name])
    batch = pack(streams(), row_tokens=24)
    ours = gradients(model, targets_loss(AnswerForward(model).forward(model, batch).logits, batch))
    theirs = gradients(model, targets_loss(own_logits(model, streams()), batch))
    assert ours.keys() == theirs.keys()
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(ours[parameter], gradient, atol=1e-5, rtol=1e-4, msg=parameter)


def test_gradients_survive_checkpointing_with_hidden_states():
    model = tiny(CONFIGS["llama"]).train()
    batch = pack(streams(), row_tokens=24)
    forward = AnswerForward(model, hidden_layer=1)

    def loss():
        output = forward.forward(model, batch)
        return targets_loss(output.logits, batch) + output.hidden.square().mean()

    plain = gradients(model, loss())
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, loss())
    for parameter, gradient in plain.items():
        torch.testing.assert_close(checkpointed[parameter], gradient, msg=parameter)


@pytest.mark.parametrize("layer", [0, 1, -2])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
def test_hidden_states_are_the_layers_outputs(name, layer):
    model = tiny(CONFIGS[name])
    batch = pack(streams(), row_tokens=24)
    hidden = AnswerForward(model, hidden_layer=layer).forward(model, batch).hidden
    apart = unpacked(batch)
    states = model(input_ids=apart.input_ids, attention_mask=apart.attention_mask, output_hidden_states=True)
    of_layer = states.hidden_states[1:][layer]  # the first are the embeddings; the last has the final norm applied
    torch.testing.assert_close(hidden, of_layer.reshape(-1, 16)[apart.predicting], atol=1e-5, rtol=1e-5)


def test_a_layer_the_model_does_not_have_is_refused():
    with pytest.raises(JobError, match="layer: the model has 3 decoder layers; give one of -3 to 2, not 3"):
        AnswerForward(tiny(CONFIGS["llama"]), hidden_layer=3)


def test_other_calls_of_the_model_get_all_logits():
    model = tiny(CONFIGS["llama"])
    before = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    forward = AnswerForward(model)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)
    forward.forward(model, pack(streams(), row_tokens=24))
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


class RowsDoubled(torch.nn.Module):
    """What makes two rows of the one of gathered logits: their shape is no longer the expected one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __call__(self, input_ids, **arguments):
        output = self.model(input_ids=input_ids, **arguments)
        output.logits = output.logits.expand(2, *output.logits.shape[1:]) if len(output.logits) == 1 else output.logits
        return output


def test_where_gathered_logits_do_not_come_out_all_are_computed():
    model = tiny(CONFIGS["llama"])
    batch = pack(streams(), row_tokens=24)
    forward = AnswerForward(model)
    for _ in range(2):
        output = forward.forward(RowsDoubled(model), batch)
        assert output.head_inputs is None
        torch.testing.assert_close(output.logits, own_logits(model, streams()), atol=1e-5, rtol=1e-5)


def test_a_low_rank_adapter_on_the_output_embedding_is_seen():
    model = get_peft_model(
        tiny(CONFIGS["llama"]), LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    )
    model.eval()
    batch = pack(streams(), row_tokens=24)
    output = AnswerForward(model).forward(model, batch)
    assert output.head_inputs is not None
    torch.testing.assert_close(output.logits, own_logits(model, streams()), atol=1e-5, rtol=1e-5)
    assert check_packing(model, batch)


def test_answers_are_split_by_stream():
    model = tiny(CONFIGS["llama"])
    batch = pack(streams(), row_tokens=24)
    forward = AnswerForward(model, hidden_layer=0)
    output = forward.forward(model, batch)
    reference, hidden = FullReference(torch.zeros(9, VOCABULARY)), torch.ones(9, 16)
    answers = forward.answers(batch, output, {"retain": (reference, hidden)})
    assert list(answers) == ["forget", "retain"]
    forget, retain = answers["forget"], answers["retain"]
    assert (len(forget.logits), len(retain.logits)) == (8, 9)
    assert torch.equal(torch.cat((forget.logits, retain.logits)), output.logits)
    assert torch.equal(torch.cat((forget.hidden, retain.hidden)), output.hidden)
    assert forget.sequence.tolist() == [0] * 4 + [1] * 2 + [2] * 2
    assert retain.sequence.tolist() == [0] * 5 + [1] + [2] * 3
    assert (forget.sequences, retain.sequences) == (3, 3)
    assert retain.targets.tolist() == [t for example in streams()["retain"] for t in example.targets]
    assert (forget.reference, forget.reference_hidden) == (None, None)
    assert retain.reference is reference
    assert retain.reference_hidden is hidden
