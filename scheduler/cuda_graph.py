"""Records what a computation launches on a GPU, as a CUDA graph. Knows nothing of what is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class CudaGraphs:
    """Its graphs share their memory: they must be replayed one after the other, on one stream, and what one returns is
    the next one's to overwrite unless it lies in memory that was there before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Computes, and records doing so.

        Raises RuntimeError where it cannot be recorded: what it launches depends on what it has computed.
        """
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                compute()  # compiles kernels, and has libraries take the memory that they need
                with _waiting_is_an_error():
                    compute()  # (a recording that fails may leave the device unusable; this does not)
        finally:
            here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads of a process that is not ours alone do on the device is none of this.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
            out = compute()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Inside, whatever has Python wait for the device raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
