"""A headless Chromium that is used as a person uses it: several visitors, the mouse, files, downloads."""

import asyncio
import base64
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from browser import CHROMIUM, OPTIONS, devtools_port

T = TypeVar("T")
PATIENCE = 90.0  # seconds, far more than anything here takes on an idle machine


class Chromium:
    """A browser. Use `open_chromium`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.loop, self.socket = loop, socket
        self.number = 0
        self.answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        self.reader = loop.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            content = json.loads(message.data)
            if "id" in content:
                self.answers.pop(content["id"]).set_result(content)
            else:
                self.events.append(content)

    def run(self, awaitable: Awaitable[T], patience: float = PATIENCE) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, patience))

    def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": arguments}
        answer = self.answers[self.number] = self.loop.create_future()
        self.run(self.socket.send_str(json.dumps(message | ({"sessionId": session} if session else {}))))
        content = self.run(answer)
        assert "error" not in content, (method, content["error"])
        return content["result"]

    def visitor(self, address: str, width: int = 1200, height: int = 900, dark: bool = False) -> "Visitor":
        """A page in a context of its own: it shares no cookies, cache or storage with others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        visitor = Visitor(self, session, target)
        visitor.show(width, height, dark)
        visitor.open(address)
        return visitor


class Visitor:
    """A page, and who looks at it."""

    def __init__(self, browser: Chromium, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **arguments)

    def show(self, width: int, height: int, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.says("Drop a picture")  # once its buttons do something
        self.calm()

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")

    def until(self, expression: str, patience: float = PATIENCE) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + patience
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"not in {patience} s: {expression}\nstatus: {self.status}\n{self.problems}"
            self.browser.run(asyncio.sleep(0.05))
        return value

    @property
    def status(self) -> str:
        """What the page says of itself."""
        return self.value("document.querySelector('#status')?.innerText ?? ''")

    def says(self, *parts: str) -> str:
        """Wait until the page says all of these."""
        needed = json.dumps(parts)
        return self.until(
            f"(text => {needed}.every(part => text.includes(part)) && text)"
            "(document.querySelector('#status')?.innerText ?? '')"
        )

    def center(self, element: str) -> tuple[float, float]:
        """Of what an expression finds, scrolled into view."""
        box = self.value(
            f"(e => {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2]; }})({element})"
        )
        return box[0], box[1]

    def click(self, text: str) -> None:
        """A button, by what it says."""
        found = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {json.dumps(text)})"
        self.until(f"(b => b && !b.disabled && b.offsetParent)({found}) && true")
        self.drag([self.center(found)])

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Press the mouse at the first point, move it over the others, let go."""

        def mouse(kind: str, point: tuple[float, float], **more: Any) -> None:
            self.call("Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1], button="left", **more)

        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=points[0][0], y=points[0][1])
        mouse("mousePressed", points[0], buttons=1, clickCount=1)
        for point in points[1:]:
            mouse("mouseMoved", point, buttons=1)
        mouse("mouseReleased", points[-1], buttons=0, clickCount=1)

    def calm(self) -> None:
        """Wait until no request has begun for a moment: what the page is about to say, it has said."""
        seen = -1
        while seen != (now := len(self.requests)):
            seen = now
            self.browser.run(asyncio.sleep(0.3))

    def upload(self, where: str, *files: Path) -> None:
        """Choose files in the field of the element with this id."""
        found = f"document.querySelector('#{where} input[type=file], input[type=file]:has(+ #{where})')"
        self.until(f"!!{found}")
        self.calm()
        node = self.call("Runtime.evaluate", expression=found)["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=node)

    def download(self, folder: Path, press: str) -> Path:
        """Press a button that makes the browser fetch a file."""
        folder.mkdir(parents=True, exist_ok=True)
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.click(press)
        end = time.monotonic() + PATIENCE
        while not (found := [path for path in folder.iterdir() if path.suffix != ".crdownload"]):
            assert time.monotonic() < end, f"nothing was downloaded; {self.status}; {self.problems}"
            self.browser.run(asyncio.sleep(0.05))
        return found[0]

    def picture(self, whole: bool = True) -> bytes:
        """A PNG of the page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    @property
    def requests(self) -> list[str]:
        """Addresses that it asked for."""
        asked = [event for event in self._events("Network.requestWillBeSent")]
        return [event["request"]["url"] for event in asked if not event["request"]["url"].startswith("data:")]

    @property
    def problems(self) -> list[str]:
        """Errors of the console, exceptions, what the Content-Security-Policy stopped."""
        found = [
            event["entry"]["text"] for event in self._events("Log.entryAdded") if event["entry"]["level"] == "error"
        ]
        found += [str(event["exceptionDetails"]) for event in self._events("Runtime.exceptionThrown")]
        calls = self._events("Runtime.consoleAPICalled")
        return found + [str(event["args"]) for event in calls if event["type"] in ("error", "assert")]

    def _events(self, method: str) -> list[dict[str, Any]]:
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event["params"] for event in mine if event["method"] == method]


@contextmanager
def open_chromium() -> Iterator[Chromium]:
    """A browser, for as long as the context is open."""
    assert CHROMIUM is not None
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            file = Path(profile) / "DevToolsActivePort"
            port = loop.run_until_complete(devtools_port(file, process))
            session = loop.run_until_complete(_client())
            with contextlib.closing(_Closing(loop, session)):
                address = f"ws://127.0.0.1:{port}{file.read_text().splitlines()[1]}"
                socket = loop.run_until_complete(session.ws_connect(address, max_msg_size=0))
                browser = Chromium(loop, socket)
                yield browser
                browser.reader.cancel()
        finally:
            process.kill()
            process.wait()
            loop.close()


async def _client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


class _Closing:
    def __init__(self, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
        self.loop, self.session = loop, session

    def close(self) -> None:
        self.loop.run_until_complete(self.session.close())
