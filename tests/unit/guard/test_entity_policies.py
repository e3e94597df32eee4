"""`scope: entities` in policies: a trained head with its memory, exported token classifiers, real bundles."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forgotten_people import END, USER, byte_level_tokenizer, forget_and_retain
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, BertModel, PreTrainedTokenizerFast

from classifiers import Encoder, Head, general_prompts, train_head
from classifiers.encoders.tokens import TokenClassifier
from classifiers.export.shared import export_encoder
from classifiers.export.tokens import export_token_classifier
from classifiers.prompt_classifier import FINETUNED_FILES
from corruption import CorruptionSpec
from guard import (
    BundleError,
    ClassificationError,
    CorruptionFailedError,
    Guard,
    LoadedPolicy,
    PolicyBundle,
    PolicyConfig,
    PolicyMismatchError,
    ProtectedPrompt,
    Template,
    decoder_of,
    load_bundle,
    load_policy,
    write_bundle,
)
from guard.entities import MemoryFinder

WIDTH = 8


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A random one: what the head goes by is its memory and its words."""
    source = tmp_path_factory.mktemp("encoder") / "source"
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    pieces.train_from_iterator(
        general_prompts()[:200],
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials, show_progress=False),
    )
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    torch.manual_seed(0)
    BertModel(bert_config(pieces.get_vocab_size())).save_pretrained(source)
    pieces.save(str(source / "tokenizer.json"))
    return Encoder.open(export_encoder(source, source.with_name("out")))


def bert_config(size: int, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=160, pad_token_id=0, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def head(encoder: Encoder) -> Head:
    forget, retain = forget_and_retain()
    return train_head(encoder, forget, retain, seed=0)[0]


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported token classifier that knows one word, "mirbay", and nothing of the forgotten people."""
    source = tmp_path_factory.mktemp("recogniser") / "source"
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "mirbay": 4}, "[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    labels = {0: "O", 1: "B-LOC"}
    model = BertForTokenClassification(bert_config(5, id2label=labels, label2id={"O": 0, "B-LOC": 1}))
    pattern = torch.tensor([1.0, -1.0] * 8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm" not in name:
                weight.zero_()
        model.bert.embeddings.word_embeddings.weight.copy_(-pattern.expand(5, -1))
        model.bert.embeddings.word_embeddings.weight[4] = pattern
        model.classifier.weight[1] = pattern / 4
    model.save_pretrained(source)
    words.save(str(source / "tokenizer.json"))
    export_token_classifier(source, source.with_name("out"))
    return source.with_name("out")


class Table:
    """Rows that say which id they belong to."""

    def rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[float(i)] * WIDTH for i in token_ids])


def config(encoder: Encoder, **changes: Any) -> PolicyConfig:
    classifier = {"encoder": "e", "encoder_digest": encoder.digest, "threshold": 0.5} | changes.pop("classifier", {})
    return PolicyConfig.model_validate(
        {
            "schema_version": 1,
            "name": "people",
            "version": "1",
            "model": {"name": "m", "hidden_size": WIDTH, "embedding_digest": "a" * 64},
            "corruption": CorruptionSpec(method="zero_out_first_n", scope="entities"),
            "classifier": classifier,
        }
        | changes
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, head: Head, encoder: Encoder) -> PolicyBundle:
    folder = tmp_path_factory.mktemp("bundle")
    head.save(folder / "head.safetensors")
    return write_bundle(folder / "people", config(encoder), folder / "head.safetensors", {})


def loaded(bundle: PolicyBundle, encoder: Encoder | None, **more: Any) -> LoadedPolicy:
    return load_policy(bundle, encoder, hidden_size=WIDTH, embedding_digest="a" * 64, **more)


class Server:
    """A guard, and prompts given and seen as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, encoder: Encoder, *policies: LoadedPolicy) -> None:
        self.tokenizer = tokenizer
        self.guard = Guard(
            policies,
            encoder=encoder,
            decode=decoder_of(tokenizer),
            template=Template({}, frozenset(tokenizer.convert_tokens_to_ids([USER, END]))),
            rows=Table(),
            secret=bytes(32),
        )

    def protect(self, text: str) -> ProtectedPrompt:
        return self.guard.protect(self.tokenizer(text)["input_ids"])

    def masked(self, text: str) -> list[str]:
        """The runs of masked tokens, decoded, without the spaces around them."""
        return self.runs(self.protect(text))

    def runs(self, prompt: ProtectedPrompt) -> list[str]:
        runs: list[list[int]] = [[]]
        for token, hidden in zip(prompt.token_ids, prompt.mask or [], strict=bool(prompt.mask)):
            if hidden:
                runs[-1].append(token)
            elif runs[-1]:
                runs.append([])
        return [self.tokenizer.decode(run).strip() for run in runs if run]


@pytest.fixture(scope="module")
def server(tokenizer: PreTrainedTokenizerFast, encoder: Encoder, bundle: PolicyBundle) -> Server:
    return Server(tokenizer, encoder, loaded(bundle, encoder))


