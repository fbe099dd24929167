"""A model as lm-evaluation-harness sees it: likelihoods by the kernels that serve it, answers by whoever is handed in.

Importing this imports the harness, which is an extra: `pip install 'penstock[harness]'`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor
from tqdm import tqdm

from ...errors import CompressError
from ...models.tokenizer import Tokenizer
from .scorers import ServedScorer

# Rows of logits at a time, as of a step of the engine.
ROWS = 512
# The harness's own default for tasks that name no length.
MAX_TOKENS = 256
# As many prompts go to the engine together, so that those that were answered are kept if it is interrupted.
AT_ONCE = 256
# From the ids of prompts, and the engine's sampling parameters of each by name, to the answers.
Write = Callable[[list[list[int]], list[dict[str, Any]]], list[str]]
# What a task may say of how its answers are sampled; the engine's names are the same.
_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "seed"}
_KNOWN = {*_SAMPLING, "until", "max_gen_toks", "max_new_tokens", "do_sample", "num_beams"}


class Harnessed(TemplateLM):  # type: ignore[misc]  # the harness is untyped here
    """Texts that are longer than the model's context lose their beginning, as with the harness's own models."""

    def __init__(self, words: Tokenizer, scorer: ServedScorer, write: Write) -> None:
        super().__init__()
        self.name = scorer.name
        self._words, self._scorer, self._write = words, scorer, write
        self._last: tuple[list[int], Tensor] | None = None

    @property
    def tokenizer_name(self) -> str:
        """Prompts that the harness keeps are those of one tokenizer."""
        return self._words.fingerprint

    @property
    def eot_token_id(self) -> int:
        if self._words.eos_token_id is None:
            raise CompressError(
                f"{self.name} names no token that ends a text (eos_token), which the harness begins with."
            )
        return self._words.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        return self.eot_token_id if self._words.bos_token_id is None else self._words.bos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        """A chat that was rendered begins with its special token already: it gets no second one."""
        if add_special_tokens is not None:
            return self._words.encode(string, add_special_tokens=add_special_tokens)
        plain = self._words.encode(string, add_special_tokens=False)
        begun = plain[:1] == [self._words.bos_token_id]
        return plain if begun else self._words.encode(string)

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        if add_generation_prompt:
            return self._words.render_chat(chat_history)
        # The last message is the beginning of the answer.
        return self._words.render_chat(chat_history[:-1]) + str(chat_history[-1]["content"])

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for asked, context, answer in tqdm(
            requests, desc=self.name, unit="text", disable=disable_tqdm or None
        ):
            found.append(self._likelihood(context, answer))
            self.cache_hook.add_partial("loglikelihood", asked, found[-1])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in tqdm(requests, desc=self.name, unit="text", disable=disable_tqdm or None):
            (text,) = request.args
            found.append(sum(self._likelihood(*piece)[0] for piece in self._rolled(self.tok_encode(text))))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(requests), AT_ONCE):
            asked = [request.args for request in requests[start : start + AT_ONCE]]
            prompts, params = zip(*(self._prompt(*arguments) for arguments in asked), strict=True)
            texts += self._write(list(prompts), list(params))
            for arguments, text in zip(asked, texts[start:], strict=True):
                if not arguments[1].get("do_sample"):  # repeats of a question are not to be one sample
                    self.cache_hook.add_partial("generate_until", arguments, text)
        return texts

    def _likelihood(self, context: list[int], answer: list[int]) -> tuple[float, bool]:
        """The log-probability of `answer` behind `context`, and whether greedy decoding would write it."""
        if not 0 < len(answer) <= self._scorer.max_tokens:
            raise CompressError(
                f"An answer to score has {len(answer)} tokens of its own, and {self.name} takes 1 to "
                f"{self._scorer.max_tokens}: {self._words.decode(context + answer)[-80:]!r}."
            )
        ids = (context + answer)[-self._scorer.max_tokens - 1 : -1]
        likelihood, greedy, at = 0.0, True, 0
        for rows in self._rows_behind(ids, len(ids) - len(answer) + 1):
            tokens = torch.tensor(answer[at : at + len(rows)], device=rows.device)
            at += len(rows)
            likelihood += float(rows.log_softmax(-1).gather(1, tokens[:, None]).double().sum())
            greedy = greedy and bool((rows.argmax(-1) == tokens).all())
        return likelihood, greedy

    def _rows_behind(self, ids: list[int], context: int) -> Iterator[Tensor]:
        """Logits of what follows the first `context` of `ids`, and each that comes after: some rows [N, V] at a time.

        Choices of one token have one text before them, which is computed once.
        """
        if len(ids) == context and self._last is not None and self._last[0] == ids:
            yield self._last[1]
            return
        at = 0
        for run in self._scorer.logits(ids, ROWS):
            rows = run[max(0, context - 1 - at) :]
            at += len(run)
            if not len(rows):
                continue
            if not bool(rows.isfinite().all()):
                raise CompressError(
                    f"{self.name} gives logits that are not numbers (NaN or infinite); its weights are broken, or its "
                    "numbers overflow in this dtype (try float32)."
                )
            if len(ids) == context:
                self._last = ids, rows.clone()
            yield rows

    def _rolled(self, ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        """All of a text, each token with as much before it as fits: the last piece overlaps the one before."""
        most = self._scorer.max_tokens
        for start in range(0, len(ids), most):
            end = min(start + most, len(ids))
            yield ids[end - most - 1 : start] if start else [self.prefix_token_id], ids[start:end]

    def _prompt(self, context: str, how: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        unknown = [name for name in how if name not in _KNOWN]
        if unknown:
            raise CompressError(
                f"A task asks for {', '.join(unknown)} of its answers, which is not known here; known are "
                f"{', '.join(sorted(_KNOWN))}."
            )
        if how.get("num_beams", 1) != 1:
            raise CompressError(
                f"A task asks for num_beams of {how['num_beams']}; there is no beam search here, give 1."
            )
        sampled = how.get("do_sample", False)
        if how.get("temperature") and "do_sample" not in how:
            raise CompressError(
                f"A task gives a temperature of {how['temperature']} and does not say whether its answers are sampled; add "
                "do_sample to its generation_kwargs."
            )
        asked = {name: value for name, value in how.items() if name in _SAMPLING}
        longest = int(how.get("max_gen_toks", how.get("max_new_tokens", MAX_TOKENS)))
        # Where both do not fit, half of the context is for the prompt's end at least, as far as it is that long.
        context_tokens = self._scorer.max_tokens
        ids = self.tok_encode(context)[min(longest, context_tokens // 2) - context_tokens :]
        until = how.get("until") or ()
        return ids, {
            **(asked if sampled else {"temperature": 0.0}),
            "max_tokens": min(longest, context_tokens - len(ids)),
            "stop": (until,) if isinstance(until, str) else tuple(until),
        }
