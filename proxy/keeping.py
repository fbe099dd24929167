"""What an operator lets the cache keep of requests and prompts. Knows no key and no wire format."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..cache import WholePrompt
from ..cache.selection import texts_in

if TYPE_CHECKING:
    from ..config import Settings
    from .tenants.tenant import Tenant


class Keeping:
    """Args:
    patterns: regular expressions; what one of them matches is neither looked up nor kept.
    prompts: whether whole prompts are kept beside answers.
    """

    def __init__(self, patterns: Iterable[str] = (), *, prompts: bool = False) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._prompts = prompts

    @classmethod
    def of(cls, settings: "Settings") -> "Keeping":
        return cls(settings.cache_no_store_patterns, prompts=settings.cache_prompts)

    def excludes(self, texts: Iterable[str]) -> bool:
        return bool(self._patterns) and any(
            pattern.search(text) for text in texts for pattern in self._patterns
        )

    def prompt(self, tenant: "Tenant", make: Callable[[], WholePrompt | None]) -> WholePrompt | None:
        """What is kept of a prompt beside its answer: all of it, or nothing where a pattern matches any of it.

        `make` is called only where something may be kept; it gives None for what is no text.
        """
        if not (self._prompts and tenant.prompts):
            return None
        prompt = make()
        if prompt is None or self.excludes(texts_in([prompt.messages, prompt.text, prompt.tools])):
            return None
        return prompt
