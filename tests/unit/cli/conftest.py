import pytest
from eco_command import Eco, run


@pytest.fixture
def eco(capsys: pytest.CaptureFixture[str]) -> Eco:
    """Runs the command; gives its exit code and all it printed, on one line."""

    def run_joined(*arguments: object) -> tuple[int, str]:
        code, out, err = run(arguments, capsys)
        return code, " ".join((out + err).split())

    return run_joined
