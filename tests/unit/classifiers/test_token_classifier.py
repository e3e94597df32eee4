"""Token classifiers exported and run without torch: random ones for arithmetic, made ones for offsets and words."""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import tiny_token_config, write_tiny_tokens, write_tokenizer
from tokenizers import Tokenizer
from transformers import AutoModelForTokenClassification, BertForMaskedLM, BertForTokenClassification

from classifiers import EncoderError, general_prompts
from classifiers.encoders.runtime import Session, probability
from classifiers.encoders.settings import TokenSettings, read_settings
from classifiers.encoders.tokens import OffsetTokenizer, TokenClassifier, run_token_windows
from classifiers.export import tokens as token_export
from classifiers.export import traced
from classifiers.export.tokens import export_token_classifier

TEXTS = [
    "Who is Ann of Taipei?",
    "",
    "¿Cómo se hace el pan?",
    "什么是光合作用?",
    "😀 " * 50,
    *general_prompts()[200:220],
]
WIDTH = 32


def write_recogniser(architecture: str, folder: Path, names: Sequence[str], **changes: Any) -> Path:
    """A model whose layers pass embeddings on as they are, and which knows the first token of each name."""
    size = write_tokenizer(architecture, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = BertForTokenClassification(tiny_token_config("bert", size, **changes))
    pattern = torch.tensor([1.0, -1.0] * (WIDTH // 2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm" not in name:
                weight.zero_()
        words = model.bert.embeddings.word_embeddings.weight
        words.copy_(-pattern.expand_as(words))
        for name in names:
            words[tokenizer.encode(name, add_special_tokens=False).ids[0]] = pattern
        model.classifier.weight[0], model.classifier.weight[1] = pattern / WIDTH, -pattern / WIDTH
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "roberta"])
def random_source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokens(request.param, tmp_path_factory.mktemp("random") / request.param)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> TokenClassifier:
    """Word pieces; knows Zelda and Quimby, neither of which is one piece, and one ideograph."""
    folder = tmp_path_factory.mktemp("made")
    export_token_classifier(write_recogniser("bert", folder / "source", ["Zelda", "Quimby", "光"]), folder / "out")
    return TokenClassifier.open(folder / "out")


def found(classifier: TokenClassifier, text: str) -> list[str]:
    spans = classifier.spans(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
    return [text[start:end] for start, end in spans]


def test_probabilities_are_the_torch_models(random_source: Path, tmp_path: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(random_source).eval()
    for precision, allowed in (("int8", 0.05), ("fp32", 1e-4)):
        settings = export_token_classifier(random_source, tmp_path / precision, precision=precision)  # type: ignore[arg-type]
        assert (settings.precision, settings.fallback) == (precision, "")
        assert settings.entity_labels == ["B-PER", "I-PER", "B-LOC"]
        windows = [
            window
            for text in TEXTS
            for window in OffsetTokenizer(tmp_path / precision / "tokenizer.json", settings.max_tokens).windows(text)
        ]
        with torch.inference_mode():
            logits = [model(input_ids=torch.tensor([window.ids])).logits[0] for window in windows]
        expected = np.concatenate([1 - torch.softmax(row, dim=-1)[:, 1].numpy() for row in logits])
        session = Session(tmp_path / precision / "model.onnx", "graph")
        given = probability(np.concatenate(run_token_windows(session, windows)))
        assert np.ptp(expected) > 0.1  # tokens are told apart, so equal values mean something
        np.testing.assert_allclose(given, expected, atol=allowed)


def test_spans_are_those_of_the_torch_models_tokens(recogniser: TokenClassifier) -> None:
    """Only the first piece of a name is known, and whole words are found."""
    assert found(recogniser, "Did Zelda see Bob Quimby?") == ["Zelda", "Quimby"]
    assert found(recogniser, "  zelda\n") == ["zelda"]
    assert found(recogniser, "Zelda Quimby, Zelda\t Quimby") == ["Zelda Quimby", "Zelda\t Quimby"]
    assert found(recogniser, "Nobody was there.") == []
    assert found(recogniser, "") == []
    assert found(recogniser, " \n\t") == []


def test_spans_are_offsets_of_the_text_as_given(recogniser: TokenClassifier) -> None:
    assert found(recogniser, "Ｚｅｌｄａ and Ze\u200blda, é Zelda") == ["Ｚｅｌｄａ", "Ze\u200blda", "Zelda"]
    assert found(recogniser, "😀😀 Zelda 😀") == ["Zelda"]
    assert found(recogniser, "\u2460\u00bd\ufb01 Z\u0435lda!") == ["Z\u0435lda"]  # a Cyrillic letter in it
    assert found(recogniser, "in Zelda\u0301's (town)") == ["Zelda\u0301's"]  # composed: the whole run of characters


def test_scripts_without_spaces_are_not_grown_to_a_sentence(recogniser: TokenClassifier) -> None:
    assert found(recogniser, "什么是光合作用?") == ["光"]


def test_special_tokens_cannot_be_spelled(recogniser: TokenClassifier) -> None:
    assert found(recogniser, "[CLS] [SEP] Zelda [PAD]") == ["Zelda"]
    (window,) = recogniser._tokenizer.windows("[SEP] [PAD] [CLS]")
    assert (window.ids[0], window.ids[-1]) == (1, 2)
    assert not {0, 1, 2} & set(window.ids[1:-1])


def test_a_long_text_is_read_whole(recogniser: TokenClassifier) -> None:
    filler = "the and of to in is it was for on " * 9  # a word is a token or two
    text = "".join(f"{filler}Zelda {number} " for number in range(12))
    windows = recogniser._tokenizer.windows(text)
    assert len(windows) > 8
    for before, after in itertools.pairwise(windows):  # 32 tokens are seen twice
        assert before.offsets[-33:-1] == after.offsets[1:33]
    assert found(recogniser, text) == ["Zelda"] * 12
    shifted = [found(recogniser, "a " * shift + text) for shift in range(0, 128, 16)]
    assert shifted == [["Zelda"] * 12] * 8


def test_a_word_too_long_for_word_pieces_does_not_hide_what_is_in_it(recogniser: TokenClassifier) -> None:
    word = "x" * 80 + "zelda" + "y" * 150
    (span,) = recogniser.spans(f"a {word} b")
    assert span[0] <= 82
    assert span[1] >= 87
    assert span[1] <= 2 + len(word)


def test_byte_level_tokens_give_characters(tmp_path: Path) -> None:
    """The known token is the first byte of a character that takes four."""
    source = write_recogniser("roberta", tmp_path / "source", ["😀"])
    export_token_classifier(source, tmp_path / "out")
    classifier = TokenClassifier.open(tmp_path / "out")
    assert found(classifier, "See 😀 and é") == ["😀"]


def test_a_words_answer_does_not_depend_on_its_batch(exported_tokens: Path) -> None:
    classifier = TokenClassifier.open(exported_tokens)
    windows = [window for text in TEXTS for window in classifier._tokenizer.windows(text)]
    together = run_token_windows(classifier._session, windows)
    for window, row in zip(windows, together, strict=True):
        np.testing.assert_allclose(run_token_windows(classifier._session, [window])[0], row, atol=1e-5)


def test_where_int8_strays_fp32_is_written_and_said(
    tiny_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_export, "MAX_DECIDED_OTHERWISE", -1.0)
    settings = export_token_classifier(tiny_tokens, tmp_path / "out")
    assert settings.precision == "fp32"
    assert "tokens otherwise" in settings.fallback
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.onnx", "tokenizer.json", "token_classifier.json",
    }  # fmt: skip
    monkeypatch.setattr(traced, "MAX_FP32_DIFFERENCE", -1.0)
    with pytest.raises(EncoderError, match="the exported graph is not the torch model"):
        export_token_classifier(tiny_tokens, tmp_path / "none", precision="fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export_is_reproducible_and_replaces_only_when_told(
    tiny_tokens: Path, exported_tokens: Path, tmp_path: Path
) -> None:
    first = export_token_classifier(tiny_tokens, tmp_path / "again")
    assert first == read_settings(exported_tokens, TokenSettings)
    with pytest.raises(EncoderError, match="already exists"):
        export_token_classifier(tiny_tokens, tmp_path / "again")
    assert export_token_classifier(tiny_tokens, tmp_path / "again", overwrite=True) == first
    (tmp_path / "home").mkdir()
    with pytest.raises(EncoderError, match="no token classifier folder"):
        export_token_classifier(tiny_tokens, tmp_path / "home", overwrite=True)


def changed(source: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(source, folder)
    content = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_models_that_cannot_be_used_are_refused(tiny_tokens: Path, tmp_path: Path) -> None:
    slow = changed(tiny_tokens, tmp_path / "slow", model_type="canine", architectures=["CanineForTokenClassification"])
    (slow / "tokenizer.json").unlink()
    masked = tmp_path / "masked"
    BertForMaskedLM(tiny_token_config("bert", write_tokenizer("bert", masked))).save_pretrained(masked)
    empty = changed(tiny_tokens, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    headless = changed(masked, tmp_path / "headless", architectures=["BertForTokenClassification"])
    plain = changed(tiny_tokens, tmp_path / "plain", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    anonymous = changed(tiny_tokens, tmp_path / "anonymous", architectures=None)
    short = write_tiny_tokens("bert", tmp_path / "short", max_position_embeddings=40)
    for source, said in (
        (slow, "no fast tokenizer"),
        (masked, r"no token classifier \(BertForMaskedLM\); choose a model such as dslim/bert-base-NER"),
        (anonymous, "no token classifier"),
        (empty, "cannot be loaded as a token classifier"),
        (headless, "no weights for classifier"),
        (plain, "id2label: needs one label O beside those of entities, found LABEL_0, LABEL_1"),
        (short, "takes 40 tokens; at least 64"),
    ):
        with pytest.raises(EncoderError, match=f"{source}: .*{said}"):
            export_token_classifier(source, tmp_path / "out")
    with pytest.raises(EncoderError, match="neither a folder nor a hub id"):
        export_token_classifier("../no such", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "token_classifier.json"])
def test_missing_and_altered_files_are_refused(exported_tokens: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tokens"
    shutil.copytree(exported_tokens, folder)
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(EncoderError, match=rf"{folder}"):
        TokenClassifier.open(folder)
    (folder / name).unlink()
    with pytest.raises(EncoderError, match=f"not a token classifier .*{name}"):
        TokenClassifier.open(folder)


def test_another_machines_arithmetic_is_noticed(exported_tokens: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    shutil.copytree(exported_tokens, folder)
    content = json.loads((folder / "token_classifier.json").read_text())
    content["probe_probabilities"][2] = 1 - round(content["probe_probabilities"][2])
    (folder / "token_classifier.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match="on this machine"):
        TokenClassifier.open(folder)
