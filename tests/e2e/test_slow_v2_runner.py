"""vLLM's V2 model runner, which is the default on GPUs, on a CPU: its Triton kernels run in Triton's interpreter.

Two pipeline stages as well, which only that runner has on a CPU, and two tensor-parallel workers. Triton
(docs/dependencies.md) is in no CPU lock: it is taken from the folder $ECO_TRITON, which `make test-v2-runner` fills;
skipped without.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from recorded_gateway import FLAGS, RecordingGateway, environment, free_port, recording_gateway
from test_guarded_api import CHATS, assert_passed, assert_protected, content_mask
from test_parity import answers, post

from demo.probes import Probe
from demo.servers import plain_server

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow

WAYS = {
    "two stages": ("--pipeline-parallel-size", "2", *FLAGS),
    "two workers": ("--tensor-parallel-size", "2", *FLAGS),
}

#: vLLM's kernel for grammars stores under a mask of a type that Triton's interpreter does not take.
NOT_INTERPRETED = ("json_schema", "tools")


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def gateway(
    demo_build: "DemoBuild",
    demo_policy: Path,
    flags: tuple[str, ...],
    v2_runner: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RecordingGateway]:
    folder = tmp_path_factory.mktemp("v2")
    gateway = recording_gateway(demo_build.model, [demo_policy], folder, flags=flags, variables=v2_runner)
    with gateway.server:
        yield gateway


def test_masks_and_parity(
    gateway: RecordingGateway,
    demo_build: "DemoBuild",
    flags: tuple[str, ...],
    v2_runner: dict[str, str],
    asked: list[Probe],
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_build.model)
    flagged = [p for p in asked if p.group == "forgotten" and p.kind == "held_out"][::24]
    retained = [p for p in asked if p.group == "retained" and p.kind == "held_out"][::96]
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=300)
    for name, call in CHATS.items():
        if name in NOT_INTERPRETED:
            continue
        call(client, flagged[0].question)
        assert_protected(gateway.received(), *content_mask(tokenizer, flagged[0].question))
    CHATS["chat"](client, retained[0].question)
    assert_passed(gateway.received(), content_mask(tokenizer, retained[0].question)[0])
    for probe in flagged:
        assert not probe.passed_by(CHATS["chat"](client, probe.question).choices[0].message.content)
    texts = [p.question for p in retained]
    texts.append(" ".join(p.question for p in asked if p.group == "retained" and p.kind == "held_out")[:700])
    texts.append(texts[-1])  # several prefill steps; the second time its blocks are cached

    def unflagged_answers(url: str) -> list[Any]:
        body = {"max_tokens": 8, "logprobs": True}
        chats = [[{"role": "user", "content": text}] for text in texts]
        return [answers(post(url, "/v1/chat/completions", body | {"messages": chat})) for chat in chats]

    ours = unflagged_answers(gateway.url)
    gateway.server.stop()  # two interpreted engines at once are too slow
    plain = plain_server(
        demo_build.model,
        port=free_port(),
        log=tmp_path / "plain.log",
        flags=flags,
        environment=environment(0) | v2_runner,
    )
    with plain:
        assert ours == unflagged_answers(plain.url)
