"""Output folders that appear whole or not at all, and work that is found again."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from penstock.compress.folder import WorkFolder, check_target, is_disk_full, new_folder, work_folder
from penstock.errors import CompressError


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with new_folder(target) as staging:
        (staging / "weights").write_text("w")
        assert not target.exists()
    assert (target / "weights").read_text() == "w"
    assert contents(tmp_path / "deep") == ["model"]


def test_others_may_read_what_safetensors_wrote(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with new_folder(tmp_path / "model") as staging:
        save_file({"w": torch.zeros(2)}, staging / "model.safetensors")
    written = tmp_path / "model" / "model.safetensors"
    assert written.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_nothing_is_left_of_one_that_failed(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "model") as staging:
        (staging / "weights").write_text("w")
        raise error
    assert contents(tmp_path) == []


def test_a_taken_name_is_refused_before_any_work_and_replaced_by_force(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine").write_text("precious")
    with pytest.raises(CompressError, match="--force"), new_folder(target):
        pytest.fail("the block was entered")
    with pytest.raises(RuntimeError), new_folder(target, force=True):
        raise RuntimeError
    assert contents(target) == ["mine"]
    with new_folder(target, force=True) as staging:
        (staging / "weights").write_text("w")
    assert contents(target) == ["weights"]
    assert contents(tmp_path) == ["model"]


def test_force_replaces_neither_what_a_model_is_made_from_nor_somebodys_folder(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "config.json").write_text("{}")
    for target in (parent, tmp_path, parent / "inside"):
        with pytest.raises(CompressError, match=r"made from|folders in it"):
            check_target(target, force=True, sources=["builtin", parent])
    check_target(tmp_path / "small", force=True, sources=["builtin", parent])
    home = tmp_path / "home"
    (home / "letters").mkdir(parents=True)
    with pytest.raises(CompressError, match="folders in it"):
        check_target(home, force=True)


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(CompressError, match="is a file"), new_folder(tmp_path / "model", force=True):
        pytest.fail("the block was entered")


def test_a_disk_that_is_too_small_is_named_at_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(CompressError, match="its disk has"),
        new_folder(tmp_path / "m", expected_bytes=1 << 60),
    ):
        pytest.fail("the block was entered")
    assert contents(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    """Linux has a device that is always full; the error is the system's own."""
    with (
        pytest.raises(CompressError, match=r"disk of .* is full"),
        new_folder(tmp_path / "m"),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)
    assert contents(tmp_path) == []


def test_a_full_disk_is_recognised_as_safetensors_words_it() -> None:
    assert is_disk_full(
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    )
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_what_was_not_begun_leaves_nothing(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "model", {"steps": 3})
    (work.path / "answers").touch()
    work.close()
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"The disk of .*model is full; free some space, and run"),
        (SafetensorError("I/O error: File too large (os error 27)"), r"\.model\.work cannot be written or read: File too"),
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), "^/some/file cannot be written or read: Perm"),
    ],
)  # fmt: skip
def test_what_a_disk_refuses_is_told_and_the_work_is_kept(
    tmp_path: Path, error: Exception, says: str
) -> None:
    with pytest.raises(CompressError, match=says), work_folder(tmp_path / "model", {}) as work:
        (work.path / "layer-0").write_text("done")
        raise error
    assert contents(tmp_path) == [".model.work"]
    with work_folder(tmp_path / "model", {}) as work:
        assert work.resumed
    assert contents(tmp_path) == []


def test_the_same_job_finds_its_work_and_another_does_not(tmp_path: Path) -> None:
    target = tmp_path / "model"
    work = WorkFolder(target, {"steps": 3})
    assert not work.resumed
    (work.path / "layer-0").write_text("done")
    with pytest.raises(CompressError, match="Another process"):
        WorkFolder(target, {"steps": 3})
    work.close()
    again = WorkFolder(target, {"steps": 3})
    assert again.resumed
    assert (again.path / "layer-0").read_text() == "done"
    again.close()
    other = WorkFolder(target, {"steps": 4})
    assert not other.resumed
    assert not (other.path / "layer-0").exists()
    other.done()
    assert contents(tmp_path) == []
