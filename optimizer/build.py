"""`eco policy build`: two example files in, a signed-off policy folder out.

Classifier head, threshold and corruption strength all come from the examples; nothing is set by hand unless the
operator insists with a flag.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from classifiers import (
    DEFAULT_ENCODER,
    Encoder,
    Example,
    Head,
    TrainingReport,
    check_disjoint,
    read_examples,
    resolve_encoder,
    train_head,
)
from corruption import STRENGTHLESS_METHODS, CorruptionSpec, EmbeddingRows
from guard import (
    BundleError,
    ClassifierConfig,
    ModelConfig,
    PolicyBundle,
    PolicyConfig,
    template_of,
    write_bundle,
)
from guard.bundle import MANIFEST_FILE, NAME_PATTERN
from optimizer.scoring import AnswerScorer, Pair
from optimizer.strength import SWEEP, Evaluation, SearchResult, search_strength

__all__ = ["BuildError", "BuildOptions", "build_policy"]

#: Noise draws in one evaluation of the search.
_NOISE_SEEDS = (1, 2)
_REFINE_STEPS = 3
#: The search minimises the mean of max(P - retained value, 0) over the examples: a mean of P alone would let some
#: answers stay likely because others became impossible. At this excess it is content.
_TOLERATED_EXCESS = 0.003
#: Prompts of the retain set tried for each answer where no retain model is given.
_SURROGATE_PROMPTS = 4


class BuildError(Exception):
    """A policy cannot be built from what was given; one line that says what to change."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What `eco policy build` takes; None means: found by the build."""

    model: str
    forget: Path
    retain: Path
    out: Path
    name: str | None = None
    retain_model: str | None = None
    encoder: str | None = None
    method: str = "rand_noise_first_n"
    dims: int | None = None
    strength: float | None = None
    action: str = "corrupt"
    on_error: str = "reject"
    search_examples: int = 48
    seed: int = 0
    force: bool = False


def build_policy(options: BuildOptions, *, console: Console | None = None) -> PolicyBundle:
    """Train, search, and write the bundle; complete or not at all.

    Raises:
        BuildError, BundleError, and the errors of `classifiers` and `corruption`: input that cannot work, found
        before anything slow starts wherever it can be.
    """
    console = console or Console(stderr=True)
    forget, retain = read_examples(options.forget), read_examples(options.retain)
    check_disjoint(forget, retain)
    _check_cheap(options, forget)
    rows = EmbeddingRows.open(options.model)
    if options.dims is not None and options.dims > rows.hidden_size:
        raise BuildError(f"--dims: {options.dims} is more than the model's hidden size {rows.hidden_size}")
    encoder_name = options.encoder or DEFAULT_ENCODER
    with console.status("exporting the encoder (first use only) and training the classifier"):
        encoder = Encoder.open(resolve_encoder(encoder_name))
        head, training = train_head(encoder, forget, retain, seed=options.seed)
    left_out = training.cross_fitted
    console.print(
        f"classifier trained; on examples left out of training it misses {left_out.missed} of {left_out.positives} "
        f"and flags {left_out.false_positives} of {left_out.negatives} that should pass",
        highlight=False,
    )
    report: dict[str, Any] = {"classifier": training.as_dict()}
    if _is_searched(options):
        search, scores = _search(options, forget, retain, console)
        spec = _spec(options, search.dims, search.strength)
        report["search"] = search.as_dict() | scores
    else:
        spec = _spec(options, options.dims, options.strength)
        report["search"] = {"reason": "strength given by the operator"}
    return _write(options, rows, (encoder_name, encoder), (head, training), spec, report)


def _check_cheap(options: BuildOptions, forget: Sequence[Example]) -> None:
    if options.out.exists() and not options.force:
        raise BundleError(f"--out: {options.out} already exists; choose another folder or pass --force to replace it")
    if options.out.exists() and not (options.out / MANIFEST_FILE).is_file():
        raise BundleError(f"--out: {options.out} exists and is no policy bundle; choose another folder")
    if _is_searched(options) and not any(example.answer for example in forget):
        raise BuildError(
            f"{options.forget}: the strength search needs answers, and no line has one; add answers or give --strength"
        )
    _spec(options, options.dims, 1.0 if _is_searched(options) else options.strength)
    _policy_name(options)


def _is_searched(options: BuildOptions) -> bool:
    return options.strength is None and options.method not in STRENGTHLESS_METHODS


def _policy_name(options: BuildOptions) -> str:
    name = options.name or options.out.resolve().name
    if not re.fullmatch(NAME_PATTERN, name):
        raise BuildError(f"--name: {name!r}: expected letters, digits, dots, dashes and underscores")
    return name


def _spec(options: BuildOptions, dims: int | None, strength: float | None) -> CorruptionSpec:
    try:
        return CorruptionSpec.model_validate({"method": options.method, "dims": dims, "strength": strength})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BuildError(f"--{'.'.join(str(part) for part in first['loc']) or 'method'}: {first['msg']}") from error


