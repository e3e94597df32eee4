"""`eco policy build`: examples in, a policy folder out that an operator can sign.

Classifier, threshold and corruption all come from the examples; nothing is set by hand unless the operator insists.
What takes long is kept beside the policy in `<out>.building` until the policy is written, so that an interrupted
build goes on where it stopped.
"""

import re
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

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
from classifiers.export.hub import CLASSIFIER_FILE
from classifiers.prompt_classifier import (
    ENCODER_FOLDER,
    ClassifierInfo,
    ClassifierKind,
    HeadClassifier,
    PromptClassifier,
    load_classifier,
    read_classifier_info,
)
from classifiers.training.classifier import TrainOptions, judge_pairs, train_classifier
from classifiers.training.holdout import hold_out
from console.errors import first_problem
from corruption import PERMUTING_METHODS, STRENGTHLESS_METHODS, CorruptionSpec, EmbeddingRows
from guard import BundleError, ClassifierConfig, ModelConfig, PolicyBundle, PolicyConfig, write_bundle
from guard.bundle import MANIFEST_FILE, NAME_PATTERN
from guard.entities import EntityFinder, MemoryFinder
from optimizer.build_folder import open_building
from optimizer.build_inputs import BuildInputs, InputOptions, augment_inputs, read_inputs
from optimizer.corruption_search import (
    DEFAULT_EXAMPLES,
    ScorerOptions,
    SearchOptions,
    open_scorer,
    retained_values,
    run_search,
)
from optimizer.errors import BuildError
from optimizer.findings import Misjudged, answers_line, mixture_warning, search_line, small_set_warning
from optimizer.guarded_answers import measure_guarded_answers
from optimizer.objective.entity_content import entity_content
from optimizer.objective.guarded_content import guarded_content
from optimizer.objective.metric_task import MetricTask
from optimizer.search.plot import plot_search
from optimizer.search.result import SearchResult
from scoring.metrics import Metric
from scoring.scorer import ContentFinder
from sources.examples import save_examples
from storage.digests import sha256_of_file

_TRAJECTORY_FILE, _CLASSIFIER_FOLDER = "search.jsonl", "classifier"
_VERSIONS_OF = ("eco-gateway", "torch", "transformers", "onnxruntime")


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
    answers: str = "restart"
    on_error: str = "reject"
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    scoring: ScorerOptions = field(default_factory=ScorerOptions)
    seed: int = 0
    strict: bool = False
    """Whether an example that would be misjudged ends the build."""
    force: bool = False
    resume: bool = False

    @property
    def policy_name(self) -> str:
        return self.name or self.out.resolve().name

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
    task = options.search.task(inputs.forget) if options.is_searched else None
    rows = EmbeddingRows.open(options.model)
    if task is not None:
        options.search.space(rows.hidden_size)
    elif (dims := options.search.dims[0]) is not None and dims > rows.hidden_size:
        raise BuildError(f"--dims: {dims} is more than the model's hidden size {rows.hidden_size}")
    if options.classifier.existing is None:
        # Refuses sets too small for the guarantee before anything is trained, or asked of a server.
        hold_out(
            inputs.forget,
            inputs.retain,
            general_prompts(),
            options.classifier.calibration or DEFAULT_CALIBRATION,
            np.random.default_rng(options.seed),
            positives=options.classifier.kind == "finetuned",
        )
    building = open_building(options.out, _shared_state(options, inputs, rows), resume=options.resume, console=console)
    try:
        inputs = augment_inputs(inputs, options.inputs, options.seed, building, console)
        info = _train_classifier(options, inputs, building, console)
        _say(console, small_set_warning(len(inputs.forget)), mixture_warning(info, len(inputs.retain)))
        bundle = _search_and_write(options, inputs, task, rows, info, building, console)
    except BaseException:
        console.print(f"what was done so far is in {building}; pass --resume to go on", highlight=False, soft_wrap=True)
        raise
    shutil.rmtree(building, ignore_errors=True)
    return bundle


