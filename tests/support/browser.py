"""A headless Chromium, driven over its DevTools protocol: pages that a test opens, reads, types into, takes pictures of."""

import asyncio
import base64
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_KEYS = {
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "Escape": (27, ""),
    "Space": (32, " "),
}


@dataclass
class Page:
    """Attributes:
    said: errors and warnings of its console, exceptions that nobody caught, and what its policy or the network refused.
    """

    _socket: aiohttp.ClientWebSocketResponse
    _session: str = ""
    _ids: Any = field(default_factory=itertools.count)
    _waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_str(json.dumps(message))
        return await asyncio.wait_for(reply, 30)

    async def read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                reply = self._waiting.pop(data["id"])
                if not reply.done():
                    reply.set_result(data.get("result", {"error": data.get("error")}))
                continue
            params = data["params"]
            if data["method"] == "Runtime.exceptionThrown":
                self.said.append(str(params["exceptionDetails"]))
            elif data["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                self.said.append(str(params["args"]))
            elif data["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                self.said.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))

    async def open(
        self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, scale: float = 1
    ) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def value(self, expression: str) -> Any:
        result = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, expression: str, seconds: float = 20) -> Any:
        """What it gives, once that is true."""
        async with asyncio.timeout(seconds):
            while not (found := await self.value(expression)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return found

    async def text(self, selector: str) -> str:
        text: str = await self.value(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        code, text = _KEYS[key]
        pressed = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        for kind in ("keyDown", "keyUp"):
            own = {"text": text} if text and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, modifiers=8 * shift, **pressed, **own)

    async def picture(self, *, whole: bool = False) -> bytes:
        """A PNG. `whole`: also of what one would have to scroll to."""
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])


@asynccontextmanager
async def browser_page(profile: Path) -> AsyncIterator[Page]:
    """`profile`: an empty folder."""
    assert CHROMIUM is not None
    as_root = ["--no-sandbox"] if os.getuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *("--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-gpu"),
        *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars"),
        *(*as_root, "about:blank"),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert process.stderr is not None
    line = b""
    async with asyncio.timeout(60):
        while not line.startswith(b"DevTools listening on "):
            line = await process.stderr.readline()
            assert line, "Chromium ended before it listened"
    draining = asyncio.create_task(process.stderr.read())
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(line.decode().split()[-1], max_msg_size=0) as socket,
        ):
            page = Page(socket)
            reading = asyncio.create_task(page.read())
            target = await page.call("Target.createTarget", url="about:blank")
            attached = await page.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            page._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                await page.call(f"{domain}.enable")
            yield page
            reading.cancel()
    finally:
        process.kill()
        await process.wait()
        await draining
