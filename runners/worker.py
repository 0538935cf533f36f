"""`python -m runners.worker FD`: the child process in which a sweep's points are measured, one after another.

Requests come as JSON lines on stdin, replies go as JSON lines to the file descriptor FD (stdout belongs to whatever
libraries print). The process ends with its parent: at the end of stdin it exits, in the middle of a point if need be.
"""

import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runners.records import Outcome, RunRecord

Job = Callable[[dict[str, Any], Callable[[RunRecord, Path], None]], Outcome]


def serve(job: Job) -> None:
    """Run `job` on every config that comes in, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    replies = int(sys.argv[1])
    os.set_inheritable(replies, False)  # a process that a library leaves behind must not keep the parent waiting

    def started(record: RunRecord, folder: Path) -> None:
        _send(replies, {"folder": str(folder), "record": record.to_dict()})

    while True:
        request = requests.get()
        limit_memory(request["memory_gb"])
        _send(replies, {"outcome": job(request["config"], started)})


def _read(requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _send(replies: int, message: dict[str, Any]) -> None:
    line = (json.dumps(message, default=str) + "\n").encode(errors="replace")
    while line:
        line = line[os.write(replies, line) :]


def limit_memory(gigabytes: float | None) -> None:
    """The most private memory of this process, in 10**9 bytes. File mappings and reserved addresses do not count."""
    if gigabytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9), hard))


if __name__ == "__main__":
    from runners.job import run_point

    serve(run_point)
