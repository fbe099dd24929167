"""Measured configurations: chosen where there are some, defaults elsewhere, and refused where they could not be right."""

import ast
import json
from pathlib import Path

import pytest
import torch

from penstock.kernels.dispatch import choose_backend, describe
from penstock.kernels.gpu import ahead_of_time, config
from penstock.kernels.gpu.ahead_of_time import compile_all, kernel_modules
from penstock.kernels.gpu.config import (
    Config,
    as_json,
    check,
    choose,
    fitting,
    path_of,
    read_tuned,
    tuned_files,
)
from penstock.kernels.gpu.paged_attention import SPLIT
from penstock.kernels.gpu.tunable import TUNABLE
from penstock.kernels.quantize_weight import GROUP
from penstock.kernels.span import PAGE_SIZE

HERE, ELSEWHERE = torch.device("cuda", 0), torch.device("cuda", 1)
DEFAULT = Config({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 256}, num_warps=4, num_stages=4)
TUNED = Config({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 256}, num_warps=4, num_stages=3)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two GPUs, neither here, and where their files are looked for."""
    names = {HERE: "Some GPU-80GB", ELSEWHERE: "Another GPU"}
    monkeypatch.setattr(config, "TUNED_FOLDER", tmp_path)
    monkeypatch.setattr(config, "_choices", {None: {}})
    monkeypatch.setattr(config, "gpu_name", names.__getitem__)
    monkeypatch.setattr(config, "arch_of", lambda device: "sm_90")
    return tmp_path


def written(folder: Path, configurations: object, **changes: object) -> Path:
    said = {"gpu": "Some GPU-80GB", "chip": "sm_90", "measured": {}, "configurations": configurations}
    path = folder / "Some_GPU_80GB.json"
    path.write_text(json.dumps(said | changes))
    return path


def test_what_was_measured_serves_on_its_gpu_and_nowhere_else(folder):
    entry = {**as_json(TUNED), "microseconds": 8.5, "default_microseconds": 9}
    path = written(folder, {"int8_matmul": {"decode_16": entry}})
    assert path_of("Some GPU-80GB") == path
    assert choose("int8_matmul", "decode_16", DEFAULT, HERE) == TUNED
    assert choose("int8_matmul", "decode_32", DEFAULT, HERE) is DEFAULT
    assert choose("int8_matmul", "decode_16", DEFAULT, ELSEWHERE) is DEFAULT
    assert choose("int8_matmul", "decode_16", DEFAULT, None) is DEFAULT


def test_a_file_is_read_once(folder):
    path = written(folder, {})
    config.load(HERE)
    path.write_text("no JSON")
    assert choose("int8_matmul", "decode_16", DEFAULT, HERE) is DEFAULT


def entry(**changes: object) -> dict[str, object]:
    return {**as_json(TUNED), **changes}


@pytest.mark.parametrize(
    ("operation", "case", "said", "message"),
    [
        ("int4_matmul", "decode_16", entry(), "configurations has 'int4_matmul'; it may have int8_matmul, "),
        ("int8_matmul", "decode_8", entry(), "int8_matmul has 'decode_8'; it may have prefill, decode_16, "),
        ("int8_matmul", "decode_16", entry(num_warp=4), "int8_matmul decode_16 has 'num_warp'; it may have "),
        ("int8_matmul", "decode_16", {"tiles": {}}, "int8_matmul decode_16 lacks num_stages, num_warps"),
        ("int8_matmul", "decode_16", entry(tiles=[]), r"tiles of int8_matmul decode_16 is \[\]"),
        (
            "int8_matmul",
            "decode_16",
            entry(tiles={}),
            "tiles of int8_matmul decode_16 lacks BLOCK_K, BLOCK_M",
        ),
        (
            "int8_matmul",
            "decode_16",
            entry(num_warps=0),
            "num_warps of int8_matmul decode_16 is 0; it must be",
        ),
        ("int8_matmul", "decode_16", entry(num_warps=True), "num_warps of int8_matmul decode_16 is True"),
        ("int8_matmul", "decode_16", entry(num_stages=4.0), "num_stages of int8_matmul decode_16 is 4.0"),
        ("int8_matmul", "decode_16", entry(num_stages=-1), "num_stages of int8_matmul decode_16 is -1"),
        # What an answer depends on.
        (
            "int8_matmul",
            "decode_32",
            entry(),
            "BLOCK_M of int8_matmul decode_32 is 16; it must be 32 .*all of",
        ),
        (
            "weight_only_matmul",
            "decode_4_16",
            entry(tiles={"BLOCK_N": 32, "BLOCK_M": 16}),
            "BLOCK_N of weight_only_matmul decode_4_16 is 32; it must be 64 or 128 or 256 .*same instruction",
        ),
        (
            "weight_only_matmul",
            "prefill_8",
            entry(tiles={"BLOCK_N": 64, "BLOCK_M": 64}, num_warps=2),
            "num_warps of weight_only_matmul prefill_8 is 2; it must be 4 or 8",
        ),
        (
            "weight_only_matmul",
            "prefill_8",
            entry(tiles={"BLOCK_N": 64, "BLOCK_M": 64, "STEP": 64}),
            "tiles of weight_only_matmul prefill_8 has 'STEP'; it may have BLOCK_M, BLOCK_N",
        ),
        (
            "paged_attention",
            "decode_128",
            entry(tiles={"BLOCK_N": 64, "SPLIT_KEYS": 256}),
            "tiles of paged_attention decode_128 has 'SPLIT_KEYS'",
        ),
        (
            "paged_attention",
            "decode_128",
            entry(tiles={"BLOCK_N": 96}),
            "BLOCK_N of paged_attention decode_128 is 96; it must be 16 or 32 .*divide a split of 512",
        ),
        (
            "sparse_prompt",
            "attend_128",
            entry(tiles={"BLOCK_M": 128, "BLOCK_N": 128}),
            "BLOCK_N of sparse_prompt attend_128 is 128; it must be 16 or 32 or 64 .*divide a page of 64",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_file_key_and_remedy(operation, case, said, message, folder):
    path = written(folder, {operation: {case: said}})
    with pytest.raises(ValueError, match=message) as caught:
        choose("int8_matmul", "decode_16", DEFAULT, HERE)
    assert str(path) in str(caught.value) and "delete the file to use the defaults" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chip": "sm_80"}, "chip is sm_80, but Some GPU-80GB is sm_90"),
        ({"chip": "sm_100"}, "chip is 'sm_100'; it must be sm_90 or sm_80 or gfx942"),
        ({"measured": {}, "chip": None}, "chip is None; it must be"),
        ({"note": ""}, "the file has 'note'; it may have chip, configurations, gpu, measured"),
    ],
)
def test_a_file_of_another_form_is_refused(changes, message, folder):
    written(folder, {}, **changes)
    with pytest.raises(ValueError, match=message):
        config.load(HERE)


def test_a_file_that_is_no_json_or_no_object_is_refused(folder):
    written(folder, [1])
    with pytest.raises(ValueError, match=r"configurations is \[1\]; it must be an object"):
        config.load(HERE)
    written(folder, {}).write_text("{")
    with pytest.raises(ValueError, match="it is no JSON"):
        config.load(HERE)


def test_an_engine_says_what_serves_and_refuses_such_a_file_when_it_loads(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Some GPU-80GB")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert "Some GPU-80GB (default configurations)" in describe(choose_backend("cuda"), "w8a8", {})
    written(folder, {"int8_matmul": {"decode_16": entry()}})
    config._choices.pop(HERE)
    assert "Some GPU-80GB (measured configurations)" in describe(choose_backend("cuda"), "w8a8", {})
    written(folder, {"int8_matmul": {"decode_8": entry()}})
    config._choices.pop(HERE)
    with pytest.raises(ValueError, match=r"Some_GPU_80GB.json: int8_matmul has 'decode_8'"):
        choose_backend("cuda")


class Asked(dict[tuple[str, str], Config]):
    """Choices of nothing that remember what was asked for, and the default."""

    def get(self, key, default=None):
        self[key] = default
        return default


@pytest.mark.parametrize("arch", ahead_of_time.ARCHITECTURES)
def test_every_case_is_compiled_and_every_default_is_allowed(arch, monkeypatch):
    """So that no file names what the ahead-of-time check does not see."""
    asked = Asked()
    monkeypatch.setattr(config, "_choices", {None: asked})
    compiled = set()
    for name in kernel_modules():
        module = __import__(f"penstock.kernels.gpu.{name}", fromlist=["variants"])
        compiled |= {(name, variant.case) for variant in module.variants(arch) if variant.case}
    listed = {(operation, case) for operation, cases in TUNABLE.items() for case in cases}
    assert compiled == set(asked) == listed
    for (operation, case), default in asked.items():
        check(Path("default"), f"{operation} {case}", default, TUNABLE[operation][case])


def test_every_launch_says_on_which_device():
    """A launch that asked for no device's configurations would have the defaults for ever."""
    for file in Path(config.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef) or function.name == "variants":
                continue
            for node in ast.walk(function):
                named = isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("config")
                if named or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "choose"):
                    device = ast.unparse(node.args[-1])
                    assert device == "device" or device.endswith(".device"), ast.unparse(node)


