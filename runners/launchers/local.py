"""On this machine: one point after another, each in a process of its own unless there is but one; or one per GPU."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backend.errors import TreebenchError
from backend.ranks import num_ranks
from runners.isolation import Bounds, Worker
from runners.launchers.registry import Config, refuse_sharing, register
from runners.records import Outcome


@register("local")
def local(
    points: Sequence[Config],
    *,
    isolate: str | bool,
    timeout_minutes: int | float | None,
    memory_gb: int | float | None,
    points_per_worker: int | None,
    workers: int,
    gpus: Sequence[int] | None,
    share_device: bool,
) -> Iterator[Outcome]:
    """`isolate`: true, false, or auto: where there are several points or bounds to keep."""
    if isolate not in (True, False, "auto"):
        raise TreebenchError(f"launch.isolate is {isolate!r}: choose one of auto, true, false")
    refuse_sharing(workers, len(gpus or ()), share_device, "give each worker a GPU with launch.gpus=[0,1]")
    bounds = Bounds(timeout_minutes, memory_gb, points_per_worker)
    needed = len(points) > 1 or workers > 1 or bounds != Bounds()
    if isolate is False or (isolate == "auto" and (not needed or num_ranks() > 1)):
        if bounds != Bounds() or workers > 1:
            why = "torchrun" if num_ranks() > 1 else "launch.isolate=false"
            raise TreebenchError(f"{why} bounds nothing and has one worker: leave launch.isolate and bounds at auto")
        return inline(points)
    environments = [{} if gpus is None else {"CUDA_VISIBLE_DEVICES": str(gpus[i % len(gpus)])} for i in range(workers)]
    crew = [Worker(bounds, environment) for environment in environments]
    return one_by_one(points, crew[0]) if workers == 1 else side_by_side(points, crew)


@register("inline")
def inline(points: Sequence[Config]) -> Iterator[Outcome]:
    """In this process: nothing is started, nothing is bounded, and a crash takes the sweep along."""
    from runners.job import run_point  # loads PyTorch, which a sweep with workers does not need here

    for point in points:
        yield run_point(point)


def one_by_one(points: Sequence[Config], worker: Worker) -> Iterator[Outcome]:
    try:
        for point in points:
            yield worker.run(point)
    finally:
        worker.stop()


def side_by_side(points: Sequence[Config], crew: Sequence[Worker]) -> Iterator[Outcome]:
    todo: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    for point in [*points, *[None] * len(crew)]:
        todo.put(point)

    def work(worker: Worker) -> None:
        while (point := todo.get()) is not None:
            done.put(worker.run(point))
        worker.stop()

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in crew]
    for thread in threads:
        thread.start()
    try:
        for _ in points:
            yield done.get()
    finally:
        for worker in crew:
            worker.abandon()
