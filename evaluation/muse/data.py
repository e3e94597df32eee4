"""MUSE's data: MUSE-News and MUSE-Books of the hub, or a folder of the form that muse_bench's `load_data.py` leaves.

Sets, with their columns, are its own:

- `verbmem/forget`: `prompt` and `gt`, how a text of the forget set begins and how it goes on;
- `knowmem/forget_qa` and `knowmem/retain_qa`: `question` and `answer`; with `_icl` behind the name, those that are
  shown before every question;
- `privleak/forget` and `privleak/holdout`: `text`; a file may be a list of texts. The second was never learned;
- `scal/forget_1` to `_4`, forget sets of which each holds the one before, and `sust/forget_1` to `_4`, which follow
  each other: `text`. News only.

Read: muse_bench's `load_data.py`, `constants.py`, and the description of the sets in its authors' first repository.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from evaluation.errors import DataError
from evaluation.rows import question_id, read_rows
from sources import HUB_PREFIX, Row

Corpus = Literal["news", "books"]
CORPORA: Final[tuple[Corpus, ...]] = get_args(Corpus)

#: Forget sets of growing size, and successive ones: "scal:1" to "scal:4", "sust:1" to "sust:4". The first is `raw`'s.
FOLDS: Final = tuple(f"{criterion}:{number}" for criterion in ("scal", "sust") for number in range(1, 5))

_HUB: Final = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
#: Of one set: as `load_data.py` writes it, as JSON lines, or as the hub's repository holds it.
_ENDINGS: Final = (".json", ".jsonl", "-00000-of-00001.parquet")


@dataclass(frozen=True, slots=True)
class Item:
    """One row.

    Attributes:
        example: its id.
        given: a text's beginning, or a question; "" where a whole text is looked at.
        wanted: how the text goes on, the answer, or the whole text.
    """

    example: str
    given: str
    wanted: str


def set_source(corpus: str, data: str | None, config: str, split: str) -> str:
    """Where a set lies, as `sources.read_source` takes it.

    Args:
        data: a folder, with or without a folder for each corpus in it; or a data set of the same form (`hf:org/name`);
            None: the hub's.
        config, split: "verbmem" and "forget", for example.

    Raises:
        DataError: there is no such corpus, or the folder does not have the set.
    """
    if corpus not in CORPORA:
        raise DataError(f"--corpus: {corpus!r} is none of {', '.join(CORPORA)}")
    if data is None or data.startswith(HUB_PREFIX):
        return f"{data or HUB_PREFIX + _HUB[corpus]}:{config}:{split}"
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise DataError(f"--data: {data}: no such folder; give one of the form that MUSE's load_data.py leaves")
    if any((folder / one).is_dir() for one in CORPORA):
        folder = folder / corpus
    files = [folder / config / f"{split}{ending}" for ending in _ENDINGS]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise DataError(f"--data: {data}: has no {config}/{split}.json of --corpus {corpus}; add it, or name another")
    return str(found)


def read_items(source: str, columns: tuple[str, ...]) -> list[Item]:
    """All rows of a set, at least one.

    Args:
        columns: of what is given and of what is wanted; of a whole text, its only one.

    Raises:
        DataError: the source cannot be read, or a row lacks a column or has no text there.
    """
    items = []
    for number, (where, row) in enumerate(read_rows(source, name="data", columns=columns)):
        texts = [_text(row, column, where) for column in columns]
        given, wanted = texts if len(texts) > 1 else ("", texts[0])
        items.append(Item(question_id(number, given, wanted), given, wanted))
    return items


def read_fold(corpus: str, data: str | None, fold: str) -> list[Item]:
    """The texts of one of `FOLDS`.

    Raises:
        DataError: there is no such fold, or the corpus has none.
    """
    if fold not in FOLDS:
        raise DataError(f"--fold: {fold!r} is none of {', '.join(FOLDS)}")
    if corpus == "books" and data is None:
        raise DataError("--fold: MUSE-Books has no folds; leave it out, or measure --corpus news")
    criterion, number = fold.split(":")
    return read_items(set_source(corpus, data, criterion, f"forget_{number}"), ("text",))


def _text(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        return value
    problem = "is missing" if value is None else "is empty" if isinstance(value, str) else "is no text"
    raise DataError(f"{where}: {column}: {problem}; each row of this set of MUSE has text there")
