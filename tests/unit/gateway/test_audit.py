"""The audit log: lines that are whole, rotated, private, and never waited for."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from gateway.audit import Audit, AuditError, AuditFile


def opened(path: Path, lost: list[str], **options: Any) -> AuditFile:
    settings = {"max_bytes": 1 << 20, "backups": 2, "secret": bytes(32)} | options
    return AuditFile(path, lost=lost.append, **settings)


def test_events_are_lines_of_json_in_order(tmp_path: Path) -> None:
    lost: list[str] = []
    audit = opened(tmp_path / "logs" / "audit.jsonl", lost)
    audit.event("flagged", policy="people", score=0.9, said="é\n")
    audit.event("stopped")
    audit.close()
    first, second = map(json.loads, (tmp_path / "logs" / "audit.jsonl").read_text().splitlines())
    assert (first["event"], first["policy"], first["said"], second["event"]) == ("flagged", "people", "é\n", "stopped")
    assert first["at"].endswith("+00:00")
    assert lost == []


def test_no_client_loses_a_line_or_crowds_out_others(tmp_path: Path) -> None:
    lost: list[str] = []
    audit = opened(tmp_path / "audit.jsonl", lost)
    audit.event("flagged", request="\ud800", tenant="x" * 5_000_000)
    audit.close()
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(line) < 2000
    assert json.loads(line)["request"] == "\ud800"
    assert lost == []


def test_who_has_the_time_waits_for_room_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.audit._QUEUE_LINES", 10)
    lost: list[str] = []
    audit = opened(tmp_path / "audit.jsonl", lost)
    for number in range(2000):
        audit.event("activated", waits_s=10.0, number=number)
    audit.close()
    numbers = [json.loads(line)["number"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert (numbers, lost) == (list(range(2000)), [])


def test_a_disk_that_hangs_is_waited_for_no_longer_than_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.audit._QUEUE_LINES", 1)
    lost: list[str] = []
    audit = opened(tmp_path / "audit.jsonl", lost)
    audit._file.acquire()
    try:
        for _ in range(4):  # one is being written, one waits
            audit.event("activated", waits_s=0.01)
    finally:
        audit._file.release()
    audit.close()
    assert lost[-2:] == ["queue", "queue"]


def test_files_are_rotated_and_the_operators_alone(tmp_path: Path) -> None:
    audit = opened(tmp_path / "audit.jsonl", [], max_bytes=2000)
    for number in range(100):
        audit.event("flagged", number=number)
    audit.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    lines = "".join(file.read_text() for file in reversed(files)).splitlines()
    newest = [json.loads(line)["number"] for line in lines]
    assert newest == list(range(newest[0], 100))


def test_what_does_not_fit_is_counted_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.audit._QUEUE_LINES", 10)
    lost: list[str] = []
    audit = opened(tmp_path / "audit.jsonl", lost)
    audit._file.acquire()  # the disk hangs
    try:
        for number in range(100):
            audit.event("flagged", number=number)
    finally:
        audit._file.release()
    audit.close()
    written = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(written) + len(lost) == 100
    assert len(lost) >= 85
    assert set(lost) == {"queue"}


def test_a_disk_that_refuses_is_counted(tmp_path: Path) -> None:
    lost: list[str] = []
    audit = opened(tmp_path / "audit.jsonl", lost)
    audit._file.stream.close()
    audit._file.stream = Full()
    audit.event("flagged")
    audit.close()
    assert lost == ["disk"]


class Full:
    """A file on a full disk."""

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")

    def seek(self, *_: int) -> None: ...
    def tell(self) -> int:
        return 0

    def flush(self) -> None: ...
    def close(self) -> None: ...


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="--eco-audit-log"):
        opened(tmp_path / "file" / "audit.jsonl", [])


def test_prompts_are_told_apart_and_not_told(tmp_path: Path) -> None:
    audit, other = opened(tmp_path / "a", []), opened(tmp_path / "b", [], secret=b"1" * 32)
    assert audit.prompt_digest([1, 2]) == audit.prompt_digest([1, 2]) != audit.prompt_digest([12])
    assert audit.prompt_digest([1, 2]) != other.prompt_digest([1, 2])
    for one in (audit, other):
        one.close()


def test_without_a_file_nothing_is_kept() -> None:
    audit = Audit()
    audit.event("flagged")
    assert not audit.is_kept
    audit.close()


def test_what_has_to_be_written_first_says_whether_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    audit = opened(tmp_path / "audit.jsonl", lost)
    assert audit.recorded("compared", by="me")
    assert json.loads((tmp_path / "audit.jsonl").read_text())["event"] == "compared"
    with monkeypatch.context() as full:
        full.setattr(audit._file, "format", lambda _: (_ for _ in ()).throw(OSError("no space left")))
        assert not audit.recorded("compared", by="me")
    monkeypatch.setattr("gateway.audit._RECORDED_S", 0.05)
    audit._file.acquire()
    try:
        assert not audit.recorded("compared", by="me")
    finally:
        audit._file.release()
    audit.close()
    assert lost == ["disk"]
    assert not Audit().recorded("compared", by="me")