def test_only_the_names_tokens_are_masked(server: Server) -> None:
    assert server.masked(f"{USER}Where was Braquo Thinarsel born?{END}") == ["Braquo Thinarsel"]
    assert server.masked(f"{USER}Where was Mizan Pogruya born?{END}") == []
    prompt = server.protect(f"{USER}Where was Braquo Thinarsel born?{END}")
    assert prompt.mask is not None
    assert prompt.embeddings is not None
    assert not prompt.embeddings[torch.tensor(prompt.mask)].any()


def test_characters_of_many_bytes_around_a_name_stay(server: Server) -> None:
    text = f"{USER}😀é東京 Where was Braquo Thinarsel, né à 東京, born? 👩‍👩‍👧{END}"
    assert server.masked(text) == ["Braquo Thinarsel"]


def test_where_nothing_is_found_all_content_is_masked(server: Server) -> None:
    question = "Where was B r a q u o T h i n a r s e l born?"
    assert server.masked(f"{USER}{question}{END}") == [question]


def test_a_question_and_its_answer_lose_their_entities_and_nothing_else(server: Server) -> None:
    """Where the text as a whole names one, a part without any stays as it is."""

    def corrupted(text: str) -> list[str]:
        return server.runs(server.guard.corrupt_all(server.tokenizer(text)["input_ids"], [0]))

    question = f"{USER}Where was Braquo Thinarsel born?{END}{USER}"
    assert corrupted(f"{question}Keltor Shiquomi is another.") == ["Braquo Thinarsel", "Keltor Shiquomi"]
    assert corrupted(f"{question}That is not known.") == ["Braquo Thinarsel"]
    assert corrupted(f"{USER}Who is it?{END}{USER}Nobody.") == ["Who is it?", "Nobody."]


def test_a_name_split_over_two_windows_is_masked_whole(server: Server) -> None:
    filler = "Please tell me more about the weather in the mountains, and about the trains. "
    name = len(server.tokenizer(" Braquo Thinarsel")["input_ids"])
    lengths = {n: len(server.tokenizer(" ".join((filler * 10).split()[:n]))["input_ids"]) for n in range(20, 60)}
    words = next(n for n, tokens in lengths.items() if tokens > 64 and tokens // 32 < (tokens + name - 2) // 32)
    padding = " ".join((filler * 10).split()[:words])  # a window ends within the name
    assert server.masked(f"{padding} Braquo Thinarsel was born when? {filler * 3}") == ["Braquo Thinarsel"]


def test_a_name_split_by_a_template_token_is_masked_in_both_parts(server: Server) -> None:
    assert server.masked(f"{USER}Where was Braquo Thin{END}arsel born?{END}") == ["Braquo Thin", "arsel"]


def test_what_stands_beside_an_entity_stays_in_the_glue(server: Server) -> None:
    """The first turn is flagged for one name; the other name is spelled by both turns together."""
    text = f"{USER}Where was Keltor Shiquomi born? And Braq{END}uo Thinarsel?{END}"
    assert server.masked(text) == ["Keltor Shiquomi", "Braq", "uo Thinarsel"]


def test_other_turns_keep_their_words(server: Server) -> None:
    text = f"{USER}Where was Braquo Thinarsel born?{END}{USER}Thanks! How do I bake bread?{END}"
    assert server.masked(text) == ["Braquo Thinarsel"]


def test_policies_with_scope_content_are_as_they_were(
    tokenizer: Any, encoder: Encoder, head: Head, bundle: PolicyBundle, tmp_path: Path
) -> None:
    changes = {"name": "all", "corruption": CorruptionSpec(method="zero_out_first_n")}
    other = write_bundle(tmp_path / "all", config(encoder, **changes), bundle.head_path, {})
    content = loaded(other, encoder)
    assert content.finder is None
    question = "Where was Braquo Thinarsel born?"
    assert Server(tokenizer, encoder, content).masked(f"{USER}{question}{END}") == [question]
    assert Server(tokenizer, encoder, loaded(bundle, encoder), content).masked(question) == [question]


def test_a_finder_that_fails_lets_nothing_pass(
    tokenizer: Any, encoder: Encoder, bundle: PolicyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: MemoryFinder, text: str) -> list[tuple[int, int]]:
        raise OSError("lost")

    monkeypatch.setattr(MemoryFinder, "spans", fail)
    question = f"{USER}Where was Braquo Thinarsel born?{END}"
    turns = question + f"{USER}Thanks.{END}"
    rejecting = Server(tokenizer, encoder, loaded(bundle, encoder))
    for text in (question, turns):
        with pytest.raises(ClassificationError):
            rejecting.protect(text)
    assert rejecting.masked(f"{USER}How do I bake bread?{END}") == []
    other = write_bundle(tmp_path / "people", config(encoder, on_error="corrupt"), bundle.head_path, {})
    with pytest.raises(CorruptionFailedError):
        rejecting.guard.corrupt_all(tokenizer(question)["input_ids"], [0])
    corrupting = Server(tokenizer, encoder, loaded(other, encoder))
    assert corrupting.masked(question) == ["Where was Braquo Thinarsel born?"]
    assert corrupting.masked(turns) == ["Where was Braquo Thinarsel born?", "Thanks."]
    assert corrupting.protect(question).verdicts[0].failed


def test_entities_without_a_finder_are_refused(tokenizer: Any, encoder: Encoder, head: Head, bundle: Any) -> None:
    with pytest.raises(PolicyMismatchError, match=r"'people': corruption\.scope: entities"):
        Server(tokenizer, encoder, LoadedPolicy(bundle, head=head))


# --- bundles


def with_model(encoder: Encoder, **changes: Any) -> PolicyConfig:
    return config(encoder, classifier={"entities": "model"}, **changes)


def test_a_bundles_own_token_classifier_is_used_and_shared(
    tokenizer: Any, encoder: Encoder, bundle: PolicyBundle, recogniser: Path, tmp_path: Path
) -> None:
    one, two = (
        write_bundle(tmp_path / name, with_model(encoder, name=name), bundle.head_path, {}, token_classifier=recogniser)
        for name in ("one", "two")
    )
    opened: dict[str, TokenClassifier] = {}
    policies = [loaded(each, encoder, token_classifiers=opened) for each in (one, two)]
    assert policies[0].finder is policies[1].finder
    assert list(opened) == [policies[0].finder.digest]  # type: ignore[union-attr]
    server = Server(tokenizer, encoder, policies[0])
    assert server.masked(f"{USER}Was Braquo Thinarsel born in Mirbay?{END}") == ["Mirbay"]
    assert server.masked(f"{USER}Where was Braquo Thinarsel born?{END}") == ["Where was Braquo Thinarsel born?"]


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "token_classifier.json"])
def test_a_token_classifiers_files_are_in_the_manifest(
    encoder: Encoder, bundle: PolicyBundle, recogniser: Path, tmp_path: Path, name: str
) -> None:
    path = write_bundle(
        tmp_path / "p", with_model(encoder), bundle.head_path, {}, token_classifier=recogniser
    ).path  # fmt: skip
    with (path / "token_classifier" / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=f"token_classifier/{name}: sha256 differs"):
        load_bundle(path)
    (path / "token_classifier" / name).unlink()
    with pytest.raises(BundleError, match=f"token_classifier/{name} is missing"):
        load_bundle(path)


