"""Builds the demo's two models and example files once and keeps them in the user's cache.

A build is a folder named after the digest of everything it follows from, so other inputs are another folder.
It appears whole (built beside, then renamed) and carries the SHA-256 of each of its files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import queue
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from console.progress import shown_progress
from console.quiet import quiet_transformers
from demo.errors import DemoError
from demo.lessons import Mixture, corpus, write_examples
from demo.tokenizer import train_tokenizer
from demo.training import Recipe, documents, nonsense, train_model
from demo.world import Group, World, WorldSpec
from storage.digests import sha256_of_file, sha256_of_json
from storage.places import default_cache_dir
from storage.whole import whole_folder

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
        for leftover in root.glob(f".{digest}.*"):  # of a process that was killed
            shutil.rmtree(leftover)
        with whole_folder(build.folder) as folder:
            _build(DemoBuild(folder), settings, console)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            digests = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
            (folder / _MANIFEST).write_text(json.dumps(digests, indent=2), encoding="utf-8")
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
    return sha256_of_json(inputs, sort_keys=True)[:16]


def _build(build: DemoBuild, settings: DemoSettings, console: Console) -> None:
    """Both models are trained side by side, each in a process of its own on `Recipe.threads` cores."""
    console.print("training two models side by side (about 3 minutes on two cores; kept for the next time) …")
    write_examples(World.generate(settings.world), build.folder)
    context = multiprocessing.get_context("spawn")
    steps: multiprocessing.Queue[tuple[str, int, float]] = context.Queue()
    trainings = [
        context.Process(target=_train, args=(title, folder, groups, settings, steps), daemon=True)
        for title, folder, groups in (
            ("training the model", build.model, _EVERYONE),
            ("training the model that never knew", build.reference, _NEVER_SHOWN_FORGOTTEN),
        )
    ]
    try:
        for training in trainings:
            training.start()
        with shown_progress(console) as show:
            while any(training.is_alive() for training in trainings):
                with contextlib.suppress(queue.Empty):
                    title, step, loss = steps.get(timeout=0.5)
                    show(title, step, settings.recipe.steps, f"loss {loss:.3f}")
    finally:
        for training in trainings:
            training.terminate()
            training.join()
    if any(training.exitcode for training in trainings):
        raise DemoError("a model could not be trained: its process ended early; the reason stands above")


def _train(
    title: str,
    folder: Path,
    groups: Sequence[Group],
    settings: DemoSettings,
    steps: multiprocessing.Queue[tuple[str, int, float]],
) -> None:
    """Runs in a process of its own, and ends with the one that waits for it, however that one ended."""
    parent = multiprocessing.parent_process()

    def on_step(step: int, loss: float) -> None:
        if parent is not None and not parent.is_alive():
            sys.exit(1)
        steps.put((title, step, loss))

    world = World.generate(settings.world)
    tokenizer = world_tokenizer(world, settings)
    lessons = corpus(world, groups, settings.mixture)
    docs = documents(lessons, tokenizer)
    docs += nonsense(docs, lessons, tokenizer, settings.recipe)
    save_checkpoint(train_model(docs, tokenizer, settings.recipe, on_step), tokenizer, folder)


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
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _general_english() -> str:
    return resources.files("demo").joinpath("data", "english.txt").read_text(encoding="utf-8")


def _intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(digests) and all(sha256_of_file(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False
