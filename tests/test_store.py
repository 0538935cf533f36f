"""Point folders: written whole, read back equal, and damage is reported by name."""

import json
from dataclasses import replace
from pathlib import Path

import duckdb
import pandas
import pyarrow.parquet as pq
import pytest

from runners import store
from runners.records import STEP_COLUMNS, PromptRecord, RunRecord, Unit
from runners.steps import VERSION_KEY

UNIT = Unit([0], 64, 64, 32, [1.0, 1.1], [2.0, 2.1], [0.1, 0.1], [0.1, 0.1])
PROMPT = PromptRecord("q/0", "code", 0, 12, 64, 32, True, None, "naïve é \ud800 text")
RECORD = RunRecord(
    status="ok",
    reason="",
    algorithm="eagle2",
    drafter="layer_skip",
    target="smollm2",
    task="humaneval",
    device="cpu",
    dtype="bfloat16",
    batch_size=1,
    temperature=0.0,
    seed=0,
    speedup=2.0,
    units=[UNIT],
    prompts=[replace(PROMPT, text="naïve é")],
    config={"algorithm": {"budget": 8}},
)


def steps(rows: int = 3, **more) -> pandas.DataFrame:
    return pandas.DataFrame({name: list(range(rows)) for name in STEP_COLUMNS} | more)


def write(sweep: Path, name: str, rows: int = 3, **more) -> Path:
    store.write_point(sweep / name, RECORD, steps(rows, **more))
    return sweep / name


def test_record_and_steps_come_back_equal(tmp_path):
    folder = write(tmp_path, "a")
    assert store.read_runs(tmp_path) == ([store.StoredRun(folder, RECORD)], [])
    frame, problems = store.read_steps(tmp_path)
    assert problems == []
    assert frame.drop(columns="point").equals(steps().astype(STEP_COLUMNS))
    assert set(frame["point"]) == {"a"}
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "steps.parquet"]  # no temporary file is left


def test_steps_file_is_zstd_with_a_schema_version(tmp_path):
    metadata = pq.read_metadata(write(tmp_path, "a") / "steps.parquet")
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata.metadata[VERSION_KEY] == b"1"


