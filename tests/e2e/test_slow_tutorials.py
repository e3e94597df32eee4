"""The tutorials do what they say: their files are written, their commands run in order, their output compared."""

import doctest
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recorded_gateway import free_port

from cli.main import main
from demo.servers import ServerProcess
from sources.everyday import general_prompts

if TYPE_CHECKING:
    from demo.models import DemoBuild

PAGES = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
#: Of the everyday prompts that a build adds: a quarter, enough for a guarantee at 1 %, and half the time.
EVERYDAY = 650

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(page.stem for page in PAGES.glob("*.md")))
def test_a_tutorial_does_what_it_says(
    name: str,
    demo_build: "DemoBuild",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = general_prompts()[:: len(general_prompts()) // EVERYDAY]
    for module in ("classifiers.training.corpus", "classifiers.training.head"):
        monkeypatch.setattr(f"{module}.general_prompts", lambda: few)
    for variable, value in {"MODEL": str(demo_build.model), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    said, servers = "", []
    try:
        for language, title, text in _BLOCK.findall((PAGES / f"{name}.md").read_text(encoding="utf-8")):
            if language == "json":
                Path(title).write_text(text, encoding="utf-8")
            elif language == "bash":
                said = ""
                for command in text.splitlines():
                    program, *arguments = shlex.split(os.path.expandvars(command))
                    assert program == "eco"
                    if arguments[0] == "serve":
                        servers.append(served(arguments, tmp_path / "server.log", monkeypatch))
                    else:
                        main(arguments)
                        said += capsys.readouterr().out
            else:
                expect(text, said)
    finally:
        for server in servers:
            server.stop()


def served(arguments: list[str], log: Path, monkeypatch: pytest.MonkeyPatch) -> ServerProcess:
    """The tutorial's server on ports that are free here, where `eco policy` finds it."""
    port, admin = free_port(), free_port()
    monkeypatch.setenv("ECO_ADMIN_URL", f"http://127.0.0.1:{admin}")
    ports = ["--host", "127.0.0.1", "--port", str(port), "--eco-admin-port", str(admin)]
    server = ServerProcess(["eco", *arguments, *ports], port=port, log=log)
    server.start()
    server.wait_until_healthy()
    return server


def expect(shown: str, said: str) -> None:
    """What a page shows is what was printed; `...` stands for anything, as in doctest, at both ends as well."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(f"...{shown.rstrip()}...\n", said, flags), said
