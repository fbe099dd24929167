"""Fixtures shared by all tests: tiny random models and tokenizers made on the spot."""

import os

# Spinning OpenMP barriers cost milliseconds a call when others share the cores; torch reads this once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import atexit
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

# What servers keep of tenants by default is not for the tests of this machine's user.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="penstock-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

if not torch.cuda.is_available():
    # Read by Triton when a kernel is defined: kernels then run as Python, on the CPU's tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

VOCAB_SIZE = 320
EOS = 2
# Folders whose tests start servers.
WITH_SERVERS = ("tests/proxy/", "tests/cli/", "tests/tune/", "tests/bench/")


def save_byte_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of at most VOCAB_SIZE ids: every byte, three special tokens, some merges."""
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = (
        "the list of files in a folder, and how to extract an archive or search for text in it. naïve café €"
    )
    tokenizer.train_from_iterator([words] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def save_llama(folder: Path, seed: int, **config: int) -> Path:
    """A random Llama in Hugging Face format, float32, with the byte-level tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "eos_token_id": EOS,
    }
    LlamaForCausalLM(LlamaConfig(**settings | config)).save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer."""
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama", seed=0)


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one with the same tokenizer, of one layer, short contexts, and a vocabulary padded to other sizes."""
    folder = tmp_path_factory.mktemp("models") / "other-llama"
    return save_llama(
        folder, seed=1, num_hidden_layers=1, max_position_embeddings=100, vocab_size=VOCAB_SIZE - 4
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless marks are chosen by hand."""
    if not config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Each file is one worker's, whose fixtures it shares. What waits for servers and looks at clocks is all one worker's
    too: two of them at once would measure each other."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "servers" if file.startswith(WITH_SERVERS) else file

    return ByFile(config, log)
