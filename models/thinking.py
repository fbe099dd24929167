"""How a model marks what it thinks before it answers, as far as its chat template shows it."""

from dataclasses import dataclass
from typing import Literal

# In use: by most; Magistral; Cohere's Command A; Seed-OSS.
_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)

# Whether an answer begins inside its thoughts (the prompt opened them), may open them itself, or has none to come (the
# prompt closed them).
Thoughts = Literal["open", "free", "closed"]


@dataclass(frozen=True, slots=True)
class Thinking:
    """The texts around a model's thoughts."""

    open: str
    close: str

    @classmethod
    def of(cls, template: str) -> "Thinking | None":
        """None for a template that marks no thoughts. (Some only ever cut them off: the end is what all mention.)"""
        return next((cls(*pair) for pair in _PAIRS if pair[1] in template), None)

    def at_end_of(self, prompt: str) -> Thoughts:
        """Where the answer to a prompt begins: what people wrote never is at its very end, which the template writes."""
        end = prompt.rstrip()
        if end.endswith(self.open):
            return "open"
        return "closed" if end.endswith(self.close) else "free"
