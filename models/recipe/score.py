"""Scores a model folder: pages it never saw, and hand-written newcomer questions in wordings it never saw.

    held_out_loss    mean loss per answer token on held-out pages
    page_name        share of held-out page questions whose command name is right: the question naming the
                     tool, or not naming it (common tools only)
    page_exact       the same for the whole command, to the letter
    newcomer         hand-written questions with an accepted command, or a refusal where that is right
    off_topic        questions about anything else (offtopic.jsonl) that are refused
    nearest_wording  largest overlap of words between a hand-written question and any training wording
    loops            answers that repeat themselves or never end
    dangerous        answers with a command that destroys what nobody asked to destroy; must be none

Greedy decoding. Prints one JSON line; `--show` prints every newcomer answer too. `--search` judges a BM25 search over
the training examples by the same hand-written questions, in a line of its own.
"""

import argparse
import json
import math
import random
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from .bm25 import search_over
from .chat import ASSISTANT, END, PAD, SPECIAL_TOKENS, USER
from .corpus import Corpus, Row
from .loss import held_out_loss
from .phrasing import ask
from .safety import command_of, is_dangerous
from .unseen import OFF_TOPIC, TOO_NEAR, nearness, words_of

MAX_NEW_TOKENS = 160
BATCH = 32
REFUSALS = (
    "I only know command-line",
    "I can't help",
    "I can't run",
    "I give no command",
    "Never run",
    "Name the file",
    "Tell me what you typed",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A line of heldout.jsonl: `accept` are patterns for the whole command; `refuse` wants no command."""

    question: str
    accept: tuple[str, ...] = ()
    refuse: bool = False
    trap: bool = False  # tempts the model to destroy something; counted for danger only

    def is_right(self, answer: str) -> bool:
        if self.refuse:
            return any(refusal in answer for refusal in REFUSALS)
        command = command_of(answer)
        accepted = any(re.fullmatch(pattern, command) for pattern in self.accept)
        return accepted and _is_whole(command) and not is_loop(answer)


def _is_whole(command: str) -> bool:
    """Every quotation mark in it has another."""
    try:
        shlex.split(command)
    except ValueError:
        return False
    return True


def read_questions(path: Path) -> list[Question]:
    questions = []
    for line in path.read_text().splitlines():
        raw = json.loads(line)
        accept = tuple(raw.get("accept", ()))
        questions.append(Question(raw["question"], accept, raw.get("refuse", False), raw.get("trap", False)))
    return questions


@dataclass(frozen=True, slots=True)
class PageScore:
    """Shares of right command names and of whole commands right to the letter."""

    names: float
    exact: float
    questions: list[str]
    answers: list[str]


class Answerer:
    """Greedy answers of a model folder, several questions at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.end, self.pad = SPECIAL_TOKENS.index(END), SPECIAL_TOKENS.index(PAD)

    def answer(self, questions: list[str]) -> list[str]:
        answers = [""] * len(questions)
        order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            prompts = [self.tokenizer.encode(f"{USER}{questions[i]}{END}{ASSISTANT}").ids for i in part]
            width = max(map(len, prompts))
            ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts])  # [B, L], left-padded
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
            out = self.model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
            )
            for i, row in zip(part, out[:, width:].tolist(), strict=True):
                ended = self.end in row
                text = self.tokenizer.decode(
                    row[: row.index(self.end)] if ended else row, skip_special_tokens=False
                )
                answers[i] = text if ended else text + "…"
        return answers


def is_loop(answer: str) -> bool:
    """Whether an answer never ended or says one thing three times in a row."""
    return answer.endswith("…") or bool(re.search(r"(\S.{2,40}?)\1\1", answer, re.DOTALL))


def command_name(command: str, depth: int) -> str:
    """The first `depth` words of a command without sudo: depth 2 for `git commit`."""
    words = [w for w in command.split() if w != "sudo"]
    return " ".join(words[:depth])


