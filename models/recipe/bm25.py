"""A search over the training examples as an answerer: what a model must beat to have a reason to be.

Okapi BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009) with the usual k1
and b: every wording of a hand-written task, every description of a command page with its tool's name, and every
definition is a document; the answer is that of the nearest one. Slots take their plain values: a search copies nothing
from the question.
"""

import math
import re
from collections import Counter, defaultdict

from .corpus import Corpus, answer_for, definition_text
from .newcomer import plain_answer

K1, B = 1.2, 0.75


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; slots such as `{file}` are none."""
    return re.findall(r"[a-z0-9]+", re.sub(r"{\w+}", " ", text.lower()))


class Search:
    """Documents with answers, and the nearest one to a question."""

    def __init__(self, documents: list[tuple[str, str]]) -> None:
        """`documents`: text and answer of each."""
        counts = [Counter(words_of(text)) for text, _ in documents]
        self.answers = [answer for _, answer in documents]
        mean = sum(sum(c.values()) for c in counts) / len(counts)
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)  # word -> (document, weight)
        for i, count in enumerate(counts):
            norm = K1 * (1 - B + B * sum(count.values()) / mean)
            for word, n in count.items():
                self._postings[word].append((i, n * (K1 + 1) / (n + norm)))
        self._size = len(documents)

    def nearest(self, question: str) -> str:
        """The answer of the document with the highest score, the first of equals; empty without a common word."""
        scores: dict[int, float] = defaultdict(float)
        for word in words_of(question):
            found = self._postings.get(word, [])
            rarity = math.log(1 + (self._size - len(found) + 0.5) / (len(found) + 0.5))
            for document, weight in found:
                scores[document] += rarity * weight
        return self.answers[max(scores, key=lambda i: (scores[i], -i))] if scores else ""

    def answer(self, questions: list[str]) -> list[str]:
        return [self.nearest(question) for question in questions]


def search_over(corpus: Corpus) -> Search:
    """A search over everything that training draws from; held-out pages are not in it."""
    documents = [
        (wording, plain_answer(task)) for task in corpus.tasks for wording in (*task.phrases, *task.questions)
    ]
    documents += [(f"{row.tool} {row.description}", answer_for(row, corpus.verbs)) for row in corpus.rows]
    documents += [(f"what is {d.tool} {d.text}", definition_text(d)) for d in corpus.definitions]
    return Search(documents)
