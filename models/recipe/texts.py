"""The recipe's conversations as files that `penstock quantize`, `prune`, `distill` and `eval` read.

train.jsonl         conversations of the training mixture
pages.jsonl         questions and answers of pages that are never trained on: held-out pages
page_tasks.jsonl    the same, to be answered: right is a command that does what the page's does
page_wordings.jsonl all questions about held-out pages, each in several wordings, which share a "topic"
page_texts.jsonl    such questions with their answers: ten times the tokens of pages.jsonl; with topics, too
tasks.jsonl         questions written by hand, in wordings that are never trained on: held-out phrasings
workload.jsonl      both, as an app's users would ask them: few topics often, most seldom, each in several wordings
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .chat import Conversation
from .corpus import Corpus, Row, answer_for
from .phrasing import ask
from .score import REFUSALS, Question, read_questions
from .unseen import QUESTIONS

SEED = 23
PHRASINGS = 5
WORDINGS = 8


def messages(conversation: Conversation) -> dict[str, Any]:
    found = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for pair in conversation.pairs:
        found.append({"role": "user", "content": pair.question})
        found.append({"role": "assistant", "content": pair.answer})
    return {"messages": found}


def answered(question: str, row: Row, corpus: Corpus) -> dict[str, Any]:
    """A question about a page, and the page's answer."""
    answer = answer_for(row, corpus.verbs)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def task(question: Question) -> dict[str, Any]:
    if question.refuse:
        return {"question": question.question, "accept": list(REFUSALS), "match": "refusal"}
    return {"question": question.question, "accept": list(question.accept)}


def write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def workload(rng: random.Random, topics: list[list[dict[str, Any]]], count: int) -> Iterator[dict[str, Any]]:
    """Topics by Zipf's law, and the wordings of each too."""
    topics = rng.sample(topics, len(topics))
    for wordings in rng.choices(topics, _zipf(len(topics)), k=count):
        yield rng.choices(wordings, _zipf(len(wordings)))[0]


def _zipf(count: int) -> list[float]:
    return [1 / rank for rank in range(1, count + 1)]


def worded(rng: random.Random, row: Row, wordings: int) -> list[dict[str, Any]]:
    """A page's question in up to so many wordings."""
    asked = {ask(rng, row.description.replace("`", ""), row.tool): None for _ in range(wordings)}
    topic = f"{row.tool}: {row.description}"
    return [{"question": q, "accept": [row.command], "match": "command", "topic": topic} for q in asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with command_examples.jsonl.gz")
    parser.add_argument("--newcomer", type=Path, default=Path(__file__).parent / "newcomer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=20_000, help="conversations of train.jsonl")
    parser.add_argument("--pages", type=int, default=400, help="questions about held-out pages")
    parser.add_argument("--requests", type=int, default=2_000, help="of workload.jsonl")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    corpus, rng = Corpus(args.data, args.newcomer), random.Random(SEED)
    write(args.out / "train.jsonl", (messages(corpus.sample(rng)) for _ in range(args.train)))
    every = [row for row in corpus.held_out if row.source == "tldr"]
    rows = rng.sample(every, min(args.pages, len(every)))
    asked = [(ask(rng, row.description.replace("`", ""), row.tool), row) for row in rows]
    write(args.out / "pages.jsonl", (answered(q, row, corpus) for q, row in asked))
    write(
        args.out / "page_tasks.jsonl",
        ({"question": q, "accept": [row.command], "match": "command"} for q, row in asked),
    )
    questions = [question for path in QUESTIONS for question in read_questions(path)]
    tasks = [task(question) for question in questions if not question.trap]
    write(args.out / "tasks.jsonl", tasks)
    about_pages = [worded(rng, row, PHRASINGS) for row in rows]
    topics = [*about_pages, *([own] for own in tasks)]
    write(args.out / "workload.jsonl", workload(rng, topics, args.requests))
    write(
        args.out / "page_wordings.jsonl",
        (question for row in every for question in worded(rng, row, WORDINGS)),
    )
    rng = random.Random(SEED)
    texts = [
        {**answered(each["question"], row, corpus), "topic": each["topic"]}
        for row in every
        for each in worded(rng, row, WORDINGS)
    ]
    rng.shuffle(texts)
    write(args.out / "page_texts.jsonl", texts)


if __name__ == "__main__":
    main()
