"""For tests of what a CPU serves by its C kernels alone."""

import pytest

from penstock.kernels.cpu.native.library import library

needs_c_kernels = pytest.mark.skipif(library() is None, reason="no compiler, or no AVX2")
