"""Between host and device without waiting for what the device is computing."""

import torch
from torch import Tensor


def upload(host: Tensor, device: torch.device) -> Tensor:
    """On its way to `device`: what is launched from here on finds it there."""
    if device.type != "cuda" or not host.numel():
        return host.to(device)
    # From other memory than pinned, the copy would wait for everything launched before it.
    return host.pin_memory().to(device, non_blocking=True)


class Download:
    """Tensors on their way to the host, behind what was launched before."""

    __slots__ = ("_arrived", "_copies")

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = tensors
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> tuple[Tensor, ...]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
