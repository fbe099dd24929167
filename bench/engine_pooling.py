"""Which of a serving model's final hidden states are a question's best vector: why `EngineEmbedder` takes what it takes.

    python bench/engine_pooling.py [--model builtin-large]

By transformers, in float32: the mean over all tokens or the last one's, of the question alone or as a chat's only message
with the beginning of its answer; as they are, or less the mean of questions on unlike subjects. Figures as of
`engine_embedder.py`.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from engine_embedder import figures, sets, show
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from penstock.models.location import resolve_model
from penstock.models.tokenizer import Tokenizer
from penstock.proxy.engine_embedder import UNLIKE

POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda states: states.mean(0),
    "last": lambda states: states[-1],
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin-large")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = resolve_model(args.model)
    tokenizer = Tokenizer.load(args.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).base_model.eval()
    asked: dict[str, Callable[[str], list[int]]] = {
        "alone": tokenizer.encode,
        "in a chat": lambda text: tokenizer.encode_chat([{"role": "user", "content": text}]),
    }
    for place, encode in asked.items():
        states: dict[str, torch.Tensor] = {}
        for text in dict.fromkeys([*UNLIKE, *(text for own in sets() for text in own.texts)]):
            states[text] = model(torch.tensor([encode(text)])).last_hidden_state[0]
        for pooling, pool in POOLINGS.items():
            raw = {text: pool(own).numpy() for text, own in states.items()}
            in_common = np.stack([raw[text] for text in UNLIKE]).mean(0)
            for less, offset in (("nothing", np.zeros_like(in_common)), ("the mean", in_common)):
                vectors = {text: unit(own - offset) for text, own in raw.items()}
                for own in sets():
                    show(asked=place, state=pooling, less=less, pairs=own.name, **figures(own, vectors))


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


if __name__ == "__main__":
    main()
