"""Every kernel compiles for the chips it is made for, as intended; and what is not as intended is noticed."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.kernels.gpu import ahead_of_time
from penstock.kernels.gpu.ahead_of_time import (
    Resources,
    compile_all,
    compile_rounds,
    complaints,
    kernel_modules,
    table,
)
from penstock.kernels.gpu.variant import Variant

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)

# All kernels for all chips: two minutes of two fast cores.
pytestmark = pytest.mark.timeout(900)
TABLE = Path(__file__).parents[3] / "kernels" / "RESOURCES.md"


@pytest.fixture(scope="module")
def results() -> list[tuple[Resources, list[str]]]:
    return compile_all()


def test_every_variant_compiles_as_intended(results):
    wrong = [
        f"{found.name} on {found.arch}: {'; '.join(what)}"
        for found, what in results
        if what and found.arch.startswith("sm_")
    ]
    assert not wrong, "\n".join(wrong)
    assert {found.arch for found, _ in results} == set(ahead_of_time.ARCHITECTURES)
    assert len(results) > 20


def test_prefill_multiplies_int8_on_hopper_by_wgmma(results):
    found = [r for r, _ in results if r.name.startswith("int8_matmul prefill") and r.arch == "sm_90"]
    assert found and all(r.mma.startswith("wgmma.m64n") and r.mma.endswith("s32.s8.s8") for r in found)


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_few_rows_and_many_are_summed_by_the_same_instruction(arch, results):
    """Another one could add up the products of float activations in another order."""
    mma = {r.mma for r, _ in results if r.name.startswith("weight_only_matmul") and r.arch == arch}
    shapes = {re.sub(r"n\d+", "", name, count=1) if arch == "sm_90" else name for name in mma}
    assert len(shapes) == 1, mma


def test_the_committed_table_is_of_this_code(results):
    import triton

    text = TABLE.read_text(encoding="utf-8")
    if f"Triton {triton.__version__}," not in text:
        pytest.skip(f"the table was made with another Triton than {triton.__version__}")
    assert text == "\n".join(table(results)) + "\n", "write it again; its head says how"


def test_every_kernel_has_variants():
    """A kernel that the gate does not see is not proven."""
    folder = Path(ahead_of_time.__file__).parent
    with_kernels = [file.stem for file in folder.glob("*.py") if "\n@triton.jit\ndef _" in file.read_text()]
    assert sorted(kernel_modules()) == sorted(with_kernels)


GOOD = Resources("x", "sm_90", 8, 128, 0, 100_000, "wgmma.m64n128k32.s32.s8.s8", 128)
WANTED = Variant("x", None, {}, {"BLOCK_M": 128}, num_warps=8, num_stages=3, mma="s8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"spills": 8}, "8 bytes of registers are spilled"),
        ({"shared": 263_200}, "263200 bytes of shared memory; sm_90 has 232448"),
        ({"registers": 255, "warps": 16}, "255 registers of 16 warps"),
        ({"mma": "mma.sync.m16n8k32.s32.s8.s8.s32"}, "its matrix instruction is mma.sync"),
        ({"mma": "wgmma.m64n128k16.f32.bf16.bf16"}, "its matrix instruction is wgmma"),
        ({"mma": ""}, "its matrix instruction is missing"),
        ({"load_bits": 64}, "its widest load is of 64 bits"),
        ({"error": "PassManager::run failed"}, "PassManager::run failed"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    found = complaints(WANTED, replace(GOOD, **change))
    assert (message is None and not found) or (len(found) == 1 and message in found[0])


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("too_much_shared", "bytes of shared memory"),
        ("narrow_load", "its widest load is of"),
        ("spilled", "bytes of registers are spilled"),
        ("crash", "the compiler ended with"),
    ],
)
def test_real_compilations_that_go_wrong_are_noticed(module, expected, bad_modules):
    """The worker imports its modules from the package's folder: here from one with kernels that are wrong on purpose."""
    (found,) = compile_rounds(module, "sm_90", [{}])
    assert found and any(expected in complaint for _, what in found for complaint in what), found


@pytest.fixture
def bad_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = Path(__file__).parents[2] / "support"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(ahead_of_time, "MODULES_OF", "bad_kernels")
    yield
