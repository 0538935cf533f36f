"""A sweep loses the point under way and no other, whatever kills a point or the sweep itself; a rerun completes it."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from runners.store import read_runs
from tests.scale.stub import FEW, MANY

ROOT = Path(__file__).parent.parent.parent
FATE = {"good": "ok", "raise": "failed", "crash": "failed", "memory": "oom", "late": "timeout"}
REASONS = {
    "raise": "the process ended with code 1; its last line: ValueError: the point's own fault",
    "crash": "the process was killed by SIGSEGV",
    "memory": "out of memory",
    "late": "stopped after 0.025 minutes (launch.timeout_minutes)",
}


def start(kinds: str, output: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.scale.stub", "sweep", kinds, str(output), str(seconds)]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a shell's background jobs ignore Ctrl-C
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors.splitlines()


def wait_for_calls(output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(calls(output)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def calls(output: Path) -> list[int]:
    """Numbers of the points that were begun, in order."""
    file = output / "calls.log"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def children(pid: int) -> list[int]:
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in file.read_text().split()]


def check_complete(output: Path, kinds: tuple[str, ...]) -> None:
    """Every point has one readable record with its fate and the reason."""
    runs, problems = read_runs(output)
    assert problems == []
    assert {run.record.seed: run.record.status for run in runs} == dict(enumerate(FATE[kind] for kind in kinds))
    assert len(runs) == len(kinds)
    for run in runs:
        assert run.record.reason == REASONS.get(kinds[run.record.seed], "")


def test_a_point_that_dies_costs_no_other(tmp_path):
    code, lines = finish(start("few", tmp_path, 0.0))
    assert (code, lines[-1]) == (1, "8 points: 2 failed, 4 ok, 1 oom, 1 timeout")
    check_complete(tmp_path, FEW)
    assert "  stub-2: failed: the process was killed by SIGSEGV" in lines[-5:]
    assert Counter(calls(tmp_path)) == dict.fromkeys(range(len(FEW)), 1)


def killed_at_random(output: Path, kinds: tuple[str, ...], kills: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(kills):
        process = start("many" if kinds is MANY else "few", output, 0.2)
        wait_for_calls(output, len(calls(output)) + chance.randint(1, 3))
        time.sleep(chance.uniform(0, 0.3))
        (worker,) = children(process.pid) or [None]
        process.kill()
        process.communicate()
        wait_until_gone(worker)
    code, _ = finish(start("many" if kinds is MANY else "few", output, 0.0))
    assert code == 1
    check_complete(output, kinds)
    good = Counter(number for number in calls(output) if kinds[number] == "good")
    assert sum(good.values()) <= kinds.count("good") + kills, "what has a record is not begun again"


def wait_until_gone(pid: int | None) -> None:
    deadline = time.monotonic() + 20
    while pid is not None and Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "a worker outlives its sweep"
        time.sleep(0.02)


def test_the_sweep_itself_killed_once(tmp_path):
    killed_at_random(tmp_path, FEW, kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_sweep_itself_killed_three_times(tmp_path, seed):
    assert len(MANY) >= 20
    killed_at_random(tmp_path, MANY, kills=3, seed=seed)


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(tmp_path):
    process = start("few", tmp_path, 5.0)
    wait_for_calls(tmp_path, 1)
    (worker,) = children(process.pid)
    os.kill(process.pid, signal.SIGINT)
    code, lines = finish(process)
    assert code == 130
    assert lines[-1] == "interrupted with 8 of 8 points to go; the same command goes on from here"
    assert read_runs(tmp_path) == ([], []), "the point under way leaves no record"
    wait_until_gone(worker)
