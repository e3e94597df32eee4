import json
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM as AutoModel
from transformers import Gemma2Config, GPTNeoXConfig, LlamaConfig

from offline_training.data.answers import FullReference, TopKReference
from offline_training.data.packing import pack
from offline_training.data.tokens import IGNORED, TokenizedExample, answered
from offline_training.errors import JobError
from offline_training.forward import AnswerForward
from offline_training.reference.arrays import ArrayWriter
from offline_training.reference.cache import ReferenceCache, ReferenceSettings

VOCABULARY, WIDTH = 61, 16
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLAMA = LlamaConfig(**_SHAPE)
TIED = LlamaConfig(**_SHAPE, tie_word_embeddings=True)
NEOX = GPTNeoXConfig(**_SHAPE)
CAPPED = Gemma2Config(**_SHAPE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0)
ENOUGH = 1 << 30


def tiny(config=LLAMA):
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def sets():
    rng = torch.Generator().manual_seed(1)

    def sequence(length, answer):
        ids = torch.randint(3, VOCABULARY, (length,), generator=rng).tolist()
        return answered(ids[:-answer], ids[-answer:])

    cut = TokenizedExample(tuple(range(3, 11)), (IGNORED, 9, IGNORED, 10))
    return {
        "retain": [sequence(12, 5), sequence(4, 1), cut, sequence(6, 3), sequence(9, 2)],
        "forget": [sequence(7, 3), sequence(5, 4)],
    }


def built(folder, model, kind="auto", *, hidden_layer=None, examples=None, key="k", only=None, on_progress=None, **how):
    forward = AnswerForward(model, hidden_layer)
    settings = ReferenceSettings(kind, **{"budget_bytes": ENOUGH, "batch_tokens": 20, "row_tokens": 16} | how)
    examples = examples or sets()
    return ReferenceCache.build(folder, forward, model, examples, settings, key=key, only=only, on_progress=on_progress)


def said(model, stream, numbers, hidden_layer=None):
    """What the model itself says to these examples, one sequence in a row."""
    batch = pack({stream: [sets()[stream][number] for number in numbers]}, row_tokens=None)
    with torch.no_grad():
        return AnswerForward(model, hidden_layer).forward(model, batch), batch.targets


@pytest.mark.parametrize(
    ("config", "kind", "stored"),
    [
        (LLAMA, "auto", "hidden"),
        (TIED, "hidden", "hidden"),
        (NEOX, "auto", "hidden"),
        (CAPPED, "auto", "logits"),
        (LLAMA, "logits", "logits"),
    ],
)
@pytest.mark.parametrize("stream", ["retain", "forget"])
def test_a_full_reference_is_what_the_frozen_model_says(tmp_path, config, kind, stored, stream):
    model = tiny(config)
    cache = built(tmp_path / "cache", model, kind)
    assert cache.kind == stored
    numbers = [*reversed(range(len(sets()[stream]))), 0]
    reference, layer = cache.take(stream, numbers, "cpu")
    output, _ = said(model, stream, numbers)
    assert isinstance(reference, FullReference)
    assert reference.logits.dtype == torch.float32
    assert not reference.logits.requires_grad
    assert layer is None
    torch.testing.assert_close(reference.logits, output.logits, atol=1e-5, rtol=1e-5)


def test_a_top_k_reference_has_the_likeliest_tokens_and_the_target(tmp_path):
    model = tiny()
    reference, _ = built(tmp_path / "cache", model, "top-k", top_k=5).take("retain", [2, 0], "cpu")
    output, targets = said(model, "retain", [2, 0])
    logprobs = output.logits.log_softmax(1)
    assert isinstance(reference, TopKReference)
    top = logprobs.topk(5)
    assert torch.equal(reference.indices, top.indices)
    torch.testing.assert_close(reference.logprobs, top.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reference.target_logprobs, logprobs[range(len(targets)), targets], atol=1e-5, rtol=1e-5)


