import hashlib
import hmac
import stat
import threading
from pathlib import Path

import pytest

from guard import SecretError, load_or_create_secret, row_seeds


def test_made_on_first_use_private_and_stable(tmp_path: Path) -> None:
    path = tmp_path / "config" / "secret"
    secret = load_or_create_secret(path)
    assert len(secret) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_secret(path) == secret
    assert [child.name for child in path.parent.iterdir()] == ["secret"]


def test_many_first_uses_at_once_agree(tmp_path: Path) -> None:
    path, found = tmp_path / "secret", []
    threads = [threading.Thread(target=lambda: found.append(load_or_create_secret(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [("zz", 0o600, "hexadecimal"), ("ab" * 8, 0o600, "at least 32"), ("ab" * 32, 0o644, "chmod 600")],
)
def test_unusable_secrets_are_refused(tmp_path: Path, content: str, mode: int, said: str) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(SecretError, match=said):
        load_or_create_secret(path)


def test_seeds_follow_the_documented_formula() -> None:
    secret = bytes(range(32))
    mac = hmac.new(secret, b"digest\0" + (7).to_bytes(8, "big"), hashlib.sha256).digest()
    assert row_seeds(secret, "digest", [7]) == [int.from_bytes(mac[:8], "big") >> 1]


def test_seeds_depend_on_token_policy_and_secret_only() -> None:
    secret = bytes(32)
    seeds = row_seeds(secret, "a", [5, 9, 5])
    assert seeds[0] == seeds[2] != seeds[1]
    assert row_seeds(secret, "a", [9])[0] == seeds[1]
    assert row_seeds(secret, "b", [5]) != seeds[:1]
    assert row_seeds(bytes(31) + b"\1", "a", [5]) != seeds[:1]
    assert all(0 <= seed < 2**63 for seed in seeds)
