"""Policies that bring their own encoder: a real fine-tuned classifier, alone and beside heads on a shared one."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from classifiers import ClassifierError, Encoder, Head, HeadBank, HeadSettings, extract_features
from classifiers.encoders.finetuned import FinetunedClassifier
from classifiers.encoders.runtime import probability
from classifiers.export.sequence import export_finetuned, load_sequence_model
from classifiers.export.shared import export_encoder
from classifiers.features import LEXICAL_BUCKETS
from corruption import CorruptionSpec
from guard import (
    BundleError,
    ClassificationError,
    ClassifierConfig,
    Guard,
    LoadedPolicy,
    ModelConfig,
    PolicyBundle,
    PolicyConfig,
    PolicyMismatchError,
    Template,
    load_bundle,
    load_policy,
    write_bundle,
)
from guard.classification import FeatureCache, WindowClassifier

WIDTH, EMBEDDING_DIGEST = 6, "a" * 64
SENTENCE = "where was harry potter born who is he what rain bread the a of in and please tell me"
WORDS = ["<bos>", *SENTENCE.split()]
BOS, HARRY = 0, WORDS.index("harry")
TEMPLATE = Template(pieces={}, special_ids=frozenset({BOS}))


def decode(token_ids: Sequence[int]) -> str:
    return " ".join(WORDS[i] for i in token_ids if i != BOS)


def ids(text: str) -> list[int]:
    return [BOS, *(WORDS.index(word) for word in text.split())]


class Table:
    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[float(i)] * WIDTH for i in token_ids])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that learned, by gradient descent, to tell texts with the word harry from others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("source") / "tiny"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS[1:]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=80, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    harry = vocabulary.index("harry")
    for step in range(80):
        words = torch.randint(4, len(vocabulary), (64, 2 + step % 9))
        words[::2, step % words.shape[1]] = harry
        labels = (words == harry).any(dim=1).long()
        framed = torch.nn.functional.pad(torch.nn.functional.pad(words, (1, 0), value=2), (0, 1), value=3)
        loss = model(input_ids=framed, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    export_finetuned(load_sequence_model(source, "tiny"), folder, label=1)
    return folder


@pytest.fixture(scope="module")
def shared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The same weights as a shared encoder for heads."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("shared") / "source"
    BertModel.from_pretrained(source).save_pretrained(folder)
    shutil.copy(source / "tokenizer.json", folder)
    return Encoder.open(export_encoder(folder, folder.parent / "encoder"))


def config(kind: str, digest: str, name: str = "people", **changes: Any) -> PolicyConfig:
    data: dict[str, Any] = {
        "schema_version": 1,
        "name": name,
        "version": "1",
        "model": ModelConfig(name="m", hidden_size=WIDTH, embedding_digest=EMBEDDING_DIGEST),
        "corruption": CorruptionSpec(method="zero_out_first_n"),
        "classifier": ClassifierConfig(kind=kind, encoder="tiny", encoder_digest=digest, threshold=0.5),  # type: ignore[arg-type]
    }
    return PolicyConfig.model_validate(data | changes)


def own_digest(exported: Path) -> str:
    return str(json.loads((exported / "encoder.json").read_text())["digest"])


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> PolicyBundle:
    return write_bundle(tmp_path / "people", config("finetuned", own_digest(exported)), exported, {"recall": 1.0})


def load(bundle: PolicyBundle, encoder: Encoder | None = None) -> LoadedPolicy:
    return load_policy(bundle, encoder, hidden_size=WIDTH, embedding_digest=EMBEDDING_DIGEST)


def guard_of(*policies: LoadedPolicy, encoder: Encoder | None = None) -> Guard:
    return Guard(policies, encoder=encoder, decode=decode, template=TEMPLATE, rows=Table(), secret=bytes(32))


def head_on(encoder: Encoder, bias: float) -> Head:
    """Gives every text the same score."""
    settings = HeadSettings(encoder_digest=encoder.digest, threshold=0.5, bias=bias, seed=0)
    dense, lexical = np.zeros(encoder.dim, dtype=np.float32), np.zeros(LEXICAL_BUCKETS, dtype=np.float32)
    return Head(dense, lexical, settings)


# --- the bundle ---------------------------------------------------------------------------------------------


def test_a_bundle_holds_the_encoder_and_its_manifest_names_every_file(bundle: PolicyBundle) -> None:
    files = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    encoder = {f"encoder/{name}" for name in ("model.onnx", "tokenizer.json", "encoder.json")}
    assert files == {"policy.yaml", "report.json", "MANIFEST.json", *encoder}
    manifest = json.loads((bundle.path / "MANIFEST.json").read_text())["sha256"]
    assert set(manifest) == files - {"MANIFEST.json"}
    assert load_bundle(bundle.path) == bundle
    assert bundle.config.classifier.kind == "finetuned"


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "encoder.json"])
def test_missing_and_altered_encoder_files_are_named(bundle: PolicyBundle, name: str) -> None:
    file = bundle.path / "encoder" / name
    with file.open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(BundleError, match=f"encoder/{name}.*sha256"):
        load_bundle(bundle.path)
    file.unlink()
    with pytest.raises(BundleError, match=f"encoder/{name} is missing"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("name", ["notes.txt", "encoder/notes.txt", "encoder/more/notes.txt", "head.safetensors"])
def test_what_the_manifest_does_not_name_is_refused(bundle: PolicyBundle, name: str) -> None:
    (bundle.path / name).parent.mkdir(exist_ok=True)
    (bundle.path / name).write_text("x")
    with pytest.raises(BundleError, match=rf"{name}.* not in MANIFEST\.json"):
        load_bundle(bundle.path)


def test_kind_and_files_must_agree(bundle: PolicyBundle) -> None:
    import hashlib

    policy, manifest = bundle.path / "policy.yaml", bundle.path / "MANIFEST.json"
    policy.write_text(policy.read_text().replace("kind: finetuned", "kind: head"))
    digests = json.loads(manifest.read_text())
    digests["sha256"]["policy.yaml"] = hashlib.sha256(policy.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(digests))
    with pytest.raises(BundleError, match=r"kind.* head.* needs other files"):
        load_bundle(bundle.path)


def test_a_failed_write_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "people", config("finetuned", own_digest(exported)), tmp_path / "none", {})
    assert list(tmp_path.iterdir()) == []


def test_another_encoder_than_the_policy_names_is_refused(exported: Path, tmp_path: Path) -> None:
    foreign = write_bundle(tmp_path / "people", config("finetuned", "0" * 64), exported, {})
    with pytest.raises(PolicyMismatchError, match=r"classifier\.encoder_digest"):
        load(foreign)


def test_a_head_needs_the_shared_encoder(shared: Encoder, tmp_path: Path) -> None:
    head_on(shared, 0.0).save(tmp_path / "head")
    bundle = write_bundle(tmp_path / "people", config("head", shared.digest), tmp_path / "head", {})
    with pytest.raises(PolicyMismatchError, match=r"classifier\.kind: head needs the encoder tiny"):
        load(bundle)
    assert load(bundle, shared).head is not None


def test_an_old_policy_without_a_kind_has_a_head() -> None:
    data = config("head", "b" * 64).model_dump()
    del data["classifier"]["kind"]
    assert PolicyConfig.model_validate(data).classifier.kind == "head"


# --- the guard ----------------------------------------------------------------------------------------------


def test_a_guard_of_own_encoders_needs_no_shared_one(bundle: PolicyBundle) -> None:
    guard = guard_of(load(bundle))
    flagged = guard.protect(ids("where was harry potter born"))
    assert flagged.mask == [False, True, True, True, True, True]
    assert flagged.embeddings is not None
    assert not flagged.embeddings.any()
    passed = guard.protect(ids("where was rain born"))
    assert passed.mask is None
    assert [flagged.verdicts[0].flagged, passed.verdicts[0].flagged] == [True, False]


def test_verdicts_carry_the_classifiers_own_score(bundle: PolicyBundle, exported: Path) -> None:
    classifier = FinetunedClassifier.open(exported, 0.5)
    guard = guard_of(load(bundle))
    for text in ("who is harry", "tell me of bread and rain"):
        score = guard.protect(ids(text)).verdicts[0].score
        assert score == pytest.approx(float(classifier.scores([text])[0]), abs=1e-6)


def test_a_needle_in_a_long_prompt_is_found(bundle: PolicyBundle) -> None:
    filler = "tell me the rain and the bread in a rain " * 40
    prompt = guard_of(load(bundle)).protect(ids(f"{filler} who is harry please {filler}"))
    assert prompt.mask is not None
    assert prompt.mask[prompt.token_ids.index(HARRY)]
    assert 0 < sum(prompt.mask) <= 96


def test_heads_and_own_encoders_are_scored_side_by_side(bundle: PolicyBundle, shared: Encoder, tmp_path: Path) -> None:
    policies = [load(bundle)]
    for name, bias in (("sure", 3.0), ("never", -3.0)):
        head_on(shared, bias).save(tmp_path / "head")
        written = write_bundle(tmp_path / name, config("head", shared.digest, name), tmp_path / "head", {})
        policies.append(load(written, shared))
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        guard = guard_of(*[policies[index] for index in order], encoder=shared)
        for text, own in (("who is harry", True), ("what is bread", False)):
            verdicts = {verdict.policy: verdict.flagged for verdict in guard.protect(ids(text)).verdicts}
            assert verdicts == {"people": own, "sure": True, "never": False}


def test_windows_of_a_mixed_set_score_as_each_classifier_alone(shared: Encoder, exported: Path) -> None:
    rng = np.random.default_rng(0)
    head = Head(
        rng.normal(size=shared.dim).astype(np.float32),
        rng.normal(size=LEXICAL_BUCKETS).astype(np.float32),
        HeadSettings(encoder_digest=shared.digest, threshold=0.5, bias=0.0, seed=0),
    )
    own = FinetunedClassifier.open(exported, 0.5)
    texts = ["who is harry", "what is bread", "where was rain born", "who is harry"]
    classifier = WindowClassifier([own, head], np.array([0.5, 0.5]), encoder=shared, decode=decode)
    for text, block in zip(texts, classifier.look([tuple(ids(text)[1:]) for text in texts]), strict=True):
        row = probability(block.logits[0] + classifier.embedded(block.texts[0], block.policies))
        assert row[0] == pytest.approx(float(own.scores([text])[0]), abs=1e-6)
        assert row[1] == pytest.approx(HeadBank([head]).scores(extract_features(shared, [text]))[0, 0], abs=1e-6)


def test_scores_are_kept_by_digest_when_policies_change(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    scores = FinetunedClassifier.scores

    def counted(self: FinetunedClassifier, texts: Sequence[str]) -> Any:
        asked.append(list(texts))
        return scores(self, texts)

    monkeypatch.setattr(FinetunedClassifier, "scores", counted)
    own, cache = FinetunedClassifier.open(exported, 0.5), FeatureCache()
    blocks, level = [(HARRY, HARRY + 1), (HARRY + 1,)], np.array([0.5])
    before = WindowClassifier([own], level, encoder=None, decode=decode, features=cache).look(blocks)
    stricter = FinetunedClassifier.open(exported, 0.9)
    both = WindowClassifier([stricter, own], np.array([0.9, 0.5]), encoder=None, decode=decode, features=cache)
    assert asked == [["harry potter", "potter"]]
    for one, again in zip(before, both.look(blocks), strict=True):
        assert again.logits.tolist() == [[one.logits[0, 0]] * 2]
    assert len(asked) == 1


def test_a_failing_encoder_rejects_or_corrupts_and_is_asked_again(
    bundle: PolicyBundle, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = write_bundle(
        tmp_path / "lenient", config("finetuned", own_digest(exported), on_error="corrupt"), exported, {}
    )
    prompt = ids("what is bread")
    rejecting, corrupting = guard_of(load(bundle)), guard_of(load(lenient))
    with monkeypatch.context() as broken:

        def fail(self: FinetunedClassifier, texts: Sequence[str]) -> Any:
            raise ClassifierError("out of memory")

        broken.setattr(FinetunedClassifier, "log_odds", fail)
        with pytest.raises(ClassificationError):
            rejecting.protect(prompt)
        assert corrupting.protect(prompt).mask == [False, True, True, True]
        broken.setattr(FinetunedClassifier, "log_odds", lambda self, texts: np.full(len(texts), np.nan))
        with pytest.raises(ClassificationError):
            rejecting.protect(prompt)
    assert rejecting.protect(prompt).mask is None  # nothing of the failures was cached


def test_policies_without_a_usable_classifier_are_refused(bundle: PolicyBundle, shared: Encoder) -> None:
    with pytest.raises(ValueError, match="without a classifier"):
        guard_of(LoadedPolicy(bundle))
    with pytest.raises(ValueError, match="heads need the encoder"):
        guard_of(LoadedPolicy(bundle, head=head_on(shared, 0.0)))
