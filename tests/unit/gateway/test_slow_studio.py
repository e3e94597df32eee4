"""The policy studio in a real Chromium, against a real admin address: what an operator does with keys and clicks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import Browser, chromium, missing
from policies.conftest import MakeBundle, make_bundle  # noqa: F401 - a fixture
from studio_server import KEY, SECRET, StudioServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

RATES = {
    "recall": 0.9,
    "missed": 1,
    "positives": 10,
    "false_positive_rate": 0.004,
    "false_positives": 2,
    "negatives": 500,
}
PLOT = (
    "<svg xmlns='http://www.w3.org/2000/svg' width='200' height='150'><rect width='200' height='150' fill='#ccc'/>"
    "<script>document.title = 'hostile'</script></svg>"
)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(opened: Browser) -> Iterator[Browser]:
    opened.look(1280)
    yield opened
    opened.run("try { sessionStorage.clear() } catch { /* a page without any */ }")
    opened.go("about:blank")
    opened.complaints()


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Any:  # noqa: F811
    """(name, version) -> a bundle with a report and a plot, in the policy folder."""
    plot = tmp_path / "scores.svg"
    plot.write_text(PLOT)
    (tmp_path / "policies").mkdir()

    def made(name: str = "people", version: str = "1", folder: Path | None = None) -> Any:
        report = {"classifier": {"cross_fitted": RATES}}
        return make_bundle(folder or tmp_path / "policies" / name, name, version, report, [plot])

    return made


def unlock(browser: Browser, server: StudioServer, *, by: str = "me") -> None:
    browser.go(f"{server.url}/studio/")
    browser.label("Key", KEY)
    browser.label("Your name", by)
    browser.click("button", "Open")
    browser.wait_for("Policies", "h1")
    browser.complaints()  # of the first question, which had no key


def state(server: StudioServer, name: str = "people") -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/v1/policies/{name}", headers={"Authorization": f"Bearer {KEY}"})
    return answer.json()  # type: ignore[no-any-return]


def is_shown(browser: Browser, selector: str) -> bool:
    return bool(browser.run("return document.querySelector(arguments[0])?.checkVisibility() ?? false", selector))


def test_the_key_is_asked_for_and_stays_in_the_tab(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch) as server:
        browser.go(server.url)
        browser.wait_for("Admin key")
        assert "people" not in browser.text("body")
        browser.label("Key", "not-a-key-of-anybody")
        browser.press("Enter")
        browser.wait_for("does not know this key")
        browser.label("Key", KEY)
        browser.press("Enter")
        browser.wait_for("people")
        assert KEY not in browser.run("return location.href + document.documentElement.outerHTML + document.cookie")
        assert browser.run("return localStorage.length") == 0
        browser.go(f"{server.url}/studio/#policy/people")
        browser.wait_for("What was measured")
        browser.click("button", "Forget key")
        browser.wait_for("Admin key")
        assert KEY not in browser.run("return JSON.stringify(sessionStorage)")


def test_a_policy_is_rolled_out_and_back_and_deleted(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch) as server:
        unlock(browser, server, by="op of the day")
        row = browser.text("tbody tr")
        assert all(said in row for said in ("people", "Corrupts", "all prompts", "90.0 %", "0.40 %"))
        browser.click("tbody a", "people")
        browser.wait_for("What was measured")
        browser.choose("Action", "observe")
        browser.label("Share", "25")
        browser.label("Tenants", "acme, bolt")
        browser.click("button", "Apply")
        browser.wait_for("people acts: 25 % of prompts", "#notice")
        browser.wait_for("Observes", ".chip")
        now = state(server)
        assert (now["action"], now["share"], now["tenants"], now["models"]) == ("observe", 25, ["acme", "bolt"], None)
        assert now["history"][-1]["by"] == "op of the day"
        # What another operator changed meanwhile, and this one did not touch, stays.
        headers = {"Authorization": f"Bearer {KEY}"}
        httpx.post(f"{server.url}/v1/policies/people/activation", json={"models": ["base"]}, headers=headers)
        browser.label("Tenants", " ")
        browser.click("button", "Apply")
        browser.wait(lambda: state(server)["tenants"] is None, "for all tenants")
        assert (state(server)["models"], state(server)["share"]) == (["base"], 25)
        # A field that is wrong says so, and nothing changes.
        browser.label("Share", "0")
        browser.click("button", "Apply")
        browser.wait_for("Share: a number above 0")
        browser.label("Share", "50")
        browser.label("Models", "nobody" * 3)
        browser.click("button", "Apply")
        browser.wait_for("50 % of prompts", "#notice")
        # Back, off, on again.
        browser.click("button", "Roll back")
        browser.press("Escape")
        assert browser.run("return document.activeElement.innerText") == "Roll back …"
        assert state(server)["share"] == 50
        browser.click("button", "Roll back")
        browser.click("dialog button", "Roll back")
        browser.wait_for("rolled back: 25 %", "#notice")
        browser.click("button", "Stop acting")
        browser.click("dialog button", "Stop acting")
        browser.wait_for("Off", ".chip")
        assert state(server)["active"] is False
        browser.click("button", "Activate")
        browser.wait_for("Observes", ".chip")
        # Cancel is what has the focus where something cannot be undone.
        browser.click("button", "Delete")
        assert browser.run("return document.activeElement.innerText") == "Cancel"
        browser.press("Enter")
        assert state(server)["active"] is True
        browser.click("button", "Delete")
        browser.click("dialog button", "Delete people")
        browser.wait_for("No policies yet")
        assert state(server)["error"]["code"] == 404
        deleted = [event for event in server.audit.events if event["event"] == "deleted"]
        assert [event["by"] for event in deleted] == ["op of the day"]
        assert browser.complaints() == []


def test_a_kept_version_is_gone_back_to_and_uploads_come_in(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.policies.archive import pack

    first = bundle()
    second = bundle(version="2", folder=tmp_path / "second")
    with (tmp_path / "second.tar.gz").open("wb") as out:
        pack(second.path, out)
    with StudioServer(tmp_path, monkeypatch) as server:
        unlock(browser, server)
        browser.attach("#upload", tmp_path / "second.tar.gz")
        browser.wait_for("people, version 2, is kept. It does not act yet.", "#notice")
        assert state(server)["digest"] == first.digest
        browser.click("tbody a", "people")
        browser.click("button", "Go to it")
        browser.click("dialog button", "Go to it")
        browser.wait_for(f"acts with {second.digest[:12]}", "#notice")
        assert state(server)["digest"] == second.digest
        browser.click("a", "All policies")
        (tmp_path / "broken.tar.gz").write_bytes(b"no archive")
        browser.attach("#upload", tmp_path / "broken.tar.gz")
        browser.wait_for("gzipped tar", "[role=alert]")


def test_a_prompt_is_tried_and_nothing_in_it_acts(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch, compares=False) as server:
        unlock(browser, server)
        browser.click("nav a", "Try a prompt")
        browser.wait_for("--eco-compare-answers")
        assert not is_shown(browser, "#compare")
        browser.label("Prompt", f"who wrote {HOSTILE} {SECRET}")
        browser.click("button", "Try")
        browser.wait_for("flagged by people.", ".verdict")
        marked = browser.run(
            "return [...document.querySelectorAll('.tokens mark')].map((one) => one.textContent.trim())"
        )
        assert " ".join(marked) == f"who wrote {HOSTILE} {SECRET}"
        assert browser.text(".tokens").startswith("<bos>")
        assert browser.run("return document.querySelectorAll('main img').length") == 0
        assert "1.000" in browser.text(".windows")
        browser.click(".kinds label", "Text")
        browser.label("Prompt", "nothing of it")
        browser.click("button", "Try")
        browser.wait_for("Passes: no policy flags it.", ".verdict")
        browser.click(".kinds label", "Chat")
        browser.label("Prompt", "[{")
        browser.click("button", "Try")
        browser.wait_for("not JSON", "[role=alert]")
        messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": SECRET}]
        browser.label("Prompt", json.dumps({"messages": messages}))
        browser.click("button", "Try")
        browser.wait_for("flagged by people", ".verdict")
        refused = httpx.post(f"{server.url}/v1/compare", json={"text": "x"}, headers={"Authorization": f"Bearer {KEY}"})
        assert (refused.status_code, server.engine.prompts) == (403, [])


def test_answers_stream_beside_each_other(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch) as server:
        unlock(browser, server, by="me")
        browser.click("nav a", "Try a prompt")
        server.engine.goes_on.clear()
        browser.label("Prompt", f"which stone {SECRET}")
        browser.press("Tab")
        browser.click("button", "Try")
        browser.wait_for("It", ".unguarded .answer")
        browser.wait_for("I", ".guarded .answer")
        assert browser.text(".unguarded .answer") == "It"
        assert browser.run("return document.querySelector('.unguarded').getAttribute('aria-busy')") == "true"
        server.engine.goes_on.set()
        browser.wait_for("Ended by itself.", ".unguarded")
        browser.wait_for("Ended by itself.", ".guarded")
        assert browser.text(".unguarded .answer") == f"It was {SECRET}."
        assert browser.text(".guarded .answer") == "I do not know."
        assert [prompt["type"] for prompt in server.engine.prompts] in (["token", "embeds"], ["embeds", "token"])
        (event,) = [event for event in server.audit.events if event["event"] == "compared"]
        assert event["by"] == "me"
        # Stopped, both end at the engine too.
        server.engine.goes_on.clear()
        browser.click("button", "Try")
        browser.wait_for("It", ".unguarded .answer")
        browser.click("button", "Stop")
        browser.wait_for("Stopped.", ".unguarded")
        browser.wait(lambda: server.engine.closed == 4, "both abandoned")


def test_a_refusing_policy_is_told_beside_the_answer(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch) as server:
        headers = {"Authorization": f"Bearer {KEY}"}
        httpx.post(f"{server.url}/v1/policies/people/activation", json={"action": "refuse"}, headers=headers)
        unlock(browser, server)
        browser.click("nav a", "Try a prompt")
        browser.label("Prompt", SECRET)
        browser.click("button", "Try")
        browser.wait_for("Refused by people.", ".verdict")
        browser.wait_for("refused by the operator's policy", ".guarded .problem")
        browser.wait_for("Ended by itself.", ".unguarded")


def test_many_policies_are_searched_and_paged(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        bundle(f"policy-{number:03}")
    with StudioServer(tmp_path, monkeypatch) as server:
        unlock(browser, server)
        browser.wait_for("1–25 of 30")
        assert browser.run("return document.querySelectorAll('tbody tr').length") == 25
        browser.click("button", "Next")
        browser.wait_for("26–30 of 30")
        browser.fill("input[type=search]", "POLICY-02")
        browser.wait(lambda: browser.run("return document.querySelectorAll('tbody tr').length") == 10, "ten found")
        browser.fill("input[type=search]", "nothing like it")
        browser.wait_for("No policy matches.")


def test_where_nothing_can_be_changed_nothing_offers_it(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = bundle()
    with StudioServer(tmp_path, monkeypatch, static=[static], has_key=False) as server:
        browser.go(f"{server.url}/")
        browser.wait_for("without --policy-dir")
        assert not is_shown(browser, "#upload + label")
        browser.click("tbody a", "people")
        browser.wait_for("What was measured")
        assert browser.run("return document.querySelectorAll('main button, main input').length") == 0
        assert not is_shown(browser, "#leave")
        # The picture of a policy is shown, and does nothing.
        browser.wait(lambda: browser.run("return document.querySelector('figure img').naturalWidth") == 200, "a plot")
        assert "hostile" not in browser.run("return document.title")
        # What changes nothing can be done, without a key too.
        browser.click("nav a", "Try a prompt")
        browser.label("Prompt", SECRET)
        browser.click("button", "Try")
        browser.wait_for("flagged by people.", ".verdict")


def test_a_gateway_that_goes_away_is_told(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch) as server:
        unlock(browser, server)
        browser.wait_for("Ready", "#health")
        browser.go(f"{server.url}/studio/#policy/nobody")
        browser.wait_for("not known here")
    browser.wait_for("Does not answer", "#health")
    browser.click("button", "Try again")
    browser.wait_for("The gateway does not answer.")


def test_counters_follow_what_the_guard_does(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch) as server:
        unlock(browser, server)
        browser.wait_for("0 since the start", ".tiles")
        headers = {"Authorization": f"Bearer {KEY}"}
        for said in (SECRET, "else"):
            httpx.post(f"{server.url}/v1/compare", json={"text": said}, headers=headers)
        browser.wait_for("2 since the start", ".tiles")
        browser.wait_for("50.0 % since the start", ".tiles")
        assert browser.text("tbody td[data-label=Flagged]") == "1"


def test_the_keyboard_is_enough(browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle()
    with StudioServer(tmp_path, monkeypatch) as server:
        unlock(browser, server)
        browser.go(f"{server.url}/studio/#try")
        browser.run("location.reload()")
        browser.wait_for("Try a prompt", "h1")
        browser.press("Tab")
        assert browser.run("return document.activeElement.innerText") == "Skip to content"
        browser.press("Enter")
        assert browser.run("return [document.activeElement.id, location.hash]") == ["main", "#try"]
        seen = []
        for _ in range(5):
            browser.press("Tab")
            width = "return getComputedStyle(document.activeElement.matches('.kinds input') ? "
            width += "document.activeElement.nextSibling : document.activeElement).outlineWidth"
            assert browser.run(width) == "2px"
            seen.append(browser.run("return document.activeElement.tagName"))
        assert seen == ["INPUT", "TEXTAREA", "INPUT", "INPUT", "BUTTON"]
        browser.run("document.querySelector('textarea').focus()")
        browser.press(*"else", "Tab", "Tab", "Tab", "Enter")
        browser.wait_for("Passes: no policy flags it.", ".verdict")
        for selector in ("input, select, textarea", "button, a"):
            nameless = (
                "return [...document.querySelectorAll(arguments[0])].filter((one) => !one.labels?.length && "
                "!one.getAttribute('aria-label') && !one.innerText.trim()).map((one) => one.outerHTML)"
            )
            assert browser.run(nameless, selector) == []


CONTRAST = """
const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const colour = (said) => said.match(/[\\d.]+/g).map(Number);
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const found = colour(getComputedStyle(node).backgroundColor);
    if (found.length < 4 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const weak = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
  if (!own || !node.checkVisibility() || node.disabled || node.closest('.unseen, noscript')) continue;
  const [a, b] = [light(colour(getComputedStyle(node).color)), light(ground(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) weak.push(`${node.tagName}.${node.className} ${node.textContent.slice(0, 40)} ${ratio.toFixed(2)}`);
}
return weak;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_by_day_and_night_on_a_phone(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dark: bool
) -> None:
    bundle("a-policy-with-a-very-long-name-of-people-who-are-to-be-forgotten-for-good")
    with StudioServer(tmp_path, monkeypatch) as server:
        (tmp_path / "policies" / "broken").mkdir()
        browser.look(375, 800, dark=dark, phone=True)
        unlock(browser, server)
        browser.wait_for("1 could not act")

        def check() -> None:
            assert browser.run("return document.documentElement.scrollWidth") == 375
            assert browser.run(CONTRAST) == []

        check()
        browser.click("tbody a")
        browser.wait_for("What was measured")
        check()
        browser.click("nav a", "Try a prompt")
        browser.label("Prompt", f"{'W' * 200} {SECRET}")
        browser.click("button", "Try")
        browser.wait_for("Ended by itself.", ".unguarded")
        browser.wait_for("Ended by itself.", ".guarded")
        check()
        assert browser.complaints() == []


def test_the_browser_holds_the_page_to_its_policy(
    browser: Browser, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StudioServer(tmp_path, monkeypatch, has_key=False) as server:
        browser.go(f"{server.url}/studio/")
        browser.wait_for("No policies yet")
        assert browser.complaints() == []
        browser.run("const s = document.createElement('style'); s.append('h1 {color: red}'); document.head.append(s)")
        caught = "try { document.body[arguments[0]] = '<b>x</b>'; return 'set' } catch (error) { return error.name }"
        assert browser.run(caught, "innerHTML") == "TypeError"
        elsewhere = "return fetch('http://localhost:1/').then(() => 'came', (error) => error.name)"
        assert browser.run(elsewhere) == "TypeError"
        said = " ".join(browser.complaints())
        assert "style-src" in said
        assert "connect-src" in said
        # A page of another port on this machine gets nothing, and changes nothing.
        browser.go("data:text/html,<title>elsewhere</title>")
        foreign = "return fetch(arguments[0], {method: 'DELETE'}).then(() => 'came', (error) => error.name)"
        assert browser.run(foreign, f"{server.url}/v1/policies/people") == "TypeError"
