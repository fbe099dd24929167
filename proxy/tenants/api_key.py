"""API keys as text: `psk-<public id>-<secret>`. Only a digest of the secret is ever written down."""

import hmac
import re
import secrets
from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import blake2b

import msgspec

PREFIX = "psk-"
SECRET_BYTES = 32
_ID_BYTES = 6
_MAX_LENGTH = 100
_ID = re.compile(r"[0-9a-f]{12}")


class ApiKey(msgspec.Struct, frozen=True, dict=True):
    """Attributes: the public id, by which the key is found and revoked, and the secret, url-safe text of 32 bytes."""

    id: str
    secret: str

    @classmethod
    def new(cls) -> "ApiKey":
        return cls(secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> "ApiKey | None":
        """None when it is no key of ours."""
        return _parsed(text) if text.startswith(PREFIX) and len(text) <= _MAX_LENGTH else None

    @property
    def text(self) -> str:
        return f"{PREFIX}{self.id}-{self.secret}"

    @cached_property
    def digest(self) -> bytes:
        """A fast hash is enough: nobody guesses 32 random bytes."""
        return blake2b(raw(self.secret), digest_size=32, person=b"penstock api key").digest()

    def matches(self, digest: bytes) -> bool:
        """In constant time."""
        return hmac.compare_digest(self.digest, digest)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ApiKey | None:
    """The same keys come again and again, and reading and hashing one anew costs each request a microsecond."""
    identity, dash, secret = text.removeprefix(PREFIX).partition("-")
    return ApiKey(identity, secret) if dash and is_key_id(identity) else None


def is_key_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def presented_key(headers: Mapping[str, str]) -> str:
    """The key a request came with, as `Authorization: Bearer KEY` or, as Anthropic's clients do, `x-api-key: KEY`; empty
    without one."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (bearer := key.strip()):
        return bearer
    return headers.get("x-api-key", "").strip()


def is_one_of(key: str, known: tuple[str, ...]) -> bool:
    """Every key is compared, each in constant time: the time taken tells nothing of how close a guess is."""
    matches = [hmac.compare_digest(raw(key), one.encode()) for one in known]
    return any(matches)


def raw(value: str) -> bytes:
    """A header's value as it came: bytes that are no UTF-8 arrive as lone surrogates."""
    return value.encode("utf-8", "surrogateescape")
