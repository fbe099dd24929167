"""Models as transformers loads them, and what happens to a Ctrl-C meanwhile."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from penstock.cli import main
from penstock.compress.plain_model import load_plain
from penstock.scheduler.model_runner import ModelRunner


def losing_ctrl_c(read: Any) -> Any:
    """As safetensors may, where the signal comes while it reads."""

    def losing(*arguments: Any, **others: Any) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        return read(*arguments, **others)

    return losing


def test_a_ctrl_c_while_weights_are_read_is_not_lost(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    read = losing_ctrl_c(AutoModelForCausalLM.from_pretrained)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(KeyboardInterrupt):
        load_plain(str(tiny_llama))
    assert signal.getsignal(signal.SIGINT) is before


def test_nor_while_an_engine_is_made(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelRunner, "__init__", losing_ctrl_c(ModelRunner.__init__))
    assert main(["eval", "models", str(tiny_llama), "--speed"]) == 130
