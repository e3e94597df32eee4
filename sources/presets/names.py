"""Names of published experiments: TOFU's splits, the subjects of MMLU and WMDP, and the tasks made of them.

Imports nothing, so that a command can offer them as choices before anything is loaded.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

TOFU_SPLITS: Final = ("forget01", "forget05", "forget10")
"""The last 1, 5 and 10 % of TOFU's authors."""

WMDP_SUBJECTS: Final = ("bio", "chem", "cyber")


class Topic(NamedTuple):
    """Subjects of MMLU to forget, and those so close that a clumsy method takes them along."""

    forget: tuple[str, ...]
    neighbours: tuple[str, ...]


MMLU_TOPICS: Final[Mapping[str, Topic]] = {
    "economics": Topic(("high_school_macroeconomics", "high_school_microeconomics"), ("econometrics",)),
    "law": Topic(("international_law", "professional_law"), ("jurisprudence",)),
    "physics": Topic(
        ("college_physics", "conceptual_physics", "high_school_physics"),
        ("college_mathematics", "high_school_mathematics"),
    ),
}
"""ECO's choice: `mmlu_subset.py` of its code (arXiv 2406.07933)."""

TASKS: Final = (
    *(f"tofu-{split}" for split in TOFU_SPLITS),
    "wmdp",
    "synthetic-wmdp",
    *(f"mmlu-{topic}" for topic in MMLU_TOPICS),
    "bbc-news",
    "hp-book",
)
"""All presets, as `--task` takes them."""
