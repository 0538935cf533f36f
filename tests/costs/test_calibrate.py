"""Calibration end to end on a tiny model: the table it writes is used, resumed, and refused where it does not fit."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from runners import calibrate, search_fixed
from runners.pricing import calibrate_command
from tests.entry_point import Bench

pytestmark = pytest.mark.xdist_group("calibrate")  # one worker sets its fixtures up

GRID = ("batch_sizes=[1,2]", "widths=[1,2,4]", "contexts=[8,16]", "max_rows=4", "repeats=3", "seconds_per_cell=0.01")
RATES = ("num_prompts=2", "max_new_tokens=12", "depth=3", "ranks=4")


def call(main: Any, *arguments: str) -> tuple[int, str]:
    GlobalHydra.instance().clear()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["command", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, err.getvalue()


class Lab:
    """A tiny model, a table and rates for it."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.table, self.rates, self.trees = (folder / f"{name}.json" for name in ("table", "rates", "trees"))
        self.model = ("target=hf", f"target.path={self.bench.model}", "drafter=token_recycling", "dtype=float32")
        self.task = ("task=jsonl", f"task.path={self.bench.questions}")

    def calibrate(self, *arguments: str) -> tuple[int, str]:
        files = (f"device.costs={self.table}", f"acceptance_file={self.rates}")
        return call(calibrate.main, *self.model, *self.task, *GRID, *RATES, *files, *arguments)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    code, err = lab.calibrate()
    assert code == 0, err
    return lab


def test_all_cells_but_the_large_ones_are_measured(lab):
    table = json.loads(lab.table.read_text())
    for seconds in (table["target_seconds"], table["drafters"]["token_recycling"]["seconds"]):
        assert all(value > 0 for row in seconds[0] for value in row)
        assert seconds[1][2] == [None, None]
    assert table["threads"] == torch.get_num_threads()
    assert lab.table.with_suffix(".png").stat().st_size > 5000


def test_rates_are_shares(lab):
    rates = json.loads(lab.rates.read_text())
    assert rates["split"] == "tune"
    assert 0 <= sum(rates["acceptance"]) <= 1
    assert len(rates["accuracies"]) == 3
    assert all(0 <= sum(row) <= 1 for row in rates["accuracies"])


def test_nothing_is_measured_twice_and_what_is_missing_is(lab, monkeypatch):
    before = lab.table.read_text()
    code, err = lab.calibrate("measure=[costs]")
    assert (code, "0 cells measured" in err) == (0, True)
    table = json.loads(before)
    table["target_seconds"][0][1][1], table["complete"] = None, False
    lab.table.write_text(json.dumps(table))
    code, err = lab.calibrate("measure=[costs]")
    assert (code, "1 cells measured" in err) == (0, True)
    assert json.loads(lab.table.read_text())["complete"]


