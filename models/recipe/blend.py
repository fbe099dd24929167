"""A model between the one that training went on from and what came of it: each weight on the line from one to the other.

Training on new examples forgets some of what was known; the model between often has most of both (Wortsman et al. 2022,
"Robust fine-tuning of zero-shot models"). The one before may have fewer layers: it is grown as training grew it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .grow import grow


def blend(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """`before` + `share` of the way to `after`, in fp32; what only `after` has (a tied head) is as it is there.

    Raises ValueError where `share` is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it goes from 0, the model before, to 1, the one after")
    return {
        name: torch.lerp(before[name], weight.float(), share) if name in before else weight.float()
        for name, weight in after.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="model folder that training began with")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder with the checkpoint.pt that came of it"
    )
    parser.add_argument("--share", type=float, required=True, help="of the way to the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for a checkpoint.pt to export")
    args = parser.parse_args()
    state: dict[str, Any] = torch.load(args.run / "checkpoint.pt", weights_only=True)
    weights = {
        name: weight for file in args.before.glob("*.safetensors") for name, weight in load_file(file).items()
    }
    state["model"] = blend(grow(weights, state["layers"]), state["model"], args.share)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(state, args.out / "checkpoint.pt")


if __name__ == "__main__":
    main()
