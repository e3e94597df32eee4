"""Policy bundles: a folder that says what is to be forgotten, written by offline jobs and never edited in place.

    policy.yaml        what is matched and what happens then (`PolicyConfig`)
    head.safetensors   the prompt classifier's head, or
    encoder/           the prompt classifier's own encoder: model.onnx, tokenizer.json, encoder.json
    token_classifier/  only with `classifier.entities: model`: model.onnx, tokenizer.json, token_classifier.json
    report.json        what was measured when the policy was built
    plots/             the report's pictures, SVG files; may be missing
    MANIFEST.json      sha256 of every other file

The digest of a bundle is the sha256 of its manifest: it names the policy's content, whatever the folder is called.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifiers.encoders.settings import TOKEN_FOLDER
from classifiers.encoders.tokens import TOKEN_FILES
from classifiers.prompt_classifier import ENCODER_FOLDER, FINETUNED_FILES, ClassifierKind
from console.errors import first_problem
from corruption import CorruptionSpec
from guard.errors import BundleError
from storage.digests import sha256_of_file
from storage.whole import whole_folder

Action = Literal["corrupt", "observe", "refuse"]
OnError = Literal["reject", "corrupt"]
AnswerMode = Literal["restart", "end", "observe", "off"]

SCHEMA_VERSION = 1
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
POLICY_FILE, HEAD_FILE, REPORT_FILE = "policy.yaml", "head.safetensors", "report.json"
MANIFEST_FILE = "MANIFEST.json"
#: All files but the manifest, by the kind of classifier.
_FILES: dict[ClassifierKind, tuple[str, ...]] = {
    "head": (POLICY_FILE, HEAD_FILE, REPORT_FILE),
    "finetuned": (POLICY_FILE, *FINETUNED_FILES, REPORT_FILE),
}
#: Further files a bundle may have.
_PLOT = re.compile(r"plots/[a-z_]{1,64}\.svg")
_MAX_PLOT_BYTES = 16 << 20
_MAX_BYTES = {POLICY_FILE: 32 << 20, HEAD_FILE: 256 << 20, REPORT_FILE: 64 << 20, MANIFEST_FILE: 1 << 20}
_MAX_BYTES |= dict(zip(FINETUNED_FILES, (4 << 30, 256 << 20, 1 << 20), strict=True))
_MAX_BYTES |= dict(zip(TOKEN_FILES, (4 << 30, 256 << 20, 1 << 20), strict=True))


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

    kind: ClassifierKind = "head"
    """`head`: on the shared encoder. `finetuned`: by an encoder of the bundle's own."""
    encoder: str = Field(min_length=1)
    """Name or path of the shared encoder, or of the model that the bundle's own was made from."""
    encoder_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    threshold: float = Field(gt=0, lt=1)
    """A window is flagged at or above this probability."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """How the threshold was found, with the error counts it was found at."""
    entities: Literal["memory", "model"] = "memory"
    """Who says which tokens are the entity, where `corruption.scope` is `entities`. `memory`: the head's entity memory.
    `model`: the bundle's own token-classification model."""


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
    answers: AnswerMode = "restart"
    """What happens to an answer that gives what must be forgotten away. `restart`: it goes on from a corrupted prompt.
    `end`: it ends there. `observe`: count only. `off`: answers are not read."""
    on_error: OnError = "reject"
    """What happens to a prompt that cannot be classified: 503, or corrupt all of its content. An answer: it breaks off
    with an error, or goes on from a corrupted prompt."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Data digests, seeds and versions of the build."""

    @property
    def answer_mode(self) -> AnswerMode:
        """`answers` as `action` lets it be: who only observes prompts does no more with answers, and who refuses
        prompts has no other answer to give."""
        if self.answers == "off" or self.action == "corrupt":
            return self.answers
        return "observe" if "observe" in (self.action, self.answers) else "end"


@dataclass(frozen=True, slots=True)
class PolicyBundle:
    """A verified bundle: every file has the digest its manifest states, and `policy.yaml` follows the schema."""

    path: Path
    digest: str
    config: PolicyConfig
    report: dict[str, Any]

    @property
    def head_path(self) -> Path:
        """The head's file; there is none where the classifier is `finetuned`."""
        return self.path / HEAD_FILE

    @property
    def encoder_path(self) -> Path:
        """The bundle's own encoder; there is none where the classifier is a `head`."""
        return self.path / ENCODER_FOLDER

    @property
    def token_classifier_path(self) -> Path:
        """The bundle's own token classifier; there is none where `classifier.entities` is `memory`."""
        return self.path / TOKEN_FOLDER


