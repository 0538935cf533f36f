"""Does Sequoia's model of acceptance predict the acceptance length that is measured?

Run `python -m runners.benchmark algorithm=sequoia ...` with an acceptance vector measured on tuning prompts
(`python -m runners.calibrate measure=[acceptance]`), then `python -m benchmarks.sequoia_prediction SWEEP`. The model
holds that child number b of any node is the first accepted one with probability p_b, wherever it stands. Exit code 1 if
some ratio is further from 1 than `--tolerance`.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from algorithms.sequoia_dp import best_tree
from runners.records import RunRecord
from runners.store import read_runs


def predictions(folder: Path) -> list[tuple[RunRecord, float]]:
    """Sequoia's successful points, and the tokens per step that their vectors promise for their trees."""
    found = []
    for _, record in read_runs(folder)[0]:
        if record.algorithm == "sequoia" and record.status == "ok" and record.acceptance_length:
            options = record.config["algorithm"]
            promised = best_tree(options["acceptance"], options["budget"], options["max_depth"]).expected_tokens
            found.append((record, promised))
    return sorted(found, key=lambda pair: (pair[0].drafter, pair[0].task, pair[0].temperature))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1)
    arguments = parser.parse_args()
    found = predictions(arguments.sweep)
    table = Table("drafter", "task", "temperature", "steps", "promised", "measured", "promised / measured")
    ratios = [promised / (record.acceptance_length or 1.0) for record, promised in found]
    for (record, promised), ratio in zip(found, ratios, strict=True):
        point = (record.drafter, record.task, str(record.temperature), str(record.steps))
        table.add_row(*point, f"{promised:.2f}", f"{record.acceptance_length:.2f}", f"{ratio:.2f}")
    Console().print(table)
    off = sum(abs(ratio - 1) > arguments.tolerance for ratio in ratios)
    Console().print(f"{len(found)} points, {off} off by more than {arguments.tolerance:.0%}")
    sys.exit(1 if off or not found else 0)


if __name__ == "__main__":
    main()
