"""How many tokens of an answer are thoughts, for usage figures; told by the tokens that mark them."""

import msgspec

from ..models.tokenizer import Tokenizer
from .answer import Layout


class ThoughtTokens(msgspec.Struct, frozen=True):
    """Attributes: the tokens before and after thoughts; `opened`: whether the prompt has opened them."""

    open: int
    close: int
    opened: bool

    @classmethod
    def of(cls, layout: Layout, tokenizer: Tokenizer) -> "ThoughtTokens | None":
        """None where there are no thoughts, or where they cannot be counted: their marks are not tokens of their own."""
        if layout.thinking is None or layout.thoughts == "closed":
            return None
        open_ = tokenizer.markers.get(layout.thinking.open)
        close = tokenizer.markers.get(layout.thinking.close)
        if open_ is None or close is None:
            return None
        return cls(open_, close, layout.thoughts == "open")

    def count(self, token_ids: list[int]) -> int:
        """Up to the closing mark and with it; all of them where it never came."""
        if not self.opened and self.open not in token_ids:
            return 0
        return token_ids.index(self.close) + 1 if self.close in token_ids else len(token_ids)
