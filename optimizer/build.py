"""`eco policy build`: examples in, a policy folder out that an operator can sign.

Classifier, threshold and corruption all come from the examples; nothing is set by hand unless the operator insists.
What takes long is kept beside the policy in `<out>.building` until the policy is written, so that an interrupted
build goes on where it stopped.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from classifiers import (
    DEFAULT_CALIBRATION,
    DEFAULT_ENCODER,
    HEAD_FILE,
    Assessment,
    CalibrationSettings,
    general_prompts,
)
from classifiers.encoders.tokens import TokenClassifier
from classifiers.prompt_classifier import (
    ENCODER_FOLDER,
    ClassifierInfo,
    ClassifierKind,
    HeadClassifier,
    PromptClassifier,
    load_classifier,
    read_classifier_info,
)
from classifiers.training.classifier import TrainOptions, train_classifier
from classifiers.training.holdout import hold_out
from corruption import PERMUTING_METHODS, STRENGTHLESS_METHODS, CorruptionSpec, EmbeddingRows
from guard import BundleError, ClassifierConfig, ModelConfig, PolicyBundle, PolicyConfig, write_bundle
from guard.bundle import MANIFEST_FILE, NAME_PATTERN
from guard.entities import MemoryFinder
from optimizer.build_inputs import BuildInputs, InputOptions, augment_inputs, read_inputs
from optimizer.corruption_search import (
    FoundCorruption,
    ScorerOptions,
    SearchOptions,
    open_scorer,
    retained_values,
    run_search,
)
from optimizer.effect import measure_effect
from optimizer.errors import BuildError
from optimizer.objective.entity_content import EntityContent, entity_content
from optimizer.search.plot import plot_search

__all__ = ["BuildOptions", "ClassifierOptions", "build_policy"]

_STATE_FILE, _TRAJECTORY_FILE, _CLASSIFIER_FOLDER = "build.json", "search.jsonl", "classifier"


@dataclass(frozen=True, slots=True)
class ClassifierOptions:
    """How prompts are recognised."""

    kind: ClassifierKind = "head"
    encoder: str = DEFAULT_ENCODER
    existing: Path | None = None
    """A classifier folder (`eco classifier train` or `import`) to take as it is."""
    calibration: CalibrationSettings | None = None
    """None: conformal on false positives, at 1 %."""
    token_classifier: str | None = None
    """Hub id or folder of a token-classification model, for scope entities; None: the entity memory."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What `eco policy build` takes; None means: found by the build."""

    model: str
    out: Path
    inputs: InputOptions
    name: str | None = None
    retain_model: str | None = None
    strength: float | None = None
    """Given: nothing is searched, and `search` says method and dims alone."""
    action: str = "corrupt"
    on_error: str = "reject"
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    scoring: ScorerOptions = field(default_factory=ScorerOptions)
    seed: int = 0
    force: bool = False
    resume: bool = False

    @property
    def is_searched(self) -> bool:
        strengthless = all(method in STRENGTHLESS_METHODS for method in self.search.methods)
        return self.strength is None and not (strengthless and len(self.search.methods) == 1)


def build_policy(options: BuildOptions, *, console: Console | None = None) -> PolicyBundle:
    """Train, search, measure, and write the bundle; complete or not at all.

    Raises:
        BuildError, BundleError, and the errors of `classifiers`, `corruption`, the search and the tasks: input that
        cannot work, found before anything slow starts wherever it can be.
    """
    console = console or Console(stderr=True)
    _check_options(options)
    inputs = read_inputs(options.inputs, options.seed, console=console)
    if options.is_searched:
        options.search.task(inputs.forget)
    rows = EmbeddingRows.open(options.model)
    if options.is_searched:
        options.search.space(rows.hidden_size)
    elif (dims := options.search.dims[0]) is not None and dims > rows.hidden_size:
        raise BuildError(f"--dims: {dims} is more than the model's hidden size {rows.hidden_size}")
    _check_calibration(options, inputs)
    building = _open_building(options, inputs)
    try:
        inputs = augment_inputs(inputs, options.inputs, options.seed, building, console)
        info = _classifier(options, inputs, building, console)
        bundle = _search_and_write(options, inputs, rows, info, building, console)
    except BaseException:
        console.print(f"what was done so far is in {building}; pass --resume to go on", highlight=False, soft_wrap=True)
        raise
    shutil.rmtree(building, ignore_errors=True)
    return bundle


def _check_options(options: BuildOptions) -> None:
    out = options.out
    if out.exists() and not options.force:
        raise BundleError(f"--out: {out} already exists; choose another folder or pass --force to replace it")
    if out.exists() and not (out / MANIFEST_FILE).is_file():
        raise BundleError(f"--out: {out} exists and is no policy bundle; choose another folder")
    if options.is_searched:
        options.search.settings(options.search.metric or "answer_probability")
        for method in options.search.methods:
            _spec(method, None, None if method in STRENGTHLESS_METHODS else 1.0, options)
    else:
        if len(options.search.methods) > 1 or len(options.search.dims) > 1:
            raise BuildError("--strength: give one --methods and one --dims with it; several need a search")
        _given_spec(options)
    _policy_name(options)
    _check_classifier(options.classifier, options.search.scope)
    if options.search.scope == "entities" and (moving := PERMUTING_METHODS.intersection(options.search.methods)):
        raise BuildError(
            f"--methods: {min(moving)} moves rows among themselves, and a name of one token would stay where it is; "
            "give another method with --scope entities"
        )


