"""Weights & Biases, offline unless asked otherwise: a run per point, written after its record and never the only copy.

Nothing here waits for the network: offline runs are uploaded later by the command that `close` prints.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pandas

from backend.errors import TreebenchError
from runners.console import console
from runners.records import SCALARS, RunRecord
from runners.store import RUN_FILE, STEPS_FILE, read_point, write_bytes
from runners.trackers.registry import register

MODES = ("offline", "online", "disabled")
MARK = "tracked.json"  # in the point's folder: which record was taken in, and as which run
TREE_COLUMNS = ("drafted_nodes", "verified_nodes", "depth", "emitted")


@register("wandb")
class WandbTracker:
    """Project = study, group = sweep. `group` null takes the name of the output folder."""

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str,
        mode: str,
        timeout_seconds: int | float,
    ) -> None:
        if mode not in MODES:
            raise TreebenchError(f"tracker.mode is {mode!r}: choose one of {', '.join(MODES)}")
        try:
            import wandb
        except ImportError as error:
            raise TreebenchError('wandb is not installed: run `pip install "wandb>=0.19"`') from error
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise TreebenchError("W&B has no API key: run `wandb login`, or set tracker.mode=offline")
        self.wandb = wandb
        self.options = {"project": project, "entity": entity, "mode": mode}
        self.group, self.job_type, self.timeout_seconds = group, job_type, timeout_seconds
        self.logged = 0

    def log(self, point: Path) -> None:
        record = read_point(point)
        if record is None or self._mark(point) == record.created:
            return
        with self._run(point.parent, point.name, self.job_type, tags_of(record), record.config) as run:
            run.config.update({"config_hash": record.config_hash, "environment": record.environment})
            run.summary.update(summary_of(record))
            if (point / STEPS_FILE).exists():
                log_steps(self.wandb, run, pandas.read_parquet(point / STEPS_FILE))
            self._attach(run, point.name, "record", [point / RUN_FILE, point / STEPS_FILE])
            mark = {"tracker": "wandb", "run": run.id, "created": record.created}
        write_bytes(point / MARK, (json.dumps(mark) + "\n").encode())
        self.logged += 1

    def close(self, output: Path) -> None:
        """Attach the sweep's tables and plots, and print how to upload what is offline."""
        if self.logged:
            subprocess.run([sys.executable, "-m", "analysis.report", str(output)], capture_output=True, check=False)
            with self._run(output, "report", "report", (), {}) as run:
                files = sorted(path for path in (output / "report").glob("*") if path.is_file())
                self._attach(run, f"{output.name}-report", "report", files)
        if any((output / "wandb").glob("offline-run-*")):
            console.print(f"W&B: to upload these runs, `wandb login` and then: {sync_command(output)}")

    def _run(self, output: Path, name: str, job_type: str, tags: Iterable[str], config: Mapping[str, Any]) -> Any:
        """A finished run when the block ends. Its system statistics would say nothing: the point is over by then."""
        settings = self.wandb.Settings(
            init_timeout=self.timeout_seconds,
            finish_timeout=self.timeout_seconds,
            finish_timeout_raises=True,
            console="off",
            silent=True,
            x_disable_stats=True,
            disable_git=True,
            disable_code=True,
        )
        group = self.group or output.resolve().name
        (output / "wandb").mkdir(parents=True, exist_ok=True)
        return self.wandb.init(
            **self.options, dir=output, group=group, name=name, job_type=job_type, tags=list(tags), config=dict(config),
            settings=settings, reinit="finish_previous",
        )  # fmt: skip

    def _mark(self, point: Path) -> str | None:
        try:
            return json.loads((point / MARK).read_text()).get("created")
        except (OSError, ValueError):
            return None

    def _attach(self, run: Any, name: str, kind: str, files: Iterable[Path]) -> None:
        artifact = self.wandb.Artifact(re.sub(r"[^\w.-]", "_", name)[-120:], type=kind)
        for file in files:
            if file.exists():
                artifact.add_file(str(file))
        run.log_artifact(artifact)


def sync_command(output: Path) -> str:
    return f"wandb sync {shlex.quote(str(output / 'wandb'))}/offline-run-*"


def tags_of(record: RunRecord) -> list[str]:
    """Algorithm, target, task, device, batch: what one filters by. W&B takes at most 64 characters each."""
    tags = [record.algorithm, record.target, record.task, record.device, f"batch{record.batch_size}", record.status]
    return list(dict.fromkeys(tag[:64] for tag in tags if tag))


def summary_of(record: RunRecord) -> dict[str, Any]:
    """The record's scalar figures under their own names; what is not known is left out."""
    values = {name: getattr(record, name) for name in SCALARS}
    stages = {f"stage_seconds/{stage}": seconds for stage, seconds in record.stage_seconds.items()}
    return {name: value for name, value in (values | stages).items() if value is not None}


def log_steps(wandb: Any, run: Any, steps: Any) -> None:
    """Trace of tree sizes (mean over sequences by step), histogram of tokens per step, acceptance by depth."""
    trace: Any = steps.groupby("step")[list(TREE_COLUMNS)].mean()
    for step, row in trace.iterrows():
        run.log({f"tree/{name}": float(row[name]) for name in TREE_COLUMNS}, step=int(str(step)))
    rows = acceptance_by_depth(steps)
    edges = [count + 0.5 for count in range(int(steps["emitted"].max()) + 1)]  # a bin per number of tokens
    run.log(
        {
            "emitted_per_step": wandb.Histogram(np_histogram=numpy.histogram(steps["emitted"], bins=edges)),
            "acceptance_by_depth": wandb.Table(columns=list(rows.columns), data=rows.to_numpy().tolist()),
        }
    )


def acceptance_by_depth(steps: Any) -> pandas.DataFrame:
    """Per depth d >= 1: `survival`, the share of all steps that accept a node at d, and `conditional`, the share of
    those that accepted down to d - 1 and verified a node at d. Steps cut by the end of a text count as they were cut.
    """
    accepted = steps["emitted"] - 1  # the last token is the target's own
    rows = []
    for depth in range(1, int(steps["depth"].max()) + 1):
        survived = int((accepted >= depth).sum())
        offered = int(((accepted >= depth - 1) & (steps["depth"] >= depth)).sum())
        rows.append((depth, survived / len(steps), survived / offered if offered else None, offered))
    return pandas.DataFrame(rows, columns=["depth", "survival", "conditional", "offered"])