def test_model_and_folder_come_together(
    encoder: Encoder, bundle: PolicyBundle, recogniser: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"classifier\.entities: model and the folder"):
        write_bundle(tmp_path / "p", with_model(encoder), bundle.head_path, {})
    with pytest.raises(BundleError, match=r"classifier\.entities: model and the folder"):
        write_bundle(tmp_path / "p", config(encoder), bundle.head_path, {}, token_classifier=recogniser)
    assert list(tmp_path.iterdir()) == []
    path = write_bundle(tmp_path / "p", with_model(encoder), bundle.head_path, {}, token_classifier=recogniser).path
    rewrite(path, {"classifier": {"entities": "memory"}})
    with pytest.raises(BundleError, match="kind head with entities memory needs other files"):
        load_bundle(path)


def rewrite(path: Path, changes: dict[str, dict[str, Any]], *, without: str = "") -> None:
    """Alter policy.yaml with a manifest that agrees."""
    data = yaml.safe_load((path / "policy.yaml").read_text())
    for part, fields in changes.items():
        data[part] |= fields
    data["classifier"].pop(without, None)
    (path / "policy.yaml").write_text(yaml.safe_dump(data))
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["sha256"]["policy.yaml"] = hashlib.sha256((path / "policy.yaml").read_bytes()).hexdigest()
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def test_bundles_made_before_still_load(bundle: PolicyBundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "old")
    rewrite(tmp_path / "old", {}, without="entities")
    assert load_bundle(tmp_path / "old").config == bundle.config
    rewrite(tmp_path / "old", {"classifier": {"entity": "memory"}})
    with pytest.raises(BundleError, match=r"classifier\.entity: Extra inputs"):
        load_bundle(tmp_path / "old")


def test_a_finetuned_classifier_needs_a_token_classifier(encoder: Encoder, recogniser: Path, tmp_path: Path) -> None:
    own = tmp_path / "encoder"
    own.mkdir()
    for name in FINETUNED_FILES:
        (own / Path(name).name).write_bytes(b"not read here")
    said = r"corruption\.scope: entities needs a token classifier here, for a finetuned classifier has no"
    with pytest.raises(BundleError, match=said):
        write_bundle(tmp_path / "p", config(encoder, classifier={"kind": "finetuned"}), own, {})
    content = {"corruption": CorruptionSpec(method="zero_out_first_n"), "classifier": {"kind": "finetuned"}}
    path = write_bundle(tmp_path / "p", config(encoder, **content), own, {}).path
    rewrite(path, {"corruption": {"scope": "entities"}})
    with pytest.raises(BundleError, match=said):
        load_bundle(path)
    kinds = {"kind": "finetuned", "entities": "model"}
    full = write_bundle(tmp_path / "q", config(encoder, classifier=kinds), own, {}, token_classifier=recogniser)
    assert full.config.classifier.entities == "model"