def write_bundle(
    out: str | Path,
    config: PolicyConfig,
    classifier: Path,
    report: Mapping[str, Any],
    *,
    token_classifier: Path | None = None,
    plots: Sequence[Path] = (),
    overwrite: bool = False,
) -> PolicyBundle:
    """Write a bundle to the folder `out`: complete or not at all.

    `classifier` is the head's file or, where `config.classifier.kind` is `finetuned`, the folder of its encoder.
    `token_classifier` is the folder that `export_token_classifier` wrote: exactly where `config.classifier.entities`
    is `model`. `plots` are SVG files, which keep their names.

    Raises:
        BundleError: `out` exists and `overwrite` is False, or it exists and is no bundle, or the disk refuses; or
            `scope: entities` has nothing that finds them.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise BundleError(f"{out}: already exists; choose another --out or pass --force to replace it")
    if out.exists() and not (out / MANIFEST_FILE).is_file():
        raise BundleError(f"{out}: exists and is no policy bundle; choose another --out")
    if (token_classifier is not None) != (config.classifier.entities == "model"):
        raise BundleError(f"{out}: classifier.entities: model and the folder of a token classifier come together")
    _check_scope(out / POLICY_FILE, config)
    head = config.classifier.kind == "head"
    copied = {HEAD_FILE: classifier} if head else {name: classifier / Path(name).name for name in FINETUNED_FILES}
    if token_classifier is not None:
        copied |= {name: token_classifier / Path(name).name for name in TOKEN_FILES}
    copied |= {f"plots/{plot.name}": plot for plot in plots}
    try:
        with whole_folder(out) as work:
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            (work / POLICY_FILE).write_text(text, encoding="utf-8")
            (work / REPORT_FILE).write_text(_json(report), encoding="utf-8")
            for name, source in copied.items():
                (work / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, work / name)
            digests = {name: sha256_of_file(work / name) for name in (POLICY_FILE, REPORT_FILE, *copied)}
            (work / MANIFEST_FILE).write_text(_json({"sha256": digests}), encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{out}: cannot be written ({error.strerror})") from error
    return load_bundle(out)


def _check_scope(file: Path, config: PolicyConfig) -> None:
    classifier = config.classifier
    if config.corruption.scope == "entities" and classifier.kind == "finetuned" and classifier.entities == "memory":
        raise BundleError(
            f"{file}: corruption.scope: entities needs a token classifier here, for a finetuned classifier has no "
            "entity memory; add one (classifier.entities: model) or build with scope content"
        )


def load_bundle(path: str | Path) -> PolicyBundle:
    """Read and verify a bundle.

    Raises:
        BundleError: one line that names the folder, the file or field, and what was expected.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path}: no such policy folder; build one with eco policy build")
    manifest = _read(path, MANIFEST_FILE)
    digests = _parse_object(path / MANIFEST_FILE, manifest).get("sha256")
    digests = digests if isinstance(digests, dict) else {}
    files = _FILES["finetuned" if FINETUNED_FILES[0] in digests else "head"]
    files += TOKEN_FILES if TOKEN_FILES[0] in digests else ()
    plots = sorted(name for name in digests if _PLOT.fullmatch(name))
    if set(digests) != {*files, *plots}:
        raise BundleError(f"{path / MANIFEST_FILE}: sha256: expected an entry for each of {', '.join(files)}")
    for name in (*files, *plots):
        _check_size(path, name)
        if sha256_of_file(path / name) != digests[name]:
            raise BundleError(
                f"{path / name}: sha256 differs from {MANIFEST_FILE}; the bundle was altered or copied in part, "
                "copy it again or build it anew"
            )
    inside = {child.relative_to(path).as_posix() for child in path.rglob("*")}
    if extra := sorted(inside - {*digests, MANIFEST_FILE, *(Path(name).parent.as_posix() for name in digests)})[:5]:
        raise BundleError(f"{path}: {', '.join(extra)} not in {MANIFEST_FILE}; bundles hold nothing else")
    config = _parse_config(path / POLICY_FILE, _read(path, POLICY_FILE))
    kind, entities = config.classifier.kind, config.classifier.entities
    if set(files) != {*_FILES[kind], *(TOKEN_FILES if entities == "model" else ())}:
        raise BundleError(
            f"{path / POLICY_FILE}: classifier: kind {kind} with entities {entities} needs other files; build the "
            "policy anew"
        )
    _check_scope(path / POLICY_FILE, config)
    report = _parse_object(path / REPORT_FILE, _read(path, REPORT_FILE))
    return PolicyBundle(path=path, digest=hashlib.sha256(manifest).hexdigest(), config=config, report=report)


def _parse_config(file: Path, content: bytes) -> PolicyConfig:
    try:
        data = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: not valid YAML") from error
    if not isinstance(data, dict):
        raise BundleError(f"{file}: expected a mapping of fields")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{file}: schema_version: expected {SCHEMA_VERSION}, found {data.get('schema_version')!r}; "
            "build the policy anew with this version of eco"
        )
    try:
        return PolicyConfig.model_validate(data)
    except ValidationError as error:
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BundleError(f"{file}: {first_problem(error, 'policy')}{more}") from error


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
    limit = _MAX_BYTES.get(name, _MAX_PLOT_BYTES)
    if file.stat().st_size > limit:
        raise BundleError(f"{file}: larger than {limit >> 20} MiB; not a bundle written by eco")


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
