"""A process of its own for the points of a sweep: whatever it dies of costs the point under way and no other.

One worker serves many points, so that libraries are loaded once; it is replaced when it dies, when a point runs out of
time or memory, and after `points_per_worker` points.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from runners.records import Outcome, RunRecord
from runners.store import write_point

COMMAND = (sys.executable, "-m", "runners.worker")
LAST_WORDS = 2000  # characters of stderr that are kept for the reason
REPOSITORY = Path(__file__).resolve().parent.parent


class Bounds(NamedTuple):
    """What a point may take; None is without bound."""

    timeout_minutes: float | None = None
    memory_gb: float | None = None  # host memory, in 10**9 bytes
    points_per_worker: int | None = None


class Worker:
    """The parent's side of one worker at a time. Not thread-safe; `stop` when done."""

    def __init__(
        self, bounds: Bounds, environment: Mapping[str, str] | None = None, command: Sequence[str] | None = None
    ) -> None:
        self.bounds = bounds
        self.environment = dict(environment or {})
        self.command = command or COMMAND
        self.process: subprocess.Popen[bytes] | None = None
        self.served = 0
        self.abandoned = False

    def run(self, config: Mapping[str, Any]) -> Outcome:
        """Measure one point. A dead or late worker leaves the record that it announced, with the reason."""
        self._ready()
        request = {"config": config, "memory_gb": self.bounds.memory_gb}
        assert self.process is not None
        assert self.process.stdin is not None
        kills = oom_kills()
        with suppress(BrokenPipeError):  # it died; its replies end at once
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            self.process.stdin.flush()
        self.served += 1
        outcome = self._outcome(kills)
        if outcome.status == "oom":
            self.stop()
        return outcome

    def abandon(self) -> None:
        """From another thread: end the point under way, which leaves no record."""
        self.abandoned = True
        process = self.process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """End the worker, in the middle of a point if need be."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.stderr.join()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        os.close(self.replies)
        self.process = None

    def _ready(self) -> None:
        worn = self.bounds.points_per_worker is not None and self.served >= self.bounds.points_per_worker
        if self.process is not None and (worn or self.process.poll() is not None):
            self.stop()
        if self.process is None:
            self._start()

    def _start(self) -> None:
        self.replies, theirs = os.pipe()
        self.process = subprocess.Popen(
            [*self.command, str(theirs)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(theirs,),
            env=os.environ | terminal() | self.environment | {"PYTHONPATH": search_path()},
            start_new_session=True,  # Ctrl-C reaches the parent only
        )
        os.close(theirs)
        self.served, self.unread, self.last_words = 0, b"", ""
        self.stderr = threading.Thread(target=self._pass_on, args=(self.process.stderr,), daemon=True)
        self.stderr.start()

    def _pass_on(self, stream: Any) -> None:
        """The worker's stderr is ours; its end explains a death."""
        while chunk := os.read(stream.fileno(), 4096):
            text = chunk.decode(errors="replace")
            self.last_words = (self.last_words + text)[-LAST_WORDS:]
            sys.stderr.write(text)
            sys.stderr.flush()

    def _outcome(self, kills: int) -> Outcome:
        minutes = self.bounds.timeout_minutes
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        start: dict[str, Any] | None = None
        while True:
            try:
                message = self._receive(deadline)
            except TimeoutError:
                self.stop()
                return gave_up(start, "timeout", f"stopped after {minutes:g} minutes (launch.timeout_minutes)")
            except EOFError:
                if self.abandoned:
                    self.stop()
                    return Outcome("failed", "failed: interrupted")
                status, reason = self._death(kills)
                return gave_up(start, status, reason)
            if "outcome" in message:
                return Outcome(*message["outcome"])
            start = message

    def _receive(self, deadline: float | None) -> dict[str, Any]:
        """The next reply; EOFError if there will be none, TimeoutError at the deadline."""
        while b"\n" not in self.unread:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.replies], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(self.replies, 1 << 16)
            if not chunk:
                raise EOFError
            self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    def _death(self, kills: int) -> tuple[str, str]:
        assert self.process is not None
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL  # it closed its replies and hangs
        self.stop()
        if code == -signal.SIGKILL and oom_kills() > kills:
            return "oom", "killed by the system, which ran out of memory"
        words = [line.strip() for line in self.last_words.splitlines() if line.strip()]
        return "failed", f"the process {how_it_ended(code)}" + (f"; its last line: {words[-1]}" if words else "")


def job_of(config: Mapping[str, Any], bounds: Bounds) -> tuple[Any, ...]:
    """Arguments of `run_alone` for a job that another machine runs as if it were this process."""
    return dict(config), tuple(bounds), str(Path.cwd()), tuple(COMMAND)


def run_alone(
    config: Mapping[str, Any], bounds: Sequence[Any], directory: str, command: Sequence[str]
) -> tuple[str, str, str]:
    """One point in a process of its own, started in `directory`."""
    os.chdir(directory)
    worker = Worker(Bounds(*bounds), command=command)
    try:
        status, line, folder = worker.run(config)  # plain texts: the other side may hold another copy of the code
        return status, line, folder
    finally:
        worker.stop()


def gave_up(start: Mapping[str, Any] | None, status: str, reason: str) -> Outcome:
    """Write the record that the worker announced, with what became of it."""
    line = f"{status}: {reason}"
    if start is None:
        return Outcome(status, f"{line} (before the point began, so it has no record)")
    record = RunRecord.from_dict(start["record"])
    record.status, record.reason = status, reason
    write_point(Path(start["folder"]), record, None)
    return Outcome(status, line, start["folder"])


def how_it_ended(code: int) -> str:
    """A return code in words; shells add 128 to the signal's number."""
    number = -code if code < 0 else code - 128
    try:
        return f"was killed by {signal.Signals(number).name}" if code < 0 or code > 128 else f"ended with code {code}"
    except ValueError:
        return f"ended with code {code}"


def oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not say."""
    file = Path("/proc/vmstat")
    lines = file.read_text().splitlines() if file.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def search_path() -> str:
    return os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


def terminal() -> dict[str, str]:
    """Lets the worker draw its progress as if our terminal were its own."""
    if not sys.stderr.isatty():
        return {}
    return {"TTY_COMPATIBLE": "1", "COLUMNS": str(os.get_terminal_size(sys.stderr.fileno()).columns)}