def _say(console: Console, *lines: str | None) -> None:
    for line in filter(None, lines):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _check_options(options: BuildOptions) -> None:
    """Refuse what needs no examples and no model to be seen."""
    out, classifier, search = options.out, options.classifier, options.search
    if out.exists() and not options.force:
        raise BundleError(f"--out: {out} already exists; choose another folder or pass --force to replace it")
    if out.exists() and not (out / MANIFEST_FILE).is_file():
        raise BundleError(f"--out: {out} exists and is no policy bundle; choose another folder")
    if options.is_searched:
        search.settings(search.metric or "answer_probability", DEFAULT_EXAMPLES)
        for method in search.methods:
            _spec(options, method, None, None if method in STRENGTHLESS_METHODS else 1.0)
    elif options.strength is None and search.metric is not None:
        raise BuildError(f"--metric: {search.methods[0]} takes no strength, so nothing is searched; leave it out")
    elif len(search.methods) > 1 or len(search.dims) > 1:
        raise BuildError("--strength: give one --methods and one --dims with it; several need a search")
    else:
        _spec(options, search.methods[0], search.dims[0], options.strength)
    if not re.fullmatch(NAME_PATTERN, options.policy_name):
        raise BuildError(f"--name: {options.policy_name!r}: expected letters, digits, dots, dashes and underscores")
    kind = classifier.kind if classifier.existing is None else read_classifier_info(classifier.existing).kind
    if search.scope == "content":
        if classifier.token_classifier is not None:
            raise BuildError("--token-classifier: it finds entities; give --scope entities with it")
        return
    if kind == "finetuned" and classifier.token_classifier is None:
        raise BuildError(
            "--scope: entities needs --token-classifier here; a fine-tuned classifier has no entity memory"
        )
    if moving := PERMUTING_METHODS.intersection(search.methods):
        raise BuildError(
            f"--methods: {min(moving)} moves rows among themselves, and a name of one token would stay where it is; "
            "give another method with --scope entities"
        )


def _spec(options: BuildOptions, method: str, dims: int | None, strength: float | None) -> CorruptionSpec:
    fields = {"method": method, "dims": dims, "strength": strength, "scope": options.search.scope}
    try:
        return CorruptionSpec.model_validate(fields)
    except ValidationError as error:
        flag, _, message = first_problem(error, whole="method").partition(": ")
        flag = flag.partition(".")[0].replace("method", "methods")
        raise BuildError(f"--{flag}: {message}") from error


def _shared_state(options: BuildOptions, inputs: BuildInputs, rows: EmbeddingRows) -> dict[str, str]:
    """What an interrupted build must share with the one that goes on; files by content, wherever they lie."""
    classifier, given = options.classifier, options.inputs
    existing = classifier.existing
    state: dict[str, object] = {
        "--model": rows.digest(),
        "--forget": inputs.provenance["forget_sha256"],
        "--retain": inputs.provenance["retain_sha256"],
        "--task": given.task,
        "--augment-with": given.augment_with,
        "--augment-model": given.augment_model,
        "--augment-per-example": given.augment_per_example,
        "--classifier": classifier.kind if existing is None else sha256_of_file(existing / CLASSIFIER_FILE),
        "--encoder": classifier.encoder,
        "--calibration, --level, --error, --threshold": classifier.calibration,
        "--token-classifier": classifier.token_classifier,
        "--seed": options.seed,
        "--scope": options.search.scope,
    }
    return {flag: str(value) for flag, value in state.items()}


def _train_classifier(options: BuildOptions, inputs: BuildInputs, building: Path, console: Console) -> ClassifierInfo:
    """Train the classifier into the building folder, or take the one that is there or that was given."""
    folder = building / _CLASSIFIER_FOLDER
    if options.classifier.existing is not None:
        info = read_classifier_info(options.classifier.existing)
        shutil.copytree(options.classifier.existing, folder, dirs_exist_ok=True)
        return info
    if (folder / "classifier.json").is_file():
        return read_classifier_info(folder)
    forget, retain = building / "forget.jsonl", building / "retain.jsonl"
    save_examples(forget, inputs.rephrased)
    save_examples(retain, inputs.retain)
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
    task: MetricTask | None,
    rows: EmbeddingRows,
    info: ClassifierInfo,
    building: Path,
    console: Console,
) -> PolicyBundle:
    """`task`: what the search measures; None: the corruption was given."""
    classifier = load_classifier(building / _CLASSIFIER_FOLDER)
    with console.status("asking the classifier about every example"):
        read = options.answers != "off"
        misjudged = Misjudged.of(classifier, inputs.forget, inputs.retain, reads_answers=read, seed=options.seed)
    _say(console, *misjudged.lines(inputs.forget, inputs.retain))
    if options.strict:
        misjudged.check()
    report: dict[str, Any] = {"classifier": info.report, "misjudged": misjudged.as_dict(), "tests": {}}
    for name, examples in inputs.tests.items():  # sets that only judge
        flagged = classifier.scores([example.prompt for example in examples]) >= classifier.threshold
        report["tests"][name] = {"examples": len(examples), "flagged": int(flagged.sum())}
        if (pairs := judge_pairs(classifier, examples)) is not None:
            report["tests"][name]["answers"] = asdict(pairs)
    retained = retained_values(options.retain_model, task, options.scoring) if task is not None else None

    finder, tokens = _entity_finder(options, classifier, building)

    def config_of(spec: CorruptionSpec) -> PolicyConfig:
        return _policy_config(options, inputs, rows, info, spec, entities="memory" if tokens is None else "model")

    anything = _spec(options, "zero_out_first_n", None, None)  # where it goes does not hang on what it is
    metric = None if task is None else task.metric
    content = _masked_content(options, metric, classifier, finder, config_of(anything), rows)
    result: SearchResult | None = None
    with open_scorer(options.model, options.scoring, content) as scorer:
        if task is None:
            spec = _spec(options, options.search.methods[0], options.search.dims[0], options.strength)
            report["search"] = {"reason": "the corruption was given by the operator"}
        else:
            trajectory = building / _TRAJECTORY_FILE
            found = run_search(
                scorer,
                task,
                inputs.retain,
                options.search,
                rows.hidden_size,
                retained=retained,
                trajectory=trajectory,
                resume=options.resume and trajectory.exists(),
                overwrite=not options.resume,
                console=console,
            )
            result, spec = found.result, found.result.spec
            _say(console, search_line(found))
            report["search"] = found.as_dict()
        measured = {}
        with console.status("measuring what the policy does to the answers"):
            for name, examples in (("forget", inputs.forget), ("retain", inputs.retain)):
                answers = measure_guarded_answers(
                    scorer,
                    classifier,
                    spec,
                    examples,
                    noise_seed=options.search.noise_seeds + 1,  # the search has seen those before
                    count=options.search.examples or DEFAULT_EXAMPLES,
                    seed=options.seed,
                )
                if answers is not None:
                    measured[name] = answers
    _say(console, *(answers_line(name, answers) for name, answers in measured.items()))
    report["effect"] = {name: answers.as_dict() for name, answers in measured.items()}
    return _write(options, config_of(spec), info, result, report, building, tokens)


