"""Several processes train one student: as one process would on the batches of all."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import team_member
import torch
from counting_texts import counting_texts, load

from penstock.compress.texts import Tokens
from penstock.compress.training.batches import Batch, Batches, Place, to_batch
from penstock.compress.training.loop import TrainingSettings, train
from penstock.compress.training.objective import CrossEntropy
from penstock.compress.training.schedule import Budget
from penstock.compress.training.team import team_of
from penstock.errors import CompressError

STEPS = 6
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def texts_of(batch: Batch) -> list[Tokens]:
    """What `to_batch` made it of."""
    found = []
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        learnt = [(i, label) for i, label in enumerate(labels.tolist()) if label != -100]
        whole = [*ids[: learnt[-1][0] + 1].tolist(), learnt[-1][1]]
        found.append(Tokens(whole, [False] + [True] * (len(whole) - 1)))
    return found


@dataclass
class OfBoth:
    """The batches of two processes, as one."""

    sources: tuple[Batches, Batches]

    def at(self, step: int) -> Batch:
        return to_batch([text for source in self.sources for text in texts_of(source.at(step))])

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: dict[str, object]) -> None:
        pass


def test_two_processes_learn_what_one_learns_from_the_batches_of_both(
    tiny_llama: Path, tmp_path: Path
) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    command = [*TORCHRUN, team_member.__file__, str(tiny_llama), str(together), str(STEPS)]
    path = os.pathsep.join([str(Path(team_member.__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    leader, other = (torch.load(together / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(weight, other["weights"][name]) for name, weight in leader["weights"].items())
    assert (leader["tokens"], leader["seconds"]) == (other["tokens"], other["seconds"])
    assert leader["held_out"] and not other["held_out"]
    assert leader["seconds"] < STEPS * team_member.EVALUATION_SECONDS / 2, "only steps count"

    settings = TrainingSettings(
        Budget(steps=STEPS), batch_tokens=team_member.BATCH_TOKENS, bf16=False, seed=team_member.SEED
    )
    places = [
        Batches(counting_texts(0, 80), settings.batch_tokens, settings.seed, Place(rank, 2))
        for rank in (0, 1)
    ]
    model = load(tiny_llama)
    train(model, OfBoth((places[0], places[1])), counting_texts(1, 9), CrossEntropy(), settings, alone)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, leader["weights"][name], rtol=1e-4, atol=2e-5)
    one, both = (
        [
            line
            for text in (folder / "training.jsonl").read_text().splitlines()
            if "rate" in (line := json.loads(text))
        ]
        for folder in (alone, together)
    )
    assert [line["loss"] for line in both] == pytest.approx([line["loss"] for line in one], rel=1e-4)


def test_of_all_batches_each_place_takes_its_turn() -> None:
    texts = counting_texts(0, 80)
    alone = Batches(texts, 128, 3)
    for step in range(8):
        for rank in range(3):
            theirs = Batches(texts, 128, 3, Place(rank, 3)).at(step)
            assert torch.equal(theirs.ids, alone.at(3 * step + rank).ids)


def test_without_accelerate_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with (
        pytest.raises(CompressError, match=r"2 processes .* pip install 'penstock\[devices\]'"),
        team_of(2, "cpu"),
    ):
        pass
