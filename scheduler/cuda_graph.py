"""Records what a computation launches on a GPU, as a CUDA graph. Knows nothing of what is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Has what it is given launched at every replay, between what is recorded before and what after.
Cut = Callable[[Callable[[], object]], None]


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
        return self.record_pieces(lambda cut: compute())

    def record_pieces(self, compute: Callable[[Cut], Tensor]) -> Callable[[], Tensor]:
        """Computes, and records doing so in pieces: what `compute` hands to the function it is given is no part of them, but
        launched at every replay between the piece before and the one after.

        Raises RuntimeError where a piece cannot be recorded: what it launches depends on what it has computed.
        """
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                compute(_launched)  # compiles kernels, and has libraries take the memory that they need
                with _waiting_is_an_error():
                    compute(
                        _left_out
                    )  # (a recording that fails may leave the device unusable; this does not)
        finally:
            here.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        pieces: list[Callable[[], object]] = []

        def cut(launch: Callable[[], object]) -> None:
            self._end(pieces)
            pieces.append(launch)
            self._begin(pieces)

        with torch.cuda.stream(self._stream):
            self._begin(pieces)
            try:
                out = compute(cut)
            finally:
                self._end(pieces)

        def replay() -> Tensor:
            for piece in pieces:
                piece()
            return out

        return replay

    def _begin(self, pieces: list[Callable[[], object]]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # What other threads of a process that is not ours alone do on the device is none of this.
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self, pieces: list[Callable[[], object]]) -> None:
        self._graph.capture_end()
        pieces.append(self._graph.replay)


def _launched(launch: Callable[[], object]) -> None:
    launch()


def _left_out(launch: Callable[[], object]) -> None:
    pass


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Inside, whatever has Python wait for the device raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
