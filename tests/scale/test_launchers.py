"""Every launcher measures every point, loses none to another's crash, and refuses what would spoil the times."""

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from runners import isolation
from runners.launchers.registry import LAUNCHERS
from runners.store import read_runs
from runners.sweep import run_sweep
from tests.scale import slurm
from tests.scale.stub import COMMAND, config_of

CONF = Path(__file__).parent.parent.parent / "conf" / "launch"
FATES = {"good": "ok", "raise": "failed", "crash": "failed"}


@pytest.fixture(autouse=True)
def stub_worker(monkeypatch):
    monkeypatch.setattr(isolation, "COMMAND", COMMAND)


def launch_config(name: str, **changes: Any) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return config | changes


def sweep(
    output: Path, launch: dict[str, Any], kinds: tuple[str, ...] = ("good", "crash", "good", "raise"), **more
) -> int:
    return run_sweep([config_of(i, kind, output, launch=launch, **more) for i, kind in enumerate(kinds)])


def statuses(output: Path) -> dict[int, str]:
    runs, problems = read_runs(output)
    assert problems == []
    return {run.record.seed: run.record.status for run in runs}


def check_all_measured(output: Path, launch: dict[str, Any], capsys) -> None:
    assert sweep(output, launch) == 1
    assert statuses(output) == {0: "ok", 1: "failed", 2: "ok", 3: "failed"}
    assert capsys.readouterr().err.splitlines()[-1] == "4 points: 2 failed, 2 ok"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_file_names_a_launcher_and_all_its_options(name):
    config = launch_config(name)
    LAUNCHERS.check(config.pop("name"), config)


def test_local(tmp_path, capsys):
    check_all_measured(tmp_path, launch_config("local"), capsys)


def test_local_with_a_gpu_per_worker(tmp_path, capsys):
    launch = launch_config("local", workers=2, gpus=[4, 6])
    check_all_measured(tmp_path, launch, capsys)
    seen = {run.record.environment["gpus"] for run in read_runs(tmp_path)[0]}
    assert seen == {"4", "6"}


def test_a_worker_serves_many_points_unless_told_otherwise(tmp_path):
    for points_per_worker, processes in ((None, 1), (1, 3), (2, 2)):
        output = tmp_path / str(points_per_worker)
        output.mkdir()
        assert sweep(output, launch_config("local", points_per_worker=points_per_worker), ("good",) * 3) == 0
        assert len({run.record.environment["process"] for run in read_runs(output)[0]}) == processes


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("local", {"workers": 2}, "this would time several points on one device at once"),
        ("local", {"workers": 3, "gpus": [0, 1]}, "this would time several points on one device at once"),
        ("local", {"isolate": "never"}, "launch.isolate is 'never': choose one of auto, true, false"),
        ("local", {"isolate": False, "timeout_minutes": 1.0}, "launch.isolate=false bounds nothing"),
        ("local", {"worker": 2}, "launch local has no option 'worker' (did you mean 'workers'?)"),
        ("local", {"workers": "two"}, "launch.workers is 'two'; local needs a whole number"),
        ("slurm", {"cluster": "local", "gpus": 0, "parallel": 2}, "this would time several points on one device"),
        ("slurm", {"cluster": "lsf"}, "launch.cluster is 'lsf': choose one of slurm, local"),
        ("ray", {"gpus": 0, "parallel": 2}, "this would time several points on one device at once"),
        ("rey", {}, "unknown launch 'rey' (did you mean 'ray'?)"),
    ],
)
def test_refusals(tmp_path, capsys, name, changes, line):
    base = launch_config(name) if (CONF / f"{name}.yaml").exists() else {"name": name}
    assert sweep(tmp_path, base | changes) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"failed: {line}")
    assert statuses(tmp_path) == {}


def test_slurm_without_slurm(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert sweep(tmp_path, launch_config("slurm")) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err


def cluster_config(**changes: Any) -> dict[str, Any]:
    small = {"gpus": 0, "cpus": 1, "job_memory_gb": 0.1, "job_minutes": 5, "poll_seconds": 0.2}
    return launch_config("slurm", **small, **changes)


@pytest.mark.cluster
def test_submitit_stand_in(tmp_path):
    assert sweep(tmp_path, cluster_config(cluster="local"), ("crash", "good")) == 1
    assert statuses(tmp_path) == {0: "failed", 1: "ok"}


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[dict[str, str]]:
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.one_node_slurm(tmp_path_factory.mktemp("slurm") / "s") as environment:
        yield environment


@pytest.fixture
def real_slurm(scheduler, monkeypatch) -> None:
    for name, value in scheduler.items():
        monkeypatch.setenv(name, value)


@pytest.mark.cluster
@pytest.mark.slow
def test_real_slurm(real_slurm, tmp_path, capsys):
    check_all_measured(tmp_path, cluster_config(), capsys)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_slurm_job_that_vanishes_is_reported(real_slurm, tmp_path, capsys):
    launch = cluster_config(setup=[f"test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 7; }}"])
    assert sweep(tmp_path, launch, ("good",)) == 2
    assert "ended without a result, its log is " in capsys.readouterr().err
    assert sweep(tmp_path, launch, ("good",)) == 0, "a rerun tries it again"
    assert statuses(tmp_path) == {0: "ok"}


@pytest.fixture(scope="module")
def ray_nodes(tmp_path_factory) -> Iterator[Any]:
    """Two nodes in this process with a pretended GPU each."""
    ray = pytest.importorskip("ray", reason='Ray is not installed (pip install -e ".[ray]")')
    cluster_utils: Any = importlib.import_module("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    cluster.add_node(num_cpus=1, num_gpus=1, resources={"h100": 1})
    ray.init(
        address=cluster.address,
        runtime_env={"env_vars": {"PYTHONPATH": isolation.search_path()}},
        log_to_driver=False,
        configure_logging=False,
    )
    yield ray
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.cluster
@pytest.mark.slow
def test_ray_spreads_points_over_nodes_one_gpu_each(ray_nodes, tmp_path, capsys):
    launch = launch_config("ray", cpus=1)
    check_all_measured(tmp_path, launch, capsys)
    seen = [run.record.environment["gpus"] for run in read_runs(tmp_path)[0]]
    assert all(gpus == "0" for gpus in seen), "each node has one, which its task sees"


@pytest.mark.cluster
@pytest.mark.slow
def test_ray_refuses_what_no_node_has(ray_nodes, tmp_path, capsys):
    assert sweep(tmp_path, launch_config("ray", cpus=1, resources={"h200": 1})) == 2
    assert "no node of the Ray cluster has 1 h200" in capsys.readouterr().err
