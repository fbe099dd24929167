"""A checkpoint is whole, or the one before it; a disk that is full is told in a line."""

import resource
import signal

import pytest
import torch

from penstock.compress.training.checkpoint import load_checkpoint, save_checkpoint
from penstock.compress.training.log import TrainingLog
from penstock.errors import CompressError


@pytest.fixture
def files_of_a_megabyte():
    """The system refuses to write more, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, files_of_a_megabyte):
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, {"step": 1, "weights": torch.zeros(10)})
    with pytest.raises(CompressError, match=r"File too large\. The one before it stays"):
        save_checkpoint(file, {"step": 2, "weights": torch.zeros(1_000_000)})
    assert load_checkpoint(file)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_log_on_a_full_disk_is_told(tmp_path):
    (tmp_path / "training.jsonl").symlink_to("/dev/full")
    with pytest.raises(CompressError, match=r"training\.jsonl cannot be written: No space left on device\."):
        TrainingLog(tmp_path / "training.jsonl").write(step=1)


def test_a_broken_checkpoint_is_told(tmp_path):
    file = tmp_path / "checkpoint.pt"
    assert load_checkpoint(file) is None
    file.write_bytes(b"PK torn")
    with pytest.raises(CompressError, match="cannot be read"):
        load_checkpoint(file)
