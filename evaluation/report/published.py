"""What others have published for the same benchmark and split, to stand below a suite's own runs.

Other models, other training, other code: to be read for orders of magnitude, and marked so.
"""

import functools
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evaluation.report.compare import SuiteRuns

PLACE: Final = Path(__file__).parent / "data" / "published.yaml"
#: TOFU's splits by their files' name, and how many questions each asks.
_TOFU_QUESTIONS: Final = {"forget01": 40, "forget05": 200, "forget10": 400}
#: Rows of each of MUSE's sets, on both corpora.
_MUSE_ROWS: Final = 100
#: WMDP's questions, by lm-eval's names.
_WMDP_QUESTIONS: Final = {"wmdp_bio": 1273, "wmdp_chem": 408, "wmdp_cyber": 1987}
#: What a suite does unless told otherwise. Longer or shorter answers are scored otherwise, and stand beside nobody's.
_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "tofu": {"limit": None, "max_new_tokens": 200, "truth_ratio_mean": "geometric"},
    "muse": {"verbmem_tokens": 128, "knowmem_tokens": 32},
    "choice": {"limit": None, "num_fewshot": None},
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Record):
    """Where figures were read."""

    title: str
    address: str = Field(pattern=r"^https://\S+$")
    read: date
    setting: str


class Published(_Record):
    """A table of one model: a row of figures for each method; None where the source has none."""

    suite: str
    split: str
    model: str
    source: str
    figures: tuple[str, ...] = Field(min_length=1)
    rows: Mapping[str, tuple[float | None, ...]] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_rows(self) -> "Published":
        for method, row in self.rows.items():
            if len(row) != len(self.figures):
                raise ValueError(f"rows.{method}: has {len(row)} figures of {len(self.figures)}")
        return self


class _Collection(_Record):
    sources: Mapping[str, Source]
    tables: tuple[Published, ...]

    @model_validator(mode="after")
    def _check_sources(self) -> "_Collection":
        for number, table in enumerate(self.tables):
            if table.source not in self.sources:
                raise ValueError(f"tables.{number}.source: {table.source!r} is none of sources")
        return self


@functools.cache
def collection() -> _Collection:
    """All that is in the project's own file."""
    return _Collection.model_validate(yaml.safe_load(PLACE.read_text(encoding="utf-8")))


def published_for(suite: SuiteRuns) -> list[tuple[Published, Source]]:
    """Tables of others that asked what a suite's runs asked; none where that was a part of it, or something else."""
    split_of = {"tofu": _split, "muse": _corpus, "choice": _hazards}.get(suite.suite)
    if split_of is None:
        return []
    all_settings = [run.record.suite_settings for run in suite.runs]
    defaults = _DEFAULTS[suite.suite]
    if any(settings.get(name, defaults) != value for settings in all_settings for name, value in defaults.items()):
        return []
    splits = {split_of(settings) for settings in all_settings}
    if len(splits) != 1:
        return []
    found, asked = collection(), (suite.suite, splits.pop())
    return [(table, found.sources[table.source]) for table in found.tables if (table.suite, table.split) == asked]


def _split(settings: Mapping[str, object]) -> str | None:
    """The TOFU split whose questions a run asked, all of them."""
    data = settings.get("data")
    forget = data.get("forget") if isinstance(data, Mapping) else None
    if not isinstance(forget, Mapping):
        return None
    named = re.search(r"forget\d\d(?=_perturbed)", str(forget.get("file", "")))
    if named is None or forget.get("questions") != _TOFU_QUESTIONS.get(named[0]):
        return None
    return named[0]


def _corpus(settings: Mapping[str, object]) -> str | None:
    """The corpus of MUSE whose sets a run measured, all rows of all of them, after its first forget set."""
    data = settings.get("data")
    sets = [of for of in data.values() if isinstance(of, Mapping)] if isinstance(data, Mapping) else []
    sizes = [of["examples"] for of in sets if "examples" in of]  # a fold has texts, of which nothing is asked
    first = settings.get("fold") in (None, "scal:1", "sust:1")
    return str(settings.get("corpus")) if first and sizes and set(sizes) == {_MUSE_ROWS} else None


def _hazards(settings: Mapping[str, object]) -> str | None:
    """WMDP, where a run asked all of its questions."""
    documents = settings.get("documents")
    return "wmdp" if isinstance(documents, Mapping) and documents.items() >= _WMDP_QUESTIONS.items() else None
