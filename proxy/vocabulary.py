"""Requests that name tokens by their ids: which of the models that may answer mean the same by them.

An id is a word of one tokenizer only: with another, a model would read another prompt, and say nothing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import EngineDeadError, InvalidRequestError
from .routing.target import LocalTarget, Target

if TYPE_CHECKING:
    from .context import Context
    from .routing.plan import Plan


def field_with_ids(fields: Mapping[str, Any]) -> str | None:
    """The field of a request that names tokens by their ids; None where none does."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], str):
        return "prompt"
    return next(
        (name for name in ("logit_bias", "stop_token_ids", "allowed_token_ids") if fields.get(name)), None
    )


async def tokenizer_of(context: "Context", target: Target) -> str | None:
    """The fingerprint of its tokenizer; None where nobody knows: of an upstream, or of a model that cannot be loaded."""
    if not isinstance(target, LocalTarget):
        return None
    backend = context.backends.of(target.served)
    try:
        await backend.ready()
    except EngineDeadError:
        return None
    return backend.tokenizer.fingerprint


async def check_vocabulary(context: "Context", plan: "Plan", fields: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError where ids are named, and models of the plan are known to mean different things by them."""
    name = field_with_ids(fields)
    if name is None:
        return
    known = {target.name: await tokenizer_of(context, target) for target in plan.targets}
    if len({tokenizer for tokenizer in known.values() if tokenizer is not None}) > 1:
        raise InvalidRequestError(
            f"{name} names tokens by their ids, and this route's models ({', '.join(known)}) have different vocabularies. "
            "Ask for one of them by its own name, or send text.",
            param=name,
        )
