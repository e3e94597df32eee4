import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

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


def test_a_text_that_is_too_long_is_read_in_parts(encoder: Encoder) -> None:
    parts = [" ".join([word] * 254) for word in ("music", "bread")]
    both, *single = encoder.embed([" ".join(parts), *parts])
    mean = single[0] + single[1]
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean), atol=1e-6)


def test_invisible_characters_do_not_change_the_embedding(encoder: Encoder) -> None:
    plain, hidden = encoder.embed(["Who is Harry Potter?", "Who is Ha\u200brry Pоtter?"])
    np.testing.assert_allclose(plain, hidden, atol=1e-6)


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


def test_a_device_that_is_not_there_is_refused(encoder_folder: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    with pytest.raises(EncoderError, match=r"cannot run on cuda: onnxruntime has .*CPU.* here; install"):
        Encoder.open(encoder_folder, device="cuda")


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
