"""Jobs that ask a served model: what they are told alike, and the connection. Any server with OpenAI's API will do."""

import math
from pathlib import Path
from typing import Final

from pydantic import Field

from endpoints.server import EndpointError, Server, chat_server, listed_models
from offline_training.errors import JobError, SettingsError
from offline_training.settings import Schema, check_least

ENDPOINT_FLAG: Final = "--endpoint"


class ServedOptions(Schema):
    """How a server is asked, and where what comes of it goes."""

    out: Path = Field(description="File to write.")
    endpoint_model: str | None = Field(None, description="The server's model; None: the first that it lists.")
    cache: Path | None = Field(
        None,
        description="Folder for the server's replies; None: beside --out. An interrupted job asks for the missing "
        "ones only.",
    )
    concurrency: int = Field(8, description="Requests at once.")
    timeout_s: float = Field(120.0, description="Longest wait for one reply, in seconds.")
    force: bool = Field(False, description="Replace --out.")

    @property
    def replies(self) -> Path:
        """The folder for the server's replies."""
        return self.cache or self.out.with_name(f"{self.out.stem}-replies")

    def check(self) -> None:
        """Raises `SettingsError` for what cannot be, `JobError` where `out` is there already."""
        check_least(self, {"concurrency": 1})
        if not 0 < self.timeout_s < math.inf:
            raise SettingsError(f"--timeout-s: must be above 0, not {self.timeout_s}")
        if self.out.exists() and not self.force:
            raise JobError(f"--out: {self.out} exists; choose another file, or replace it with --force")


def connected(endpoint: str, model: str | None, *, concurrency: int, timeout_s: float) -> tuple[Server, str]:
    """The server, and the model to ask: `model`, or the first that it lists. Asks once, without patience.

    Raises:
        JobError: `endpoint` is no URL, nobody answers there, or no model is listed and none named.
    """
    try:
        server = chat_server(endpoint, ENDPOINT_FLAG, concurrency=concurrency, timeout_s=timeout_s)
    except EndpointError as error:
        raise JobError(str(error)) from error
    if model is not None:
        return server, model
    try:
        listed = listed_models(server)
    except EndpointError as error:
        problem = f"{ENDPOINT_FLAG}: {endpoint}: {error.problem}; start the server, fix the URL, or name the model"
        raise JobError(problem) from error
    if not listed:
        raise JobError(f"{ENDPOINT_FLAG}: {endpoint}: lists no models at /v1/models; check the URL, or name the model")
    return server, str(listed[0]["id"])
