"""Who may use the admin address."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway import LaunchError
from gateway.admin_key import AdminDoor, AdminKeys, check_admin_address

KEY, OTHER = "a-key-of-the-operators", "another-key-of-theirs"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{OTHER}\n")
    return file


async def ask(keys: AdminKeys, path: str = "/v1/policies", **headers: str) -> int:
    app = FastAPI()

    @app.get("/{path:path}")
    async def everything(path: str) -> dict[str, Any]:
        return {"path": path}

    transport = httpx.ASGITransport(app=AdminDoor(app, keys))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
        return (await client.get(path, headers=headers)).status_code


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        (f"Bearer {KEY}", 200),
        (f"bearer {OTHER}", 200),
        (f"Bearer {KEY}x", 401),
        (f"Basic {KEY}", 401),
        ("Bearer ", 401),
        (KEY, 401),
    ],
)
async def test_one_of_the_keys_is_asked_for(key_file: Path, header: str | None, status: int) -> None:
    headers = {} if header is None else {"Authorization": header}
    assert await ask(AdminKeys(key_file), **headers) == status


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
async def test_probes_have_no_key(key_file: Path, path: str) -> None:
    assert await ask(AdminKeys(key_file), path) == 200


@pytest.mark.parametrize("path", ["/livez/", "/LIVEZ", "/v1/livez", "/metrics/x", "/livez%2f..%2fv1"])
async def test_nothing_else_passes_for_a_probe(key_file: Path, path: str) -> None:
    assert await ask(AdminKeys(key_file), path) == 401


def gone(file: Path) -> None:
    file.unlink()


async def test_keys_are_rotated_without_a_restart(key_file: Path) -> None:
    keys = AdminKeys(key_file)
    key_file.with_name("new").write_text("a-key-that-is-new-now\n")
    key_file.with_name("new").replace(key_file)
    keys.refresh()
    assert await ask(keys, Authorization=f"Bearer {KEY}") == 401
    assert await ask(keys, Authorization="Bearer a-key-that-is-new-now") == 200
    gone(key_file)
    with pytest.raises(LaunchError, match="cannot be read"):
        keys.refresh()
    assert await ask(keys, Authorization="Bearer a-key-that-is-new-now") == 200


@pytest.mark.parametrize("content", ["", "\n", "short\n"])
def test_a_file_without_a_key_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(LaunchError, match="one key a line"):
        AdminKeys(tmp_path / "keys")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8001"}, 200),
        ({"Host": "[::1]:8001"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1:8001"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "http://localhost:8001"}, 403),
        ({"Origin": "http://localhost:8001", "Host": "localhost:8001"}, 200),
    ],
)
async def test_without_a_key_no_web_page_elsewhere_may_ask(headers: dict[str, str], status: int) -> None:
    assert await ask(AdminKeys(None), **headers) == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gateway.internal"])  # noqa: S104
def test_beyond_this_machine_there_must_be_a_key(host: str, key_file: Path) -> None:
    with pytest.raises(LaunchError, match="--eco-admin-key-file"):
        check_admin_address(host, AdminKeys(None))
    check_admin_address(host, AdminKeys(key_file))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_on_this_machine_there_need_not_be_one(host: str) -> None:
    check_admin_address(host, AdminKeys(None))
