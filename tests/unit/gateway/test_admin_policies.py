"""`/v1` of the admin address, by HTTP; the guard's classifier is a fake, folder and archives are real."""

import io
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_fakes import BOS, FORBIDDEN, FakeClassifier, RecordingAudit, guard_with
from policies.conftest import make_bundle  # noqa: F401 - a fixture
from policies.test_active_policies import Loader

from gateway.admin import build_admin_app
from gateway.admin_policies import policy_routes
from gateway.metrics import GuardMetrics
from gateway.policies.active import ActivePolicies
from gateway.policies.archive import pack
from gateway.policies.folder import PolicyFolder
from gateway.protector import Protector
from guard import PolicyBundle


class Admin:
    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, *, has_folder: bool = True) -> None:
        place.mkdir(exist_ok=True)
        self.place, self.audit, self.metrics = place, RecordingAudit(), GuardMetrics()
        loader: Any = Loader()
        folder = PolicyFolder(place) if has_folder else None
        self.policies = ActivePolicies((), folder, loader, ["base"], lambda: bytes(32), self.metrics, self.audit)
        self.policies.start(lambda loaded, _: guard_with(monkeypatch, FakeClassifier(), loaded), ())
        self.protector = Protector(self.metrics, timeout_s=20.0)
        self.protector.start()
        routes = policy_routes(self.policies, self.protector, self.render, str, self.everywhere)
        app = build_admin_app([routes], lambda: b"", self.healthy, lambda: None)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001")

    @staticmethod
    def render(said: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(said, str):
            return [int(word) for word in said.split()]
        return [BOS, *(int(word) for message in said for word in message["content"].split())]

    async def everywhere(self, digest: str) -> bool:
        return digest == self.policies.current.digest

    async def healthy(self) -> None: ...

    async def push(self, bundle: PolicyBundle) -> httpx.Response:
        out = io.BytesIO()
        pack(bundle.path, out)
        return await self.client.post(
            "/v1/policies", content=out.getvalue(), headers={"Content-Type": "application/gzip"}
        )

    async def activate(self, name: str = "people", **change: Any) -> httpx.Response:
        return await self.client.post(f"/v1/policies/{name}/activation", json=change, headers={"X-Eco-By": "me"})

    async def shown(self, name: str = "people") -> dict[str, Any]:
        answer = await self.client.get(f"/v1/policies/{name}")
        return answer.json()  # type: ignore[no-any-return]


@pytest.fixture
async def admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Admin]:
    made = Admin(tmp_path / "policies", monkeypatch)
    yield made
    await made.client.aclose()
    made.protector.stop()
    made.policies.close()


def said(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


async def test_a_policys_whole_life(admin: Admin, make_bundle, tmp_path: Path) -> None:  # noqa: F811
    first, second = (make_bundle(tmp_path / version, version=version) for version in "12")
    assert (await admin.push(first)).json() == {"name": "people", "version": "1", "digest": first.digest}
    assert (await admin.shown())["active"] is False
    answer = await admin.activate(action="observe")
    assert (answer.status_code, answer.json()["action"], answer.json()["everywhere"]) == (200, "observe", True)
    assert (await admin.activate(action=None, share=50)).json()["share"] == 50
    await admin.push(second)
    state = (await admin.activate(version=second.digest[:12], share=None, tenants=["acme"])).json()
    assert (state["version"], state["share"], state["tenants"], state["action"]) == ("2", 100, ["acme"], "corrupt")
    state = (await admin.client.post("/v1/policies/people/rollback")).json()
    assert (state["version"], state["share"], state["tenants"]) == ("1", 50, None)
    assert [entry["event"] for entry in state["history"]] == ["activated"] * 3 + ["rolled back"]
    assert state["history"][0]["by"] == "me"
    assert set(state["versions"]) == {first.digest, second.digest}
    assert (await admin.activate(active=False)).json()["active"] is False
    assert (await admin.client.delete("/v1/policies/people")).json()["deleted"] == "people"
    assert (await admin.client.get("/v1/policies")).json() == {"policies": [], "refused": {}}
    assert (await admin.client.get("/v1/policies/people")).status_code == 404


async def test_what_a_change_leaves_out_stays(admin: Admin, make_bundle, tmp_path: Path) -> None:  # noqa: F811
    await admin.push(make_bundle(tmp_path / "x"))
    await admin.activate(action="observe", share=20, models=["base"])
    state = (await admin.activate(share=40)).json()
    assert (state["action"], state["share"], state["models"]) == ("observe", 40, ["base"])
    state = (await admin.activate(models=None)).json()
    assert (state["action"], state["models"]) == ("observe", None)


async def test_a_folders_policy_can_be_pinned_and_follow_again(
    admin: Admin,
    make_bundle,  # noqa: F811
    tmp_path: Path,
) -> None:
    first = make_bundle(admin.place / "x")
    for _ in range(2):
        await admin.policies.refresh()
    await admin.activate(version=first.digest)
    shutil.rmtree(admin.place / "x")
    second = make_bundle(admin.place / "x", version="2")
    for _ in range(2):
        await admin.policies.refresh()
    assert (await admin.shown())["digest"] == first.digest
    assert (await admin.activate(version="folder")).json()["digest"] == second.digest


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"share": 0}, 422, "share"),
        ({"share": "half"}, 422, "share"),
        ({"action": "pass"}, 422, "action"),
        ({"colour": "red"}, 422, "colour"),
        ({"tenants": []}, 422, "tenants"),
        ({"version": "zzzzzzz"}, 404, "version"),
        ({"version": ""}, 404, "version"),
    ],
)
async def test_a_wrong_change_names_the_field_and_changes_nothing(
    admin: Admin,
    make_bundle,  # noqa: F811
    tmp_path: Path,
    change: dict[str, Any],
    status: int,
    field: str,
) -> None:
    await admin.push(make_bundle(tmp_path / "x"))
    await admin.activate(share=50)
    before = await admin.shown()
    answer = await admin.activate(**change)
    assert answer.status_code == status
    assert field in answer.text
    assert await admin.shown() == before


