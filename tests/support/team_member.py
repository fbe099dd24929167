"""One of the processes that train a model together: `torchrun ... team_member.py MODEL FOLDER STEPS`.

Writes FOLDER/RANK.pt: its weights, and what `train` reported.
"""

import sys
import time
from pathlib import Path

import torch
from counting_texts import counting_texts, load

from penstock.compress.training import loop
from penstock.compress.training.batches import Batches
from penstock.compress.training.loop import TrainingSettings, train
from penstock.compress.training.objective import CrossEntropy
from penstock.compress.training.schedule import Budget
from penstock.compress.training.team import team_of

BATCH_TOKENS, SEED = 128, 5
EVALUATION_SECONDS = 0.5  # that the leader takes longer for each than it would, while the others wait


def main() -> None:
    folder = Path(sys.argv[2])
    model = load(Path(sys.argv[1]))
    settings = TrainingSettings(
        Budget(steps=int(sys.argv[3])), batch_tokens=BATCH_TOKENS, bf16=False, seed=SEED
    )
    evaluate = loop._Training.evaluate

    def slowly(self: loop._Training) -> dict[str, float]:
        if self.team.leads:
            time.sleep(EVALUATION_SECONDS)
        return evaluate(self)

    loop._Training.evaluate = slowly  # type: ignore[method-assign]
    with team_of(2, "cpu") as team:
        source = Batches(counting_texts(0, 80), BATCH_TOKENS, SEED, team.place)
        report = train(model, source, counting_texts(1, 9), CrossEntropy(), settings, folder, team=team)
        told = {"tokens": report.tokens, "seconds": report.seconds, "held_out": report.held_out}
        torch.save({"weights": model.state_dict(), **told}, folder / f"{team.place.rank}.pt")


if __name__ == "__main__":
    main()
