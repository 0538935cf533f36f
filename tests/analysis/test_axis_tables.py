"""Tables along an axis: who is in them, what is bold, what stays apart, and that all formats say the same."""

import csv
import io
import json

import pytest

from analysis.axis_tables import axis_tables, cells, files
from analysis.load import load_sweep, merge_sweeps
from tests.analysis.test_tables import NEEDS_LATEX, compiles


@pytest.fixture
def varied(sweep_dir, add):
    """Two methods at two batch sizes, two temperatures and on two machines; one point projected."""
    for batch, chain, eagle2 in ((1, 1.5, 2.5), (8, 1.25, 0.75)):
        add(name=f"c{batch}", algorithm="chain", batch_size=batch, speedup=chain)
        add(name=f"e{batch}", batch_size=batch, speedup=eagle2)
    add(name="hot", temperature=1.0, speedup=2.0)
    add(name="gpu", device="cuda", environment={"device_name": "H100"}, speedup=3.125)
    add(name="guess", basis="projected", device="cuda", environment={"device_name": "H100"}, speedup=9.5)
    return sweep_dir


def only(folder, axis):
    (table,) = axis_tables(load_sweep(folder), axis)
    return table


def test_batch_table(varied):
    table = only(varied, "batch")
    assert table.title == "By batch size: measured, smollm2, cpu, float32, temperature 0"
    frame = cells(table, lambda text: f"<{text}>")
    assert list(frame["batch size 1", "speedup"]) == ["1.50x", "<2.50x>"]
    assert list(frame["batch size 8", "speedup"]) == ["<1.25x>", "0.75x"]


def test_temperature_table(varied):
    frame = cells(only(varied, "temperature"), str.upper)
    assert frame.loc[("humaneval", "eagle2 (layer_skip)"), ("temperature 1", "speedup")] == "2.00x"
    assert frame.loc[("humaneval", "chain (layer_skip)"), ("temperature 1", "speedup")] == "-"


def test_hardware_table_keeps_projections_out(varied):
    frame = cells(only(varied, "hardware"), lambda text: text)
    assert list(dict.fromkeys(frame.columns.get_level_values(0))) == ["cpu", "cuda (H100)"]
    assert frame.loc[("humaneval", "eagle2 (layer_skip)"), ("cuda (H100)", "speedup")] == "3.12x"
    assert all("9.50" not in content for _, content in files(load_sweep(varied)) if "," not in content[:20])


def test_a_sweep_of_one_value_has_no_such_table(small_sweep):
    assert list(files(load_sweep(small_sweep))) == []


def test_formats_agree_and_carry_provenance(varied):
    found = dict(files(load_sweep(varied)))
    assert set(found) == {
        f"{axis}_table.{form}" for axis in ("batch", "temperature", "hardware") for form in ("md", "tex", "html", "csv")
    }
    for form, best in (("md", "**2.50x**"), ("tex", r"\textbf{2.50x}"), ("html", "<b>2.50x</b>")):
        text = found[f"batch_table.{form}"]
        assert best in text
        assert "commit fedcba9876" in text
        assert "measured: wall clock" in text
    rows = list(csv.DictReader(io.StringIO(found["batch_table.csv"])))
    assert [(row["batch_size"], row["speedup"], row["basis"]) for row in rows[:2]] == [
        ("1", "1.5", "measured"),
        ("1", "2.5", "measured"),
    ]


def test_names_from_records_stay_text(sweep_dir, add):
    for batch in (1, 2):
        add(name=f"p{batch}", task="<script>&|_", batch_size=batch)
    found = dict(files(load_sweep(sweep_dir)))
    assert "<script>" not in found["batch_table.html"]
    assert r"\textless{}script" in found["batch_table.tex"]


@NEEDS_LATEX
def test_latex_compiles(varied, tmp_path):
    for name, content in files(load_sweep(varied)):
        if name.endswith(".tex"):
            compiles(content, "booktabs,graphicx", tmp_path)


def test_foreign_records_join_one_table(sweep_dir, add, tmp_path):
    """Another machine, another schema version with fields of its own."""
    add()
    theirs = tmp_path / "theirs" / "eagle2-layer_skip-humaneval"
    theirs.mkdir(parents=True)
    values = json.loads((sweep_dir / "eagle2-layer_skip-humaneval/run.json").read_text())
    values |= {
        "schema_version": 7,
        "device": "cuda",
        "environment": {"device_name": "MI300"},
        "joules": 5,
        "speedup": 4.0,
    }
    (theirs / "run.json").write_text(json.dumps(values))
    assert load_sweep(theirs.parent).points == [], "alone it is refused"
    sweep = merge_sweeps([sweep_dir, theirs.parent])
    (table,) = axis_tables(sweep, "hardware")
    frame = cells(table, lambda text: text)
    assert [frame.columns.get_level_values(0)[i] for i in (0, 2)] == ["cpu", "cuda (MI300)"]
    assert list(frame.iloc[0]) == ["1.50x", "2.00", "4.00x", "2.00"]
    assert [point.name.split("/")[0] for point in sweep.points] == ["first_sweep", "theirs"]
