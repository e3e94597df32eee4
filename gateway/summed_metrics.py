"""The guard's metrics where several front ends count: each keeps its own in files, the admin address shows their sum.

This is prometheus_client's multiprocess mode, in a second folder. vLLM's files lie in `$PROMETHEUS_MULTIPROC_DIR`, and
its public `/metrics` shows whatever is there; verdicts are for operators only.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest, values
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

_GUARDS = "eco_"


def keep_apart(folder: Path | None) -> None:
    """Keep this process' guard metrics out of vLLM's files from here on: in `folder`, or in memory where it is None."""
    if getattr(values.ValueClass, "is_apart", False):
        return
    guards = values.MutexValue if folder is None else functools.partial(_FileValue, _Files(folder))
    values.ValueClass = _value_class(guards, values.ValueClass)


def summed(folder: Path, is_ready: Callable[[], bool]) -> bytes:
    """What `/metrics` says: vLLM's metrics, and those of the guards that write to `folder`."""
    vllms, guards = CollectorRegistry(), CollectorRegistry()
    MultiProcessCollector(vllms)  # type: ignore[no-untyped-call]
    guards.register(_Sum(folder, is_ready))
    return generate_latest(vllms) + generate_latest(guards)


def _value_class(guards: Callable[..., Any], others: Callable[..., Any]) -> Any:
    def value(kind: str, metric: str, *arguments: Any, **options: Any) -> Any:
        make = guards if metric.startswith(_GUARDS) else others
        return make(kind, metric, *arguments, **options)

    value.is_apart = True  # type: ignore[attr-defined]
    return value


class _Sum:
    """Counters and histograms are added up; a gauge of one process means nothing, so readiness is asked for."""

    def __init__(self, folder: Path, is_ready: Callable[[], bool]) -> None:
        self._files = MultiProcessCollector(None, path=str(folder))  # type: ignore[no-untyped-call]
        self._is_ready = is_ready

    def _read(self) -> Iterator[Metric]:
        yield from self._files.collect()  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        yield from (metric for metric in self._read() if metric.type != "gauge")
        yield GaugeMetricFamily("eco_ready", "1 while every front end's guard answers", float(self._is_ready()))


class _Files:
    """One file for each type of metric, named as `MultiProcessCollector` reads them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, MmapedDict] = {}
        self.lock = threading.Lock()

    def of(self, kind: str) -> MmapedDict:
        if kind not in self._open:
            path = self._folder / f"{kind}_{os.getpid()}.db"
            self._open[kind] = MmapedDict(str(path))  # type: ignore[no-untyped-call]
        return self._open[kind]


class _FileValue:
    """A number of a metric, as prometheus_client's own value classes, kept in a file."""

    def __init__(
        self,
        files: _Files,
        kind: str,
        metric: str,
        name: str,
        labels: Any,
        label_values: Any,
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self._lock = files.lock
        with self._lock:
            self._file = files.of(f"gauge_{multiprocess_mode}" if kind == "gauge" else kind)
            self._key = mmap_key(metric, name, labels, label_values, help_text)
            self._value, _timestamp = self._file.read_value(self._key)  # type: ignore[no-untyped-call]

    def inc(self, amount: float) -> None:
        with self._lock:
            self._write(self._value + amount)

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002 - prometheus_client's
        with self._lock:
            self._write(value)

    def _write(self, value: float) -> None:
        self._value = value
        self._file.write_value(self._key, value, 0.0)  # type: ignore[no-untyped-call]

    def get(self) -> float:
        return float(self._value)

    def set_exemplar(self, exemplar: Any) -> None:
        """Not kept in files."""

    def get_exemplar(self) -> None:
        return None
