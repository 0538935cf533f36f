"""On a Ray cluster, one task per point and one GPU per task. All nodes see the output folder and the code."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backend.errors import TreebenchError
from runners.isolation import Bounds, job_of, run_alone, search_path
from runners.launchers.registry import Config, refuse_sharing, register
from runners.records import Outcome


@register("ray")
def ray_cluster(
    points: Sequence[Config],
    *,
    address: str | None,
    parallel: int | None,
    gpus: int | float,
    cpus: int | float,
    resources: Mapping | None,
    timeout_minutes: int | float | None,
    share_device: bool,
) -> Iterator[Outcome]:
    """`address`: of a running cluster, `auto` for the one of this machine, null to start one here."""
    at_once = parallel or len(points)
    refuse_sharing(at_once, at_once if gpus >= 1 else 1, share_device, "set launch.gpus=1 or launch.parallel=1")
    ray = connect(address)
    needed = {"GPU": gpus, "CPU": cpus, **(resources or {})}
    for name, amount in needed.items():
        if not any(node["Resources"].get(name, 0) >= amount for node in ray.nodes() if node["Alive"]):
            raise TreebenchError(f"no node of the Ray cluster has {amount:g} {name}: change launch.{name.lower()}s")
    options = {"num_gpus": gpus, "num_cpus": cpus, "resources": dict(resources or {})}
    task = ray.remote(max_retries=0, max_calls=1, **options)(run_alone)
    return follow(ray, task, points, Bounds(timeout_minutes), at_once)


def connect(address: str | None) -> Any:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise TreebenchError('Ray is not installed: run `pip install -e ".[ray]"`') from error
    if not ray.is_initialized():
        environment = {"env_vars": {"PYTHONPATH": search_path()}}
        try:
            ray.init(address=address, runtime_env=environment, include_dashboard=False if address is None else None)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise TreebenchError(f"cannot join a Ray cluster at {address}: {' '.join(str(error).split())}") from error
    return ray


def follow(ray: Any, task: Any, points: Sequence[Config], bounds: Bounds, at_once: int) -> Iterator[Outcome]:
    """A task that dies with its node costs its own point."""
    waiting, running = list(points), []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(task.remote(*job_of(waiting.pop(0), bounds)))
            (finished,), running = ray.wait(running)
            yield _outcome(ray, finished)
    finally:
        for task_reference in running:
            ray.cancel(task_reference, force=True)


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        return Outcome(*ray.get(reference))
    except ray.exceptions.RayError as error:
        return Outcome("failed", f"failed: Ray: {' '.join(str(error).split())[:300]}")
