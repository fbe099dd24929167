"""Which entries an operation is about. Knows entries, not what is done with them."""

from collections.abc import Iterator
from typing import Any

import msgspec

from .key import SCOPE_BYTES, TENANT_BYTES
from .opened import Entry


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """All that is given must fit; nothing given selects everything.

    Attributes:
        tenant, namespace: their hashes, as places begin with them.
        place: exactly this entry.
        created_before: seconds of the cache's clock.
        matching: stands in the question, the whole prompt or an answer, as far as they are kept, whatever the case of its
            letters.
    """

    tenant: bytes | None = None
    namespace: bytes | None = None
    place: bytes | None = None
    created_before: float | None = None
    matching: str | None = None

    @property
    def prefix(self) -> bytes:
        """What the places of all selected entries begin with: one range of the cache, which alone is read."""
        if self.place is not None:
            return self.place
        if self.tenant is None:
            return b""
        return self.tenant + (self.namespace or b"")

    @property
    def is_whole(self) -> bool:
        """All of a tenant, or everything."""
        others = (self.namespace, self.place, self.created_before, self.matching)
        return all(given is None for given in others)

    def includes(self, entry: Entry) -> bool:
        if self.place not in (None, entry.place) or not self.includes_name(entry.place):
            return False
        if self.created_before is not None and entry.record.created >= self.created_before:
            return False
        return self.matching is None or any(contains(text, self.matching) for text in _texts(entry))

    def includes_name(self, name: bytes) -> bool:
        """Whether the tenant and the namespace in a place or a partition are the selected ones."""
        return self.tenant in (None, name[:TENANT_BYTES]) and self.namespace in (
            None,
            name[TENANT_BYTES:SCOPE_BYTES],
        )


def texts_in(value: Any) -> Iterator[str]:
    """All texts in what JSON can hold, but for the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_in(item)


def contains(text: str, part: str) -> bool:
    return part.casefold() in text.casefold()


def _texts(entry: Entry) -> list[str]:
    question, completion, prompt = entry.question, entry.completion, entry.prompt
    texts = [] if completion is None else [choice.text for choice in completion.choices]
    if question is not None:
        texts.append(question.text)
    if prompt is not None:
        texts += texts_in([prompt.messages, prompt.text, prompt.tools])
    return texts
