"""The operator's noise secret: made on first use, the same on all replicas, never part of a bundle."""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from guard.errors import SecretError

SECRET_BYTES = 32


def load_or_create_secret(path: str | Path) -> bytes:
    """The secret in `path` (hex text), created with mode 0600 where the file does not exist yet.

    Two processes that start together agree: the file is linked into place, and the loser reads the winner's.

    Raises:
        SecretError: unreadable, not hex, shorter than 32 bytes, or readable by other users.
    """
    path = Path(path)
    if not path.exists():
        _create(path)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
        secret = bytes.fromhex(text)
    except OSError as error:
        raise SecretError(f"secret file {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SecretError(
            f"secret file {path}: expected {2 * SECRET_BYTES} hexadecimal digits; delete it to have a new one made"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SecretError(f"secret file {path}: readable by other users; run chmod 600 {path}")
    if len(secret) < SECRET_BYTES:
        raise SecretError(
            f"secret file {path}: {len(secret)} bytes, expected at least {SECRET_BYTES}; "
            "delete it to have a new one made"
        )
    return secret


def _create(path: Path) -> None:
    # Not the process id: replicas in containers that share the folder are all process 1.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
        # link, not rename: a secret another replica has just made is never overwritten.
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except OSError as error:
        raise SecretError(f"secret file {path}: cannot be created ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def row_seeds(secret: bytes, policy_digest: str, token_ids: Sequence[int]) -> list[int]:
    """One seed in [0, 2**63) per token: HMAC-SHA256(secret, policy digest, token id).

    A function of the token alone, so a nonce elsewhere in the prompt buys no new draw to average over, and
    the rows of earlier turns stay as they were.
    """
    prefix = hmac.new(secret, policy_digest.encode("ascii") + b"\0", hashlib.sha256)
    seeds: dict[int, int] = {}
    for token_id in token_ids:
        if token_id not in seeds:
            mac = prefix.copy()
            mac.update(token_id.to_bytes(8, "big"))
            seeds[token_id] = int.from_bytes(mac.digest()[:8], "big") >> 1
    return [seeds[token_id] for token_id in token_ids]
