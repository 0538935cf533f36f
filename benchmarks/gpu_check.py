"""Everything that only a CUDA machine can show, in one bundle in results/gpu: `make gpu-check`.

Exit status: 0 all steps passed, 1 some failed (the bundle says which), 3 there is no usable CUDA device.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

ROOT = Path(__file__).parent.parent
NO_GPU = 3
console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)


class Step(NamedTuple):
    """A command whose output becomes NAME.log in the bundle."""

    name: str
    command: Sequence[str]


def steps(folder: Path) -> list[Step]:
    python = sys.executable
    tests = (python, "-m", "pytest", "-q", "tests/kernels")
    found = [
        Step("environment", (python, "-m", "torch.utils.collect_env")),
        Step("kernels", (*tests, "-k", "not end_to_end")),
        Step("lossless", (*tests, "-k", "end_to_end")),
        Step("kernel_times", (python, "-m", "benchmarks.kernels", "--output", str(folder / "kernels.md"))),
    ]
    if sanitizer := shutil.which("compute-sanitizer"):
        small = (*tests, "-m", "kernels and not slow", "-k", "not end_to_end")
        found.append(Step("memcheck", (sanitizer, "--tool", "memcheck", "--error-exitcode", "1", *small)))
    if find_spec("runners.calibrate"):
        found.append(Step("calibrate", (python, "-m", "runners.calibrate", "device=cuda")))
    sweep = ("sweep=quick", "device=cuda", f"output={folder / 'quick'}")
    found.append(Step("quick", (python, "-m", "runners.benchmark", *sweep)))
    found.append(Step("report", (python, "-m", "analysis.report", str(folder / "quick"))))
    return found


def run_steps(all_steps: Sequence[Step], folder: Path) -> int:
    """Run every step, whatever became of those before it; the number that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {}
    for step in all_steps:
        started = time.monotonic()
        with (folder / f"{step.name}.log").open("w") as log:
            code = subprocess.run(
                step.command, cwd=ROOT, env=os.environ | {"TREE_DEVICE": "cuda"}, stdout=log, stderr=subprocess.STDOUT
            ).returncode
        seconds = round(time.monotonic() - started, 1)
        summary[step.name] = {"command": list(step.command), "exit_status": code, "seconds": seconds}
        console.print(f"{step.name}: {'passed' if code == 0 else f'failed with {code}'} in {seconds} s")
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return sum(done["exit_status"] != 0 for done in summary.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="of the bundle; the GPU's by default")
    name = parser.parse_args().name
    if not torch.cuda.is_available():
        console.print("gpu-check: torch finds no CUDA device here, so there is nothing to check")
        return NO_GPU
    name = name or re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    folder = ROOT / "results" / "gpu" / name
    failed = run_steps(steps(folder), folder)
    console.print(f"{failed} steps failed -> {folder}" if failed else f"all steps passed -> {folder}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
