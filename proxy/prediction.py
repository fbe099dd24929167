"""How much of a predicted output came true, for OpenAI's usage figures."""

from ..scheduler.drafters import CompletionDraft


class PredictionCount:
    """Follows one choice along its prediction, as the engine's drafter does, one token at a time.

    So the figures are properties of the prediction and the answer. How many tokens the engine verified at once depends on
    its load, and is in its metrics.
    """

    def __init__(self, prediction: list[int]) -> None:
        self._length = len(prediction)
        self._draft = CompletionDraft(prediction, num_prompt_tokens=0)
        self._token_ids: list[int] = []
        self._right = 0

    @property
    def accepted(self) -> int:
        """Tokens of the prediction that are in the answer. (Those of a loop are not counted twice.)"""
        return min(self._right, self._length)

    @property
    def rejected(self) -> int:
        return self._length - self.accepted

    def add(self, token_ids: list[int]) -> None:
        for token_id in token_ids:
            self._right += self._draft.propose(self._token_ids, 1) == [token_id]
            self._token_ids.append(token_id)
