"""On a Slurm cluster, through submitit: an array of jobs, one point each. All nodes see the output folder."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.errors import TreebenchError
from runners.isolation import Bounds, job_of, run_alone
from runners.launchers.registry import Config, refuse_sharing, register
from runners.records import Outcome

CLUSTERS = ("slurm", "local")
ABSENT_POLLS = 3  # in a row without a trace of a job, before it counts as lost


@register("slurm")
def slurm(
    points: Sequence[Config],
    *,
    cluster: str,
    parallel: int,
    gpus: int,
    cpus: int,
    job_memory_gb: int | float,
    job_minutes: int,
    partition: str | None,
    account: str | None,
    parameters: Mapping | None,
    setup: Sequence[str],
    timeout_minutes: int | float | None,
    share_device: bool,
    poll_seconds: int | float,
) -> Iterator[Outcome]:
    """`cluster=local` is submitit's stand-in for a cluster: the same jobs as processes of this machine."""
    if cluster not in CLUSTERS:
        raise TreebenchError(f"launch.cluster is {cluster!r}: choose one of {', '.join(CLUSTERS)}")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise TreebenchError("there is no sbatch on this machine: log in to the cluster, or use launch=local")
    refuse_sharing(parallel, parallel if gpus else 1, share_device, "give each job a GPU with launch.gpus=1")
    executor = make_executor(Path(points[0]["output"]) / "submitit", cluster)
    executor.update_parameters(
        name="treebench",
        timeout_min=job_minutes,
        cpus_per_task=cpus,
        mem_gb=job_memory_gb,
        **({"gpus_per_node": gpus} if gpus else {}),
        **({"slurm_array_parallelism": parallel, "slurm_setup": list(setup)} if cluster == "slurm" else {}),
        **slurm_only(cluster, {"partition": partition, "account": account}, parameters or {}),
    )
    at_once = len(points) if cluster == "slurm" else parallel  # Slurm queues by itself
    return follow(executor, points, Bounds(timeout_minutes), at_once, poll_seconds)


def slurm_only(cluster: str, named: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    given = {f"slurm_{key}": value for key, value in named.items() if value is not None}
    more = {"slurm_additional_parameters": dict(others)} if others else {}
    return given | more if cluster == "slurm" else {}


def make_executor(folder: Path, cluster: str) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise TreebenchError('submitit is not installed: run `pip install "submitit>=1.5"`') from error
    folder.mkdir(parents=True, exist_ok=True)
    return submitit.AutoExecutor(folder=folder, cluster=cluster)


def follow(
    executor: Any, points: Sequence[Config], bounds: Bounds, at_once: int, poll_seconds: int | float
) -> Iterator[Outcome]:
    """Submit, wait, and yield how each went. What ends without a result is reported with the place of its log."""
    waiting, running = list(points), {}
    try:
        while waiting or running:
            room = at_once - len(running)
            running |= {job: 0 for job in submit(executor, waiting[:room], bounds)}
            waiting = waiting[room:]
            time.sleep(poll_seconds)
            alive = alive_jobs(running)
            for job, absent in list(running.items()):
                outcome = outcome_of(job, absent >= ABSENT_POLLS)
                running[job] = 0 if job.job_id in alive else absent + 1
                if outcome is not None:
                    del running[job]
                    yield outcome
    finally:
        for job in running:
            job.cancel()


def submit(executor: Any, points: Sequence[Config], bounds: Bounds) -> list[Any]:
    if not points:
        return []
    with executor.batch():  # one array
        return [executor.submit(run_alone, *job_of(point, bounds)) for point in points]


def outcome_of(job: Any, lost: bool) -> Outcome | None:
    """None while it runs."""
    if not job.paths.result_pickle.exists():
        line = f"failed: job {job.job_id} ended without a result, its log is {job.paths.stderr}"
        return Outcome("failed", line) if lost else None
    try:
        return Outcome(*job.result())
    except Exception as error:  # noqa: BLE001 - submitit re-raises whatever the job raised
        return Outcome("failed", f"failed: job {job.job_id}: {' '.join(str(error).split())[-300:]}")


def alive_jobs(jobs: Mapping[Any, int]) -> set[str]:
    """Ids of those still queued or running. Asks squeue, which needs no accounting database as sacct does."""
    if not jobs or next(iter(jobs)).__class__.__name__ != "SlurmJob":
        return {job.job_id for job in jobs if not job.done()}
    listed = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=False)
    return set(listed.stdout.split()) if listed.returncode == 0 else {job.job_id for job in jobs}
