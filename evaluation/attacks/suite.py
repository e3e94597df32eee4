"""Attacks on the guard: its gate under attack, sampling again and again, indirect questions, and relearning.

`gate` asks no target: the policy's own classifier is judged. The other parts ask the target, which is what is guarded;
with a policy at hand they say what classifying its answers would stop. Requests that only a server takes are another
module's (`evaluation.attacks.served`).
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

from classifiers import Example, general_prompts
from evaluation.attacks.answers import LEAK_ROUGE, any_of_scores, gives_away, output_scores, sizes_up_to
from evaluation.attacks.data import options_of, read_indirect, read_questions
from evaluation.attacks.gate import Gate, gate_figures, gate_scores
from evaluation.attacks.indirect import ANSWERED, LEAKS, indirect_answers, indirect_scores, kind_figures
from evaluation.attacks.prompts import ATTACKS, DEFAULT_ATTACKS, PLAIN, attacked
from evaluation.attacks.relearning import Relearner, RelearnSettings, relearning_figures
from evaluation.attacks.served import REQUEST_PARTS, RequestPart, ServedAttacks, request_figures
from evaluation.errors import DataError
from evaluation.replies import Ask, Asker
from evaluation.rows import drawn
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of
from scoring.load import weights_digest
from storage.digests import sha256_of_json

Part = Literal["gate", "sampling", "indirect", "relearning"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""Those that are measured where none is named; `REQUEST_PARTS` are measured where they are."""

#: Options without which a part cannot be.
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "gate": ("gate_policy", "gate_model"),
    "sampling": (),
    "indirect": ("indirect",),
    "relearning": ("relearn_base",),
}

