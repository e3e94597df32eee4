"""The gate: what a policy's guard flags at its operating threshold, without a served model.

The guard is the real one, over the ids of the served model's own tokenizer and chat template; only what it decides is
read. The model's weights are never loaded, and of its embedding table only the rows that would be corrupted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from classifiers import ClassifierError
from console.errors import first_line
from corruption import CorruptionError
from evaluation.errors import EvaluationError
from evaluation.intervals import by_question, exact_share
from evaluation.replies import Style
from evaluation.suite import Figure, Score, scores_of
from guard import Guard, GuardError, decoder_of, load_bundle, load_policy, template_of


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What the gate decides about one text.

    Attributes:
        flagged: whether any policy flags it, whatever its action.
        score: in [0, 1], of the policy that comes nearest to flagging it: the one with the largest score less its
            threshold. With one policy, its score.
        policies: names of those that flag it.
    """

    flagged: bool
    score: float
    policies: tuple[str, ...] = ()


class Gate:
    """Policies over one model's tokenizer.

    Args:
        guard: the guard of these policies for this model.
        tokenizer: the model's transformers tokenizer.
    """

    def __init__(self, guard: Guard, tokenizer: Any) -> None:
        self._guard, self._tokenizer = guard, tokenizer
        self._templated = bool(getattr(tokenizer, "chat_template", None))

    @classmethod
    def open(cls, policies: Sequence[str | Path], model: str) -> Self:
        """Load policy folders for a model, a local folder or a hub id.

        Raises:
            EvaluationError: a policy, its encoder or the model cannot be loaded, or they do not belong together.
        """
        from transformers import AutoTokenizer

        from classifiers import Encoder, resolve_encoder
        from corruption import EmbeddingRows

        if not policies:
            raise EvaluationError("--gate-policy: give at least one policy folder; eco policy build makes one")
        try:
            bundles = [load_bundle(path) for path in policies]
            wanted = {b.config.classifier.encoder for b in bundles if b.config.classifier.kind == "head"}
            if len(wanted) > 1:
                several = ", ".join(sorted(wanted))
                raise EvaluationError(f"--gate-policy: different encoders ({several}); evaluate each alone")
            rows = EmbeddingRows.open(model)
            digest = rows.digest()
            shared = Encoder.open(resolve_encoder(wanted.pop())) if wanted else None
            loaded = [load_policy(b, shared, hidden_size=rows.hidden_size, embedding_digest=digest) for b in bundles]
            tokenizer = AutoTokenizer.from_pretrained(model)
            decode, template = decoder_of(tokenizer), template_of(tokenizer)
            # Any secret will do: noise is drawn for what is flagged, and nobody looks at it.
            guard = Guard(loaded, encoder=shared, decode=decode, template=template, rows=rows, secret=bytes(32))
        except (GuardError, ClassifierError) as error:
            raise EvaluationError(f"--gate-policy: {error}") from error
        except (CorruptionError, OSError, ValueError) as error:
            why = first_line(error)
            raise EvaluationError(f"--gate-model: {model}: cannot be used for the gate ({why})") from error
        return cls(guard, tokenizer)

    def describe(self) -> Mapping[str, object]:
        """The policies with digest, threshold and action, as JSON values."""
        policies = []
        for bundle in (policy.bundle for policy in self._guard.policies):
            config, threshold = bundle.config, bundle.config.classifier.threshold
            described = {"name": config.name, "digest": bundle.digest, "threshold": threshold, "action": config.action}
            policies.append(described)
        return {"policies": policies}

    def flags(self, texts: Sequence[str], *, style: Style = "chat") -> list[GateVerdict]:
        """A verdict for each text.

        Args:
            style: "chat": a user's message as a server renders it. "text": bare text, such as an answer; without
                any token it is not flagged.

        Raises:
            EvaluationError: one could not be classified, so that no rate would be right.
        """
        prompts: list[list[int]] = []
        for text in texts:
            shown = text
            if style == "chat" and self._templated:
                message = {"role": "user", "content": text}
                shown = self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
            # A template writes its special tokens itself; the guard takes no notice of any.
            prompts.append(self._tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"])
        thresholds = [policy.bundle.config.classifier.threshold for policy in self._guard.policies]
        verdicts = [GateVerdict(flagged=False, score=0.0)] * len(prompts)
        for number in (number for number, ids in enumerate(prompts) if ids):
            try:
                found = self._guard.protect(prompts[number]).verdicts
            except GuardError as error:
                raise EvaluationError(f"--gate-policy: {error} ({error.__cause__!r})") from error
            if any(verdict.failed for verdict in found):
                problem = "a prompt could not be classified; its policy would corrupt it unseen"
                raise EvaluationError(f"--gate-policy: {problem}")
            nearest = max(zip(found, thresholds, strict=True), key=lambda pair: pair[0].score - pair[1])[0]
            flagging = tuple(verdict.policy for verdict in found if verdict.flagged)
            verdicts[number] = GateVerdict(bool(flagging), nearest.score, flagging)
        return verdicts


def gate_scores(gate: Gate, subset: str, texts: Iterable[tuple[str, str, str]]) -> list[Score]:
    """`flagged` (0 or 1) and `gate_score` of each prompt of a subset.

    Args:
        texts: the example's id within the subset, the kind of attack, and the prompt.
    """
    rows = list(texts)
    scores: list[Score] = []
    for (example, kind, _), verdict in zip(rows, gate.flags([text for _, _, text in rows]), strict=True):
        values = {"flagged": float(verdict.flagged), "gate_score": verdict.score}
        scores += scores_of(subset, f"{example}/{kind}", values, kind)
    return scores


def gate_figures(scores: Sequence[Score], *, forgotten: frozenset[str]) -> list[Figure]:
    """Miss rates of the subsets `forgotten` and false-positive rates of the others: all kinds, then each.

    The interval of one kind is Clopper and Pearson's, which says something at 0 and at n too; that over all kinds is
    a bootstrap over questions with all their variants, for these are not independent.
    """
    flagged = [score for score in scores if score.metric == "flagged"]
    first = min((score.draw for score in flagged), default=0)  # noise does not reach the gate: draws agree
    figures = []
    for subset in dict.fromkeys(score.subset for score in flagged):
        mine = [score for score in scores if (score.subset, score.draw) == (subset, first)]
        missed = subset in forgotten
        name = f"{subset}/{'missed' if missed else 'falsely_flagged'}"
        of_metric = {
            metric: [score for score in mine if score.metric == metric] for metric in ("flagged", "gate_score")
        }
        wrong = [replace(score, value=1.0 - score.value if missed else score.value) for score in of_metric["flagged"]]
        figures.append(by_question(name, wrong))
        # The plain means, in whose place these stand: a run takes an example's variants for examples of their own.
        figures += [by_question(f"{subset}/{metric}", plain) for metric, plain in of_metric.items() if plain]
        for kind in dict.fromkeys(score.group for score in wrong):
            values = [score.value for score in wrong if score.group == kind]
            figures.append(exact_share(f"{name}/{kind}", round(sum(values)), len(values)))
    return figures
