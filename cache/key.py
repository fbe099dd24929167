"""From a request to the place of its completion. Knows nothing of how or where entries are stored.

A place is `tenant | namespace | request`: the first two are fixed-length hashes in front, so one tenant's
entries are one contiguous range that no other tenant's key can fall into, before anything about the request
is looked at.
"""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

import msgspec
import orjson
import xxhash

TENANT_BYTES = 16
NAMESPACE_BYTES = 8
REQUEST_BYTES = 16
SCOPE_BYTES = TENANT_BYTES + NAMESPACE_BYTES
PLACE_BYTES = SCOPE_BYTES + REQUEST_BYTES
DIGEST_BYTES = 32

# Part of the hashed bytes: changing how a request is canonicalised must not find older entries.
_KEY_VERSION = 1


class CacheKey(msgspec.Struct, frozen=True):
    """Where an entry lies, and the proof that it is the right one.

    Attributes:
        place: LMDB key, 40 bytes: blake2b-128 of the tenant, blake2b-64 of the namespace, xxh3-128 of the
        request.
        digest: blake2b-256 of the bytes that xxh3 hashed. xxh3 is fast but can be made to collide on purpose,
            so a hit counts only when the digest stored with the entry is equal.
    """

    place: bytes
    digest: bytes


def completion_key(
    *, tenant: str, namespace: str, model: str, fingerprint: str, request: Mapping[str, object]
) -> CacheKey:
    """Key of one request's completion.

    Args:
        tenant: whose cache; never crossed.
        namespace: a part of the tenant's cache that the caller set apart, or "".
        model: the model's name.
        fingerprint: digest of its weights, config and precision.
        request: messages and every parameter that can change the output, as plain JSON values: keys in any
            order. 1 and 1.0 differ; a NaN must have been refused before (JSON has none).

    Raises TypeError when `request` holds something JSON cannot express.
    """
    canonical = _canonical(tenant, namespace, model, fingerprint, request)
    return CacheKey(
        place=_scope(tenant, namespace) + xxhash.xxh3_128_digest(canonical),
        digest=blake2b(canonical, digest_size=DIGEST_BYTES).digest(),
    )


def partition_key(
    *,
    tenant: str,
    namespace: str,
    model: str,
    fingerprint: str,
    embedder: str,
    request: Mapping[str, object],
) -> bytes:
    """What must be equal before the meanings of two questions are compared, as 40 bytes.

    Args:
        embedder: fingerprint of what embeds: vectors of two embedders say nothing of each other.
        request: that of `completion_key`, with what stands around the question instead of the whole prompt.
    """
    canonical = _canonical(tenant, namespace, model, fingerprint, {"embedder": embedder, "request": request})
    return _scope(tenant, namespace) + blake2b(canonical, digest_size=REQUEST_BYTES).digest()


def family_key(*, tenant: str, model: str, fingerprint: str, embedder: str) -> bytes:
    """The questions of a tenant to a model, whatever else is asked of it, as 24 bytes: their near hits are one evidence."""
    named = orjson.dumps((_KEY_VERSION, model, fingerprint, embedder))
    return _scope(tenant, "")[:TENANT_BYTES] + blake2b(named, digest_size=NAMESPACE_BYTES).digest()


def _canonical(
    tenant: str, namespace: str, model: str, fingerprint: str, request: Mapping[str, object]
) -> bytes:
    plain = request if isinstance(request, dict) else dict(request)
    return orjson.dumps(
        (_KEY_VERSION, tenant, namespace, model, fingerprint, plain),
        option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS,
    )


def tenant_hash(tenant: str) -> bytes:
    """The first 16 bytes of all its places and partitions."""
    # blake2b, not xxh3: a tenant may choose its own name, and must not be able to choose another's prefix.
    return blake2b(tenant.encode(), digest_size=TENANT_BYTES).digest()


def namespace_hash(namespace: str) -> bytes:
    """The 8 bytes behind the tenant's."""
    return blake2b(namespace.encode(), digest_size=NAMESPACE_BYTES).digest()


@lru_cache(maxsize=4096)
def _scope(tenant: str, namespace: str) -> bytes:
    return tenant_hash(tenant) + namespace_hash(namespace)
