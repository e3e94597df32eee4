"""Policy bundles: a folder that says what is to be forgotten, written by offline jobs and never edited in place.

    policy.yaml       what is matched and what happens then (`PolicyConfig`)
    head.safetensors  the prompt classifier's head
    report.json       what was measured when the policy was built
    MANIFEST.json     sha256 of every other file

The digest of a bundle is the sha256 of its manifest: it names the policy's content, whatever the folder is called.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corruption import CorruptionSpec
from guard.errors import BundleError
from guard.verdict import Action, OnError

__all__ = [
    "ClassifierConfig",
    "ModelConfig",
    "PolicyBundle",
    "PolicyConfig",
    "load_bundle",
    "write_bundle",
]

SCHEMA_VERSION = 1
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
POLICY_FILE, HEAD_FILE, REPORT_FILE, MANIFEST_FILE = (
    "policy.yaml",
    "head.safetensors",
    "report.json",
    "MANIFEST.json",
)
_FILES = (POLICY_FILE, HEAD_FILE, REPORT_FILE)
_MAX_BYTES = {POLICY_FILE: 32 << 20, HEAD_FILE: 256 << 20, REPORT_FILE: 64 << 20, MANIFEST_FILE: 1 << 20}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(_Strict):
    """The model a policy was built for."""

    name: str = Field(min_length=1)
    """As given to the build; for people to read, the digest decides."""
    hidden_size: int = Field(ge=1)
    """Width D of the input-embedding rows."""
    embedding_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """sha256 of the checkpoint's whole input-embedding table."""


class ClassifierConfig(_Strict):
    """How prompts are recognised."""

    encoder: str = Field(min_length=1)
    """Name or path of the shared encoder."""
    encoder_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    threshold: float = Field(gt=0, lt=1)
    """A window is flagged at or above this probability."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """How the threshold was found, with the error counts it was found at."""


class PolicyConfig(_Strict):
    """`policy.yaml`; unknown keys are errors."""

    schema_version: Literal[1]
    name: str = Field(pattern=NAME_PATTERN)
    """Label of this policy in metrics; one gateway serves each name once."""
    version: str = Field(min_length=1, max_length=64)
    model: ModelConfig
    action: Action = "corrupt"
    """`corrupt`: answer as if never learned. `observe`: count only. `refuse`: answer with an error."""
    corruption: CorruptionSpec
    classifier: ClassifierConfig
    on_error: OnError = "reject"
    """What happens to a prompt that cannot be classified: 503, or corrupt all of its content."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Data digests, seeds and versions of the build."""


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """A verified bundle: every file has the digest its manifest states, and `policy.yaml` follows the schema."""

    path: Path
    digest: str
    config: PolicyConfig
    report: dict[str, Any]

    @property
    def head_path(self) -> Path:
        return self.path / HEAD_FILE


def write_bundle(
    out: str | Path,
    config: PolicyConfig,
    head_file: Path,
    report: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> PolicyBundle:
    """Write a bundle to the folder `out`: complete or not at all.

    Raises:
        BundleError: `out` exists and `overwrite` is False, or it exists and is no bundle, or the disk refuses.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise BundleError(f"{out}: already exists; choose another --out or pass --force to replace it")
    if out.exists() and not (out / MANIFEST_FILE).is_file():
        raise BundleError(f"{out}: exists and is no policy bundle; choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BundleError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (temporary / POLICY_FILE).write_text(text, encoding="utf-8")
        shutil.copyfile(head_file, temporary / HEAD_FILE)
        (temporary / REPORT_FILE).write_text(_json(report), encoding="utf-8")
        manifest = {"sha256": {name: _sha256(temporary / name) for name in _FILES}}
        (temporary / MANIFEST_FILE).write_text(_json(manifest), encoding="utf-8")
        temporary.chmod(0o755)
        _replace_folder(temporary, out)
    except OSError as error:
        raise BundleError(f"{out}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_bundle(out)


def _replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`. An existing target steps aside first: a folder cannot be renamed over one."""
    if not target.exists():
        source.rename(target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def load_bundle(path: str | Path) -> PolicyBundle:
    """Read and verify a bundle.

    Raises:
        BundleError: one line that names the folder, the file or field, and what was expected.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path}: no such policy folder; build one with eco policy build")
    manifest_bytes = _read(path, MANIFEST_FILE)
    digests = _manifest_digests(path, manifest_bytes)
    for name, expected in digests.items():
        _check_size(path, name)
        if _sha256(path / name) != expected:
            raise BundleError(
                f"{path / name}: sha256 differs from {MANIFEST_FILE}; the bundle was altered or copied in part, "
                "copy it again or build it anew"
            )
    extra = sorted(child.name for child in path.iterdir() if child.name not in {*_FILES, MANIFEST_FILE})
    if extra:
        raise BundleError(f"{path}: {', '.join(extra)} not in {MANIFEST_FILE}; bundles hold nothing else")
    return PolicyBundle(
        path=path,
        digest=hashlib.sha256(manifest_bytes).hexdigest(),
        config=_parse_config(path, _read(path, POLICY_FILE)),
        report=_parse_object(path / REPORT_FILE, _read(path, REPORT_FILE)),
    )


def _parse_config(path: Path, content: bytes) -> PolicyConfig:
    try:
        data = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path / POLICY_FILE}: not valid YAML") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path / POLICY_FILE}: expected a mapping of fields")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{path / POLICY_FILE}: schema_version: expected {SCHEMA_VERSION}, found {data.get('schema_version')!r}; "
            "build the policy anew with this version of eco"
        )
    try:
        return PolicyConfig.model_validate(data)
    except ValidationError as error:
        raise BundleError(f"{path / POLICY_FILE}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "policy"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}: {first['msg']}{more}"


def _manifest_digests(path: Path, content: bytes) -> dict[str, str]:
    digests = _parse_object(path / MANIFEST_FILE, content).get("sha256")
    if not isinstance(digests, dict) or set(digests) != set(_FILES):
        raise BundleError(f"{path / MANIFEST_FILE}: sha256: expected an entry for each of {', '.join(_FILES)}")
    return {name: str(digests[name]) for name in _FILES}


def _parse_object(file: Path, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{file}: not valid JSON") from error
    if not isinstance(data, dict):
        raise BundleError(f"{file}: expected a JSON object")
    return data


def _read(path: Path, name: str) -> bytes:
    _check_size(path, name)
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{path / name}: cannot be read ({error.strerror})") from error


def _check_size(path: Path, name: str) -> None:
    file = path / name
    if not file.is_file():
        raise BundleError(f"{path}: {name} is missing; the bundle is incomplete, copy it again or build it anew")
    if file.stat().st_size > _MAX_BYTES[name]:
        raise BundleError(f"{file}: larger than {_MAX_BYTES[name] >> 20} MiB; not a bundle written by eco")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