def test_an_interrupted_run_leaves_a_table_that_is_refused_then_finished(lab, tmp_path, monkeypatch):
    lab_table, lab.table = lab.table, tmp_path / "cut.json"
    fill, cells = calibrate.fill, []

    def dies(*arguments: Any) -> None:
        cells.append(arguments)
        if len(cells) == 4:
            raise KeyboardInterrupt
        fill(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(calibrate, "fill", dies)
        assert lab.calibrate("measure=[costs]")[0] == 130
    outcome = run(lab, "algorithm=cast", f"device.costs={lab.table}")
    assert outcome.code == 2
    assert "unfinished: run python -m runners.calibrate" in outcome.lines[0]
    code, err = lab.calibrate("measure=[costs]")
    assert (code, "17 cells measured" in err) == (0, True)
    lab.table = lab_table


def run(lab: Lab, *arguments: str) -> Any:
    usual = (f"device.costs={lab.table}", "drafter=token_recycling", "dtype=float32")
    given = {argument.partition("=")[0] for argument in arguments}
    return lab.bench(*(a for a in usual if a.partition("=")[0] not in given), *arguments)


def test_algorithms_that_weigh_costs_use_the_table(lab, tmp_path):
    for name in ("cast_rate", "goodput_chain"):
        lab.bench.output = tmp_path / name
        outcome = run(lab, f"algorithm={name}", "batch_size=2")
        assert outcome.code == 0, outcome.lines
        assert outcome.run["identical_rate"] == 1.0


def test_a_table_that_does_not_fit_is_refused_in_one_line(lab, tmp_path):
    lab.bench.output = tmp_path
    for arguments, message in (
        (("device.costs=nowhere.json",), "there is no cost table nowhere.json: run python -m runners.calibrate"),
        (("dtype=bfloat16",), "is for dtype 'float32', not 'bfloat16': python -m runners.calibrate"),
        (("drafter=suffix_automaton",), "does not cover drafter suffix_automaton: run"),
        (("drafter.successors=4",), "other options of drafter token_recycling: run"),
        (("batch_size=3",), "covers batches 1 to 2, not 3"),
    ):
        outcome = run(lab, "algorithm=cast", *arguments)
        assert outcome.code == 2
        assert message in outcome.lines[-1], outcome.lines


@pytest.mark.slow
def test_this_machine_can_be_projected_from_its_own_table(lab, tmp_path):
    lab.bench.output = tmp_path
    outcome = run(lab, "algorithm=eagle2_small", "device.basis=projected")
    assert outcome.code == 0, outcome.lines
    assert (outcome.run["basis"], outcome.run["speedup"] > 0) == ("projected", True)


@pytest.mark.slow
def test_measured_rates_reach_the_trees_that_are_made_of_them(lab, tmp_path):
    lab.bench.output = tmp_path
    rates = json.loads(lab.rates.read_text())
    for setting, key in (
        ("sequoia algorithm.acceptance", "acceptance"),
        ("medusa_tree algorithm.accuracies", "accuracies"),
    ):
        name, option = setting.split()
        extra = ["algorithm.children=top_k"] if name == "sequoia" else []
        lab.bench.output = tmp_path / name
        outcome = run(lab, f"algorithm={name}", f"{option}='${{measured:{lab.rates},{key}}}'", *extra)
        assert outcome.code == 0, outcome.lines
        assert outcome.run["config"]["algorithm"][option.split(".")[1]] == rates[key]
    outcome = run(lab, "algorithm=sequoia", f"algorithm.acceptance='${{measured:{lab.rates},colour}}'")
    assert outcome.code == 2
    assert "has no 'colour'" in outcome.lines[0]
    outcome = run(
        lab, "algorithm=sequoia", "drafter=suffix_automaton", f"algorithm.acceptance='${{measured:{lab.rates},ratios}}'"
    )
    assert outcome.code == 2
    assert "was measured with drafter 'token_recycling', not 'suffix_automaton'" in outcome.lines[0]


@pytest.mark.slow
def test_the_best_fixed_tree_is_searched_on_tuning_prompts(lab, tmp_path):
    grid = ("grid.depth=[1,2]", "grid.top_k=[2]", "grid.total_tokens=[2,4]", "batch_sizes=[1,2]", f"file={lab.trees}")
    arguments = (*lab.model, *lab.task, *grid, f"device.costs={lab.table}", "num_prompts=2", "max_new_tokens=12")
    code, err = call(search_fixed.main, *arguments)
    assert code == 0, err
    found = json.loads(lab.trees.read_text())
    assert [row[0] for row in found["settings"]] == [1, 2]
    assert len(found["trees"]) == 5
    lab.bench.output = tmp_path
    outcome = run(lab, "algorithm=best_fixed", f"algorithm.settings='${{measured:{lab.trees},settings}}'")
    assert outcome.code == 0, outcome.lines


@pytest.mark.parametrize(
    ("drafter", "choice"),
    [
        ({"kind": "none"}, ""),
        ({"kind": "layer_skip", "name": "layer_skip", "skip": [3]}, " drafter=layer_skip"),
        ({"kind": "eagle_head", "path": "my heads/one"}, " drafter=eagle_head drafter.path='my heads/one'"),
        ({"kind": "small_model", "name": "small_model", "path": "lm"}, " drafter=small_model drafter.path=lm"),
    ],
)
def test_the_command_names_the_drafter_and_where_it_lies(drafter, choice):
    config = {"device": {"name": "cpu"}, "dtype": "float32", "target": {"name": "smollm2"}, "drafter": drafter}
    assert calibrate_command(config) == f"python -m runners.calibrate device=cpu dtype=float32{choice}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("widths=[4,2]",), "widths is [4, 2]; it must be a rising list"),
        (("measure=[time]",), "measure has 'time'; choose from costs, acceptance"),
        (("device=h100",), "device h100 is not here"),
        (("widths=[1,2]", "measure=[costs]"), "was measured with other settings: add force=true"),
    ],
)
def test_bad_settings_are_refused_in_one_line(lab, arguments, message):
    code, err = lab.calibrate(*arguments)
    assert code == 2
    assert message in err
