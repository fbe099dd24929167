"""Takes the pictures in docs/images: a real server of two workers, three tenants that ask it, and a real browser.

python bench/dashboard_pictures.py [--seconds 75] [--output docs/images]        needs Chromium
"""

import argparse
import asyncio
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from browser import Page, browser_page  # noqa: E402
from fake_upstream import fake_upstream  # noqa: E402
from simple_router import write_router  # noqa: E402

PENSTOCK = [sys.executable, "-m", "penstock"]
ADMIN_KEY = "show-me"
TENANTS = ("acme", "support-bot", "shop")
# A few are asked often, most seldom, and some in other words.
QUESTIONS = (
    "how do I extract a tar.gz archive?",
    "how can I extract a tar.gz archive?",
    "how do I list all running processes?",
    "how to list all the running processes?",
    "show the size of a directory",
    "how do i show the size of a directory",
    "how do I rename a git branch?",
    "find files larger than 100 MB",
    "compress a folder with zip",
    "how do I count the lines of a file?",
    "kill a process by name",
    "show the free space on all disks",
    "download a file with curl",
)
SETTINGS = """
local_hour_price = 2.0
[upstreams.cloud]
base_url = "{url}"
retries = 0
models.large = {{input = 2.5, cached_input = 1.25, output = 10.0}}
[upstreams.spare]
base_url = "http://127.0.0.1:9/v1"
models = ["small"]
retries = 0
[tiers.full]
model = "builtin"
quantize = "none"
[routes.assistant]
targets = ["builtin", "full"]
policy = "cascade"
router = "{router}"
[routes.thrifty]
targets = ["builtin", "cloud/large"]
policy = "cheapest"
[routes.careful]
targets = ["spare/small", "cloud/large"]
"""


async def ask(url: str, key: str, draw: random.Random) -> None:
    question = QUESTIONS[min(int(draw.expovariate(0.3)), len(QUESTIONS) - 1)]
    if draw.random() < 0.15:
        question += f" in the folder {draw.randrange(1000)}"
    body = {
        "model": draw.choices(("assistant", "thrifty", "careful"), (6, 3, 1))[0],
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0 if draw.random() < 0.85 else 1.0,
        "max_tokens": 120,
        "stream": True,
    }
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        session.post(f"{url}/v1/chat/completions", json=body) as reply,
    ):
        await reply.read()


def new_key(tenant: str, *where: str) -> str:
    made = subprocess.run(
        [*PENSTOCK, "keys", "create", tenant, "--json", *where], capture_output=True, check=True
    )
    key: str = json.loads(made.stdout)["key"]
    return key


@asynccontextmanager
async def served(folder: Path, upstream: str) -> AsyncIterator[tuple[str, str, dict[str, str]]]:
    """URLs of the server and of its admin listener, and tenants' keys."""
    # Made for the picture: its judge keeps what is answered to a question that ends with its mark.
    router = write_router(folder / "router.json", "builtin", "full")
    (folder / "penstock.toml").write_text(SETTINGS.format(url=upstream, router=router))
    tenants = ("--tenants-path", str(folder / "tenants"))
    keys = {tenant: new_key(tenant, *tenants) for tenant in TENANTS}
    url, admin = "http://127.0.0.1:18098", "http://127.0.0.1:18099"
    process = await asyncio.create_subprocess_exec(
        *PENSTOCK, "serve", "--config", str(folder / "penstock.toml"), "--workers", "2", "--port", "18098",
        "--admin-port", "18099", "--admin-key", ADMIN_KEY, "--cache-path", str(folder / "cache"), *tenants,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(120):
            ready = False
            while not ready:
                await asyncio.sleep(0.2)
                with contextlib.suppress(aiohttp.ClientError):
                    ready = (await session.get(f"{url}/health/ready")).ok
        yield url, admin, keys
    finally:
        process.terminate()
        await process.wait()


def keep(picture: bytes, file: Path) -> None:
    """In 256 colours, which is all that it needs."""
    from PIL import Image

    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(
        file, optimize=True
    )
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


async def visit(page: Page, admin: str, key: str, seconds: float, output: Path) -> None:
    talked = "document.getElementById('stop').hidden && !!document.querySelector('.talk > :last-child .link')"
    await page.open(f"{admin}/dashboard", width=1440, height=1630)
    await page.until("document.activeElement.id === 'admin-key'")
    await page.type(ADMIN_KEY)
    await page.press("Enter")
    await page.until("document.getElementById('state').dataset.state === 'live'")
    await page.value("document.getElementById('key').focus()")
    await page.type(key)
    await page.value("document.getElementById('message').focus()")
    await page.type(QUESTIONS[0])
    await page.press("Enter")
    await page.until(talked)
    await asyncio.sleep(seconds)
    await page.value("document.querySelector('.talk > :last-child .link').click()")
    await asyncio.sleep(0.1)
    await page.until(talked)
    await asyncio.sleep(2)
    await page.value("document.activeElement.blur()")
    keep(await page.picture(), output / "dashboard.png")
    await page.value("document.getElementById('theme').click()")
    await asyncio.sleep(1)
    keep(await page.picture(), output / "dashboard-dark.png")
    await page.value("document.getElementById('theme').click()")
    await page.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=1500, deviceScaleFactor=1.5, mobile=True
    )
    await asyncio.sleep(1)
    keep(await page.picture(), output / "dashboard-phone.png")


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=75, help="of load before the pictures")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    draw = random.Random(7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with fake_upstream() as upstream, served(folder, upstream.url) as (url, admin, keys):

            async def load(tenant: str) -> None:
                while True:
                    await ask(url, keys[tenant], draw)
                    await asyncio.sleep(draw.uniform(0, 0.5))

            loads = [asyncio.create_task(load(tenant)) for tenant in TENANTS]
            try:
                async with browser_page(folder / "profile") as page:
                    await visit(page, admin, keys["acme"], arguments.seconds, arguments.output)
                    assert all("401" in said for said in page.said), page.said
            finally:
                for task in loads:
                    task.cancel()
                await asyncio.gather(*loads, return_exceptions=True)


asyncio.run(main())
