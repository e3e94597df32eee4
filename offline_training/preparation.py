"""What a job needs before any weights are loaded: its settings checked, its sets read, its plan drawn."""

import os
from dataclasses import dataclass, replace
from functools import cached_property

from offline_training.checkpoint import RUN_FILE, BaseCheckpoint, open_checkpoint, precision_of
from offline_training.data.alternatives import alternative_sets
from offline_training.data.encoding import EncodedSet, ExampleEncoder
from offline_training.data.llmu_script import ScriptEncoder, answer_pool, script_sets
from offline_training.data.plan import Plan, Sets, make_plan
from offline_training.data.sets import check_answers, check_sets, default_refusals, idk_set, load_set, refusals, sampled
from offline_training.data.tokens import STREAMS, Stream
from offline_training.errors import JobError, SettingsError
from offline_training.methods.method import Method, MethodSettings
from offline_training.methods.registry import METHODS
from offline_training.settings import FinetuneJob, Job, UnlearnJob
from storage.digests import sha256_of_json

FINETUNING = replace(METHODS["ft"], name="finetune", summary="learn the data", source="cross entropy on the answers")


@dataclass(frozen=True)
class Prepared:
    """A job whose inputs have been read and checked."""

    job: Job
    method: Method
    method_settings: MethodSettings
    base: BaseCheckpoint
    sets: Sets
    plan: Plan
    precision: str
    from_scratch: bool = False

    @cached_property
    def identity(self) -> str:
        """sha256 of everything that decides the weights."""
        parts = [
            self.base.digest,
            {stream: examples.digest for stream, examples in sorted(self.sets.by_stream.items())},
            self.method.name,
            self.method_settings.model_dump(mode="json"),
            self.job.training.model_dump(mode="json", exclude={"threads", "tensorboard", "reference_gib"}),
            self.plan.shares,
            [answer.answer for answer in self.sets.answers],
            self.from_scratch,
        ]
        return sha256_of_json(parts, sort_keys=True)

    @property
    def references(self) -> frozenset[Stream]:
        """Streams for which the method compares with the model before unlearning."""
        return self.method.references(self.method_settings)

    @property
    def hidden_layer(self) -> int | None:
        """The decoder layer whose outputs the method needs."""
        return self.method.hidden_layer(self.method_settings)


