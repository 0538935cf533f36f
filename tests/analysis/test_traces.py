"""Plots of router traces: which points have them, what is drawn, and the messages where there is nothing."""

import numpy
import pandas
import pytest

from analysis.traces import configurations, draw_traces, main
from runners.records import STEP_COLUMNS
from runners.store import write_point
from tests.analysis.conftest import RECORD


def steps(**traces: list[float]) -> pandas.DataFrame:
    rows = {name: [0, 0, 1, 1] for name in STEP_COLUMNS} | {"step": [0, 1, 0, 1]}
    return pandas.DataFrame(rows | traces)


TRACED = steps(
    alpha_a=[0.5, 0.6, 0.7, 0.8], c_a=[0.4] * 4, nodes_a=[1.0, 2, 3, 4],
    alpha_b=[0.3] * 4, c_b=[0.1] * 4, nodes_b=[0.0] * 4,
)  # fmt: skip


def test_every_configuration_is_drawn_in_each_panel():
    assert configurations(TRACED) == ["a", "b"]
    panels = draw_traces(TRACED, "a point").axes
    assert len(panels) == 3
    alpha, _, nodes = (
        {line.get_label(): numpy.asarray(line.get_ydata()).tolist() for line in axes.lines} for axes in panels
    )
    assert alpha["a"] == [0.5, 0.6, 0.7, 0.8]
    assert nodes["a"] == [1, 1.5, 2, 2.5]
    assert [len(axes.lines) for axes in panels] == [3, 3, 3], "two configurations, and where the second text begins"


def test_points_without_traces_are_left_out(sweep_dir, capfd):
    write_point(sweep_dir / "plain", RECORD, steps())
    assert main([str(sweep_dir)]) == 1
    assert "no point has traces" in capfd.readouterr().err
    write_point(sweep_dir / "traced", RECORD, TRACED)
    assert main([str(sweep_dir)]) == 0
    assert sorted(path.name for path in (sweep_dir / "report").iterdir()) == ["traces-traced.png", "traces-traced.svg"]


def test_wrong_use(tmp_path, capfd):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([])
