"""The tracker shows what the records say, read back with W&B's own reader, and costs a sweep nothing when it fails."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import pytest

from runners.records import SCALARS, STEP_COLUMNS
from runners.store import read_runs, write_point
from runners.sweep import run_sweep
from runners.trackers.wandb import WandbTracker, acceptance_by_depth
from tests.scale.stub import config_of, record_of

pytestmark = pytest.mark.xdist_group("tracking")  # one worker sets its fixtures up

WANDB = Path(sys.executable).parent / "wandb"
OFFLINE = {"project": "study", "entity": None, "group": None, "job_type": "benchmark", "mode": "offline"}
EMITTED = [[1, 3, 2], [4, 1, 1]]  # by sequence and step


def steps() -> pandas.DataFrame:
    rows = [
        {"sequence": s, "step": i, "context": 9, "drafted_nodes": 8, "verified_nodes": 5 + i, "depth": 3, "emitted": n}
        for s, row in enumerate(EMITTED)
        for i, n in enumerate(row)
    ]
    return pandas.DataFrame(rows, columns=list(STEP_COLUMNS))


def save(output: Path, seed: int, **figures: Any) -> Path:
    record = record_of(config_of(seed, "good", output), "ok")
    for name, value in {"speedup": 1.25, "created": "2026-01-01T00:00:00+00:00", **figures}.items():
        setattr(record, name, value)
    write_point(output / f"point-{seed}", record, steps())
    return output / f"point-{seed}"


class Tracked(NamedTuple):
    """A sweep folder with one point that was measured before and is tracked now, as W&B's own reader shows it."""

    output: Path
    errors: list[str]
    point: dict[str, Any]
    report: dict[str, Any]
    records: list[dict[str, Any]]  # of the point's run

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Tracked:
    output = tmp_path_factory.mktemp("tracking") / "sweep"
    save(output, 7, speedup_low=1.1, acceptance_length=2.0, tokens_per_second=80.0)
    config = config_of(7, "good", output, tracker={"name": "wandb", **OFFLINE, "timeout_seconds": 30.0})
    with redirect_stderr(io.StringIO()) as errors:
        assert run_sweep([config]) == 0
        WandbTracker(**OFFLINE, timeout_seconds=30.0).log(output / "point-7")  # a second time
    files = sorted((output / "wandb").glob("offline-run-*/*.wandb"))
    point, report = sorted(
        [json.loads(inspect("--summary", file)) | {"file": file} for file in files], key=lambda r: r["name"]
    )
    records = [json.loads(line) for line in inspect(point["file"]).splitlines()]
    return Tracked(output, errors.getvalue().splitlines(), point, report, records)


def inspect(*arguments: object) -> str:
    command = [str(WANDB), "leet", "inspect", "--json", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_offline_run_says_what_the_record_says(tracked):
    ((_, record),), _ = read_runs(tracked.output)
    for name in SCALARS:
        expected = getattr(record, name)
        assert expected is None or tracked.point["summary"][name] == expected, name
    assert {key: tracked.point["config"][key] for key in record.config} == record.config
    assert tracked.point["config"]["config_hash"] == record.config_hash
    assert tracked.point["project"] == "study"
    assert tracked.point["tags"] == ["stub", "cpu", "batch1", "ok"]
    (run,) = tracked.of("run")
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("sweep", "benchmark", "point-7")
    assert tracked.report["name"] == "report"


def test_steps_become_a_trace_a_histogram_and_a_table(tracked):
    trace = [row["item"]["tree/emitted"] for row in tracked.of("history") if "tree/emitted" in row["item"]]
    assert trace == [2.5, 2.0, 1.5]
    assert tracked.point["summary"]["emitted_per_step"]["values"] == [3, 1, 1, 1]
    assert tracked.point["summary"]["acceptance_by_depth"]["nrows"] == 3
    files = json.dumps(tracked.of("artifact"))
    assert "run.json" in files
    assert "steps.parquet" in files


def test_acceptance_by_depth():
    table = acceptance_by_depth(steps())
    assert table["survival"].tolist() == [3 / 6, 2 / 6, 1 / 6]
    assert table["conditional"].tolist() == [3 / 6, 2 / 3, 1 / 2]


def test_the_sweep_ends_with_the_command_that_uploads(tracked):
    folder = tracked.output / "wandb"
    assert tracked.errors[-1] == f"W&B: to upload these runs, `wandb login` and then: wandb sync {folder}/offline-run-*"
    assert len(list(folder.glob("offline-run-*"))) == 2, "the point once, and the report"


class Down:
    """A tracker whose service is down."""

    def log(self, point: Path) -> None:
        raise ConnectionError(f"no route to host\nfor {point.name}")

    def close(self, output: Path) -> None:
        raise RuntimeError("the report is lost as well")


def test_a_failing_tracker_costs_no_result(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("runners.sweep.open_tracker", lambda _: Down())
    monkeypatch.setattr("runners.isolation.COMMAND", (sys.executable, "-m", "tests.scale.stub"))
    assert run_sweep([config_of(seed, "good", tmp_path, seconds=0) for seed in range(3)]) == 0
    assert [run.record.status for run in read_runs(tmp_path)[0]] == ["ok", "ok", "ok"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracker: ")]
    assert lines == [
        "tracker: stub-0 is recorded but not tracked: no route to host for stub-0",
        "tracker: stub-1 is recorded but not tracked: no route to host for stub-1",
        "tracker: given up for this sweep; the same command later tracks what is missing",
        "tracker: the report is lost as well",
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"mode": "sometimes"}, "tracker.mode is 'sometimes': choose one of offline, online, disabled"),
        ({"mode": "online"}, "W&B has no API key: run `wandb login`, or set tracker.mode=offline"),
        ({"projekt": "x"}, "tracker wandb has no option 'projekt' (did you mean 'project'?)"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch, options, line):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = {"name": "wandb", **OFFLINE, "timeout_seconds": 30.0, **options}
    assert run_sweep([config_of(0, "good", tmp_path, tracker=tracker)]) == 2
    assert capsys.readouterr().err.startswith(f"failed: {line}")
    assert read_runs(tmp_path)[0] == []