def test_no_more_than_the_vocabulary_is_kept(tmp_path):
    reference, _ = built(tmp_path / "cache", tiny(), "top-k", top_k=1000).take("retain", [0], "cpu")
    assert reference.indices.shape == (5, VOCABULARY)
    torch.testing.assert_close(reference.logprobs.exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("config", [LLAMA, TIED])
def test_training_the_head_leaves_the_reference_as_it_was(tmp_path, config):
    model = tiny(config)
    cache = built(tmp_path / "cache", model)
    before = cache.take("retain", [0, 1], "cpu")[0].logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    fresh = ReferenceCache.open(tmp_path / "cache", "k")
    assert torch.equal(cache.take("retain", [0, 1], "cpu")[0].logits, before)
    assert torch.equal(fresh.take("retain", [0, 1], "cpu")[0].logits, before)


@pytest.mark.parametrize("kind", ["auto", "layer"])
def test_outputs_of_the_hidden_layer_are_kept_too(tmp_path, kind):
    model = tiny()
    cache = built(tmp_path / "cache", model, kind, hidden_layer=0)
    reference, layer = cache.take("retain", [3, 2], "cpu")
    torch.testing.assert_close(layer, said(model, "retain", [3, 2], 0)[0].hidden, atol=1e-5, rtol=1e-5)
    assert (reference is None) == (kind == "layer")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_sixteen_bit_outputs_are_kept_in_sixteen_bits_without_loss(tmp_path, dtype, kind):
    model = tiny().to(dtype)
    cache = built(tmp_path / "cache", model, kind, hidden_layer=0, examples={"retain": sets()["retain"][:1]})
    reference, layer = cache.take("retain", [0], "cpu")
    output, _ = said(model, "retain", [0], 0)
    torch.testing.assert_close(reference.logits, output.logits, atol=0, rtol=2**-7)
    assert torch.equal(layer, output.hidden)
    meta = json.loads((tmp_path / "cache" / "meta.json").read_text())
    assert {meta["files"][f"retain.{name}"]["dtype"] for name in (kind, "layer")} == {str(dtype).removeprefix("torch.")}
    assert np.load(tmp_path / "cache" / f"retain.{kind}.npy", mmap_mode="r").dtype.itemsize == 2


def test_mixed_precision_around_a_step_does_not_change_the_reference(tmp_path):
    cache = built(tmp_path / "cache", tiny())
    plain = cache.take("retain", [0], "cpu")[0].logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cache.take("retain", [0], "cpu")[0].logits, plain)


@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_a_reference_in_mixed_precision_is_what_the_model_says_in_it(tmp_path, kind):
    """Built under autocast, as a job does, and read in a training step that is under it or not."""
    model, alone = tiny(), {"retain": sets()["retain"][:1]}
    with torch.autocast("cpu", torch.bfloat16):
        cache = built(tmp_path / "cache", model, kind, examples=alone)
        mixed = said(model, "retain", [0], 0)[0].logits
        assert torch.equal(cache.take("retain", [0], "cpu")[0].logits, mixed)
    assert torch.equal(cache.take("retain", [0], "cpu")[0].logits, mixed)
    assert torch.equal(ReferenceCache.open(tmp_path / "cache", "k").take("retain", [0], "cpu")[0].logits, mixed)
    assert not torch.allclose(mixed, said(model, "retain", [0], 0)[0].logits, atol=1e-4)


