"""From answers to rows: who was right, and what it cost. Asks nobody."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...cache.trust.same_answer import same_answer
from ...compress.distill.dataset import prompt_of
from ...errors import TuneError
from ...proxy.routing.learned import Question
from .answers import Answer
from .collect import DRAFTED, LARGE, SMALL
from .rows import Row, groups_of
from .workload import Item

Score = Literal["matcher", "agreement", "command"]

_FEWEST_TIMED = 5


@dataclass(frozen=True, slots=True)
class Price:
    """Of a tier's tokens, in any unit that is the same for both."""

    prompt_token: float
    completion_token: float

    def of(self, answer: Answer) -> float:
        return self.prompt_token * answer.prompt_tokens + self.completion_token * answer.completion_tokens


@dataclass(frozen=True, slots=True)
class Scored:
    """Attributes:
    left_out: questions that a tier refused; `refusal`: one of the reasons.
    """

    rows: list[Row]
    left_out: int
    refusal: str


def score_answers(
    items: Sequence[Item],
    answers: Mapping[tuple[int, int], Answer],
    score: Score,
    prices: tuple[Price, Price],
    escalation: float,
    vectors: Sequence[Sequence[float]] | None = None,
) -> Scored:
    """One row for each question that both tiers answered.

    Args:
        escalation: what an answer of the large tier costs with a draft, over what it costs without.
        vectors: of each question.

    Raises TuneError where there is none.
    """
    same = SAME.get(score)
    groups = groups_of([prompt_of(item.asked) for item in items], [item.asked.topic for item in items])
    rows, refusals = [], []
    for place, item in enumerate(items):
        small, large = answers[place, SMALL], answers[place, LARGE]
        if small.text is None or large.text is None:
            refusals.append(small.refusal or large.refusal)
            continue
        if same is None:
            assert item.matcher is not None
            right = item.matcher.accepts(small.text), item.matcher.accepts(large.text)
        else:
            right = same(small.text, large.text), True
        costs = prices[SMALL].of(small), prices[LARGE].of(large)
        question = Question(item.question.text, None if vectors is None else vectors[place])
        escalated = costs[LARGE] * escalation
        rows.append(Row(groups[place], question, small.evidence, *right, *costs, escalated))
    if not rows:
        raise TuneError(f"Both tiers answered none of the {len(items)} questions: {refusals[0]}")
    return Scored(rows, len(refusals), refusals[0] if refusals else "")


def timed_prices(answers: Mapping[tuple[int, int], Answer]) -> tuple[Price, Price]:
    """Seconds for a token of each tier's answers, with its share of the prompt: of those that were asked one at a time."""
    return _timed(answers, SMALL), _timed(answers, LARGE)


def timed_escalation(answers: Mapping[tuple[int, int], Answer]) -> float:
    """The seconds of the large tier with the small one's answer as a draft, over those without; 1 where none were timed.

    Of questions to which the two answer otherwise, if there are a few: those are what is escalated.
    """
    timed = [
        (answers[place, SMALL], answers[place, LARGE], drafted)
        for (place, kind), drafted in answers.items()
        if kind == DRAFTED and drafted.text is not None
    ]
    differing = [one for one in timed if one[SMALL].text != one[LARGE].text]
    counted = differing if len(differing) >= _FEWEST_TIMED else timed
    plain = sum(one[LARGE].seconds for one in counted)
    return sum(one[DRAFTED].seconds for one in counted) / plain if plain else 1.0


def _timed(answers: Mapping[tuple[int, int], Answer], tier: int) -> Price:
    timed = [answer for answer in answers.values() if answer.kind == tier and answer.alone]
    tokens = sum(answer.completion_tokens for answer in timed)
    if not tokens:
        raise TuneError(
            "None of the answers that were timed has a token; say what tokens cost with --prices."
        )
    return Price(0.0, sum(answer.seconds for answer in timed if answer.completion_tokens) / tokens)


def _same_text(small: str, large: str) -> bool:
    return same_answer(small, large, "agreement").same


def _same_command(small: str, large: str) -> bool:
    """What stands in backticks does the same; of answers without, the texts count."""
    from ...compress.evaluate.command import same_command  # loads torch
    from ...compress.evaluate.matchers import code_span

    one, other = code_span(small), code_span(large)
    if one is None or other is None:
        return one is other and _same_text(small, large)
    return same_command(one, other)


# Whether two answers say the same, for scores without a matcher.
SAME: dict[Score, Callable[[str, str], bool]] = {"agreement": _same_text, "command": _same_command}
