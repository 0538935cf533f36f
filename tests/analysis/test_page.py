"""The report page: whole in one file, in its parts equal to the records, and small however large the sweep."""

import base64
import json
import re
import zlib

import pytest

from analysis.inspector import PAGE_BUDGET, pack, page_traces
from analysis.load import by_setting, load_sweep
from analysis.metrics import Table
from analysis.page import PLOT_BUDGET, PagePlot, inline, page
from runners.records import PromptRecord
from tests.analysis.trees import TREES, large_trees

PROMPT = PromptRecord("q/1", "code", 0, 10, 6, 3, True, None, "text")
SVG = '<?xml version="1.0"?>\n<svg><metadata>who</metadata><path style="fill: #222222; stroke: #dddddd"/></svg>'


def html_of(folder, plots=()) -> str:
    return page(load_sweep(folder), list(plots), "", ["main_table.csv"], folder / "report")


def data_of(html: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def unpack(packed: str) -> dict:
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_rows_equal_the_records(small_sweep, add):
    add(name="bad", status="failed", reason="out of memory", speedup=None)
    rows = data_of(html_of(small_sweep))["rows"]
    assert len(rows) == 7
    (row,) = (row for row in rows if row["method"] == "eagle2 (layer_skip)" and row["task"] == "chat")
    assert (row["speedup_measured"], row["low_measured"], row["tau"], row["rate_measured"]) == (1.75, 1.4, 2.25, 45.0)
    assert row["bound_measured"] == pytest.approx(1.75 / 2.25)
    assert row["link"] == "../eagle2-layer_skip-chat/run.json"
    assert (small_sweep / "report" / row["link"]).resolve().is_file()


def test_measured_and_projected_have_columns_of_their_own(small_sweep, add):
    add(name="p", basis="projected", speedup=7.75)
    data = data_of(html_of(small_sweep))
    titles = [column["title"] for column in data["columns"]]
    assert {"speedup (measured)", "speedup (projected)", "tokens/s (measured)", "tokens/s (projected)"} <= set(titles)
    for row in data["rows"]:
        assert ("speedup_measured" in row) != ("speedup_projected" in row)


def test_what_records_say_stays_text(sweep_dir, add):
    add(name="x", task="</script><img src=x onerror=alert(1)>", reason="<b>note</b>")
    add(name="bad", status="failed", reason="<script>alert(2)</script>")
    html = html_of(sweep_dir)
    assert "<img" not in html
    assert "<b>note" not in html
    assert "<script>alert" not in html
    assert data_of(html)["rows"][1]["task"] == "</script><img src=x onerror=alert(1)>"


def test_nothing_is_fetched(small_sweep):
    html = html_of(small_sweep, [PagePlot("a", "b", SVG)])
    assert re.findall(r"""(?:src|@import|url\()\s*=?\s*["']?(?!data:)\w+:""", html) == []
    assert set(re.findall(r"https?://[^\s\"'<)]+", html)) <= {"http://www.w3.org/2000/svg"}


def test_plots_take_the_colours_of_the_page():
    assert inline(SVG) == '<svg><path style="fill: var(--ink); stroke: var(--line)"/></svg>'


def test_packed_trees_are_the_trees():
    trace = unpack(pack(TREES))
    assert [len(step["p"]) for step in trace["steps"]] == [6, 4, 3]
    first = trace["steps"][0]
    assert first["p"] == [-1, 0, 0, 1, 3, 3]
    assert [trace["texts"][index] for index in first["t"]] == ["t10", "t11", "t12", "t13", "t14", "t14"]
    assert first["f"] == [3, 3, 1, 3, 0, 4]
    assert first["l"] == [None, -60, -139, -22, -11, None]


def test_gaps_in_the_numbering_are_closed():
    trees: Table = TREES
    assert unpack(pack(trees[trees["node"] != 2]))["steps"][0]["p"] == [-1, 0, 1, 2, 2]


def test_traces_share_prompts_and_know_who_drafts(sweep_dir, add):
    add(trees=TREES, prompts=[PROMPT])
    add(algorithm="autoregressive", drafter="none", trees=TREES[TREES["verified"] & (TREES["node"] == 0)])
    entries = data_of(html_of(sweep_dir))["traces"]
    assert [(entry["prompt"], entry["drafts"]) for entry in entries] == [
        ("humaneval: 0", False),
        ("humaneval: q/1, turn 1", True),
    ]


def test_a_page_stays_small_and_says_what_it_leaves_out(sweep_dir, add):
    for number in range(4):
        add(name=f"p{number}", seed=number, trees=large_trees(100, 2, seed=number))
    plot = "<svg>" + "x" * (PLOT_BUDGET // 2) + "</svg>"
    html = html_of(sweep_dir, [PagePlot("a", f"plot {number}", plot) for number in range(3)])
    assert "2 more plots: they are in the folder of this page." in html
    points = [point for points in by_setting(load_sweep(sweep_dir)).values() for point in points]
    whole = page_traces(points)
    assert (len(whole.entries), whole.left_out) == (4, "")
    assert len(html) < 100_000 + PLOT_BUDGET
    assert PLOT_BUDGET + PAGE_BUDGET <= 1_400_000, "of 2 MB; the rest is for the rows"
    some = page_traces(points, budget=2 * max(len(entry["packed"]) for entry in whole.entries))
    assert len(some.entries) == 2
    assert "2 of 4 prompts are left out" in some.left_out


def test_damaged_trees_leave_the_page_without_them(sweep_dir, add):
    add(trees=TREES)
    (sweep_dir / "eagle2-layer_skip-humaneval/trees.parquet").write_bytes(b"PAR1")
    assert "No trees" in html_of(sweep_dir)
