"""What the roofline projects, beside what papers and boards have measured.

Run `python -m runners.benchmark sweep=published_boards output=results/published`, the same with `published_batches` and
`published_serving`, then `python -m benchmarks.published results/published`. A law with the published acceptance length
stands in for text and model, so that a difference is one of time: what the roofline leaves out. `shape` compares a
curve's points with its first one, where such constant differences cancel.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import pandas

from analysis.tables import pipe_table
from runners.records import RunRecord
from runners.store import read_runs


class Published(NamedTuple):
    """A measured speedup over plain decoding, greedy, and the projected point that stands beside it."""

    source: str
    device: str
    algorithm: str
    batch: int
    speedup: float
    depth: int | None = None  # of a chain


BOARD = "Spec-Bench, EAGLE-2, Vicuna-7B"
EAGLE3 = "CAST's paper, EAGLE-3, Llama-3.1-8B, six tasks"
CAST = "CAST's paper, CAST, Llama-3.1-8B, six tasks"
SGLANG = "EAGLE-3's paper, SGLang, chain of 3, Llama-3.1-8B"
VLLM = "EAGLE-3's paper, vLLM, chain of 2, Llama-3.1-8B"

PUBLISHED = [
    Published(BOARD, "rtx3090", "eagle2", 1, 2.19),
    Published(BOARD, "a100", "eagle2", 1, 2.36),
    Published(EAGLE3, "a800", "eagle3", 1, 3.66),
    Published(EAGLE3, "a800", "eagle3", 8, 1.81),
    Published(CAST, "a800", "cast", 1, 3.79),
    Published(CAST, "a800", "cast", 8, 2.28),
    *(Published(SGLANG, "h100", "chain", b, s, 3) for b, s in ((2, 1.81), (8, 1.62), (32, 1.32), (56, 1.34))),
    *(Published(VLLM, "rtx3090", "chain", b, s, 2) for b, s in ((2, 1.75), (8, 1.58), (32, 1.36), (56, 1.01))),
]


def stands_beside(record: RunRecord, row: Published) -> bool:
    """Whether the record is the projection of a published point."""
    options = record.config["algorithm"]
    point = (record.config["device"]["name"], record.algorithm, record.batch_size, options.get("depth"))
    wanted = (row.device, row.algorithm, row.batch, row.depth or options.get("depth"))
    return point == wanted and record.status == "ok" and record.basis == "projected"


def comparison(folder: Path) -> list[dict[str, str]]:
    """A line per published point that the sweep has."""
    lines: list[dict[str, str]] = []
    first: dict[str, float] = {}
    records = [record for _, record in read_runs(folder)[0]]
    for row in PUBLISHED:
        record = next((record for record in records if stands_beside(record, row)), None)
        if record is None or not record.speedup:
            continue
        ratio = record.speedup / row.speedup
        first.setdefault(row.source, ratio)
        lines.append(
            {
                "published": row.source,
                "device": row.device,
                "batch": str(row.batch),
                "speedup": f"{row.speedup:.2f}",
                "projected": f"{record.speedup:.2f}",
                "tau": f"{record.acceptance_length:.2f}",
                "projected / published": f"{ratio:.2f}",
                "shape": f"{ratio / first[row.source]:.2f}",
            }
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("sweep", type=Path)
    lines = comparison(parser.parse_args(arguments).sweep)
    if not lines:
        sys.stderr.write("no projected point of a published one: run the sweeps that --help names\n")
        return 1
    sys.stdout.write(pipe_table(pandas.DataFrame(lines)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
