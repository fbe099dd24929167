"""The C library as it is compiled for every kind of chip that this one can stand for."""

from collections.abc import Iterator

import pytest

from penstock.kernels.cpu.native import library as native
from penstock.native_build import KERNEL_CHIPS, chip_has


@pytest.fixture(params=[name for name, flags in KERNEL_CHIPS.items() if chip_has(flags)])
def chip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(native, "KERNEL_CHIPS", {request.param: KERNEL_CHIPS[request.param]})
    native.library.cache_clear()
    yield request.param
    native.library.cache_clear()