def _search(
    options: BuildOptions, forget: Sequence[Example], retain: Sequence[Example], console: Console
) -> tuple[SearchResult, dict[str, float]]:
    """Search the strength; also what the model scores uncorrupted and what it should score at most."""
    model, tokenizer = _load_model(options.model)
    scorer = AnswerScorer(model, tokenizer, template_of(tokenizer))
    chooser = torch.Generator().manual_seed(options.seed)
    answered = [example for example in forget if example.answer]
    try:
        pairs = [scorer.pair(e.prompt, str(e.answer)) for e in _sample(answered, options.search_examples, chooser)]
    except ValueError as error:
        raise BuildError(f"{options.forget}: {error}") from error
    retained = _retained_values(options, scorer, pairs, retain, chooser)  # (N,)
    dims: tuple[int | None, ...] = (options.dims,) if options.dims else (None,)

    def excess(count: int | None, strength: float) -> float:
        spec = _spec(options, count, strength)
        return float((scorer.probabilities(pairs, spec, noise_seeds=_NOISE_SEEDS) - retained).clamp_min(0).mean())

    with Progress(
        TextColumn("searching the strength"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
        console=console,
    ) as progress:
        task = progress.add_task("", total=len(dims) * (len(SWEEP) + _REFINE_STEPS), last="")

        def shown(evaluation: Evaluation) -> None:
            progress.update(task, advance=1, last=f"strength {evaluation.strength:.3g}: {evaluation.metric:.4f}")

        found = search_strength(excess, _TOLERATED_EXCESS, dims=dims, refine_steps=_REFINE_STEPS, on_evaluation=shown)
    clean = float(scorer.probabilities(pairs).mean())
    return found, {"answer_probability": clean, "retained_answer_probability": float(retained.mean())}


def _sample(examples: Sequence[Example], limit: int, chooser: torch.Generator) -> list[Example]:
    order = torch.randperm(len(examples), generator=chooser).tolist()
    return [examples[i] for i in sorted(order[:limit])]


def _retained_values(
    options: BuildOptions,
    scorer: AnswerScorer,
    pairs: Sequence[Pair],
    retain: Sequence[Example],
    chooser: torch.Generator,
) -> torch.Tensor:
    """(N,): what a model that never learned would score on each pair.

    With `--retain-model`, that model's own score. Without one, the served model's probability of the answer
    after prompts of the retain set, the mean over a few: it knows the answer, but was asked something else.
    """
    if options.retain_model is not None:
        model, tokenizer = _load_model(options.retain_model)
        return AnswerScorer(model, tokenizer, template_of(tokenizer)).probabilities(pairs)
    others = [scorer.pair(example.prompt, "x").prompt_ids for example in retain]
    draws = []
    for _ in range(_SURROGATE_PROMPTS):
        picked = torch.randint(len(others), (len(pairs),), generator=chooser).tolist()
        draws.append(scorer.probabilities([Pair(others[i], p.answer_ids) for i, p in zip(picked, pairs, strict=True)]))
    return torch.stack(draws).mean(dim=0)


def _load_model(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # its bar would break into ours
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    except (OSError, ValueError) as error:
        raise BuildError(f"{name}: cannot be loaded ({str(error).splitlines()[0]})") from error
    if torch.cuda.is_available():
        return model.to("cuda").eval(), tokenizer
    return model.float().eval(), tokenizer


def _write(
    options: BuildOptions,
    rows: EmbeddingRows,
    encoder: tuple[str, Encoder],
    trained: tuple[Head, TrainingReport],
    spec: CorruptionSpec,
    report: dict[str, Any],
) -> PolicyBundle:
    import tempfile
    from importlib.metadata import version

    head, training = trained
    data = {
        "schema_version": 1,
        "name": _policy_name(options),
        "version": "1",
        "model": ModelConfig(name=options.model, hidden_size=rows.hidden_size, embedding_digest=rows.digest()),
        "action": options.action,
        "corruption": spec,
        "classifier": ClassifierConfig(
            encoder=encoder[0],
            encoder_digest=encoder[1].digest,
            threshold=head.threshold,
            calibration=_calibration(training),
        ),
        "on_error": options.on_error,
        "provenance": {
            "forget_sha256": _sha256(options.forget),
            "retain_sha256": _sha256(options.retain),
            "retain_model": options.retain_model,
            "seed": options.seed,
            "versions": {name: version(name) for name in ("eco-gateway", "torch", "transformers", "onnxruntime")},
        },
    }
    try:
        config = PolicyConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BuildError(f"--{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    with tempfile.TemporaryDirectory() as folder:
        head_file = Path(folder) / "head.safetensors"
        head.save(head_file)
        return write_bundle(options.out, config, head_file, report, overwrite=options.force)


def _calibration(training: TrainingReport) -> dict[str, Any]:
    """How the threshold was found: on scores of examples, and their rephrasings, left out of training."""
    report = training.as_dict()
    return {key: report[key] for key in ("folds", "cross_fitted", "training")}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
