"""Keys and values in pages, as the layout says; one token at a time, for tests."""

import torch
from torch import Tensor

PAGE, GRANULE = 64, 16


def store_kv_reference(
    key: Tensor, value: Tensor, pages: Tensor, scales: Tensor | None, slots: list[int]
) -> None:
    """Store row t of key and value [T, Hkv, D] at `slots[t]` of pages [num_pages, Hkv, 2, 64, D]."""
    for row, slot in enumerate(slots):
        page, place = divmod(slot, PAGE)
        for side, x in enumerate((key[row].float(), value[row].float())):
            if scales is None:
                pages[page, :, side, place] = x.to(pages.dtype)
                continue
            # By a tensor: by a number torch multiplies with its inverse on a GPU, which rounds otherwise.
            scale = x.abs().amax(dim=-1).clamp_min(1e-12) / torch.tensor(127.0, device=x.device)
            pages[page, :, side, place] = torch.round(x / scale[:, None]).to(torch.int8)
            scales[page, :, side, place] = scale


def summary_reference(keys: Tensor, *, mean_std: bool) -> Tensor:
    """[n <= 16, Hkv, D] stored keys of a granule -> [Hkv, 2, D] float64: (min, max), or (mean, standard deviation)."""
    keys = keys.double()
    if mean_std:
        return torch.stack([keys.mean(dim=0), keys.std(dim=0, unbiased=False)], dim=1)
    return torch.stack([keys.amin(dim=0), keys.amax(dim=0)], dim=1)
