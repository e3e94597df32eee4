"""Search for the corruption of a policy, and the build that puts a policy together."""

from optimizer.build import BuildError, BuildOptions, build_policy
from optimizer.scoring import AnswerScorer, Pair
from optimizer.strength import Evaluation, SearchResult, search_strength

__all__ = [
    "AnswerScorer",
    "BuildError",
    "BuildOptions",
    "Evaluation",
    "Pair",
    "SearchResult",
    "build_policy",
    "search_strength",
]
