"""A judge of answers, learnt by `penstock tune router`: is the small tier good enough, or is the large one asked?"""

from .judge import Judge
from .values import Evidence, Promise, Question, Verdict

__all__ = ["Evidence", "Judge", "Promise", "Question", "Verdict"]