def prepare_unlearning(job: UnlearnJob) -> Prepared:
    """Read and check what one of `METHODS` needs.

    Raises:
        JobError: bad input.
    """
    method = METHODS.get(job.method)
    if method is None:
        raise SettingsError(f"method: {job.method!r} is none of {', '.join(METHODS)}")
    _check_out(job)
    if not isinstance(job.method_settings, method.settings):
        raise SettingsError(f"method_settings: {method.name} takes {method.settings.__name__}")
    # Those that the job's epochs have: a weight of 0 may leave one of the method's out.
    used = {stream for epoch in method.epochs(job.training.epochs, job.method_settings) for stream in epoch}
    training = job.training
    if job.forget is None and used & {"forget", "random", "idk", "alternative"}:
        raise SettingsError(f"--forget: {method.name} needs it; give a file of examples")
    if job.retain is None and used & {"retain", "random"}:
        raise SettingsError(f"--retain: {method.name} needs it; give a file of examples")
    if job.idk is not None and "idk" not in method.streams:
        raise SettingsError(f"--idk: {method.name} takes no refusals; leave it out")
    if job.alternatives is not None and "alternative" not in method.streams:
        raise SettingsError(f"--alternatives: {method.name} takes no other answers; leave it out")
    if training.prompt_tokens == "kl" and not method.keeps_by_divergence(job.method_settings):
        raise SettingsError(f"--prompt-tokens: {method.name} has no KL on the retain set alone; give none or all")
    if training.sample_retain and (job.forget is None or job.retain is None):
        raise SettingsError("--sample-retain: counts the forget set's examples; give both sets")
    if training.steps is not None and method.needs_whole_epochs:
        raise SettingsError(f"--steps: {method.name} has to end with a whole epoch on the retain set; give --epochs")
    if training.lora_rank and method.trained_parameters(job.method_settings) is not None:
        raise SettingsError(f"--lora-rank: {method.name} chooses the parameters that it trains; leave it out")
    if training.reference_cache == "top-k" and method.needs_full_reference:
        raise SettingsError(f"--reference-cache: {method.name} needs all logits; give auto, hidden or logits")
    base = open_checkpoint(job.model)
    layer = method.hidden_layer(job.method_settings)
    layers = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    if layer is not None and layers is not None and not -layers <= layer < layers:
        raise SettingsError(f"--hidden-layer: {layer} is none of the model's {layers}; give {-layers} to {layers - 1}")
    strict = getattr(job.method_settings, "strict", False)
    if strict and training.prompt_tokens != "kl":
        raise SettingsError("--strict: the script's KL is over prompts too; give --prompt-tokens kl")
    encoder = _encoder(job, base, ScriptEncoder if strict else ExampleEncoder)
    # Both where they are given: those the method does not need are evaluated on.
    sources: dict[Stream, str | None] = {"forget": job.forget, "retain": job.retain}
    sets = {stream: load_set(source, stream, encoder) for stream, source in sources.items() if source is not None}
    if "forget" in sets and "retain" in sets:
        check_sets(sets["forget"], sets["retain"])
    if "random" in used:
        for stream in sorted(sets):
            check_answers(sets[stream], f"method {method.name}")
    if training.sample_retain:
        sets["retain"] = sampled(sets["retain"], len(sets["forget"].examples), training.seed)
    if "alternative" in used:
        sets["forget"], sets["alternative"] = alternative_sets(sets["forget"], job.alternatives, encoder)
    if "idk" in used:
        lines = refusals(job.idk) if job.idk is not None else default_refusals()
        steps_of_epoch = -(-len(sets["forget"].examples) // training.batch_size)
        draws = training.epochs if training.steps is None else -(-training.steps // steps_of_epoch)
        source = job.idk or "shipped"
        sets["idk"] = idk_set(sets["forget"], lines, encoder, training.seed, draws=draws, source=source)
    answers = answer_pool(str(job.retain)) if strict else ()
    if strict:
        sets = script_sets(sets, training.batch_size, training.seed)
    whole = {"none": frozenset[Stream](), "kl": frozenset[Stream]({"retain"}), "all": frozenset(STREAMS)}
    all_sets = Sets(sets, encoder, answers, whole[training.prompt_tokens])
    return _prepared(job, method, job.method_settings, base, all_sets)


def prepare_finetuning(job: FinetuneJob) -> Prepared:
    """Read and check what is to be learned; raises as `prepare_unlearning`."""
    _check_out(job)
    base = open_checkpoint(job.model)
    encoder = _encoder(job, base)
    _check_lone_set(job, "none", "all")
    whole = frozenset[Stream]({"retain"} if job.training.prompt_tokens == "all" else ())
    sets = Sets({"retain": load_set(job.data, "data", encoder)}, encoder, whole=whole)
    return _prepared(job, FINETUNING, FINETUNING.settings(), base, sets, from_scratch=job.from_scratch)


def prepare_examples(job: Job, examples: EncodedSet, base: BaseCheckpoint) -> Prepared:
    """Fine-tuning on examples that somebody else has made; raises as `prepare_unlearning`."""
    encoder = _encoder(job, base)
    _check_out(job)
    _check_lone_set(job, "none")
    return _prepared(job, FINETUNING, FINETUNING.settings(), base, Sets({"retain": examples}, encoder))


def _check_lone_set(job: Job, *prompt_tokens: str) -> None:
    """Refuse settings that are about two sets, where there is one."""
    if job.training.sample_retain:
        raise SettingsError("--sample-retain: there is no retain set to draw from; leave it out")
    if job.training.prompt_tokens not in prompt_tokens:
        raise SettingsError(f"--prompt-tokens: give {' or '.join(prompt_tokens)}, not {job.training.prompt_tokens}")


def _encoder(job: Job, base: BaseCheckpoint, kind: type[ExampleEncoder] = ExampleEncoder) -> ExampleEncoder:
    """The encoder for a job's model and settings.

    Raises:
        JobError: the model's tokenizer cannot be trained through, or the context is longer than the model's.
    """
    return kind(
        base.tokenizer,
        context_tokens=base.context_tokens(job.training.context_tokens),
        long_examples=job.training.long_examples,
        system_prompt=job.system_prompt,
        vocab_size=base.vocab_size,
    )


def rank() -> int:
    """Which of a job's processes this is, as launchers say in the environment: 0 for the first, which writes."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_out(job: Job) -> None:
    out = job.out
    resumable = job.resume and (out / RUN_FILE).is_file()  # the job looks whether it is its own
    if out.exists() and not job.force and not resumable:
        raise JobError(f"--out: {out} already exists; choose another folder or pass --force to replace it")
    if out.exists() and not (out / RUN_FILE).is_file():
        raise JobError(f"--out: {out} exists and holds no job's checkpoint; choose another folder")
    if job.training.lora_rank and (job.training.fsdp or job.training.deepspeed):
        raise SettingsError("--lora-rank: adapters are not merged under FSDP or DeepSpeed; leave one of them out")
    precision_of(job.training.precision)


def _prepared(
    job: Job,
    method: Method,
    method_settings: MethodSettings,
    base: BaseCheckpoint,
    sets: Sets,
    *,
    from_scratch: bool = False,
) -> Prepared:
    training = job.training
    sizes = {stream: len(examples.examples) for stream, examples in sets.by_stream.items()}
    if sets.answers:
        sizes["random"] = len(sets.answers)
    plan = make_plan(
        method.epochs(training.epochs, method_settings),
        sizes,
        batch_size=training.batch_size,
        shares=processes() * training.gradient_accumulation,
        seed=training.seed,
        steps=training.steps,
        random_answers=getattr(method_settings, "random_answers", 1),
        as_llmu_script=getattr(method_settings, "strict", False),
    )
    return Prepared(job, method, method_settings, base, sets, plan, precision_of(training.precision), from_scratch)
