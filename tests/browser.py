"""A headless browser for tests: Chromium over the DevTools protocol, with nothing to install but itself.

`apt-get install --no-install-recommends chromium` on Debian.
"""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)


@dataclass
class Visit:
    """What a page did and what it is.

    Attributes:
        requests: addresses that it asked for, `data:` ones left out.
        problems: errors and warnings of the console, exceptions, and what its Content-Security-Policy stopped.
        values: of the expressions that were asked for.
        picture: a PNG of the whole page.
    """

    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    picture: bytes = b""


def visit(path: Path, expressions: Mapping[str, str], width: int = 1200, dark: bool = False) -> Visit:
    """Open a local page in a window `width` pixels wide and evaluate JavaScript expressions in it, in order."""
    return asyncio.run(asyncio.wait_for(_visit(path, expressions, width, dark), 120))


async def _visit(path: Path, expressions: Mapping[str, str], width: int, dark: bool) -> Visit:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = await devtools_port(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = await answer.json()
                address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    return await _Page(socket).visit(path, expressions, width, dark)
        finally:
            process.kill()
            process.wait()


async def devtools_port(path: Path, process: subprocess.Popen) -> int:
    """The port that a browser listens on, from the file in its profile."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if path.is_file() and (lines := path.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise RuntimeError("the browser did not start")


class _Page:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.number = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_str(json.dumps({"id": self.number, "method": method, "params": arguments}))
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    async def visit(self, path: Path, expressions: Mapping[str, str], width: int, dark: bool) -> Visit:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads((await self.socket.receive()).data))
        found = Visit()
        for name, expression in expressions.items():
            result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
            assert "exceptionDetails" not in result, (name, result["exceptionDetails"])
            found.values[name] = result["result"].get("value")
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        found.picture = base64.b64decode(shot["data"])
        for event in self.events:
            self._tell(event.get("method"), event.get("params", {}), found)
        return found

    @staticmethod
    def _tell(method: str | None, parameters: dict[str, Any], found: Visit) -> None:
        if method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("data:"):
            found.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            found.problems.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            found.problems.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            found.problems.append(str(parameters["args"]))
