"""Cost tables: what lies between the measured cells, and every table that must not be used."""

import json
from typing import Any

import numpy as np
import pytest

from backend.costs import TABLE_VERSION, Axes, Surface, read_table
from backend.errors import TreebenchError
from backend.roofline import Device, Roofline, Shape

AXES = Axes([1, 4], [1, 2, 8], [100, 300])
SECONDS = [[[1.0, 2.0], [2.0, 3.0], [4.0, 5.0]], [[2.0, 3.0], [4.0, 5.0], [None, None]]]
IDENTITY = {"device": "cpu", "device_name": "X", "threads": 2, "target": "m", "dtype": "float32", "torch": "2.13.0"}
COMMAND = "python -m runners.calibrate device=cpu"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((1, 1, 100), 1.0),
        ((1, 5, 100), 3.0),
        ((1, 1, 200), 1.5),
        ((1, 1, 500), 3.0),  # the last slope goes on
        ((1, 1, 10), 1.0),  # but nothing is made up below
        ((1, 11, 100), 5.0),
        ((4, 8, 100), 16.0),  # not measured: continued from 2.0 and 4.0
        ((2, 1, 100), 4 / 3),
    ],
)
def test_between_and_beyond_the_cells(place, expected):
    assert Surface.measured(AXES, SECONDS).at(*place) == pytest.approx(expected)


def test_an_array_of_widths_gives_an_array():
    surface = Surface.measured(AXES, SECONDS)
    found = surface.at(1, np.array([1, 5, 11]), 100)
    assert found == pytest.approx([float(surface.at(1, width, 100)) for width in (1, 5, 11)])


def test_a_batch_outside_the_table_is_refused_with_the_command():
    with pytest.raises(TreebenchError, match=r"covers batches 1 to 4, not 8: run python -m runners.calibrate"):
        Surface.measured(AXES, SECONDS).at(8, 1, 100)


def test_seconds_never_fall_with_width():
    surface = Surface.measured(Axes([1], [1, 2, 4], [1]), [[[3.0], [5.0], [4.0]]])
    assert surface.seconds[0, :, 0].tolist() == [3.0, 4.0, 4.0]


def stored() -> dict[str, Any]:
    axes = {"batches": [1, 4], "widths": [1, 2, 8], "contexts": [100, 300]}
    overhead = [[0.1, 0.2, 0.3], [0.1, 0.2, None]]
    drafters = {
        "none": {"options": {}, "complete": True, "seconds": None, "overhead": overhead},
        "d": {"options": {"size": 8}, "complete": True, "seconds": SECONDS, "overhead": overhead},
    }
    return {"schema_version": TABLE_VERSION, **IDENTITY, **axes, "complete": True, "target_seconds": SECONDS,
            "drafters": drafters}  # fmt: skip


def read(tmp_path: Any, values: dict[str, Any], drafter: str = "d", size: int = 8) -> Any:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(values))
    return read_table(path, IDENTITY, drafter, {"size": size}, COMMAND)


def test_a_finished_table_is_read(tmp_path):
    table = read(tmp_path, stored())
    assert table.verify_seconds(1, 2, 100) == 2.0
    assert table.draft_seconds("d", 1, 2, 100) == 2.0
    assert table.overhead_seconds("d", 1, 2) == pytest.approx(0.2)
    assert table.overhead_seconds(None, 1, 2) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "other"}, "is for target 'other', not 'm'"),
        ({"dtype": "bfloat16"}, "is for dtype 'bfloat16'"),
        ({"device_name": "Y"}, "is for device_name 'Y'"),
        ({"threads": 1}, "is for threads 1"),
        ({"torch": "2.0.0"}, "is for torch '2.0.0'"),
        ({"schema_version": 0}, "another format"),
        ({"complete": False}, "unfinished"),
        ({"drafters": {}}, "does not cover drafter d"),
        ({"target_seconds": [[1.0]]}, "damaged"),
    ],
)
def test_a_table_of_something_else_is_refused_with_the_command(tmp_path, change, message):
    with pytest.raises(TreebenchError) as refusal:
        read(tmp_path, stored() | change)
    assert message in str(refusal.value)
    assert COMMAND in str(refusal.value)