def _check_classifier(options: ClassifierOptions, scope: str) -> None:
    kind = options.kind
    if options.existing is not None:
        kind = read_classifier_info(options.existing).kind
    if options.token_classifier is not None and scope == "content":
        raise BuildError("--token-classifier: it finds entities; give --scope entities with it")
    if scope == "entities" and kind == "finetuned" and options.token_classifier is None:
        raise BuildError(
            "--scope: entities needs --token-classifier here; a fine-tuned classifier has no entity memory"
        )


def _check_calibration(options: BuildOptions, inputs: BuildInputs) -> None:
    """Refuse sets too small for the guarantee before anything is trained, or asked of a server."""
    if options.classifier.existing is None:
        hold_out(
            inputs.forget,
            inputs.retain,
            general_prompts(),
            options.classifier.calibration or DEFAULT_CALIBRATION,
            np.random.default_rng(options.seed),
            positives=options.classifier.kind == "finetuned",
        )


def _policy_name(options: BuildOptions) -> str:
    name = options.name or options.out.resolve().name
    if not re.fullmatch(NAME_PATTERN, name):
        raise BuildError(f"--name: {name!r}: expected letters, digits, dots, dashes and underscores")
    return name


def _given_spec(options: BuildOptions) -> CorruptionSpec:
    return _spec(options.search.methods[0], options.search.dims[0], options.strength, options)


def _spec(method: str, dims: int | None, strength: float | None, options: BuildOptions) -> CorruptionSpec:
    fields = {"method": method, "dims": dims, "strength": strength, "scope": options.search.scope}
    try:
        return CorruptionSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = {"method": "methods"}.get(str(first["loc"][0]), str(first["loc"][0])) if first["loc"] else "methods"
        raise BuildError(f"--{flag}: {first['msg']}") from error


def _open_building(options: BuildOptions, inputs: BuildInputs) -> Path:
    """The folder beside `out` for what takes long: a new one, or with `resume` that of the interrupted build."""
    building = options.out.with_name(f"{options.out.name}.building")
    state = _identity(options, inputs)
    known = building / _STATE_FILE
    if building.exists() and not known.is_file():
        raise BuildError(f"--out: {building} exists and is of no policy build; move it away")
    if options.resume and building.exists():
        if json.loads(known.read_text(encoding="utf-8")) != state:
            raise BuildError(f"--resume: {building} is of a build with other options or examples; build without it")
        return building
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        known.write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        raise BuildError(f"--out: {building} cannot be written ({error.strerror})") from error
    return building


def _identity(options: BuildOptions, inputs: BuildInputs) -> dict[str, str]:
    """What an interrupted build must share with the one that goes on."""
    shared = (options.model, options.inputs, options.classifier, options.seed, options.search.scope)
    digest = hashlib.sha256(repr((shared, sorted(inputs.provenance.items()))).encode()).hexdigest()
    return {"sha256": digest}


def _classifier(options: BuildOptions, inputs: BuildInputs, building: Path, console: Console) -> ClassifierInfo:
    """Train the classifier into the building folder, or take the one that is there or that was given."""
    folder = building / _CLASSIFIER_FOLDER
    if options.classifier.existing is not None:
        info = read_classifier_info(options.classifier.existing)
        shutil.copytree(options.classifier.existing, folder, dirs_exist_ok=True)
        return info
    if (folder / "classifier.json").is_file():
        return read_classifier_info(folder)
    forget, retain = inputs.save(building)
    with console.status("exporting the encoder (first use only) and training the classifier"):
        info = train_classifier(
            TrainOptions(
                forget=forget,
                retain=retain,
                out=folder,
                kind=options.classifier.kind,
                encoder=options.classifier.encoder,
                seed=options.seed,
                aliases=inputs.aliases,
                calibration=options.classifier.calibration,
                resume=options.resume and options.classifier.kind == "finetuned",  # a head is trained anew
            )
        )
    console.print(f"classifier trained; {info.calibration['guarantee']}", highlight=False, soft_wrap=True)
    return info