async def test_unknown_policies_are_not_found(admin: Admin) -> None:
    for answer in (
        await admin.activate("nobody"),
        await admin.client.get("/v1/policies/nobody"),
    ):
        assert (answer.status_code, "not known" in said(answer)) == (404, True)
    assert (await admin.client.delete("/v1/policies/nobody")).status_code == 409
    assert (await admin.client.post("/v1/policies/nobody/rollback")).status_code == 409
    for name in ("..%2f..%2fetc", "%00", "a" * 200):
        assert (await admin.client.get(f"/v1/policies/{name}")).status_code in {404, 409}


async def test_a_bad_upload_is_refused_with_the_reason(
    admin: Admin,
    make_bundle,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = await admin.client.post(
        "/v1/policies", content=b"no archive", headers={"Content-Type": "application/gzip"}
    )
    assert (answer.status_code, "gzipped tar" in said(answer)) == (409, True)
    answer = await admin.push(make_bundle(tmp_path / "x", version="foreign"))
    assert (answer.status_code, "another model" in said(answer)) == (409, True)
    monkeypatch.setattr("gateway.admin_policies.received", partial(too_large, most_bytes=100))
    assert (await admin.push(make_bundle(tmp_path / "y"))).status_code == 413
    assert (await admin.client.get("/v1/policies")).json()["policies"] == []


async def too_large(chunks: AsyncIterator[bytes], out: Any, most_bytes: int) -> None:
    from gateway.policies.archive import received

    await received(chunks, out, most_bytes)


async def test_a_form_of_a_web_page_is_refused(admin: Admin) -> None:
    answer = await admin.client.post("/v1/policies", content=b"x", headers={"Content-Type": "text/plain;charset=UTF-8"})
    assert (answer.status_code, "Content-Type" in said(answer)) == (409, True)


async def test_without_a_folder_nothing_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin(tmp_path / "policies", monkeypatch, has_folder=False)
    answer = await admin.activate("people")
    assert (answer.status_code, "--policy-dir" in said(answer)) == (409, True)
    assert (await admin.client.get("/v1/status")).json()["policy_dir"] is None
    admin.protector.stop()
    admin.policies.close()


async def test_a_prompt_is_tried(admin: Admin, make_bundle, tmp_path: Path) -> None:  # noqa: F811
    nothing = (await admin.client.post("/v1/classify", json={"text": f"5 {FORBIDDEN}"})).json()
    assert (nothing["verdicts"], nothing["corrupted"]) == ([], [])
    await admin.push(make_bundle(tmp_path / "x"))
    await admin.activate()
    for asked in (
        {"messages": [{"role": "user", "content": f"5 {FORBIDDEN}"}]},
        {"token_ids": [BOS, 5, FORBIDDEN]},
        {"text": f"{BOS} 5 {FORBIDDEN}", "policies": ["people"]},
    ):
        found = (await admin.client.post("/v1/classify", json=asked)).json()
        assert found["token_ids"] == [BOS, 5, FORBIDDEN]
        assert found["tokens"] == ["0", "5", "99"]
        assert found["corrupted"] == [1, 2]
        (verdict,) = found["verdicts"]
        assert (verdict["policy"], verdict["flagged"]) == ("people", True)
        (window,) = found["windows"]
        assert window["positions"] == [1, 2]
        assert window["scores"]["people"] == verdict["score"] > 0.99
    passed = (await admin.client.post("/v1/classify", json={"text": "5 6"})).json()
    assert (passed["corrupted"], passed["verdicts"][0]["flagged"]) == ([], False)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"text": "1", "token_ids": [1]},
        {"token_ids": []},
        {"token_ids": [-1]},
        {"text": "1", "colour": "red"},
        {"text": "1", "policies": ["nobody"]},
        {"messages": [{"role": "user", "content": "words"}]},
    ],
)
async def test_a_wrong_try_is_refused(admin: Admin, make_bundle, tmp_path: Path, asked: dict[str, Any]) -> None:  # noqa: F811
    await admin.push(make_bundle(tmp_path / "x"))
    await admin.activate()
    answer = await admin.client.post("/v1/classify", json=asked)
    assert answer.status_code in {409, 422}