def test_other_options_missing_and_truncated_tables_are_refused(tmp_path):
    with pytest.raises(TreebenchError, match="other options of drafter d: run"):
        read(tmp_path, stored(), size=9)
    with pytest.raises(TreebenchError, match=f"there is no cost table .*: run {COMMAND}"):
        read_table(tmp_path / "none.json", IDENTITY, "d", {}, COMMAND)
    (tmp_path / "cut.json").write_text(json.dumps(stored())[:-40])
    with pytest.raises(TreebenchError, match="perhaps truncated: run python"):
        read_table(tmp_path / "cut.json", IDENTITY, "d", {}, COMMAND)


# --- the roofline -----------------------------------------------------------------------------------------------------

SIZES = dict(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_size=128, vocabulary=128256)
SHAPE = Shape(**SIZES)
DEVICE = Device(
    2e12, {"bfloat16": 300e12}, 1.0, 1.0, tile=16, launch_seconds=0.0, step_seconds=0.0, lookup_seconds=1e-5
)


def test_weights_are_counted_as_in_the_model_card():
    """Llama-3.1-8B: 8.03e9 parameters, of which 0.53e9 are looked up, not multiplied."""
    assert SHAPE.layers * SHAPE.layer_weights + SHAPE.head_weights == pytest.approx(8.03e9 - 0.53e9, rel=0.002)


def test_one_token_takes_the_time_to_read_weights_and_cache():
    seconds = Roofline(DEVICE, "bfloat16", SHAPE, None).verify_seconds(1, 1, 0)
    assert seconds == pytest.approx(2 * 7.5e9 / 2e12, rel=0.01)
    cache = 2 * SHAPE.layers * 2 * SHAPE.kv_heads * SHAPE.head_size * 10_000 / 2e12
    assert Roofline(DEVICE, "bfloat16", SHAPE, None).verify_seconds(1, 1, 10_000) - seconds == pytest.approx(cache)


def test_many_tokens_take_the_time_to_multiply_in_whole_tiles():
    roofline = Roofline(DEVICE, "bfloat16", SHAPE, None)
    seconds = roofline.verify_seconds(64, np.arange(1, 65), 0)
    assert (np.diff(seconds) >= 0).all()
    assert seconds[-1] == pytest.approx(2 * 7.5e9 * 4096 / 300e12, rel=0.05)
    assert seconds[1] == pytest.approx(seconds[0], rel=0.03)  # still reading weights
    narrow = Roofline(Device(1e20, {"bfloat16": 300e12}, 1.0, 1.0, 16, 0.0, 0.0, 0.0), "bfloat16", SHAPE, None)
    steps = narrow.verify_seconds(1, np.array([1, 15, 16, 17, 32, 33]), 0)
    assert steps[0] == pytest.approx(steps[2], rel=0.01)
    assert steps[3] == pytest.approx(2 * steps[2], rel=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Roofline(DEVICE, "float32", SHAPE, None), "no figure for dtype float32"),
        (lambda: Shape.of_options({"layers": 1}, "target.shape"), "target.shape takes layers, hidden"),
        (lambda: Shape.of_options({**SIZES, "heads": 0}, "target.shape"), "target.shape.heads is 0"),
        (lambda: Device.of_options({"bandwidth": 1.0}, "device.roofline"), "device.roofline takes bandwidth, flops"),
        (lambda: Device.of_options({**vars(DEVICE), "tile": -1}, "device.roofline"), "device.roofline.tile is -1"),
    ],
)
def test_impossible_figures_are_refused(make, message):
    with pytest.raises(TreebenchError, match=message):
        make()
