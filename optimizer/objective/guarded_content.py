"""What the guard itself would mask, for a search that scores given answers as a gateway's client would.

A given answer is part of the prompt there, and the guard decides about it window by window: what of it shows nothing
that is to be forgotten stays as it is. So the very `Guard.protect` is asked, with the classifier that the policy will
have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from classifiers import Encoder
from classifiers.prompt_classifier import HeadClassifier, PromptClassifier
from guard import Guard, LoadedPolicy, PolicyBundle, RowSource, decoder_of, template_of
from guard.entities import EntityFinder

#: Noise is not looked at: where it goes does not hang on what it is.
_SECRET = bytes(32)


@dataclass(frozen=True)
class GuardedContent:
    """A `ContentFinder` (scoring.scorer): the positions that a guard masks; none in what it does not flag."""

    guard: Guard
    _known: dict[tuple[int, ...], list[range]] = field(default_factory=dict)

    def segments(self, token_ids: Sequence[int]) -> list[range]:
        """Runs of masked positions, in order and apart. What was asked before costs nothing.

        Raises:
            GuardError: it could not be classified.
        """
        ids = tuple(token_ids)
        if ids not in self._known:
            mask = self.guard.protect(ids).mask or ()
            self._known[ids] = runs([position for position, masked in enumerate(mask) if masked])
        return self._known[ids]


def guarded_content(
    model: str,
    bundle: PolicyBundle,
    classifier: PromptClassifier,
    finder: EntityFinder | None,
    rows: RowSource,
) -> GuardedContent:
    """Of prompts of `model` (hub id or folder), as a gateway would guard it with a policy that is not written yet.

    Args:
        bundle: its configuration; of the corruption only the scope counts.
        classifier: tells what is flagged.
        finder: with `scope: entities` finds what is masked.
        rows: the model's embedding rows.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    encoder: Encoder | None = None
    if isinstance(classifier, HeadClassifier):
        policy, encoder = LoadedPolicy(bundle, head=classifier.head, finder=finder), classifier.encoder
    else:
        policy = LoadedPolicy(bundle, own_classifier=classifier, finder=finder)
    guard = Guard(
        [policy],
        encoder=encoder,
        decode=decoder_of(tokenizer),
        template=template_of(tokenizer),
        rows=rows,
        secret=_SECRET,
        watched=True,  # a gateway reads answers where the policy says so
    )
    return GuardedContent(guard)


def runs(positions: Sequence[int]) -> list[range]:
    """Ascending positions as runs without a gap."""
    found: list[range] = []
    for position in positions:
        if found and found[-1].stop == position:
            found[-1] = range(found[-1].start, position + 1)
        else:
            found.append(range(position, position + 1))
    return found
