"""`eco` with one addition: what the engine's `add_request` receives is appended to a file, for tests to assert on.

With `STALL_GUARD` in the environment, the guard works for ever and never has a verdict.

python recording_server.py RECORDS eco-arguments…

Several front ends are spawned from this script, which runs in each of them under another name.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from cli.main import main


def record_to(path: Path) -> None:
    original = AsyncLLM.add_request

    async def add_request(self: AsyncLLM, request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if not request_id.startswith("eco-self-test"):
            with path.open("a") as file:
                file.write(json.dumps({"request_id": request_id, "process": os.getpid(), **describe(prompt)}) + "\n")
        return await original(self, request_id, prompt, *args, **kwargs)

    AsyncLLM.add_request = add_request


def stall_guard() -> None:
    from guard import Guard

    def work(self: Guard, token_ids: Any) -> Generator[int, None, Any]:
        while True:
            time.sleep(0.001)
            yield 1000

    Guard.protect_in_pieces = work  # type: ignore[method-assign]


def describe(prompt: Any) -> dict[str, Any]:
    if not isinstance(prompt, dict):
        return {"type": type(prompt).__name__}
    known: dict[str, Any] = {"type": prompt["type"], "token_ids": prompt.get("prompt_token_ids")}
    if prompt["type"] == "embeds":
        rows = prompt["prompt_embeds"]
        known["mask"] = [not real for real in prompt["is_token_ids"]]
        known["rows"] = [hashlib.sha256(row.float().numpy().tobytes()).hexdigest() for row in rows]
        known["dtype"] = str(rows.dtype)
    return known


if __name__ in {"__main__", "__mp_main__"}:
    record_to(Path(sys.argv[1]))
    if os.environ.get("STALL_GUARD"):
        stall_guard()
if __name__ == "__main__":
    main(sys.argv[2:])
