"""False positives by domain: how much of what has nothing to do with a policy it flags all the same.

The policy's own guard judges, over the served model's tokenizer and chat template; nothing is generated.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.attacks.gate import Gate, gate_figures, gate_scores
from evaluation.domains.data import DomainPrompt, own_prompts, published_prompts
from evaluation.errors import DataError
from evaluation.intervals import exact_share
from evaluation.replies import Ask, Asker
from evaluation.rows import drawn
from evaluation.suite import Figure, Outcome, Score, Suite
from storage.digests import sha256_of_json

_SUBSET = "passing"


class DomainsSuite(Suite):
    """What a gate flags of prompts that must pass.

    Metrics of a prompt: `flagged` and `gate_score`. Figures: the share that is falsely flagged of all, of each domain
    and of each part of one, with Clopper and Pearson's intervals but for that of all, which is a bootstrap.

    Args:
        policy: policy folders.
        model: the model they were built for, a folder or hub id: its tokenizer, chat template and embedding table.
        domains: names of `evaluation.domains.data.DOMAINS`, fetched from the hub.
        data: sources of one's own prompts.
        limit: prompts of each domain at most; None: all.
        seed: of the choice of these.

    Raises:
        DataError: nothing is to be measured, or something cannot be read.
        EvaluationError: the policies, their encoder or the model cannot be loaded.
    """

    name = "domains"

    def __init__(
        self,
        *,
        policy: Sequence[str | Path],
        model: str | None,
        domains: Sequence[str] = (),
        data: Sequence[str] = (),
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if model is None:
            raise DataError("--gate-model: is missing; give the model that the policies were built for")
        found = [prompt for name in dict.fromkeys(domains) for prompt in published_prompts(name)] + own_prompts(data)
        by_domain: defaultdict[str, list[DomainPrompt]] = defaultdict(list)
        for prompt in found:
            by_domain[prompt.domain].append(prompt)
        if not by_domain:
            raise DataError("--domain or --data: no prompt to look at")
        self._prompts = [prompt for mine in by_domain.values() for prompt in drawn(mine, limit, seed)]
        self._limit, self._seed = limit, seed
        self._gate = Gate.open(policy, model)
        shares = [f"{_SUBSET}/falsely_flagged", *(f"{_SUBSET}/falsely_flagged/{domain}" for domain in by_domain)]
        self.headline = shares
        self.directions = dict.fromkeys(shares, "down")

    def describe(self) -> Mapping[str, object]:
        asked = [(prompt.domain, prompt.part, prompt.text) for prompt in self._prompts]
        return {
            "suite": self.name,
            "data": {"sha256": sha256_of_json(asked), "prompts": len(asked)},
            "limit": self._limit,
            "seed": self._seed,
            "gate": self._gate.describe(),
        }

    def probe(self) -> Sequence[Ask]:
        return []

    def measure(self, ask: Asker) -> Outcome:  # noqa: ARG002  nobody is asked
        texts = [(prompt.id, prompt.domain, prompt.text) for prompt in self._prompts]
        return Outcome(tuple(gate_scores(self._gate, _SUBSET, texts)))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:  # noqa: ARG002
        parts = {f"{prompt.id}/{prompt.domain}": prompt.part for prompt in self._prompts}
        flagged: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for score in scores:
            if score.metric == "flagged" and parts[score.example]:
                flagged[score.group, parts[score.example]].append(score.value)
        of_parts = [
            exact_share(f"{_SUBSET}/falsely_flagged/{domain}/{part}", round(sum(values)), len(values))
            for (domain, part), values in sorted(flagged.items())
        ]
        return [*gate_figures(scores, forgotten=frozenset()), *of_parts]
