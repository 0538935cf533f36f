"""Which plots a sweep gets, that what they show equals the records, and that every one of them can be drawn."""

from dataclasses import replace

import numpy
import pandas
import pytest

from analysis.curves import frontier
from analysis.evidence import Evidence
from analysis.figures import MOST_CURVES, drawings
from analysis.load import by_setting, load_sweep
from analysis.plots import encode
from runners.records import STEP_COLUMNS
from runners.store import write_point
from tests.analysis.conftest import RECORD
from tests.analysis.trees import large_trees

pytestmark = pytest.mark.xdist_group("figures")  # one worker sets its fixtures up

STAGES = {"draft": 0.2, "tree": 0.1, "verify": 0.5, "accept": 0.1, "commit": 0.05, "other": 0.05, "total": 1.0}


def steps(width: int, traced: bool = False) -> pandas.DataFrame:
    rows = [(0, step, 10, width + 2, width - step % 2, 3, 2) for step in range(20)]
    table = pandas.DataFrame(rows, columns=list(STEP_COLUMNS))
    return table.assign(alpha_pld=0.5, c_pld=0.01 * table["step"], note="a") if traced else table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three methods at batch 1 and 8; at batch 1 with trees, one of them traced. By name: drawing and figure."""
    folder = tmp_path_factory.mktemp("sweep")
    for batch in (1, 8):
        for index, name in enumerate(("autoregressive", "chain", "cas_spec")):
            width = 1 if index == 0 else 8 * index
            record = replace(
                RECORD,
                algorithm=name,
                drafter="none" if index == 0 else "layer_skip",
                batch_size=batch,
                speedup=1.0 + index / batch,
                acceptance_length=1.0 + index,
                tokens_per_second=10.0 * batch,
                stage_seconds=STAGES,
            )
            trees = large_trees(20, 10, seed=index) if batch == 1 and index else None
            write_point(folder / f"{name}-{batch}", record, steps(width, traced=index == 2 and batch == 1), trees)
    settings = by_setting(load_sweep(folder))
    points = [point for of in settings.values() for point in of]
    return {drawing.name: drawing for drawing in drawings(settings, Evidence(points))}


def labelled(axes) -> dict:
    """Lines with a name, without matplotlib's own and the reference lines."""
    return {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def named(made, start: str):
    (name,) = [name for name in made if name.startswith(start)]
    return made[name].make()


def test_every_kind_of_plot_is_there_once_per_setting(made):
    first = [name.partition("-")[0] for name in made if "-1-" in name]
    assert first == [
        *("speedup", "acceptance_length", "time_split", "acceptance_by_budget", "cost_by_width", "calibration"),
        *("depth_rank_1", "depth_rank_2", "router_1", "speedup_by_batch", "pareto"),
    ]


def test_batch_curves_equal_the_records(made):
    (axes,) = named(made, "speedup_by_batch").axes
    curves = {
        line.get_label(): list(line.get_ydata()) for line in axes.lines if not str(line.get_label()).startswith("_")
    }
    assert curves == {"chain (layer_skip)": [2.0, 1.125], "cas_spec (layer_skip)": [3.0, 1.25]}
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [end for band in bands for end in (band.y0, band.y1)] == pytest.approx([1.4, 1.6] * 2)


def test_budget_and_cost_equal_the_records(made):
    (axes,) = named(made, "acceptance_by_budget-1").axes
    points = {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in axes.lines}
    assert points == {"chain (layer_skip)": (7.5, 2.0), "cas_spec (layer_skip)": (15.5, 3.0)}
    (axes,) = named(made, "cost_by_width-1").axes
    costs = {name: line.get_ydata()[0] for name, line in labelled(axes).items()}
    assert costs == {"autoregressive": 1.0, "chain (layer_skip)": 1.0, "cas_spec (layer_skip)": 1.0}


def test_time_split_adds_up_to_the_time_per_token(made):
    (axes,) = named(made, "time_split-1").axes
    ends = [max(bar.get_x() + bar.get_width() for c in axes.containers for bar in [c[row]]) for row in range(3)]
    assert ends == pytest.approx([100.0] * 3), "10 tokens/s"


def test_router_traces_are_the_columns_that_algorithms_add(made):
    (axes,) = named(made, "router_1").axes
    assert [line.get_label() for line in axes.lines] == ["alpha_pld", "c_pld"]
    assert list(axes.lines[1].get_ydata()) == pytest.approx([0.01 * step for step in range(20)])


def test_where_lines_would_be_too_many_the_fastest_are_drawn_beside_plain_decoding(tmp_path):
    names = ["autoregressive", *(f"method_{index:02}" for index in range(MOST_CURVES + 2))]
    for batch in (1, 8):
        for speedup, name in enumerate(names, 1):
            values = {"algorithm": name, "speedup": None if speedup == 1 else float(speedup), "tokens_per_second": 9.0}
            record = replace(RECORD, drafter="none", batch_size=batch, stage_seconds=STAGES, **values)
            write_point(tmp_path / f"{name}-{batch}", record, steps(8))
    settings = by_setting(load_sweep(tmp_path))
    made = {drawing.name: drawing for drawing in drawings(settings, Evidence([]))}
    for kind, kept in (("pareto", [names[0], *names[4:]]), ("speedup_by_batch", names[4:])):
        (axes,) = named(made, kind).axes
        assert {name for name in labelled(axes) if name in names} == set(kept), kind
    (axes,) = named(made, "time_split-1").axes
    assert len(axes.get_yticks()) == MOST_CURVES
    note = f"; the {MOST_CURVES} fastest of {len(names)} methods"
    bare = {name.partition("-")[0] for name, drawing in made.items() if not drawing.caption.endswith(note)}
    assert bare == {"speedup", "acceptance_length"}, "bars have room for all"


def test_frontier():
    assert frontier([(3.0, 1.0), (1.0, 2.0), (2.0, 5.0), (4.0, 6.0), (2.0, 4.0)]) == [(1, 2), (2, 5), (4, 6)]


@pytest.mark.parametrize("kind", ["depth_rank_1", "calibration", "pareto"])
def test_they_can_be_saved_and_are_reproducible(made, kind):
    figure = named(made, kind)
    assert figure.get_figwidth() == 3.4
    svg = encode(figure, "svg")
    assert b"<svg" in svg
    assert svg == encode(named(made, kind), "svg")


def test_heat_map_shows_the_share_accepted(made):
    axes = named(made, "depth_rank_1").axes[0]
    grid = numpy.ma.getdata(axes.images[0].get_array())
    assert grid[0, 0] == 1.0, "the likeliest child always comes true in these trees"
    assert grid[1, 0] == 0.0