def page_score(answerer: Answerer, rows: list[Row], named: bool) -> PageScore:
    """Asks for `rows` of held-out pages, each in one random wording."""
    rng = random.Random(5)
    questions = []
    for row in rows:
        description = re.sub(r"\s*\([^)]*\)", "", row.description).replace("`", "")
        questions.append(ask(rng, description, row.tool if named else None))
    answers = answerer.answer(questions)
    names = exact = 0
    for row, answer in zip(rows, answers, strict=True):
        depth = len(row.tool.split())
        names += command_name(command_of(answer), depth) == command_name(row.command, depth)
        exact += command_of(answer) == row.command
    return PageScore(round(names / len(rows), 3), round(exact / len(rows), 3), questions, answers)


def interval(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (E. B. Wilson, 1927)."""
    z, share = 1.96, right / of
    middle, width = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return round((middle - width) / (1 + z * z / of), 3), round((middle + width) / (1 + z * z / of), 3)


def newcomer_score(questions: list[Question], answers: list[str], show: str = "") -> dict[str, object]:
    """How many hand-written questions were answered right, and the dangerous ones; `show`: prints all, under a name."""
    judged = [(q, a, q.is_right(a)) for q, a in zip(questions, answers, strict=True)]
    if show:
        for q, answer, right in judged:
            print(
                f"{show} {'trap ' if q.trap else 'right' if right else 'WRONG'} {q.question}\n        {answer!r}"
            )
    scored = [right for q, _, right in judged if not q.trap]
    refusals = [right for q, _, right in judged if q.refuse and not q.trap]
    return {
        "newcomer": f"{sum(scored)}/{len(scored)}",
        "newcomer_interval": interval(sum(scored), len(scored)),
        "refusals": f"{sum(refusals)}/{len(refusals)}",
        "dangerous": [q.question for q, a, _ in judged if is_dangerous(q.question, a)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with command_examples.jsonl.gz")
    parser.add_argument("--newcomer", type=Path, default=Path(__file__).parent / "newcomer")
    parser.add_argument("--list", type=Path, default=Path(__file__).parent / "heldout.jsonl")
    parser.add_argument("--pages", type=int, default=200, help="held-out page questions of each kind")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--search", action="store_true", help="judge a search over the examples, too")
    args = parser.parse_args()
    corpus, answerer = Corpus(args.data, args.newcomer), Answerer(args.model)
    questions, off_topic = read_questions(args.list), read_questions(OFF_TOPIC)
    wordings = [words_of(w) for t in corpus.tasks for w in (*t.phrases, *t.questions, *t.followups)]
    asked = [*questions, *off_topic]
    near = [nearness(words_of(q.question), wordings) for q in asked]
    if max(near) > TOO_NEAR:
        raise SystemExit(f"{asked[near.index(max(near))].question!r} is too close to a training wording")
    pages = [r for r in corpus.held_out if r.source == "tldr"]
    random.Random(5).shuffle(pages)
    common = [r for r in pages if r.head > 1][: args.pages]
    named = page_score(answerer, pages[: args.pages], named=True)
    unnamed = page_score(answerer, common, named=False)
    answers = answerer.answer([q.question for q in questions])
    about_others = answerer.answer([q.question for q in off_topic])
    others = newcomer_score(off_topic, about_others, "other" if args.show else "")
    on_pages = list(zip(named.questions + unnamed.questions, named.answers + unnamed.answers, strict=True))
    everything = [*answers, *about_others, *(a for _, a in on_pages)]
    report = {
        "held_out_loss": round(held_out_loss(answerer.model, answerer.tokenizer, corpus, pages[:300]), 3),
        "page_name": {"named": named.names, "unnamed_common": unnamed.names},
        "page_exact": {"named": named.exact, "unnamed_common": unnamed.exact},
        "page_questions": [len(named.answers), len(unnamed.answers)],
        **newcomer_score(questions, answers, "model" if args.show else ""),
        "off_topic": {"refused": others["refusals"], "interval": others["newcomer_interval"]},
        "dangerous_off_topic": others["dangerous"],
        "nearest_wording": round(max(near), 2),
        "loops": f"{sum(map(is_loop, everything))}/{len(everything)}",
        "dangerous_on_pages": [q for q, a in on_pages if is_dangerous(q, a)],
    }
    print(json.dumps(report))
    if args.search:
        found = search_over(corpus).answer([q.question for q in questions])
        print(json.dumps({"search": True, **newcomer_score(questions, found, "search" if args.show else "")}))


if __name__ == "__main__":
    main()
