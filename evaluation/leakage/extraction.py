"""How much of an answer a model can be made to say again: pure functions over one answer's greedy flags.

From one teacher-forced pass: where every token of a suffix is the likeliest after the tokens before it, greedy
decoding from those continues with exactly that suffix.
"""

from collections.abc import Sequence

__all__ = ["exact_memorization", "extraction_strength"]


def extraction_strength(greedy: Sequence[bool]) -> float:
    """1 - k / |y|, in [0, 1], for the fewest answer tokens k after which greedy decoding says all the others.

    Carlini et al. 2021 (arXiv 2012.07805) as a measure of unlearning by Wang et al. 2025 (arXiv 2406.09179), and as
    in OpenUnlearning (arXiv 2506.12618), but for one case: where the last token is not the greedy one, no suffix is
    extracted and the strength is 0, not the 1 / |y| of OpenUnlearning's code.

    Args:
        greedy: (A,) whether each answer token is the likeliest at its place; at least one.

    Raises:
        ValueError: no token.
    """
    _check_tokens(greedy)
    suffix = next((length for length, flag in enumerate(reversed(greedy)) if not flag), len(greedy))
    return suffix / len(greedy)


def exact_memorization(greedy: Sequence[bool]) -> float:
    """The share of answer tokens that are the likeliest at their place, in [0, 1].

    OpenUnlearning's `exact_memorization` (arXiv 2506.12618), after Tirumala et al. 2022 (arXiv 2205.10770).

    Args:
        greedy: (A,) as for `extraction_strength`.

    Raises:
        ValueError: no token.
    """
    _check_tokens(greedy)
    return sum(greedy) / len(greedy)


def _check_tokens(greedy: Sequence[bool]) -> None:
    if not greedy:
        raise ValueError("greedy: no token; score an answer that has at least one")
