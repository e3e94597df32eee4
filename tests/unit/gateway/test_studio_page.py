"""The studio's files: all served, to nobody's harm, and nothing in them that a strict policy would have to allow."""

import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from gateway.admin_key import AdminDoor, AdminKeys
from gateway.studio.page import _FILES, PAGE_PATHS, page_routes

FILES = sorted(_FILES.iterdir())
KEY = "a-key-of-the-operators"


async def ask(path: str, *, key_file: Path | None = None, method: str = "GET", **headers: str) -> httpx.Response:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(page_routes())
    transport = httpx.ASGITransport(app=AdminDoor(app, AdminKeys(key_file)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
        return await client.request(method, path, headers=headers)


async def test_every_file_is_served_with_a_strict_policy() -> None:
    assert {file.name for file in FILES} >= {"index.html", "main.js", "studio.css"}
    for file in FILES:
        answer = await ask("/studio/" if file.name == "index.html" else f"/studio/{file.name}")
        assert (answer.status_code, answer.content) == (200, file.read_bytes())
        policy = answer.headers["content-security-policy"]
        for said in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'"):
            assert said in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/studio"])
async def test_the_address_alone_leads_there(path: str) -> None:
    answer = await ask(path)
    assert (answer.status_code, answer.headers["location"]) == (307, "studio/")


async def test_the_page_needs_no_key_and_nothing_else_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    for path in PAGE_PATHS:
        assert (await ask(path, key_file=tmp_path / "keys")).status_code in {200, 307}
    for path in ("/studio/page.py", "/studio/../v1/status", "/studio/%2e%2e/page.py", "/studio//", "/studio/x"):
        assert (await ask(path, key_file=tmp_path / "keys")).status_code == 401
    assert (await ask("/studio/", method="POST")).status_code == 405


async def test_without_a_key_another_name_for_this_machine_is_refused() -> None:
    assert (await ask("/studio/", Host="rebound.example")).status_code == 403


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_asks_anybody_else_or_makes_markup(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for name in ("http://www.w3.org/2000/svg",):
        text = text.replace(name, "")
    for pattern in (
        r"https?://",
        r"\binnerHTML\b",
        r"\bouterHTML\b",
        r"insertAdjacentHTML",
        r"document\.write",
        r"\beval\(",
    ):
        assert not re.search(pattern, text), pattern
    if file.suffix == ".html":
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", text)
    if file.suffix == ".js":
        assert "localStorage" not in text
