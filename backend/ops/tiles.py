"""Tile sizes of the attention kernel: combinations that were compiled without register spills, and nothing else.

`python -m benchmarks.kernel_resources` compiles every entry for every architecture and Triton version and says so.
"""

from typing import NamedTuple

import torch

MAX_HEAD_SIZE = 256
MAX_FULL_PRECISION_TILE = 128  # elements of an fp32 head that one exact product takes: more spilled registers
KEYS_PER_SPLIT = 256  # a shorter run of keys is not worth a program of its own
MAX_SPLITS = 32


class Tile(NamedTuple):
    """Rows (token x head of a group) and keys of one step, warps per program, stages of the load pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


def tile_for(dtype: torch.dtype, head_size: int, num_rows: int, splits: int) -> Tile:
    """`num_rows` are the queries of all heads that share a key head."""
    if dtype == torch.float32:
        return Tile(32, 32, 8, 2) if head_size <= 64 else Tile(16, 16, 8, 2)
    if head_size > 128:
        return Tile(64, 32, 8, 2) if num_rows > 32 else Tile(32, 32, 4, 2)
    if num_rows > 32:
        return Tile(64, 64, 8, 2)
    if head_size <= 64:
        return Tile(32, 64, 8, 2) if num_rows > 16 else Tile(16, 64, 4, 2)
    if splits == 1:
        return Tile(64, 64, 8, 2) if num_rows > 16 else Tile(16, 64, 8, 2)
    return Tile(32, 64, 4, 2) if num_rows > 16 else Tile(16, 64, 4, 3)


def splits_for(num_tiles: int, num_keys: int, num_processors: int) -> int:
    """Programs that share one prefix: enough to fill the device twice, a power of two, none with next to no keys.

    `num_tiles` are the programs there would be without a split; `num_keys` is a bound that the host knows.
    """
    wanted = -(-2 * num_processors // num_tiles)
    most = min(wanted, num_keys // KEYS_PER_SPLIT, MAX_SPLITS)
    return 1 << (most.bit_length() - 1) if most > 1 else 1
