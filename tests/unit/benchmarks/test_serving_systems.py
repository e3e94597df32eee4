from pathlib import Path

import httpx
import pytest

from benchmarks.serving_systems import System
from demo.servers import ServerProcess


def test_tokens_are_those_that_the_server_behind_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '# HELP vllm:generation_tokens_total n\nvllm:generation_tokens_total{engine="0"} 32.0\n'
    text += 'vllm:generation_tokens_total{engine="1"} 10.0\nvllm:generation_tokens_created{engine="0"} 1.7e+09\n'
    asked = []

    def get(url: str, **_: object) -> httpx.Response:
        asked.append(url)
        return httpx.Response(200, text=text)

    monkeypatch.setattr(httpx, "get", get)
    proxy, plain = (ServerProcess([], port=port, log=Path("log")) for port in (1, 2))
    system = System("litellm", [proxy, plain])
    assert (system.generated(), system.corrupted(), asked) == (42, None, ["http://127.0.0.1:2/metrics"])
