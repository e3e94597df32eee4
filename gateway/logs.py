"""The log: one format for the lines of all parts of the server, each with the id of the request that it came of.

JSON is set by a `logging.config` file that vLLM reads in each of its processes as it is imported, and hands to uvicorn:
so lines from before the first flag is parsed have it too. Text is vLLM's and uvicorn's own.
"""

import contextlib
import copy
import json
import logging
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from gateway import LaunchError
from gateway.traffic import current_request_id

LogFormat = Literal["text", "json"]

_CONFIG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
#: Of an id that a client chose.
_LONGEST_ID = 128
#: What uvicorn and vLLM put into their records for formatters of text.
_NO_FIELDS = ("color_message", "vllm_process_name", "fileinfo", "taskName")


@contextlib.contextmanager
def log_format(chosen: LogFormat) -> Iterator[None]:
    """Around all of a server's life, before vLLM is imported.

    Raises:
        LaunchError: JSON is asked for, and a configuration file says how to log.
    """
    if chosen == "text":
        yield
        return
    if os.environ.get(_CONFIG_VARIABLE):
        raise LaunchError(f"--eco-log-format: {_CONFIG_VARIABLE} says how to log; unset it, or leave the flag out")
    if os.environ.get("VLLM_CONFIGURE_LOGGING") == "0":
        raise LaunchError(
            "--eco-log-format: VLLM_CONFIGURE_LOGGING=0 leaves logging alone; unset it, or leave the flag out"
        )
    with tempfile.TemporaryDirectory(prefix="eco-logs-") as folder:
        file = Path(folder) / "logging.json"
        _write(file, os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper())
        os.environ[_CONFIG_VARIABLE] = str(file)
        try:
            yield
        finally:
            os.environ.pop(_CONFIG_VARIABLE, None)


def apply_flags(args: Namespace, chosen: LogFormat) -> None:
    """Let vLLM's flags hold in the format that was chosen, before its logging is configured from them.

    Raises:
        LaunchError: JSON is asked for, and a flag names a configuration file.
    """
    if chosen == "text":
        return
    ours = os.environ[_CONFIG_VARIABLE]
    config = getattr(args, "logging_config", None)
    named = {getattr(args, "log_config_file", None), getattr(config, "pylogging_config_file", None)}
    if named - {None, ours}:
        raise LaunchError("--eco-log-format: --log-config-file says how to log; leave one of them out")
    level = getattr(args, "log_level", None) or getattr(config, "log_level", None)
    excluded = [path.strip() for path in (args.disable_access_log_for_endpoints or "").split(",")]
    _write(Path(ours), level or os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper(), excluded)


def tell_requests(chosen: LogFormat) -> None:
    """Have each line of this process say which request it came of: a field of JSON, or at the end of a line."""
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_Records(factory, in_text=chosen == "text"))
    logging.captureWarnings(chosen == "json")


def uvicorn_config(vllms: dict[str, Any] | None) -> dict[str, Any]:
    """What uvicorn is to log by: what vLLM says, or uvicorn itself, with the request's id in lines about access."""
    from uvicorn.config import LOGGING_CONFIG

    config = copy.deepcopy(vllms or LOGGING_CONFIG)
    access = config.get("formatters", {}).get("access", {})
    if access.get("()") == "uvicorn.logging.AccessFormatter" and "fmt" in access:
        access["fmt"] += " %(eco_request_id)s"
    return config


class _Records:
    """Makes records with the id of the request that the running task works for."""

    def __init__(self, factory: Any, *, in_text: bool) -> None:
        self._factory = factory
        self._in_text = in_text

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._factory(*args, **kwargs)
        found = current_request_id()
        request_id = None if found is None else found[:_LONGEST_ID]
        if not self._in_text:
            if request_id is not None:
                record.eco_request_id = request_id
            return record
        record.eco_request_id = request_id or "-"
        if request_id is not None and record.name != "uvicorn.access":  # which makes its lines of other fields
            try:
                message = record.getMessage()
            except Exception:  # noqa: BLE001 - logging itself says so, and the request goes on
                return record
            record.msg, record.args = f"{message} [request {request_id}]", ()
        return record


def _write(file: Path, level: str, excluded_paths: Sequence[str] = ()) -> None:
    shared = {"handlers": ["json"], "propagate": False}
    formatter = {
        "()": "pythonjsonlogger.json.JsonFormatter",
        "format": ["levelname", "name", "processName", "process", "message"],
        "rename_fields": {
            "levelname": "level",
            "name": "logger",
            "processName": "process",
            "process": "pid",
            "exc_info": "exception",
            "eco_request_id": "request_id",
        },
        "timestamp": "time",
        "reserved_attrs": [*_reserved(), *_NO_FIELDS],
    }
    access_filter = {
        "()": "vllm.logging_utils.uvicorn_logging.UvicornAccessLogFilter",
        "excluded_paths": [path for path in excluded_paths if path],
    }
    handler = {
        "class": "logging.StreamHandler",
        "formatter": "json",
        "stream": os.environ.get("VLLM_LOGGING_STREAM", "ext://sys.stdout"),
    }
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": formatter},
        "filters": {"access": access_filter},
        "handlers": {"json": handler, "access": {**handler, "filters": ["access"]}},
        "loggers": {
            "vllm": {**shared, "level": level},
            "uvicorn": {**shared, "level": "INFO"},
            "uvicorn.error": {**shared, "level": "INFO"},
            "uvicorn.access": {"handlers": ["access"], "propagate": False, "level": "INFO"},
        },
        "root": {"handlers": ["json"], "level": "WARNING"},
    }
    file.write_text(json.dumps(config), encoding="utf-8")


def _reserved() -> list[str]:
    from pythonjsonlogger.core import RESERVED_ATTRS

    return list(RESERVED_ATTRS)
