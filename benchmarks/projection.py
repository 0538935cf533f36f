"""Does projecting a machine from its own cost table give the speedups that were measured on it?

Run two sweeps of the same points, the second with `device.basis=projected`, then
`python -m benchmarks.projection results/measured results/projected`. Exit code 1 if some ratio is further from 1 than
`--tolerance`.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from runners.records import RunRecord
from runners.store import read_runs

Key = tuple[str, str, str, int, float, str]


def speedups(folder: Path, basis: str) -> dict[Key, RunRecord]:
    """Successful points of one basis by what must agree."""
    return {
        (record.algorithm, record.drafter, record.task, record.batch_size, record.temperature, record.dtype): record
        for _, record in read_runs(folder)[0]
        if record.status == "ok" and record.basis == basis and record.speedup is not None
    }


def ratios(measured: dict[Key, RunRecord], projected: dict[Key, RunRecord]) -> dict[Key, float]:
    """Projected over measured speedup of the points that both have."""
    return {
        key: (projected[key].speedup or 0.0) / (record.speedup or 1.0)
        for key, record in sorted(measured.items())
        if key in projected
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("projected", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1)
    arguments = parser.parse_args()
    measured, projected = speedups(arguments.measured, "measured"), speedups(arguments.projected, "projected")
    found = ratios(measured, projected)
    table = Table("algorithm", "drafter", "task", "batch", "T", "dtype", "measured", "95 %", "projected", "ratio")
    for key, ratio in found.items():
        one, other = measured[key], projected[key]
        interval = f"{one.speedup_low:.2f}-{one.speedup_high:.2f}" if one.speedup_low and one.speedup_high else "-"
        row = (f"{one.speedup:.2f}", interval, f"{other.speedup:.2f}", f"{ratio:.2f}")
        table.add_row(*map(str, key), *row)
    whole = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, whole)).print(table)  # figures are never cut
    off = [key for key, ratio in found.items() if abs(ratio - 1) > arguments.tolerance]
    Console().print(f"{len(found)} points in both, {len(off)} off by more than {arguments.tolerance:.0%}")
    sys.exit(1 if off or not found else 0)


if __name__ == "__main__":
    main()