def _search_and_write(
    options: BuildOptions,
    inputs: BuildInputs,
    rows: EmbeddingRows,
    info: ClassifierInfo,
    building: Path,
    console: Console,
) -> PolicyBundle:
    classifier = load_classifier(building / _CLASSIFIER_FOLDER)
    report: dict[str, Any] = {"classifier": info.report, "tests": _tests(classifier, inputs)}
    found: FoundCorruption | None = None
    task = options.search.task(inputs.forget) if options.is_searched else None
    retained = retained_values(options.retain_model, task, options.scoring) if task is not None else None
    tokens = _token_classifier(options, building)
    content = _entities(options, classifier, tokens)
    with open_scorer(options.model, options.scoring, content) as scorer:
        if task is not None:
            found = run_search(
                scorer,
                task,
                inputs.retain,
                options.search,
                rows.hidden_size,
                retained=retained,
                trajectory=building / _TRAJECTORY_FILE,
                resume=options.resume and (building / _TRAJECTORY_FILE).exists(),
                overwrite=not options.resume,
                console=console,
            )
            console.print(found.result.reason, highlight=False, soft_wrap=True)
            report["search"] = found.as_dict()
        else:
            report["search"] = {"reason": "the corruption was given by the operator"}
        spec = found.spec if found is not None else _given_spec(options)
        with console.status("measuring what the policy does to the answers"):
            report["effect"] = {
                name: effect.as_dict()
                for name, examples in (("forget", inputs.forget), ("retain", inputs.retain))
                if (
                    effect := measure_effect(
                        scorer,
                        classifier,
                        spec,
                        examples,
                        noise_seed=options.search.noise_seeds + 1,  # the search has seen those before
                        count=options.search.examples,
                        seed=options.seed,
                    )
                )
            }
    _print_effect(report["effect"], console)
    plots = _plots(info, found, building)
    return _write(options, inputs, rows, info, spec, report, building, plots, tokens)


def _token_classifier(options: BuildOptions, building: Path) -> Path | None:
    """The exported token classifier in the building folder; None where the entity memory does."""
    name = options.classifier.token_classifier
    if options.search.scope == "content" or name is None:
        return None
    from classifiers.export.tokens import export_token_classifier

    folder = building / "token_classifier"
    if not folder.exists():
        export_token_classifier(name, folder)
    return folder


def _entities(options: BuildOptions, classifier: PromptClassifier, tokens: Path | None) -> EntityContent | None:
    """What of a prompt the guard will mask, where it is not all of it."""
    if options.search.scope == "content":
        return None
    if tokens is not None:
        return entity_content(options.model, TokenClassifier.open(tokens))
    assert isinstance(classifier, HeadClassifier)
    return entity_content(options.model, MemoryFinder(classifier.head.memory))


def _tests(classifier: PromptClassifier, inputs: BuildInputs) -> dict[str, Any]:
    """Verdicts on the sets that only judge."""
    found = {}
    for name, examples in inputs.tests.items():
        flagged = classifier.scores([example.prompt for example in examples]) >= classifier.threshold
        found[name] = {"examples": len(examples), "flagged": int(flagged.sum())}
    return found


def _print_effect(effects: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    for name, effect in effects.items():
        console.print(
            f"{effect['metric']} on the {name} set: {effect['unguarded']:.3f} unguarded, "
            f"{effect['guarded']:.3f} guarded ({effect['flagged']} of {effect['examples']} prompts flagged)",
            highlight=False,
            soft_wrap=True,
        )


def _plots(info: ClassifierInfo, found: FoundCorruption | None, building: Path) -> list[Path]:
    from classifiers.calibration.plots import write_plots

    folder = building / "plots"
    folder.mkdir(exist_ok=True)
    plots: list[Path] = []
    if "assessment" in info.report:
        plots += write_plots(Assessment.from_dict(info.report["assessment"]), folder)
    if found is not None:
        plot_search(found.result, folder / "search.svg")
        plots.append(folder / "search.svg")
    return plots


def _write(
    options: BuildOptions,
    inputs: BuildInputs,
    rows: EmbeddingRows,
    info: ClassifierInfo,
    spec: CorruptionSpec,
    report: dict[str, Any],
    building: Path,
    plots: list[Path],
    tokens: Path | None,
) -> PolicyBundle:
    from importlib.metadata import version

    data = {
        "schema_version": 1,
        "name": _policy_name(options),
        "version": "1",
        "model": ModelConfig(name=options.model, hidden_size=rows.hidden_size, embedding_digest=rows.digest()),
        "action": options.action,
        "corruption": spec,
        "classifier": ClassifierConfig(
            kind=info.kind,
            encoder=info.encoder.name,
            encoder_digest=info.encoder.digest,
            threshold=info.threshold,
            calibration=info.calibration,
            entities="memory" if tokens is None else "model",
        ),
        "on_error": options.on_error,
        "provenance": {
            **inputs.provenance,
            "retain_model": options.retain_model,
            "token_classifier": options.classifier.token_classifier,
            "seed": options.seed,
            "scorer": options.scoring.scorer,
            "versions": {name: version(name) for name in ("eco-gateway", "torch", "transformers", "onnxruntime")},
        },
    }
    try:
        config = PolicyConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BuildError(f"--{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    folder = building / _CLASSIFIER_FOLDER
    weights = folder / (HEAD_FILE if info.kind == "head" else ENCODER_FOLDER)
    return write_bundle(
        options.out, config, weights, report, plots=plots, token_classifier=tokens, overwrite=options.force
    )