async def test_one_that_was_refused_hides_no_other(admin: Admin, make_bundle, tmp_path: Path) -> None:  # noqa: F811
    make_bundle(admin.place / "x", "people")
    make_bundle(admin.place / "y", "books", version="foreign")
    for _ in range(2):
        await admin.policies.refresh()
    said = (await admin.client.get("/v1/policies")).json()
    assert [one["name"] for one in said["policies"]] == ["people"]
    assert "another model" in said["refused"]["books"]


async def test_off_and_on_again_follows_the_folder(admin: Admin, make_bundle, tmp_path: Path) -> None:  # noqa: F811
    await admin.push(make_bundle(tmp_path / "old", version="0"))
    make_bundle(admin.place / "x")
    for _ in range(2):
        await admin.policies.refresh()
    await admin.activate(active=False)
    state = (await admin.activate()).json()
    assert (state["version"], state["pinned"]) == ("1", False)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("PUT", "/v1/policies", 405), ("POST", "/v1/classify", 422)],
)
async def test_every_error_has_one_shape(admin: Admin, method: str, path: str, status: int) -> None:
    answer = await admin.client.request(method, path, json={"text": "secret words", "colour": "red"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert "secret words" not in answer.text


RATES = {"recall": 0.9, "missed": 1, "positives": 10, "false_positive_rate": 0.0, "false_positives": 0, "negatives": 50}


@pytest.mark.parametrize("acts", [True, False])
async def test_what_was_measured_of_a_policy_is_told(admin: Admin, make_bundle, tmp_path: Path, acts: bool) -> None:  # noqa: F811
    picture = tmp_path / "scores.svg"
    picture.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    report = {"classifier": {"cross_fitted": RATES}}
    await admin.push(make_bundle(tmp_path / "x", report=report, plots=[picture]))
    if acts:
        await admin.activate(action="observe")
    said = await admin.shown()
    assert said["measured"] == RATES
    assert (said["built"], said["plots"]) == ({"action": "corrupt", "answers": "off"}, ["scores"])
    assert said["activation"]["action"] == ("observe" if acts else None)
    assert "recognises 90% of those to forget" in said["report"]["summary"]
    assert dict(said["report"]["rows"])["measured"].startswith("on prompts left out of training misses 1 of 10")
    answer = await admin.client.get("/v1/policies/people/plots/scores")
    assert (answer.headers["content-type"], answer.text) == ("image/svg+xml", picture.read_text())
    assert answer.headers["content-security-policy"].endswith("sandbox")
    for path in ("people/plots/roc", "people/plots/..%2fpolicy.yaml", "nobody/plots/scores"):
        assert (await admin.client.get(f"/v1/policies/{path}")).status_code == 404


async def test_an_odd_report_hides_no_policy(admin: Admin, make_bundle, tmp_path: Path) -> None:  # noqa: F811
    odd = {"classifier": {"cross_fitted": RATES | {"recall": [1], "missed": None}}}
    await admin.push(make_bundle(tmp_path / "x", report=odd))
    await admin.activate()
    (listed,) = (await admin.client.get("/v1/policies")).json()["policies"]
    assert "recall" not in listed["measured"]
    assert listed["measured"]["positives"] == 10
    assert (listed["static"], (await admin.shown())["plots"]) == (False, [])


async def test_openapi_names_every_route(admin: Admin) -> None:
    paths = (await admin.client.get("/v1/openapi.json")).json()["paths"]
    assert {path for path in paths if path.startswith("/v1")} == {
        "/v1/status",
        "/v1/policies",
        "/v1/policies/{name}",
        "/v1/policies/{name}/activation",
        "/v1/policies/{name}/plots/{plot}",
        "/v1/policies/{name}/rollback",
        "/v1/classify",
    }


async def test_status_says_what_is_in_force(admin: Admin, make_bundle, tmp_path: Path) -> None:  # noqa: F811
    before = (await admin.client.get("/v1/status")).json()
    await admin.push(make_bundle(tmp_path / "x"))
    await admin.activate()
    after = (await admin.client.get("/v1/status")).json()
    assert (before["policies"], after["policies"]) == (0, 1)
    assert before["set"] != after["set"] == admin.policies.current.digest
