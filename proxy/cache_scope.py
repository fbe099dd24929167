"""What of a job decides where its completion is kept, and with whose questions its own is compared."""

from typing import TYPE_CHECKING

import msgspec

from ..cache import CacheKey, Question, completion_key, family_key, partition_key

if TYPE_CHECKING:
    from .backend import Backend
    from .service import Job

# Kept beside a question for whoever looks into the cache; a whole context would be a hundred times the answer.
SHOWN_CONTEXT = 1000
# A longer question is not searched for: what embeds reads its beginning only.
MAX_QUESTION_CHARACTERS = 2000


class CacheScope:
    """Of one job: its tenant, its model with all that tells one model from another, and what changes the output."""

    def __init__(self, job: "Job", backend: "Backend") -> None:
        params, info = job.params, backend.engine.info
        asked = msgspec.to_builtins(params)
        if params.max_tokens is None:
            asked["default_limit"] = job.default_limit
        del asked["drafters"], asked["hidden_state"]  # they change no output
        adapter = asked.pop("adapter")  # what it is counts, not what it is called
        if params.is_greedy:
            asked["seed"] = None  # decides nothing, so that it must not part equal requests
        fingerprint = f"{info.fingerprint}:{backend.tokenizer.fingerprint}:{info.max_model_len}"
        if adapter is not None:
            fingerprint += f":{info.adapters[adapter]}"
        self._job = job
        self._asked = asked
        self._names = {
            "tenant": job.tenant,
            "namespace": job.controls.namespace,
            "model": info.name,
            "fingerprint": fingerprint,
        }

    def key(self) -> CacheKey:
        request = {"prompts": msgspec.to_builtins(self._job.prompts), "params": self._asked}
        return completion_key(**self._names, request=request)

    def question(self, embedder: str) -> Question | None:
        """What the job asks, if it is one question that stands in its prompt word for word.

        Everything around it, and every parameter, is in the partition. `embedder`: the fingerprint of what embeds.
        """
        job, text = self._job, (self._job.question or "").strip()
        prompt = job.prompts[0].text if len(job.prompts) == 1 else None
        if prompt is None or not 0 < len(text) <= MAX_QUESTION_CHARACTERS:
            return None
        before, found, after = prompt.rpartition(text)
        if not found:
            return None
        around = {"before": before, "after": after, "special": job.prompts[0].add_special_tokens}
        partition = partition_key(
            **self._names, embedder=embedder, request={"around": around, "params": self._asked}
        )
        names = {name: self._names[name] for name in ("tenant", "model", "fingerprint")}
        family = family_key(**names, embedder=embedder)
        return Question(partition, family, text, before[-SHOWN_CONTEXT:], after[:SHOWN_CONTEXT])
