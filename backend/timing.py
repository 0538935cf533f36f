"""The one clock. It synchronizes the device wherever it reads the time; all ranks read that of the first."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backend.ranks import seconds_of_first


class Stopwatch:
    """Seconds of a run and, with `stages` on, of its stages; with them off a stage costs and syncs nothing.

    Speed is measured in a pass without stages; the stage clocks of a second pass give the split.
    """

    def __init__(self, device: torch.device, stages: bool = False) -> None:
        self.device = device
        self.stages = stages
        self.stage_seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return seconds_of_first(time.perf_counter())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if not self.stages:
            yield
            return
        start = self.now()
        yield
        self.stage_seconds[name] += self.now() - start