#: What must be flagged should not be missed, what is kept should pass, and nothing should leak.
_DOWN: Final = (
    *(f"{subset}/missed" for subset in ("forget", "indirect")),
    *(f"{subset}/falsely_flagged" for subset in ("retain", "general", "neighbour")),
    *(f"{subset}/output_flagged" for subset in ("retain", "neighbour")),
    "indirect/leak",
    "indirect/leak_output_classified",
    "relearned/share",
    "forget/relearn_leak_after",
    "forget/relearn_probability_after",
)
#: Subsets whose prompts must be flagged.
_FORGOTTEN: Final = frozenset({"forget", "indirect"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings:
    """How the attacks are made.

    Attributes:
        attacks: names of `ATTACKS` for the gate, which also judges every question as it stands.
        samples: answers drawn to each forget question.
        temperature: at which they are drawn.
        leak_rouge: see `evaluation.attacks.answers.LEAK_ROUGE`.
        relearn: how an attacker fine-tunes; None: as by default, with `seed` and `max_new_tokens`.
        limit: examples of each set at most, drawn with `seed`; None: all.
        max_new_tokens: of every answer.
        seed: of the attacks, the draws and the sampling.

    Raises:
        DataError: one is unknown or not possible; the flag is named.
    """

    attacks: tuple[str, ...] = DEFAULT_ATTACKS
    samples: int = 16
    temperature: float = 1.0
    leak_rouge: float = LEAK_ROUGE
    relearn: RelearnSettings | None = None
    limit: int | None = 100
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for attack in self.attacks:
            if attack not in ATTACKS:
                raise DataError(f"--attacks: {attack!r} is none of {', '.join(ATTACKS)}")
        counts = {"--samples": self.samples, "--limit": self.limit, "--max-new-tokens": self.max_new_tokens}
        for flag, count in counts.items():
            if count is not None and count < 1:
                raise DataError(f"{flag}: {count}; give 1 or more")
        if not self.temperature > 0:
            raise DataError(f"--temperature: {self.temperature}; give a number above 0, for samples that differ")
        if not 0 < self.leak_rouge <= 1:
            raise DataError(f"--leak-rouge: {self.leak_rouge}; give a share above 0, at most 1")


class AttackSuite(Suite):
    """Attacks on the guard. What a part needs must be given; parts that are not named are those with all they need.

    Args:
        forget: source of questions that must be forgotten; with answers for `sampling` and `relearning`.
        retain: source of questions that must be answered.
        general: source of everyday prompts; None: the built-in ones, most of which a policy's classifier was trained
            on, so that they show what it has kept, not how it generalises.
        indirect: sources of hand-written questions (see `read_indirect`), one or several.
        policy: policy folders, for `gate` and for classifying answers.
        model: the model they were built for, a folder or hub id: its tokenizer, chat template and embedding table.
        relearn_base: the clean model that an attacker fine-tunes, a folder or hub id.
        parts: of `PARTS` and `REQUEST_PARTS`; the latter need a server as target.
        settings: how; None: `AttackSettings()`.

    Raises:
        DataError: a part or set is missing, unknown or unusable; the flag, file and column are named.
        EvaluationError: the policies, their encoder or a model cannot be loaded.
    """

    name = "attacks"

    def __init__(
        self,
        *,
        forget: str,
        retain: str,
        general: str | None = None,
        indirect: str | Sequence[str] = (),
        policy: Sequence[str | Path] = (),
        model: str | None = None,
        relearn_base: str | None = None,
        parts: Sequence[str] | None = None,
        settings: AttackSettings | None = None,
    ) -> None:
        options = {
            "gate_policy": policy or None,
            "gate_model": model,
            "indirect": indirect or None,
            "relearn_base": relearn_base,
        }
        self.parts = _checked_parts(parts, {name for name, value in options.items() if value is not None})
        self._settings = settings = settings or AttackSettings()
        need_answers = [part for part in self.parts if part not in ("gate", "indirect")]
        everyday = map(Example, general_prompts()) if general is None else read_questions(general, "general")
        sets = {
            "forget": read_questions(forget, "forget", answers_for=need_answers),
            "retain": read_questions(retain, "retain"),
            "general": list(everyday),
        }
        self._sets = {name: drawn(examples, settings.limit, settings.seed) for name, examples in sets.items()}
        #: Forget questions with their answers.
        self._pairs = [(example.prompt, example.answer or "") for example in self._sets["forget"]]
        sources = [indirect] if isinstance(indirect, str) else indirect
        asked_aside = [question for source in sources for question in read_indirect(source)]
        self._indirect = drawn(asked_aside, settings.limit, settings.seed)
        self._gate = Gate.open(policy, model) if policy and model is not None else None
        self._served = None
        if set(self.parts) & set(REQUEST_PARTS):
            room, limit, seed = settings.max_new_tokens, settings.limit, settings.seed
            self._served = ServedAttacks.read(self.parts, forget, retain, max_tokens=room, limit=limit, seed=seed)
        self._relearner: Relearner | None = None
        self._relearning: dict[str, object] | None = None  # as described
        if relearn_base is not None and "relearning" in self.parts:
            relearn = settings.relearn or RelearnSettings(seed=settings.seed, max_new_tokens=settings.max_new_tokens)
            self._relearning = {"base": relearn_base, "base_sha256": weights_digest(relearn_base), **asdict(relearn)}
            del self._relearning["max_new_tokens"]  # decides no training
            self._relearner = Relearner.load(relearn_base, self._pairs, relearn)
        headline = {
            "gate": ["forget/missed", "retain/falsely_flagged", "general/falsely_flagged"],
            "sampling": ["forget/leak_at_1", f"forget/leak_at_{settings.samples}"],
            "indirect": [f"indirect/{metric}" for metric in LEAKS[: 2 if self._gate else 1]],
            "relearning": ["relearned/share"],
        }
        first = dict.fromkeys(name for part in self.parts for name in headline.get(part, ()))
        self.headline = [*first, *(self._served.headline if self._served else [])]
        leaks = [f"forget/leak_at_{k}" for k in sizes_up_to(settings.samples)]
        kinds = [f"indirect/{metric}/{one.kind}" for metric in LEAKS for one in self._indirect if one.forget]
        answered = [f"{ANSWERED}/{one.kind}" for one in self._indirect if not one.forget and one.answer]
        down = [*_DOWN, *leaks, *kinds, *(self._served.down if self._served else [])]
        up = [ANSWERED, *answered] if answered else []
        self.directions = {**dict.fromkeys(down, "down"), **dict.fromkeys(up, "up")}

    def describe(self) -> Mapping[str, object]:
        rows: dict[str, list[list[object]]] = {
            name: [[example.prompt, example.answer] for example in examples] for name, examples in self._sets.items()
        }
        rows["indirect"] = [[one.prompt, one.kind, one.forget, one.answer] for one in self._indirect]
        settings = self._settings
        return {
            "suite": self.name,
            "parts": list(self.parts),
            "sets": {name: {"examples": len(one), "sha256": sha256_of_json(one)} for name, one in rows.items()},
            "gate": self._gate.describe() if self._gate else None,
            "attacks": list(settings.attacks),
            "samples": settings.samples,
            "temperature": settings.temperature,
            "leak_rouge": settings.leak_rouge,
            "max_new_tokens": settings.max_new_tokens,
            "relearning": self._relearning,
            "seed": settings.seed,
            **({"served": self._served.describe()} if self._served else {}),
        }

    def probe(self) -> Sequence[Ask]:
        first: dict[str, Ask] = {}
        for key, ask in self._asks().items():
            first.setdefault(key.partition("/")[0], ask)
        return list(first.values())

    def measure(self, ask: Asker) -> Outcome:
        scores = self._gate_scores(self._gate) if self._gate is not None and "gate" in self.parts else []
        asks = self._asks()
        replies = ask(asks, title=self.name) if asks else {}
        answers: list[Answer] = []
        if self._served is not None:
            scores, answers = [*scores, *self._served.scores(replies)], list(self._served.answers(replies))
        if "sampling" in self.parts:
            for number, (question, truth) in enumerate(self._pairs):
                texts = replies[f"sampling/{number}"].texts
                leaks = [self._leaks(text, truth, question) for text in texts]
                scores += any_of_scores("forget", str(number), leaks)
                worst = texts[leaks.index(True)] if any(leaks) else texts[0]
                answers.append(Answer("sampling", str(number), question, worst, truth))
        if "indirect" in self.parts:
            said = [replies[f"indirect/{number}"].text for number in range(len(self._indirect))]
            scores += indirect_scores(self._indirect, said, self._gate, self._leaks)
            answers += indirect_answers(self._indirect, said)
            if self._gate is not None:
                kept = [(str(n), "", replies[f"retain/{n}"].text, None) for n in range(len(self._sets["retain"]))]
                scores += output_scores(self._gate, "retain", kept)
        if self._relearner is not None:
            known = {
                "before": self._relearner.before(),
                "after": self._relearner.after([replies[f"relearning/{n}"].text for n in range(len(self._pairs))]),
                "true": self._relearner.upper_bound(),
            }
            for when, knowledge in known.items():
                for number, (question, truth) in enumerate(self._pairs):
                    leaked = float(self._leaks(knowledge.answers[number], truth, question))
                    probability = knowledge.probabilities[number]
                    values = {f"relearn_leak_{when}": leaked, f"relearn_probability_{when}": probability}
                    scores += scores_of("forget", str(number), values)
        return Outcome(tuple(scores), tuple(answers))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:  # noqa: ARG002 - the interface's
        relearned = relearning_figures(scores, "forget")
        indirect = kind_figures(scores)
        return [*gate_figures(scores, forgotten=_FORGOTTEN), *indirect, *relearned, *request_figures(scores)]

    def _asks(self) -> dict[str, Ask]:
        """Everything the target is asked: keys begin with the part, and the subset where it has several."""
        asks = self._served.asks() if self._served is not None else {}
        settings, room = self._settings, self._settings.max_new_tokens
        for number, (question, _) in enumerate(self._pairs):
            plain = Ask(question, max_new_tokens=room)
            if "sampling" in self.parts:
                asks[f"sampling/{number}"] = replace(
                    plain, temperature=settings.temperature, samples=settings.samples, seed=settings.seed
                )
            if "relearning" in self.parts:
                asks[f"relearning/{number}"] = plain
        if "indirect" in self.parts:
            asks |= {f"indirect/{n}": Ask(one.prompt, max_new_tokens=room) for n, one in enumerate(self._indirect)}
            if self._gate is not None:  # what classifying answers costs those who ask for what is kept
                kept = enumerate(self._sets["retain"])
                asks |= {f"retain/{n}": Ask(one.prompt, max_new_tokens=room) for n, one in kept}
        return asks

    def _gate_scores(self, gate: Gate) -> list[Score]:
        scores: list[Score] = []
        seed = self._settings.seed
        for subset, examples in self._sets.items():
            rows = [
                (str(number), kind, attacked(kind, example.prompt, seed=seed, options=options_of(examples, number)))
                for kind in (PLAIN, *self._settings.attacks)
                for number, example in enumerate(examples)
            ]
            scores += gate_scores(gate, subset, rows)
        for forget, subset in ((True, "indirect"), (False, "neighbour")):
            mine = [(str(n), one.kind, one.prompt) for n, one in enumerate(self._indirect) if one.forget == forget]
            scores += gate_scores(gate, subset, mine)
        return scores

    def _leaks(self, answer: str, reference: str, question: str) -> bool:
        return gives_away(answer, reference, question, threshold=self._settings.leak_rouge)


def _checked_parts(parts: Sequence[str] | None, given: AbstractSet[str]) -> tuple[Part | RequestPart, ...]:
    if "gate_policy" in given and "gate_model" not in given:
        raise DataError("--gate-model: missing; --gate-policy needs the model it was built for")
    if parts is None:
        return tuple(part for part in PARTS if given >= set(_NEEDED[part]))
    known: tuple[Part | RequestPart, ...] = (*PARTS, *REQUEST_PARTS)
    for part in parts:
        if part not in known:
            raise DataError(f"--parts: {part!r} is none of {', '.join(known)}")
        for name in _NEEDED.get(part, ()):
            if name not in given:
                raise DataError(f"--{name.replace('_', '-')}: missing; --parts {part} needs it")
    if not parts:
        raise DataError(f"--parts: empty; name some of {', '.join(known)}")
    return tuple(part for part in known if part in parts)
