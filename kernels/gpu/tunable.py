"""Which parts of a launch may be tuned: the cases of every operation, the tiles each names, and the values those may have.

A row must have the same bits in any batch, so what would change them with the batch is no choice. How each kernel stands:

- `int8_matmul` and `grouped_int8_matmul` sum integers: every tile gives equal bits. A decode's program holds all of its
  rows; experts' rows are cut into tiles in either case.
- `weight_only_matmul` cuts K by the weight's shape and walks it in steps of one group, in every case: neither is a tile. Few
  rows and many must be summed by the same instruction, so all cases take at least the 64 channels and 4 warps of wgmma.
- `paged_attention` and `sparse_attention` split keys every 512 positions and combine in order: neither is a tile. Other
  tiles of keys sum in another order, but a case depends on the model and the device alone. A decode's divide a split.
- `sparse_prompt` likewise: a block of queries is computed alone, its tiles of keys divide a page, and a case depends on the
  model and the device alone.
- `rms_norm` and `sample` sum rows in an order that depends on warps; a case depends on a row's width alone.
- `quantize_activation`, `silu_mul`, `rotary` and `store_kv` compute elements, and maxima, which have no order. (`store_kv`
  sums a granule of 16 tokens for mean/std, for which the case depends on the model alone.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

STAGES = (1, 2, 3, 4, 5, 6, 7, 8)
# Heads of other sizes are launched as the next larger of these.
HEAD_SIZES = (64, 128, 256)
# Rows of up to so many values are computed in one piece.
ROW_BLOCKS = (1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class Tunable:
    """What a configuration of one case may say: the values of every tile it names, and of warps.

    `because`: why not others, for who asks for them.
    """

    tiles: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    warps: tuple[int, ...] = (1, 2, 4, 8, 16)
    because: str = ""


def head_size(block_d: int) -> int:
    """The one of HEAD_SIZES whose configurations serve heads that are computed `block_d` wide."""
    return next((size for size in HEAD_SIZES if size >= block_d), HEAD_SIZES[-1])


@cache
def by_head(case: str, block_d: int, int8: bool = False) -> str:
    """The name of `case` for heads that are computed `block_d` wide: "decode_128_int8"."""
    return f"{case}_{head_size(block_d)}{'_int8' if int8 else ''}"


@cache
def by_row(block: int, pieces: int) -> str:
    """The name of the case of rows that are computed in `pieces` of `block` values."""
    if pieces > 1:
        return "pieces"
    return f"block_{next((size for size in ROW_BLOCKS if size >= block), ROW_BLOCKS[-1])}"


def _powers(least: int, most: int) -> tuple[int, ...]:
    """Triton's ranges are powers of two."""
    return tuple(1 << bits for bits in range(least.bit_length() - 1, most.bit_length()))


def _heads(case: str, tunable: Tunable, kinds: tuple[bool, ...] = (False, True)) -> dict[str, Tunable]:
    return {by_head(case, size, int8): tunable for size in HEAD_SIZES for int8 in kinds}


def _int8_matmul() -> dict[str, Tunable]:
    sides = {"BLOCK_N": _powers(16, 256), "BLOCK_K": _powers(32, 512)}
    whole = "a decode's program holds all of its rows"
    return {
        "prefill": Tunable({"BLOCK_M": _powers(16, 256), **sides, "GROUP_M": _powers(1, 64)}),
        **{f"decode_{rows}": Tunable({"BLOCK_M": (rows,), **sides}, because=whole) for rows in (16, 32, 64)},
    }


def _weight_only_matmul() -> dict[str, Tunable]:
    same = "few rows and many must be summed by the same instruction, which takes 64 channels and 4 warps"
    found = {}
    for bits in (8, 4):
        for tokens in (16, 32, 64):
            tiles = {"BLOCK_N": _powers(64, 256), "BLOCK_M": (tokens,)}
            found[f"decode_{bits}_{tokens}"] = Tunable(tiles, (4, 8), same)
        tiles = {"BLOCK_N": _powers(64, 256), "BLOCK_M": _powers(16, 256)}
        found[f"prefill_{bits}"] = Tunable(tiles, (4, 8), same)
    return found


KEYS = Tunable({"BLOCK_N": _powers(16, 256)}, because="a tile of keys must divide a split of 512")
SCORES = Tunable({"BLOCK_G": _powers(16, 64), "GRANULES": _powers(16, 512)})
PAGES = Tunable(
    {"BLOCK_M": _powers(16, 256), "BLOCK_N": _powers(16, 64)},
    because="a tile of keys must divide a page of 64",
)
MASSES = Tunable({"BLOCK_M": _powers(16, 256), "BLOCKS": _powers(1, 256)})
ROWS = {**{f"block_{size}": Tunable() for size in ROW_BLOCKS}, "pieces": Tunable()}

TUNABLE: Mapping[str, Mapping[str, Tunable]] = {
    "int8_matmul": _int8_matmul(),
    "grouped_int8_matmul": dict.fromkeys(("prefill", "decode"), _int8_matmul()["prefill"]),
    "weight_only_matmul": _weight_only_matmul(),
    "paged_attention": {
        **_heads("decode", KEYS),
        **_heads("prefill", Tunable({"BLOCK_M": _powers(16, 256), "BLOCK_N": _powers(16, 256)})),
        "combine": Tunable(),
    },
    "sparse_attention": {
        **_heads("score_keys", SCORES),
        **_heads("score_min_max", SCORES, (False,)),
        **_heads("score_mean_std", SCORES, (False,)),
        "select": Tunable({"BLOCK_G": _powers(128, 4096)}),
        **_heads("attend", KEYS),
    },
    "sparse_prompt": {
        **_heads("score", MASSES),
        "select": Tunable({"SHARES": _powers(1024, 16384)}),
        **_heads("attend", PAGES),
    },
    "quantize_activation": ROWS,
    "rms_norm": ROWS,
    "silu_mul": ROWS,
    "rotary": {"heads": Tunable()},
    "store_kv": _heads("store", Tunable()),
    "sample": {"draw": Tunable({"BLOCK": _powers(256, 16384)})},
}
