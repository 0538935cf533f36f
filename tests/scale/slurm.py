"""A one-node Slurm of our own: munge, slurmctld and slurmd with all their files in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={next_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
NodeName={host} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    absent = [name for name in DAEMONS if shutil.which(name, path=search()) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "starting Slurm's daemons needs root"


def search() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def one_node_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the environment that makes sbatch and squeue talk to it."""
    (folder / "ctld").mkdir(parents=True)
    (folder / "d").mkdir()
    folder.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    names = {"host": socket.gethostname(), "port": port, "next_port": port + 1, "folder": folder}
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(cpus=os.cpu_count(), **names))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = {**os.environ, "PATH": search(), "SLURM_CONF": str(conf)}
    munge = ["munged", "-F", "-f", f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/m.pid"]
    commands = [
        [*munge, f"--log-file={folder}/munge.log", f"--seed-file={folder}/seed", "--num-threads=1"],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    daemons = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=environment, **quiet))
            time.sleep(0.5)
        wait_until_idle(environment)
        yield {"SLURM_CONF": str(conf), "PATH": environment["PATH"]}
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=20)


def wait_until_idle(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        answer = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False
        )
        if answer.stdout.strip() == "idle":
            return
        assert time.monotonic() < deadline, f"Slurm does not start: {answer.stdout} {answer.stderr}"
        time.sleep(0.3)
