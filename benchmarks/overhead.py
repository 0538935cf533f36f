"""`python -m benchmarks.overhead [PAIRS]`: do isolation, records and the tracker change what is timed?

The same point is measured in this process without a tracker, and in a worker whose points a tracker takes in, in random
order, pair by pair (a minute and a half each on two cores). Both arms of a point are timed; the ratio of their seconds
should be 1 within its interval.
"""

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
from hydra import compose, initialize_config_dir
from scipy.stats import bootstrap

from runners.benchmark import CONF, to_plain
from runners.console import metered
from runners.isolation import Bounds, Worker
from runners.job import run_point
from runners.records import Outcome
from runners.store import read_point
from runners.trackers.wandb import WandbTracker

SETTINGS = [
    *("algorithm=chain", "drafter=prompt_lookup", "dtype=bfloat16", "num_prompts=4", "max_new_tokens=32", "repeats=2"),
    *("stage_prompts=1", "control_prompts=1"),
]


def seconds_of(outcome: Outcome) -> float:
    """Decode seconds of both arms: the sum over prompts of medians over repeats."""
    record = read_point(Path(outcome.folder))
    if record is None or record.status != "ok":
        raise SystemExit(outcome.line)
    return sum(float(numpy.median(arm)) for unit in record.units for arm in (unit.seconds, unit.baseline_seconds))


def pair(config: dict[str, Any], folder: Path, worker: Worker, tracker: WandbTracker) -> float:
    """Seconds with everything on over seconds with nothing on."""
    seconds: dict[bool, float] = {}
    for everything in random.sample([True, False], 2):
        point = config | {"output": str(folder / str(everything))}
        outcome = worker.run(point) if everything else run_point(point)
        seconds[everything] = seconds_of(outcome)
        if everything:
            tracker.log(Path(outcome.folder))
    return seconds[True] / seconds[False]


def measure(pairs: int) -> list[float]:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = to_plain(compose("benchmark", SETTINGS))
    tracker = WandbTracker(
        project="overhead", entity=None, group="overhead", job_type="benchmark", mode="offline", timeout_seconds=30
    )
    worker = Worker(Bounds())
    with tempfile.TemporaryDirectory() as folder:
        try:
            numbers = metered(range(pairs), "pairs", pairs)
            return [pair(config, Path(folder) / str(number), worker, tracker) for number in numbers]
        finally:
            worker.stop()


def main() -> None:
    ratios = numpy.array(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
    interval = bootstrap((numpy.log(ratios),), numpy.mean, method="BCa", rng=0).confidence_interval
    low, middle, high = numpy.exp([interval.low, numpy.log(ratios).mean(), interval.high])
    sys.stdout.write(f"pairs: {' '.join(f'{ratio:.3f}' for ratio in ratios)}\n")
    sys.stdout.write(f"worker and tracker over plain: {middle:.3f} [{low:.3f}, {high:.3f}], 95 % BCa over pairs\n")


if __name__ == "__main__":
    main()
