"""A real Chromium, driven over W3C WebDriver by plain HTTP: what an operator's browser does with the studio."""

import base64
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_LABELLED = "[...document.querySelectorAll('label')].find((one) => one.innerText.startsWith(arguments[0]))"
PATIENCE_S = 20.0


def missing() -> str | None:
    """What of Chromium is not installed; None where nothing is."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} here (Debian's chromium and chromium-driver)" if absent else None


class Browser:
    """One session. Elements are named by CSS selectors; what is asked for is waited for."""

    def __init__(self, driver: httpx.Client, session: str) -> None:
        self._driver, self._session = driver, session

    def _ask(self, path: str, **body: Any) -> Any:
        answer = self._driver.post(f"/session/{self._session}/{path}", json=body).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{path}: {answer['error']}: {answer['message'].splitlines()[0]}")
        return answer

    def devtools(self, command: str, **params: Any) -> Any:
        return self._ask("goog/cdp/execute", cmd=command, params=params)

    def go(self, url: str) -> None:
        self._ask("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self._ask("execute/sync", script=script, args=list(arguments))

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"never: {what}; the page says: {self.text('body')[:2000]}"
            time.sleep(0.05)
        return found

    def text(self, selector: str = "main") -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def wait_for(self, words: str, selector: str = "main") -> None:
        self.wait(lambda: words in self.text(selector), f"{words!r} in {selector}")

    def _element(self, selector: str, containing: str) -> str:
        script = (
            "return [...document.querySelectorAll(arguments[0])].find((one) => one.checkVisibility() && "
            "(one.innerText || '').includes(arguments[1]))"
        )
        found = self.wait(lambda: self.run(script, selector, containing), f"{selector} {containing!r}")
        return str(found[_ELEMENT])

    def click(self, selector: str, containing: str = "") -> None:
        self._ask(f"element/{self._element(selector, containing)}/click")

    def fill(self, selector: str, said: str) -> None:
        """Type into a field in place of what it holds."""
        element = self._element(selector, "")
        self._ask(f"element/{element}/clear")
        self._ask(f"element/{element}/value", text=said)

    def label(self, words: str, said: str) -> None:
        """Type into the field of that label, as who reads the page finds it."""
        identifier = self.wait(lambda: self.run(f"return {_LABELLED}?.htmlFor", words), f"label {words!r}")
        self.fill(f"#{identifier}", said)

    def choose(self, words: str, value: str) -> None:
        """Choose in the list of that label."""
        script = (
            f"const list = document.getElementById({_LABELLED}.htmlFor); list.value = arguments[1];"
            "list.dispatchEvent(new Event('change', {bubbles: true})); return list.value"
        )
        assert self.run(script, words, value) == value

    def attach(self, selector: str, file: Path) -> None:
        """Choose a file, in a field that may be out of sight."""
        found = self.wait(lambda: self.run("return document.querySelector(arguments[0])", selector), selector)
        self._ask(f"element/{found[_ELEMENT]}/value", text=str(file))

    def press(self, *keys: str) -> None:
        """Keys one after the other, wherever the focus is; `Tab`, `Enter` or a letter."""
        special = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Space": " "}
        actions = [{"type": kind, "value": special.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def look(self, width: int, height: int = 900, *, dark: bool = False, phone: bool = False) -> None:
        """The window's size, in CSS pixels, and what the system prefers."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path, *, whole: bool = False) -> None:
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console said since the last call: blocked by the policy, not found, thrown."""
        said = self._ask("se/log", type="browser")
        return [f"{entry['level']}: {entry['message']}" for entry in said if entry["level"] in {"SEVERE", "WARNING"}]


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`, closed with its driver at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "chromedriver.log").open("wb") as log:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=log)
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    options = {"args": [*_FLAGS, *sandbox, f"--user-data-dir={folder / 'profile'}"], "binary": shutil.which("chromium")}
    capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _until_up(client)
            made = client.post("/session", json={"capabilities": {"alwaysMatch": capabilities}}).json()["value"]
            assert "sessionId" in made, made
            yield Browser(client, made["sessionId"])
            client.delete(f"/session/{made['sessionId']}")
    finally:
        driver.terminate()
        driver.wait(30)


def _until_up(client: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if client.get("/status").json()["value"]["ready"]:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "chromedriver does not answer"
        time.sleep(0.05)
