"""A large sweep is read in seconds and in little memory, and compacted into two files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy
import pandas
import pytest

from analysis.compact import main as compact
from runners.records import STEP_COLUMNS
from runners.store import RUN_FILE, STEPS_FILE, read_runs, write_point
from tests.scale.stub import config_of, record_of

STEPS = 500
AGGREGATE = """
import json, resource, sys, time
from pathlib import Path
from runners.store import read_runs, read_steps
start = time.perf_counter()
query = "SELECT point, count(*) AS steps, avg(emitted) AS mean, median(emitted) AS middle FROM steps GROUP BY point"
frame, problems = read_steps(Path(sys.argv[1]), query)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"rows": len(frame), "steps": int(frame["steps"].sum()), "mean": float(frame["mean"].mean()),
                  "problems": problems, "seconds": seconds, "peak_mb": peak}))
"""


def fill(sweep: Path, runs: int) -> None:
    """Points with the same steps; written once by the store, then copied."""
    chance = numpy.random.default_rng(0)
    steps = pandas.DataFrame({name: chance.integers(0, 60, STEPS) for name in STEP_COLUMNS})
    steps["emitted"] = [1, 2, 3, 4] * (STEPS // 4)
    write_point(sweep / "p00000", record_of(config_of(0, "good", sweep), "ok"), steps)
    content = {name: (sweep / "p00000" / name).read_bytes() for name in (RUN_FILE, STEPS_FILE)}
    for number in range(1, runs):
        folder = sweep / f"p{number:05d}"
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)


def aggregate(sweep: Path) -> dict:
    command = [sys.executable, "-c", AGGREGATE, str(sweep)]
    root = Path(__file__).parent.parent.parent
    return json.loads(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_ten_thousand_runs_aggregate_in_seconds(tmp_path):
    fill(tmp_path, 10_000)
    found = aggregate(tmp_path)
    assert (found["rows"], found["steps"], found["mean"], found["problems"]) == (10_000, 5_000_000, 2.5, [])
    assert found["seconds"] <= 5, found
    assert found["peak_mb"] <= 500, found


def test_compacting_keeps_everything_and_names_what_is_damaged(tmp_path, capsys):
    fill(tmp_path, 4)
    (tmp_path / "p00001" / STEPS_FILE).write_bytes(b"PAR1 cut")
    (tmp_path / "p00002" / RUN_FILE).write_text('{"schema_version": 1, "sta')
    assert compact([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"wrote {tmp_path / 'compact'}: runs.parquet (3 runs), all_steps.parquet (1500 steps)"
    ]
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["p00002/run.json", "p00001/steps.parquet"]
    runs = pandas.read_parquet(tmp_path / "compact" / "runs.parquet")
    assert runs["point"].tolist() == ["p00000", "p00001", "p00003"]
    assert runs["algorithm"].tolist() == ["stub"] * 3
    everything = f"read_parquet('{tmp_path}/compact/all_steps.parquet')"
    counts: Any = duckdb.sql(f"SELECT point, count(*) FROM {everything} GROUP BY point ORDER BY point")
    assert counts.fetchall() == [("p00000", STEPS), ("p00002", STEPS), ("p00003", STEPS)]
    assert len(read_runs(tmp_path)[0]) == 3, "the compacted copy is no point"
    assert compact([str(tmp_path)]) == 0
    assert capsys.readouterr().out == said.out, "nor does a second time count it"


def test_compacting_nothing_says_so(tmp_path, capsys):
    assert compact([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