def test_what_changes_answers_is_no_tile():
    """Splits and steps are constants of the modules; every tile of keys divides a split or a page, and no tile cuts K."""
    assert SPLIT == 512 and GROUP == 128 and PAGE_SIZE == 64
    for operation in ("paged_attention", "sparse_attention"):
        for case, tunable in TUNABLE[operation].items():
            if not case.startswith("prefill"):
                assert all(SPLIT % value == 0 for value in tunable.tiles.get("BLOCK_N", ()))
    for tunable in TUNABLE["sparse_prompt"].values():
        assert all(PAGE_SIZE % value == 0 for value in tunable.tiles.get("BLOCK_N", ()))
    for tunable in TUNABLE["weight_only_matmul"].values():
        assert set(tunable.tiles) == {"BLOCK_N", "BLOCK_M"} and min(tunable.tiles["BLOCK_N"]) == 64
        assert min(tunable.warps) == 4


def test_the_files_that_exist_can_be_read():
    for path in tuned_files():
        assert path_of(read_tuned(path).gpu) == path


def test_the_ahead_of_time_check_compiles_what_files_name(tmp_path, monkeypatch):
    """Defaults, and a tile that spills and one that needs too much shared memory."""
    monkeypatch.setattr(config, "TUNED_FOLDER", tmp_path)
    monkeypatch.setattr(ahead_of_time, "ARCHITECTURES", ())
    wide = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP_M": 8}
    deep = {"BLOCK_M": 16, "BLOCK_N": 256, "BLOCK_K": 512}
    written(
        tmp_path,
        {
            "int8_matmul": {
                "prefill": {"tiles": wide, "num_warps": 4, "num_stages": 2},
                "decode_16": {"tiles": deep, "num_warps": 8, "num_stages": 3},
                "decode_32": {
                    "tiles": {**deep, "BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 128},
                    "num_warps": 4,
                    "num_stages": 3,
                },
            }
        },
    )
    found = {resources.name: what for resources, what in compile_all()}
    assert set(found) == {
        f"int8_matmul {kind}{ragged} {tile} (Some_GPU_80GB)"
        for kind, tile in (("prefill", "256x256x64"), ("decode", "16x256x512"), ("decode", "32x64x128"))
        for ragged in ("", " ragged K")
    }
    for name, what in found.items():
        if "256x256" in name:
            assert any("are spilled" in complaint for complaint in what)
        elif "16x256" in name:
            assert any("bytes of shared memory" in complaint for complaint in what)
        else:
            assert not what


def test_float32_takes_smaller_tiles_on_a_gpu_alone():
    large = Config({"BLOCK_M": 128, "BLOCK_N": 64, "GRANULES": 32}, num_warps=8, num_stages=3)
    small = Config({"BLOCK_M": 16, "BLOCK_N": 16, "GRANULES": 32}, num_warps=8, num_stages=1)
    assert fitting(large, torch.float32, HERE) == small
    least = Config({"BLOCK_N": 16, "BLOCK_G": 1}, num_warps=4, num_stages=1)
    assert fitting(Config({"BLOCK_N": 64, "BLOCK_G": 4}, 4, 2), torch.float32, HERE) == least
    assert fitting(large, torch.bfloat16, HERE) is large
    assert fitting(large, torch.float32, torch.device("cpu")) is large