def _entity_finder(
    options: BuildOptions, classifier: PromptClassifier, building: Path
) -> tuple[EntityFinder | None, Path | None]:
    """What finds the entities that the guard will mask, where it is not all of a text; and the token classifier's
    folder, if one finds them, and not the entity memory."""
    if options.search.scope == "content":
        return None, None
    if options.classifier.token_classifier is None:
        assert isinstance(classifier, HeadClassifier)
        return MemoryFinder(classifier.head.memory), None
    from classifiers.export.tokens import export_token_classifier

    tokens = building / "token_classifier"
    if not tokens.exists():
        export_token_classifier(options.classifier.token_classifier, tokens)
    return TokenClassifier.open(tokens), tokens


def _masked_content(
    options: BuildOptions,
    metric: Metric | None,
    classifier: PromptClassifier,
    finder: EntityFinder | None,
    config: PolicyConfig,
    rows: EmbeddingRows,
) -> ContentFinder | None:
    """What of a text the search corrupts; None: all of its content.

    Answers are corrupted for forget quality alone, and of an answer the guard masks what it flags. Else it is a prompt,
    which is taken to be flagged.
    """
    if metric == "forget_quality":
        bundle = PolicyBundle(options.out, "", config.model_copy(update={"action": "corrupt"}), {})
        return guarded_content(options.model, bundle, classifier, finder, rows)
    return None if finder is None else entity_content(options.model, finder)


def _policy_config(
    options: BuildOptions,
    inputs: BuildInputs,
    rows: EmbeddingRows,
    info: ClassifierInfo,
    spec: CorruptionSpec,
    *,
    entities: Literal["memory", "model"],
) -> PolicyConfig:
    data = {
        "schema_version": 1,
        "name": options.policy_name,
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
            entities=entities,
        ),
        "answers": options.answers,
        "on_error": options.on_error,
        "provenance": {
            **inputs.provenance,
            "retain_model": options.retain_model,
            "token_classifier": options.classifier.token_classifier,
            "seed": options.seed,
            "scorer": options.scoring.scorer,
            "versions": {name: version(name) for name in _VERSIONS_OF},
        },
    }
    try:
        return PolicyConfig.model_validate(data)
    except ValidationError as error:
        raise BuildError(f"--{first_problem(error, whole='')}") from error


def _write(
    options: BuildOptions,
    config: PolicyConfig,
    info: ClassifierInfo,
    result: SearchResult | None,
    report: dict[str, Any],
    building: Path,
    tokens: Path | None,
) -> PolicyBundle:
    from classifiers.calibration.plots import write_plots

    folder = building / "plots"
    folder.mkdir(exist_ok=True)
    plots: list[Path] = []
    if "assessment" in info.report:
        plots += write_plots(Assessment.from_dict(info.report["assessment"]), folder)
    if result is not None:
        plot_search(result, folder / "search.svg")
        plots.append(folder / "search.svg")
    weights = building / _CLASSIFIER_FOLDER / (HEAD_FILE if info.kind == "head" else ENCODER_FOLDER)
    return write_bundle(
        options.out, config, weights, report, plots=plots, token_classifier=tokens, overwrite=options.force
    )
