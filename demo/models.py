"""Builds the demo's two models and example files once and keeps them in the user's cache.

A build is a folder named after the digest of everything it follows from, so other inputs are another folder.
It appears whole (built beside, then renamed) and carries the SHA-256 of each of its files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.lessons import Mixture, corpus, write_examples
from demo.progress import no_transformers_bar, training_progress
from demo.tokenizer import train_tokenizer
from demo.training import Recipe, documents, nonsense, train_model
from demo.world import Group, World, WorldSpec
from storage.places import default_cache_dir

RECIPE_VERSION = 2
"""Raise it when code in this package changes what the same settings build."""

_MANIFEST = "MANIFEST.json"
_EVERYONE: tuple[Group, ...] = ("forgotten", "retained", "general")
_NEVER_SHOWN_FORGOTTEN: tuple[Group, ...] = ("retained", "general")


@dataclass(frozen=True)
class DemoSettings:
    """All that a build follows from, besides the word lists and the version of torch."""

    world: WorldSpec = field(default_factory=WorldSpec)
    mixture: Mixture = field(default_factory=Mixture)
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class DemoBuild:
    """Where a finished build lies. The model folders are ordinary Hugging Face checkpoints."""

    folder: Path

    @property
    def model(self) -> Path:
        """Trained on everything."""
        return self.folder / "model"

    @property
    def reference(self) -> Path:
        """Never shown the forgotten people: what 'never learned it' looks like."""
        return self.folder / "reference"

    @property
    def forget_examples(self) -> Path:
        return self.folder / "forget.jsonl"

    @property
    def retain_examples(self) -> Path:
        return self.folder / "retain.jsonl"


def build_models(
    cache_dir: Path | None = None, settings: DemoSettings | None = None, console: Console | None = None
) -> DemoBuild:
    """The finished build of these settings: from the cache, or trained now (minutes) and put there.

    A build that is incomplete or altered is replaced. A second process that wants the same build waits
    for the first. Raises OSError where `cache_dir` (default: `default_cache_dir`) cannot be written.
    """
    settings = settings or DemoSettings()
    console = console or Console(stderr=True)
    root = (cache_dir or default_cache_dir()) / "demo"
    digest = settings_digest(settings)
    build = DemoBuild(root / digest)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{digest}.lock"):
        if _intact(build.folder):
            return build
        for leftover in root.glob(f"{digest}.*.building"):  # of a process that was killed
            shutil.rmtree(leftover)
        with _replacing(build.folder) as folder:
            _build(DemoBuild(folder), settings, console)
            _write_manifest(folder)
    return build


def settings_digest(settings: DemoSettings) -> str:
    """Name of the build, 16 hexadecimal digits.

    It changes with the settings, the world, the lessons, `RECIPE_VERSION` and the version of torch.
    """
    world = World.generate(settings.world)
    inputs = {
        "recipe_version": RECIPE_VERSION,
        "torch": importlib.metadata.version("torch"),
        "settings": dataclasses.asdict(settings),
        "world": dataclasses.asdict(world),
        "lessons": dataclasses.asdict(corpus(world, _EVERYONE, settings.mixture)),
        "english": _general_english(),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _build(build: DemoBuild, settings: DemoSettings, console: Console) -> None:
    world = World.generate(settings.world)
    write_examples(world, build.folder)
    tokenizer = world_tokenizer(world, settings)
    for title, folder, groups in (
        ("model", build.model, _EVERYONE),
        ("reference model", build.reference, _NEVER_SHOWN_FORGOTTEN),
    ):
        lessons = corpus(world, groups, settings.mixture)
        docs = documents(lessons, tokenizer)
        docs += nonsense(docs, lessons, tokenizer, settings.recipe)
        with training_progress(title, settings.recipe.steps, console) as on_step:
            model = train_model(docs, tokenizer, settings.recipe, on_step)
        save_checkpoint(model, tokenizer, folder)


def world_tokenizer(world: World, settings: DemoSettings) -> PreTrainedTokenizerFast:
    """One tokenizer for both models, so that their answers can be compared token by token.

    It has words for the forgotten people's names and values too; the reference model never meets those that
    are only theirs.
    """
    lessons = corpus(world, _EVERYONE, settings.mixture)
    said = [message["content"] for conversation in lessons.conversations for message in conversation]
    return train_tokenizer(
        (*said, *lessons.statements, *_general_english().splitlines()),
        vocab_size=settings.recipe.vocab_size,
        context_tokens=settings.recipe.context_tokens,
    )


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes weights (safetensors), configuration, generation defaults, tokenizer and chat template."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with no_transformers_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _general_english() -> str:
    return resources.files("demo").joinpath("data", "english.txt").read_text(encoding="utf-8")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends, and is removed when it fails."""
    building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".building", dir=folder.parent))
    try:
        yield building
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    (folder / _MANIFEST).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def _intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(digests) and all(_sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
