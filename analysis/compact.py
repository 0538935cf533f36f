"""All points of a sweep in two Parquet files, for tools that would rather not open thousands."""

import argparse
import sys
from pathlib import Path

import pandas

from runners.records import SCALARS
from runners.store import read_runs, read_steps

STEPS = "all_steps.parquet"  # another name than a point's own, which readers look for in every folder


def compact(folder: Path) -> tuple[int, int, list[str]]:
    """Write all records (their scalar fields) and all steps as two Parquet files; returns the numbers of runs and of
    steps, and one line for each file that could not be read.
    """
    target = folder / "compact"
    runs, problems = read_runs(folder)
    target.mkdir(exist_ok=True)
    rows = [{"point": run.folder.name} | {name: getattr(run.record, name) for name in SCALARS} for run in runs]
    pandas.DataFrame(rows, columns=["point", *SCALARS]).to_parquet(target / ".runs.tmp", compression="zstd")
    name = str(target / ".steps.tmp").replace("'", "''")
    count, damaged = read_steps(folder, f"COPY (FROM steps) TO '{name}' (FORMAT parquet, COMPRESSION zstd)")
    (target / ".runs.tmp").replace(target / "runs.parquet")
    (target / ".steps.tmp").replace(target / STEPS)
    return len(runs), int(count["Count"].sum()), problems + damaged


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.load", description="Compact a sweep into two files.")
    parser.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR", help="folder that benchmark runs wrote (output=)")
    folder = parser.parse_args(arguments).sweep_dir
    if not folder.is_dir():
        sys.stderr.write(f"{folder}: no such folder; give the output= folder of a benchmark run\n")
        return 2
    runs, steps, problems = compact(folder)
    sys.stdout.write(f"wrote {folder / 'compact'}: runs.parquet ({runs} runs), {STEPS} ({steps} steps)\n")
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 0
