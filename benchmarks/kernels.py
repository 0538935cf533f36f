"""How far is each kernel from the least that it must move? On a GPU also: how far is its time from the bandwidth limit?

Run `python -m benchmarks.kernels`. `least` counts every byte once that the result depends on, `moved` what the kernel
asks for (a key that several row tiles read counts several times, though a cache may serve it). On a CUDA device the
times stand beside them, against the same operation in torch and, if installed, FlashInfer, and against a copy, which is
the ceiling; without one the table has the bytes only. Goals: attention within 1.3 times one read of the prefix.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from backend.ops.tiles import splits_for, tile_for

H100_PROCESSORS = 132  # where there is no device to ask
ITEM = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


class Bytes(NamedTuple):
    least: int
    moved: int


@dataclass(frozen=True)
class Attention:
    """Shapes of one layer's verification: tree of `width` nodes behind `prefix` committed tokens."""

    batch: int
    prefix: int
    width: int
    heads: int = 32
    kv_heads: int = 8
    size: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"batch {self.batch}, prefix {self.prefix}, width {self.width}"

    def splits(self, num_processors: int) -> int:
        tiles = -(-self.width * self.heads // self.kv_heads // 64) * self.batch * self.kv_heads
        return splits_for(tiles, self.prefix, num_processors)

    def bytes(self, num_processors: int) -> Bytes:
        item, rows = ITEM[self.dtype], self.batch * self.width * self.heads
        per_key_head = self.width * self.heads // self.kv_heads
        splits = self.splits(num_processors)
        tile = tile_for(self.dtype, self.size, per_key_head, splits)
        keys = 2 * self.batch * self.kv_heads * self.size * item * (self.prefix + self.width)
        ends = 2 * rows * self.size * item + self.batch * self.width * 8 * (1 + -(-self.width // 64))
        parts = 2 * rows * splits * (self.size + 2) * 4 if splits > 1 else 0
        return Bytes(keys + ends, -(-per_key_head // tile.rows) * keys + ends + parts)


@dataclass(frozen=True)
class Compaction:
    """`kept` of the accepted tokens do not lie where they belong; the others stay."""

    batch: int
    kept: int
    layers: int = 32
    kv_heads: int = 8
    size: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"batch {self.batch}, {self.kept} tokens moved, {self.layers} layers"

    def bytes(self, num_processors: int) -> Bytes:
        moved = 2 * 2 * self.layers * self.batch * self.kv_heads * self.kept * self.size * ITEM[self.dtype]
        return Bytes(moved, moved + 2 * self.layers * self.batch * self.kv_heads * (self.kept + 1) * 8)


@dataclass(frozen=True)
class Rejection:
    """A walk that rejects `rejected` children and descends `depth` times."""

    batch: int
    width: int
    depth: int
    rejected: int
    vocab: int = 128256

    @property
    def name(self) -> str:
        return f"batch {self.batch}, {self.depth} accepted, {self.rejected} rejected, vocabulary {self.vocab}"

    def bytes(self, num_processors: int) -> Bytes:
        row = 4 * self.vocab * self.batch
        least = (2 * (self.depth + 1) + 1) * row  # each visited law once, the residual written
        return Bytes(least, 4 * (self.depth + 1) * row + 6 * self.rejected * row)


CASES: dict[str, list[Attention | Compaction | Rejection]] = {
    "attention": [
        Attention(batch, prefix, width) for batch in (1, 8) for prefix in (512, 4096, 32768) for width in (1, 16, 64)
    ],
    "compaction": [Compaction(1, 4), Compaction(8, 4)],
    "rejection": [Rejection(1, 64, 4, 6), Rejection(8, 64, 4, 6)],
}


def rows(num_processors: int, seconds: Callable[[object], list[float | None]]) -> Iterator[list[str]]:
    for kernel, cases in CASES.items():
        for case in cases:
            least, moved = case.bytes(num_processors)
            cells = [kernel, case.name, f"{least / 1e6:.2f}", f"{moved / 1e6:.2f}", f"{moved / least:.2f}"]
            yield cells + ["-" if time is None else f"{time * 1e6:.1f}" for time in seconds(case)]


def table(lines: list[list[str]], device: str, copy_seconds: Callable[[float], float] | None) -> str:
    head = ["kernel", "case", "least MB", "moved MB", "moved / least"]
    if copy_seconds is not None:
        head += ["us", "torch us", "FlashInfer us", "us / limit"]
        lines = [[*line, f"{float(line[5]) / (copy_seconds(float(line[2]) * 1e6) * 1e6):.2f}"] for line in lines]
    else:
        lines = [line[:5] for line in lines]
    text = [f"Device: {device}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines), ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=None, help="write the table there, too")
    output = parser.parse_args().output
    console = Console(soft_wrap=True, markup=False, emoji=False)
    if torch.cuda.is_available():
        from benchmarks import kernel_times

        device = torch.cuda.get_device_properties(0)
        lines = list(rows(device.multi_processor_count, kernel_times.seconds))
        text = table(lines, device.name, kernel_times.copy_limit())
    else:
        text = table(list(rows(H100_PROCESSORS, lambda case: [])), "none: bytes by calculation, no times", None)
    console.print(text)
    if output is not None:
        output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