def test_odd_values_are_written_as_valid_json(tmp_path):
    odd = replace(RECORD, speedup=float("nan"), prompts=[PROMPT], config={"path": Path("x"), "inf": float("inf")})
    store.write_point(tmp_path / "a", odd, None)
    values = json.loads((tmp_path / "a/run.json").read_bytes())
    assert values["speedup"] is None
    assert values["config"] == {"path": "x", "inf": None}
    assert store.read_runs(tmp_path)[1] == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = write(tmp_path, "a")
    before = (folder / "run.json").read_bytes()
    monkeypatch.setattr(store.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write_point(folder, replace(RECORD, speedup=9.0), None)
    assert (folder / "run.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_failed_point_leaves_no_steps_of_an_earlier_run(tmp_path):
    folder = write(tmp_path, "a")
    store.write_point(folder, replace(RECORD, status="failed", reason="out of memory"), None)
    assert not (folder / "steps.parquet").exists()


def test_missing_step_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="emitted"):
        store.write_point(tmp_path / "a", RECORD, steps().drop(columns="emitted"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema_version": 1, "status": "o', "truncated"),
        ("", "truncated"),
        ("[]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1, "status": "ok"}', "missing"),
        (json.dumps(RECORD.to_dict() | {"speedup": "fast"}), "speedup"),
        (json.dumps(RECORD.to_dict() | {"units": 3}), "malformed"),
        (json.dumps(RECORD.to_dict() | {"status": "done"}), "status"),
        ("\xff\xfe", "JSON"),
    ],
)
def test_unreadable_records_are_reported_and_skipped(tmp_path, content, words):
    write(tmp_path, "good")
    bad = write(tmp_path, "bad")
    (bad / "run.json").write_bytes(content.encode("latin-1"))
    runs, problems = store.read_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["good"]
    assert len(problems) == 1
    assert problems[0].startswith("bad/run.json: ")
    assert words in problems[0]


def test_every_truncation_of_a_record_is_reported(tmp_path):
    path = write(tmp_path, "a") / "run.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:length])
        runs, problems = store.read_runs(tmp_path)
        assert (runs, len(problems)) == ([], 1)


def test_later_minor_additions_can_be_read(tmp_path):
    path = write(tmp_path, "a") / "run.json"
    values = json.loads(path.read_text()) | {"carbon_grams": 3}
    values["units"][0]["watts"] = 5
    path.write_text(json.dumps(values))
    assert store.read_runs(tmp_path)[0][0].record == RECORD


def test_missing_folder_and_unfinished_point_are_reported(tmp_path):
    assert store.read_runs(tmp_path / "none") == ([], [f"{tmp_path / 'none'}: no such folder"])
    (write(tmp_path, "a") / "run.json").unlink()
    assert store.read_runs(tmp_path) == ([], ["a: unfinished, it has no run.json"])


def test_damaged_steps_are_skipped(tmp_path):
    for name in ("footer", "good", "pages", "version"):
        write(tmp_path, name)
    footer, pages = tmp_path / "footer/steps.parquet", tmp_path / "pages/steps.parquet"
    footer.write_bytes(footer.read_bytes()[:-20])
    content = pages.read_bytes()
    pages.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    foreign = pq.read_table(tmp_path / "version/steps.parquet").replace_schema_metadata({VERSION_KEY: b"99"})
    pq.write_table(foreign, tmp_path / "version/steps.parquet")
    frame, problems = store.read_steps(tmp_path)
    assert set(frame["point"]) == {"good"}
    assert sorted(line.split(":")[0] for line in problems) == [
        f"{name}/steps.parquet" for name in ("footer", "pages", "version")
    ]


def test_a_column_that_one_file_lacks_is_kept(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", router=["x", "y", "z"])
    frame, _ = store.read_steps(
        tmp_path, "SELECT point, count(router) AS known FROM steps GROUP BY point ORDER BY point"
    )
    assert frame["known"].tolist() == [0, 3]


def test_steps_are_found_in_folders_with_pattern_characters(tmp_path):
    write(tmp_path / "s[1] a=b*", "a")
    assert len(store.read_steps(tmp_path / "s[1] a=b*")[0]) == 3


def test_no_steps_give_an_empty_table_and_a_wrong_query_an_error(tmp_path):
    frame, problems = store.read_steps(tmp_path)
    assert list(frame.columns) == [*STEP_COLUMNS, "point"]
    assert (len(frame), problems) == (0, [])
    write(tmp_path, "a")
    with pytest.raises(duckdb.Error):
        store.read_steps(tmp_path, "SELECT nonsense FROM steps")


def test_config_hash_sees_choices_and_nothing_else():
    config = {"algorithm": {"budget": 8, "widths": [4, 2]}, "temperature": 0, "seed": 1}
    known = store.config_hash(config)
    assert len(known) == 64
    assert store.config_hash({"seed": 1, "temperature": 0.0, "algorithm": {"widths": (4, 2), "budget": 8}}) == known
    assert store.config_hash(config | {"output": "elsewhere", "tracker": {"name": "wandb"}, "force": True}) == known
    assert store.config_hash(config | {"seed": 2}) != known
    assert store.config_hash(config | {"temperature": 0.5}) != known
    assert store.config_hash(config | {"algorithm": {"budget": 9, "widths": [4, 2]}}) != known
    assert store.config_hash({"on": True}) != store.config_hash({"on": 1})


def test_point_names():
    assert store.point_name(vars(RECORD), "1a2b3c4d5e") == "eagle2-layer_skip-smollm2-humaneval-b1-t0-bf16-1a2b3c4d"
    odd = vars(RECORD) | {"drafter": "", "target": "/models/Qwen 3:0.6B/", "task": "../x", "temperature": 0.7}
    assert store.point_name(odd, "f" * 64) == "eagle2-Qwen_3_0.6B-x-b1-t0.7-bf16-ffffffff"
    long = store.point_name(vars(RECORD) | {"target": "x" * 500, "task": "é*?" * 99}, "f" * 64)
    assert len(long) < 255
    assert long.replace("-", "").replace("_", "").isalnum()
