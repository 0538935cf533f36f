"""A sweep whose points do what their config says, real in all but the measurement: no model, no PyTorch.

`python -m tests.scale.stub FD` serves as its worker, `python -m tests.scale.stub sweep few|many OUTPUT SECONDS` is
its parent.
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runners import isolation
from runners.records import Outcome, RunRecord
from runners.store import config_hash, write_point
from runners.sweep import run_sweep
from runners.worker import serve

FEW = ("good", "raise", "crash", "good", "memory", "late", "good", "good")
MANY = (*FEW, "good", "crash", "good", "raise", "good", "memory", "good", "crash", "good", "late", *["good"] * 6)
TIMEOUT_SECONDS = 1.5
BOUNDS = {"timeout_minutes": TIMEOUT_SECONDS / 60, "memory_gb": 0.4, "points_per_worker": None}
LOCAL = {"name": "local", "isolate": "auto", "workers": 1, "gpus": None, "share_device": False, **BOUNDS}
COMMAND = (sys.executable, "-m", "tests.scale.stub")


def config_of(number: int, kind: str, output: Path, **more: Any) -> dict[str, Any]:
    base = {"seed": number, "kind": kind, "output": str(output), "force": False}
    settings = {"retry": ["failed", "timeout", "oom"], "plugins": None, "tracker": {"name": "none"}, "launch": LOCAL}
    return {**base, **settings, **more}


def record_of(config: dict[str, Any], status: str) -> RunRecord:
    names = ("stub", "none", "stub", "stub", "cpu", "float32")
    record = RunRecord(status, "", *names, 1, 0.0, config["seed"], config_hash=config_hash(config), config=config)
    record.environment = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}
    return record


def job(config: dict[str, Any], started: Callable[[RunRecord, Path], None]) -> Outcome:
    folder = Path(config["output"]) / f"stub-{config['seed']}"
    record = record_of(config, "ok")
    started(record, folder)
    with (Path(config["output"]) / "calls.log").open("a") as log:
        log.write(f"{config['seed']}\n")
    time.sleep(config.get("seconds", 0.05))
    match config["kind"]:
        case "raise":
            raise ValueError("the point's own fault")
        case "crash":
            os._exit(139)
        case "memory":
            return over_memory(record, folder)
        case "late":
            time.sleep(60)
    write_point(folder, record, None)
    return Outcome("ok", f"{folder.name}: ok", str(folder))


def over_memory(record: RunRecord, folder: Path) -> Outcome:
    """As in the real job: the bound of `launch.memory_gb` becomes a MemoryError."""
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == int(BOUNDS["memory_gb"] * 1e9)
    try:
        bytearray(10**9)
    except MemoryError:
        record.status, record.reason = "oom", "out of memory"
    write_point(folder, record, None)
    return Outcome(record.status, "oom: out of memory", str(folder))


def main() -> None:
    if sys.argv[1] != "sweep":
        serve(job)
    isolation.COMMAND = COMMAND
    kinds, output, seconds = {"few": FEW, "many": MANY}[sys.argv[2]], Path(sys.argv[3]), float(sys.argv[4])
    points = [config_of(number, kind, output, seconds=seconds) for number, kind in enumerate(kinds)]
    sys.exit(run_sweep(points))


if __name__ == "__main__":
    main()
