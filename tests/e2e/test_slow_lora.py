"""A served LoRA adapter: unflagged answers equal plain vLLM's, flagged prompts are masked as ever. On vLLM's V2 model
runner as well, where Triton is (`v2_runner`)."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recorded_gateway import environment, free_port, recording_gateway
from test_guarded_api import assert_protected, content_mask
from test_parity import answers, post

from demo.probes import Probe
from demo.servers import plain_server

if TYPE_CHECKING:
    from demo.models import DemoBuild

pytestmark = pytest.mark.slow


@pytest.fixture
def adapter(demo_build: "DemoBuild", tmp_path: Path) -> Path:
    """A random adapter, strong enough to change answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(demo_build.model)
    config = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(params=["V1", "V2"])
def runner(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that makes a server take it."""
    variables: dict[str, str] = {} if request.param == "V1" else request.getfixturevalue("v2_runner")
    return variables


def test_adapter(
    demo_build: "DemoBuild",
    demo_policy: Path,
    adapter: Path,
    asked: list[Probe],
    runner: dict[str, str],
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    flags = ("--enable-lora", "--lora-modules", f"adapter={adapter}", "--max-lora-rank", "8")
    tokenizer = AutoTokenizer.from_pretrained(demo_build.model)
    flagged = next(p for p in asked if p.group == "forgotten" and p.kind == "held_out")
    retained = [p for p in asked if p.group == "retained" and p.kind == "held_out"][:: 200 if runner else 80]

    def ask(url: str) -> list[object]:
        bodies = [
            {"model": model, "messages": list(p.messages), "max_tokens": 6 if runner else 12, "logprobs": True}
            for p in retained
            for model in ("demo", "adapter")
        ]
        return [answers(post(url, "/v1/chat/completions", body)) for body in bodies]

    gateway = recording_gateway(demo_build.model, [demo_policy], tmp_path, flags=flags, variables=runner)
    plain = plain_server(
        demo_build.model,
        port=free_port(),
        log=tmp_path / "plain.log",
        flags=flags,
        environment=environment(0) | runner,
    )
    with gateway.server as server:
        ours = ask(server.url)
        gateway.received()
        post(server.url, "/v1/chat/completions", {"model": "adapter", "messages": list(flagged.messages)})
        assert_protected(gateway.received(), *content_mask(tokenizer, flagged.question))
    with plain as server:
        assert ours == ask(server.url)
    assert ours[0] != ours[1]
