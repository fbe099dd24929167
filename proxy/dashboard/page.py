"""The page: style and scripts put into one text, and the policy that lets nothing else run in it."""

import base64
import hashlib
from functools import lru_cache

import msgspec

from .files import text_of

_STYLES = ("theme.css", "dashboard.css")
_SCRIPTS = ("elements.js", "stream.js", "charts.js", "panels.js", "chat.js", "start.js")


class Page(msgspec.Struct, frozen=True):
    body: bytes
    headers: dict[str, str]


@lru_cache(maxsize=1)
def page() -> Page:
    """Read when it is first asked for, and the same from then on."""
    style = "".join(map(text_of, _STYLES))
    script = '"use strict";\n' + "".join(map(text_of, _SCRIPTS))
    body = text_of("dashboard.html").replace("/*style*/", style).replace("/*script*/", script)
    # By their digests: nothing that gets into the page otherwise is style or script, and nothing is loaded from elsewhere.
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return Page(body.encode(), headers)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
