"""From what a user names as a target to the target: an endpoint, a model, a model behind policies, a model told to
forget."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from evaluation.errors import TargetError
from evaluation.replies import Target
from evaluation.runs.record import Kind
from guard import load_bundle, load_or_create_secret
from scoring.load import RUNNERS, Runner, open_scorer, weights_digest

__all__ = ["TargetOptions", "TargetRow", "open_target", "row_of"]


#: Figures that anybody can repeat need noise that anybody can draw. It guards nothing.
_FIXED_SECRET = bytes(32)


@dataclass(frozen=True)
class TargetOptions:
    """What is evaluated and how it is run.

    Attributes:
        target: the URL of an OpenAI-compatible server, or a model: a folder or hub id.
        runner: of a model: "transformers" or "vllm".
        dtype: torch's name of it; None: float32 on a CPU, else the checkpoint's.
        tensor_parallel_size: of vLLM.
        policies: folders of policies to apply offline.
        strength: instead of each policy's own.
        secret_file: the operator's noise secret; None: a fixed one, for figures that can be repeated.
        prompt_prefix: of the prompting baseline; None: none.
        served_model: the endpoint's model; None: the only one that it lists.
        api_key_env: the environment variable that holds the endpoint's key.
        concurrency: requests in flight.
        timeout_s: of a request.
        retries: of a request that may succeed later.
        generated_only: whether the endpoint is not asked for log-probabilities.
    """

    target: str
    runner: Runner = "transformers"
    dtype: str | None = None
    tensor_parallel_size: int = 1
    policies: tuple[Path, ...] = ()
    strength: float | None = None
    secret_file: Path | None = None
    prompt_prefix: str | None = None
    served_model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 32
    timeout_s: float = 300.0
    retries: int = 8
    generated_only: bool = False

    @property
    def is_endpoint(self) -> bool:
        return self.target.startswith(("http://", "https://"))


@dataclass(frozen=True)
class TargetRow:
    """What a target is called in a table, where the user does not say."""

    label: str
    kind: Kind
    method: str | None = None
    strength: float | None = None


def row_of(options: TargetOptions) -> TargetRow:
    """Named after the policy, the prompting baseline, the method of unlearning in the checkpoint's record, or itself.

    Raises:
        BundleError: a folder is no policy.
    """
    if options.policies:
        bundles = [load_bundle(folder) for folder in options.policies]
        own = bundles[0].config.corruption.strength
        strength = options.strength if options.strength is not None else own
        number = float(strength) if isinstance(strength, int | float) else None
        names = " + ".join(bundle.config.name for bundle in bundles)
        said = "" if number is None else f", strength {number:.3g}"
        where = "served" if options.is_endpoint else "guarded"
        return TargetRow(f"{where}: {names}{said}", "guarded", strength=number)
    if options.prompt_prefix is not None:
        return TargetRow("prompting", "prompting")
    method = None if options.is_endpoint else _method_of(Path(options.target))
    if method is not None:
        return TargetRow(method, "method", method=method)
    name = options.target if options.is_endpoint else Path(options.target).resolve().name
    return TargetRow(name, "original")


def open_target(options: TargetOptions) -> Target:
    """Connect, or load; `close` the target when done.

    Raises:
        TargetError: options contradict each other, or the server or model cannot be used.
        GuardError, ScorerError, CheckpointError, ClassifierError: policy or model cannot be used.
    """
    _check(options)
    target = _endpoint(options) if options.is_endpoint else _offline(options)
    if options.prompt_prefix is None:
        return target
    from evaluation.targets.prompting import PromptingTarget

    return PromptingTarget(target, options.prompt_prefix)


def _check(options: TargetOptions) -> None:
    if options.is_endpoint and (options.policies or options.strength is not None):
        raise TargetError(
            "--policy: a server applies its own policies; give the model as --target to apply them here, "
            "or leave --policy out to measure what the server answers"
        )
    if options.strength is not None and not options.policies:
        raise TargetError("--strength: changes a policy's; give the policy as --policy")
    if options.secret_file is not None and not options.policies:
        raise TargetError("--secret-file: seeds a policy's noise; give the policy as --policy, or leave it out")
    if options.secret_file is not None and not options.secret_file.is_file():
        raise TargetError(f"--secret-file: {options.secret_file}: no such file; give the one of eco serve")
    if options.policies and options.prompt_prefix is not None:
        raise TargetError("--prompting: is measured without a policy; leave --policy out")
    if not options.is_endpoint and options.runner not in RUNNERS:
        raise TargetError(f"--runner: {options.runner!r}: expected transformers or vllm")


def _endpoint(options: TargetOptions) -> Target:
    from evaluation.targets.endpoint import EndpointTarget

    return EndpointTarget(
        options.target,
        model=options.served_model,
        api_key=os.environ.get(options.api_key_env),
        concurrency=options.concurrency,
        timeout_s=options.timeout_s,
        max_retries=options.retries,
        generated_only=options.generated_only,
    )


def _offline(options: TargetOptions) -> Target:
    from evaluation.targets.guarded import GuardedPrompts, open_policies
    from evaluation.targets.offline import OfflineTarget

    # Policies first: one that does not fit fails before a model is loaded.
    opened = open_policies(options.policies, options.target, strength=options.strength) if options.policies else None
    secret = _FIXED_SECRET if options.secret_file is None else load_or_create_secret(options.secret_file)
    scorer = open_scorer(
        options.target,
        runner=options.runner,
        dtype=options.dtype,
        tensor_parallel_size=options.tensor_parallel_size,
    )
    digest = weights_digest(options.target)
    if opened is None:
        return OfflineTarget(scorer, weights_sha256=digest)
    policies, encoder, rows = opened
    tokenizer = scorer.renderer.tokenizer
    guard = GuardedPrompts(policies, encoder=encoder, rows=rows, tokenizer=tokenizer, secret=secret)
    return OfflineTarget(scorer, guard, weights_sha256=digest)


def _method_of(folder: Path) -> str | None:
    """The method of unlearning that made a checkpoint, by the record it left."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    method = record.get("method") if isinstance(record, dict) else None
    return method if isinstance(method, str) else None
