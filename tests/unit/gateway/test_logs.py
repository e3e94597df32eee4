"""One format for all lines, and the request in each; vLLM's own logging is configured in a process of its own."""

import json
import logging
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import LaunchError
from gateway.logs import apply_flags, log_format, tell_requests, uvicorn_config
from gateway.traffic import Arrival, _current

VARIABLE = "VLLM_LOGGING_CONFIG_PATH"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)
    logging.captureWarnings(False)


@pytest.fixture
def arrived() -> Iterator[Arrival]:
    arrival = Arrival(request_id="ticket")
    token = _current.set(arrival)
    yield arrival
    _current.reset(token)


def flags(**said: Any) -> Namespace:
    return Namespace(**{"disable_access_log_for_endpoints": None, "uvicorn_log_level": "info"} | said)


def record(name: str = "vllm.eco_gateway", message: str = "said %s", *args: Any) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, logging.INFO, "f.py", 1, message, args, None)


def test_a_line_of_text_ends_with_its_request(arrived: Arrival) -> None:
    tell_requests("text")
    assert record("x", "took %d %%", 3).getMessage() == "took 3 % [request ticket]"
    arrived.named("chatcmpl-ticket")
    arrived.named("chatcmpl-of-the-next-prompt")
    assert record("x", "100 %s", "%").getMessage() == "100 % [request chatcmpl-ticket]"


def test_a_line_of_json_has_it_as_a_field(arrived: Arrival) -> None:
    tell_requests("json")
    line: Any = record("x", "hello")
    assert (line.getMessage(), line.eco_request_id) == ("hello", "ticket")


@pytest.mark.parametrize("chosen", ["text", "json"])
def test_a_call_that_is_wrong_fails_nobody(arrived: Arrival, chosen: Any) -> None:
    tell_requests(chosen)
    assert record("x", "took %d s", "three").args == ("three",)  # which logging itself tells, when it is written
    line: Any = logging.getLogger("x").makeRecord("x", 20, "f", 1, "m", (), None, extra={"request_id": "of a plugin"})
    assert (line.request_id, line.eco_request_id) == ("of a plugin", "ticket")


def test_a_format_of_access_that_says_nothing_is_left_alone() -> None:
    given = {"formatters": {"access": {"()": "uvicorn.logging.AccessFormatter"}}}
    assert uvicorn_config(given) == given


def test_json_and_no_logging_at_all_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    with pytest.raises(LaunchError, match="VLLM_CONFIGURE_LOGGING=0"), log_format("json"):
        pass


def test_no_client_makes_lines_long(arrived: Arrival) -> None:
    arrived.request_id = "x" * 100_000
    tell_requests("text")
    assert len(record("x", "hello").getMessage()) < 200


@pytest.mark.parametrize("chosen", ["text", "json"])
def test_what_came_of_no_request_says_none(chosen: Any) -> None:
    tell_requests(chosen)
    assert record("x", "hello").getMessage() == "hello"


def test_lines_about_access_end_with_it_too(arrived: Arrival) -> None:
    import logging.config

    tell_requests("text")
    config = uvicorn_config(None)
    formatter = logging.config.DictConfigurator(config).configure_formatter(config["formatters"]["access"])
    line = record("uvicorn.access", '%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "POST", "/v1/completions", "1.1", 200)
    assert formatter.format(line).endswith('1.2.3.4:5 - "POST /v1/completions HTTP/1.1" 200 OK ticket')


def test_two_that_say_how_to_log_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/mine.json")
    with pytest.raises(LaunchError, match=VARIABLE), log_format("json"):
        pass
    with log_format("text"):
        assert os.environ[VARIABLE] == "/mine.json"
    monkeypatch.delenv(VARIABLE)
    with log_format("json"), pytest.raises(LaunchError, match="--log-config-file"):
        apply_flags(flags(log_config_file="/mine.json"), "json")
    assert VARIABLE not in os.environ


def test_flags_about_logs_hold_in_json_too() -> None:
    with log_format("json"):
        file = Path(os.environ[VARIABLE])
        assert json.loads(file.read_text())["loggers"]["vllm"]["level"] == "INFO"
        apply_flags(flags(log_level="WARNING", disable_access_log_for_endpoints="/health, /metrics"), "json")
        config = json.loads(file.read_text())
    assert config["loggers"]["vllm"]["level"] == "WARNING"
    assert config["filters"]["access"]["excluded_paths"] == ["/health", "/metrics"]
    assert not file.exists()


_PROCESS = """
import logging, sys
from argparse import Namespace
from gateway.logs import apply_flags, log_format, tell_requests
from gateway.traffic import Arrival, _current
with log_format("json"):
    import vllm.logger
    args = Namespace(disable_access_log_for_endpoints="/health", log_level="INFO")
    apply_flags(args, "json")
    vllm.logger.configure_logging_from_args(args)
    tell_requests("json")
    _current.set(Arrival(request_id="ticket-4711"))
    logging.getLogger("vllm.eco_gateway").error("prompt rejected: %s", "too\\nlong")
    access = logging.getLogger("uvicorn.access")
    access.info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", "/health", "1.1", 200)
    access.info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "POST", "/v1/completions", "1.1", 200)
    import warnings
    warnings.warn("watch out")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("of.a.library").exception("failed")
"""


def test_vllms_uvicorns_and_all_others_lines_are_json() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    told = [line for line in told if "request_id" in line]
    assert [(line["logger"], line["level"]) for line in told] == [
        ("vllm.eco_gateway", "ERROR"),
        ("uvicorn.access", "INFO"),
        ("py.warnings", "WARNING"),
        ("of.a.library", "ERROR"),
    ]
    assert {line["request_id"] for line in told} == {"ticket-4711"}
    assert told[0]["message"] == "prompt rejected: too\nlong"
    assert told[0]["time"].endswith("+00:00")
    assert "ValueError: no" in told[3]["exception"]
    assert set(told[0]) == {"time", "level", "logger", "process", "pid", "message", "request_id"}
