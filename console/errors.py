"""The root of every error the project raises on purpose, and other libraries' errors as one line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST_LINE = 200


class EcoError(Exception):
    """Root of all errors: the message is one line a person can act on. `eco` prints it and exits with code 2."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, cut to 200 characters; its class where it says nothing."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0][:_LONGEST_LINE] if text else type(error).__name__


def first_problem(error: "ValidationError", whole: str = "contents") -> str:
    """`field.part: what is wrong` of the first problem that pydantic found; `whole` where no one field is at fault."""
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or whole}: {problem['msg']}"
