"""NumPy's products on one thread.

OpenBLAS shares all but the smallest among threads that spin while they wait for each other. Beside other busy processes a
product of 0.03 ms took 24 ms, and training a rotation a minute instead of a second.
"""

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """Of this process, while the block lasts."""
    limiter: AbstractContextManager[object] = _blas().limit(limits=1)
    return limiter


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
