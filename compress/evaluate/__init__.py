"""What a changed model still does as the original did, with intervals: the gate of quantizing, pruning and distilling.

from penstock.compress.evaluate import PlainScorer, compare
comparison = compare(PlainScorer(pruned, "pruned"), PlainScorer(original, "original"), texts)
"""

from .comparison import Comparison, compare, compare_all
from .estimate import Estimate
from .scorers import PlainScorer, Scorer, ServedScorer

__all__ = ["Comparison", "Estimate", "PlainScorer", "Scorer", "ServedScorer", "compare", "compare_all"]