def test_the_budget_decides_what_auto_keeps(tmp_path):
    model = tiny(CAPPED)
    tokens = sum(example.target_count for examples in sets().values() for example in examples)
    logits_bytes = tokens * VOCABULARY * 4
    assert built(tmp_path / "a", model, budget_bytes=logits_bytes).kind == "logits"
    assert built(tmp_path / "b", model, top_k=4, budget_bytes=logits_bytes - 1).kind == "top-k"
    with pytest.raises(JobError, match=r"top-k takes 0\.0 MB and the budget is 0\.0 MB; raise the budget"):
        built(tmp_path / "c", model, top_k=4, budget_bytes=tokens * (4 * 8 + 4) - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_impossible_kinds_are_refused(tmp_path):
    with pytest.raises(JobError, match="do not come from its output embedding alone; give kind auto"):
        built(tmp_path / "cache", tiny(CAPPED), "hidden")
    with pytest.raises(JobError, match="there is no hidden layer to keep"):
        built(tmp_path / "cache", tiny(), "layer")
    with pytest.raises(JobError, match="top_k is 0"):
        built(tmp_path / "cache", tiny(), "top-k", top_k=0)
    with pytest.raises(JobError, match="no examples"):
        built(tmp_path / "cache", tiny(), examples={"retain": []})


def test_a_model_that_is_broken_before_training_is_refused(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(JobError, match="logits are not finite"):
        built(tmp_path / "cache", model)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_is_found_by_its_key(tmp_path):
    folder = tmp_path / "job" / "cache"
    assert ReferenceCache.open(folder, "k") is None
    expected = built(folder, tiny()).take("forget", [1], "cpu")[0].logits
    assert ReferenceCache.open(folder, "another") is None
    assert torch.equal(ReferenceCache.open(folder, "k").take("forget", [1], "cpu")[0].logits, expected)
    built(folder, tiny(), key="another")
    assert ReferenceCache.open(folder, "k") is None
    assert [path.name for path in folder.parent.iterdir()] == ["cache"]


@pytest.mark.parametrize("name", ["retain.hidden.npy", "retain.offsets.npy", "head.weight.npy", "meta.json"])
@pytest.mark.parametrize("harm", ["gone", "short", "altered"])
def test_a_damaged_cache_is_an_error_that_says_what_to_remove(tmp_path, name, harm):
    folder = tmp_path / "cache"
    built(folder, tiny())
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(content[:-3] if harm == "short" else content[:-1] + b"\x7f")
    with pytest.raises(JobError) as raised:
        ReferenceCache.open(folder, "k")
    assert str(raised.value) == f"reference cache: {path} is missing or damaged; remove {folder} and start again"


def test_what_is_not_in_the_cache_cannot_be_taken(tmp_path):
    cache = built(tmp_path / "cache", tiny())
    for number in (5, -1):
        with pytest.raises(IndexError, match=f"retain: example {number} is not in the reference cache"):
            cache.take("retain", [number], "cpu")
    with pytest.raises(KeyError):
        cache.take("idk", [0], "cpu")
    assert cache.take("retain", [], "cpu")[0].logits.shape == (0, VOCABULARY)


def test_only_the_examples_asked_for_are_run(tmp_path):
    model, runs = tiny(), []
    only = {"retain": [4, 1, 4], "forget": []}
    cache = built(tmp_path / "cache", model, only=only, on_progress=lambda *progress: runs.append(progress))
    assert runs[-1] == (2, 2)
    expected = said(model, "retain", [1, 4, 1])[0].logits
    torch.testing.assert_close(cache.take("retain", [1, 4, 1], "cpu")[0].logits, expected, atol=1e-5, rtol=1e-5)
    for stream in ("retain", "forget"):
        with pytest.raises(IndexError, match=f"{stream}: example 0 is not in the reference cache"):
            cache.take(stream, [0], "cpu")


def test_progress_counts_examples_to_the_end(tmp_path):
    seen = []
    built(tmp_path / "cache", tiny(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) > 2  # several batches of each set


def test_building_leaves_the_model_as_it_was(tmp_path):
    model = tiny().train()
    built(tmp_path / "cache", model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_cache(tmp_path):
    folder = tmp_path / "cache"

    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(folder, tiny(), on_progress=interrupted)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".cache.x7").mkdir()  # as SIGKILL leaves it
    (tmp_path / ".cache.x7" / "retain.hidden.npy").write_bytes(b"half")
    assert ReferenceCache.open(folder, "k") is None
    built(folder, tiny())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_file_that_cannot_grow_is_an_error_and_leaves_nothing(tmp_path):
    """A limit on file sizes stands in for a full disk: the kernel refuses the write in the same place."""
    model = tiny()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(JobError, match=r"reference cache: cannot write .*cache: File too large"):
            built(tmp_path / "cache", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(JobError, match=r"do not fit the 0\.0 MB free"):
        built(tmp_path / "cache", tiny())
    assert list(tmp_path.iterdir()) == []


def test_an_array_with_missing_rows_is_not_finished(tmp_path):
    with ArrayWriter(tmp_path / "rows.npy", (3, 2), torch.float32) as writer:
        writer.append(torch.ones(2, 2))
        with pytest.raises(ValueError, match="2 rows written, 3 announced"):
            writer.finish()
