import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifiers import Encoder, EncoderError, general_prompts
from classifiers.encoders.settings import EncoderSettings, read_settings

TEXTS = ["Who was born in Taipei?", "Hi", *general_prompts()[:20], " ".join(general_prompts()[40:50])]


def test_embedding_is_that_of_the_torch_model(encoder: Encoder, encoder_folder: Path) -> None:
    import torch
    from transformers import AutoModel

    from classifiers.export.hub import carrier_folder

    source = carrier_folder()
    assert source is not None
    model = AutoModel.from_pretrained(source, local_files_only=True).eval()
    for text in TEXTS:
        ids = encoder._tokenizer.encode(text).ids
        with torch.inference_mode():
            pooled = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
        expected = torch.nn.functional.normalize(pooled, dim=0).numpy()
        assert float(expected @ encoder.embed([text])[0]) > 0.99
    assert read_settings(encoder_folder, EncoderSettings).parity_min_cosine >= 0.99


def test_embedding_does_not_depend_on_neighbours(encoder: Encoder) -> None:
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    together = encoder.embed(TEXTS)
    backwards = encoder.embed([*TEXTS, *general_prompts()[100:200]][::-1])[::-1][: len(TEXTS)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(backwards, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


def test_threads_share_an_encoder(encoder: Encoder) -> None:
    expected = encoder.embed(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.embed(TEXTS), range(8)):
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_shapes_limits_and_counts(encoder: Encoder) -> None:
    assert (encoder.dim, encoder.max_tokens) == (384, 256)
    assert encoder.embed([]).shape == (0, 384)
    assert encoder.embed([""]).shape == (1, 384)
    assert encoder.token_count(["", "Hello there", "Hello\u200b there"]) == [2, 4, 4]
    with pytest.raises(EncoderError, match="302 tokens and the encoder takes 256; split it"):
        encoder.embed(["word " * 300])


def test_invisible_characters_do_not_change_the_embedding(encoder: Encoder) -> None:
    plain, hidden = encoder.embed(["Who is Harry Potter?", "Who is Ha\u200brry Pоtter?"])
    np.testing.assert_allclose(plain, hidden, atol=1e-6)


def test_windows_hold_every_word_and_fit(encoder: Encoder) -> None:
    words = [f"word{i}" for i in range(400)]
    windows = encoder.split_windows(" ".join(words))
    assert max(encoder.token_count(windows)) <= 64
    held = [window.split() for window in windows]
    assert [word for index, word in enumerate(words) if not any(word in part for part in held)] == []
    # any six neighbours (18 to 24 tokens, within the overlap) are together in some window
    text = [" ".join(part) for part in held]
    assert all(any(" ".join(words[i : i + 6]) in part for part in text) for i in range(394))


def test_short_text_is_one_window_and_bad_sizes_are_refused(encoder: Encoder) -> None:
    assert encoder.split_windows("Who is Harry?") == ["Who is Harry?"]
    assert encoder.split_windows("") == [""]
    for sizes in ((64, 62), (64, -1), (257, 0), (2, 0)):
        with pytest.raises(ValueError, match="no windows of"):
            encoder.split_windows("text", *sizes)


@given(st.text(max_size=300), st.integers(12, 64), st.integers(0, 9))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_lose_no_character(encoder: Encoder, text: str, window: int, overlap: int) -> None:
    from classifiers.encoders.runtime import prepare

    rest = prepare(text)
    for piece in encoder.split_windows(text, window, overlap):
        common = next(n for n in range(len(piece), -1, -1) if rest.startswith(piece[len(piece) - n :]))
        assert common or not piece.strip()
        rest = rest[common:]
    assert rest == ""


@pytest.mark.parametrize("text", ["x" * 20_000, "🎉" * 3000, "é" * 9000, "a" * 70 + " b " + "c" * 500, "漢字" * 2000])
def test_words_longer_than_a_window_are_cut_not_lost(encoder: Encoder, text: str) -> None:
    windows = encoder.split_windows(text)
    assert max(encoder.token_count(windows)) <= encoder.max_tokens
    assert len(windows) <= 3 + len(text) / 15


def test_a_question_without_spaces_is_not_one_unknown_token(encoder: Encoder) -> None:
    assert encoder.token_count(["whowasborninTaipei" * 10])[0] > 40


def test_changed_files_are_refused(encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder_folder, folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase":true', '"lowercase":false'))
    with pytest.raises(EncoderError, match="files were changed"):
        Encoder.open(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(EncoderError, match=r"not an exported encoder \(.*model\.onnx"):
        Encoder.open(folder)


def test_settings_are_checked(encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder_folder, folder)
    settings_file = folder / "encoder.json"
    content = json.loads(settings_file.read_text())
    for changed, message in (
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"extra": 1}, "extra"),
        ({"probe_embedding": [-x for x in content["probe_embedding"]]}, "does not compute what was exported"),
    ):
        settings_file.write_text(json.dumps(content | changed))
        with pytest.raises(EncoderError, match=message):
            Encoder.open(folder)
    settings_file.write_text("{")
    with pytest.raises(EncoderError, match=r"encoder\.json"):
        Encoder.open(folder)


def test_serving_needs_neither_torch_nor_transformers(
    encoder_folder: Path, exported_bert: Path, exported_tokens: Path
) -> None:
    program = (
        "import sys; import classifiers;"
        "from classifiers.encoders.finetuned import FinetunedClassifier;"
        "from classifiers.encoders.tokens import TokenClassifier;"
        "late = {'torch', 'transformers', 'onnx', 'onnxruntime'};"
        "assert not late & set(sys.modules), late & set(sys.modules);"
        f"classifiers.Encoder.open({str(encoder_folder)!r}).embed(['x']);"
        f"FinetunedClassifier.open({str(exported_bert)!r}, 0.5).scores(['x']);"
        f"TokenClassifier.open({str(exported_tokens)!r}).spans('x');"
        "assert not (late - {'onnxruntime'}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
