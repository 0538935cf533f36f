"""The main job end to end: the real entry point on a tiny model, and what it writes."""

import re

import numpy
import pytest

from analysis.report import main as report
from runners.records import STEP_COLUMNS
from tests.entry_point import Bench, Outcome

pytestmark = pytest.mark.xdist_group("benchmark")  # one worker sets its fixtures up

INTERFACE = [
    "schema_version",
    "status",
    "reason",
    "algorithm",
    "drafter",
    "target",
    "task",
    "device",
    "dtype",
    "batch_size",
    "temperature",
    "seed",
    "basis",
    "num_prompts",
    "new_tokens",
    "steps",
    "speedup",
    "speedup_low",
    "speedup_high",
    "acceptance_length",
    "tokens_per_second",
    "baseline_tokens_per_second",
    "identical_rate",
    "config_hash",
    "git_commit",
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """Model and questions; tests take `fresh` for an output folder of their own."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def fresh(bench, tmp_path) -> Bench:
    bench.output = tmp_path / "sweep"
    return bench


@pytest.fixture(scope="module")
def greedy(bench, tmp_path_factory) -> Outcome:
    bench.output = tmp_path_factory.mktemp("greedy") / "sweep"
    return bench("drafter=layer_skip", "dtype=float32", "repeats=2")


def check_consistent(outcome: Outcome) -> None:
    """Record and steps tell the same story."""
    run, steps = outcome.run, outcome.steps
    assert set(steps.columns) == set(STEP_COLUMNS)
    emitted = steps.groupby("sequence")["emitted"].agg(["sum", "size"])
    assert emitted["sum"].tolist() == [prompt["new_tokens"] for prompt in run["prompts"]]
    assert emitted["size"].tolist() == [prompt["steps"] for prompt in run["prompts"]]
    assert run["new_tokens"] == steps["emitted"].sum()
    assert run["steps"] == len(steps)
    assert run["acceptance_length"] == pytest.approx(run["new_tokens"] / run["steps"])
    assert numpy.all(steps["emitted"] >= 1)
    assert numpy.all(steps["emitted"] <= steps["depth"] + 1)
    assert numpy.all(steps["verified_nodes"] <= steps["drafted_nodes"])
    first = steps.groupby("sequence")["context"].first()
    assert first.tolist() == [prompt["prompt_tokens"] for prompt in run["prompts"]]
    assert sorted(index for unit in run["units"] for index in unit["sequences"]) == list(range(run["num_prompts"]))


def test_record_holds_what_others_rely_on(greedy):
    run = greedy.run
    assert greedy.code == 0
    assert [name for name in INTERFACE if name not in run] == []
    assert (run["status"], run["basis"], run["schema_version"]) == ("ok", "measured", 1)
    assert (run["algorithm"], run["drafter"], run["target"], run["task"]) == ("eagle2", "layer_skip", "tiny", "jsonl")
    assert (run["device"], run["dtype"], run["batch_size"], run["temperature"]) == ("cpu", "float32", 1, 0)
    assert run["num_prompts"] == 6, "three questions of two turns"
    assert run["speedup"] > 0
    assert run["speedup_low"] <= run["speedup"] <= run["speedup_high"]
    assert run["tokens_per_second"] / run["baseline_tokens_per_second"] == pytest.approx(run["speedup"])
    assert re.fullmatch("[0-9a-f]{64}", run["config_hash"])
    assert re.fullmatch(r"([0-9a-f]{40}\+?)?", run["git_commit"])
    assert run["config_hash"][:8] in greedy.points[0].name
    assert [len(unit["seconds"]) for unit in run["units"]] == [2] * 6


def test_steps_and_record_agree(greedy):
    check_consistent(greedy)


def test_greedy_output_in_fp32_is_plain_decoding(greedy):
    run = greedy.run
    assert run["lossless"] is True
    assert run["acceptance"] == "greedy"
    assert run["identical_rate"] == 1.0
    assert {prompt["first_divergence"] for prompt in run["prompts"]} == {None}
    for arm in ("baseline", "method", "control"):
        assert run["losslessness"][arm]["argmax_rate"] == 1.0
        assert run["losslessness"][arm]["beyond_near_tie"] == 0
    assert run["losslessness"]["method"]["tokens"] == run["new_tokens"]
    assert run["losslessness"]["numeric_events"] == {"invalid_rows": 0, "vanished_residuals": 0}


def test_stages_sum_to_the_total(greedy):
    stages = dict(greedy.run["stage_seconds"])
    total, forward = stages.pop("total"), stages.pop("forward")
    assert set(stages) == {"draft", "tree", "verify", "accept", "commit", "other"}
    assert all(seconds >= 0 for seconds in stages.values())
    assert sum(stages.values()) == pytest.approx(total)
    assert 0 < forward <= stages["draft"] + stages["verify"]


def test_both_turns_are_measured(greedy):
    prompts = greedy.run["prompts"]
    assert [prompt["turn"] for prompt in prompts] == [0, 0, 0, 1, 1, 1]
    assert [prompt["id"] for prompt in prompts[:3]] == [prompt["id"] for prompt in prompts[3:]]
    for first, second in zip(prompts[:3], prompts[3:], strict=True):
        assert second["prompt_tokens"] > first["prompt_tokens"] + len(first["text"])


def test_summary_line_says_the_result(greedy):
    line = greedy.lines[-1]
    for part in (
        "eagle2 (layer_skip) on jsonl: speedup ",
        "acceptance length",
        "tokens/s",
        "100% of answers identical",
    ):
        assert part in line
    assert str(greedy.points[0]) in line


def test_a_point_is_measured_once_unless_forced(fresh):
    arguments = ("algorithm=chain", "num_prompts=1")
    file = fresh(*arguments).points[0] / "run.json"
    before = file.stat().st_mtime_ns
    again = fresh(*arguments)
    assert (again.code, file.stat().st_mtime_ns) == (0, before)
    assert again.lines == [f"{file.parent.name}: already measured (force=true measures again)"]
    forced = fresh(*arguments, "force=true")
    assert forced.points == [file.parent], "force is no part of the point's name"
    assert file.stat().st_mtime_ns > before


def test_ragged_last_batch(fresh):
    outcome = fresh("algorithm=fixed_tree", "batch_size=3", "num_prompts=4")
    run = outcome.run
    check_consistent(outcome)
    assert [len(unit["sequences"]) for unit in run["units"]] == [3, 1, 3, 1]
    assert run["identical_rate"] == 1.0
    assert run["losslessness"]["method"]["argmax_rate"] == 1.0
    assert sum(unit["steps"] for unit in run["units"]) < run["steps"], "a batch's step counts once"


def test_multirun_then_report(fresh, capsys):
    outcome = fresh("--multirun", "algorithm=autoregressive,chain")
    assert outcome.code == 0
    assert len(outcome.points) == 2
    assert outcome.lines[-1] == "2 points: 2 ok"
    assert report([str(outcome.output)]) == 0
    assert {"main_table.csv", "main_table.md", "main_table.tex"} <= {
        p.name for p in (fresh.output / "report").iterdir()
    }
    table = (outcome.output / "report" / "main_table.csv").read_text()
    assert "autoregressive" in table
    assert "chain" in table
    assert "chain" in capsys.readouterr().out


def test_a_sweep_in_a_worker(fresh):
    arguments = ("--multirun", "algorithm=autoregressive,chain", "num_prompts=1", "launch=local")
    outcome = fresh(*arguments)
    assert outcome.code == 0, outcome.lines
    assert [point.name.split("-")[0] for point in outcome.points] == ["autoregressive", "chain"]
    assert outcome.lines[-1] == "2 points: 2 ok"
    assert sum("100% of answers identical" in line for line in outcome.lines) == 2
    again = fresh(*arguments)
    assert again.lines[-1] == "2 points: 2 done"


def test_a_folder_never_mixes_schema_versions(fresh):
    older = fresh.output / "older" / "run.json"
    older.parent.mkdir(parents=True)
    older.write_text('{"schema_version": 0}')
    outcome = fresh("algorithm=chain")
    assert outcome.code == 2
    assert outcome.lines == [
        f"failed: {older.parent}: schema version 0, this code reads 1; set output=... to another folder"
    ]


def test_plain_decoding_as_a_method_takes_one_token_a_step(fresh):
    run = fresh("algorithm=autoregressive", "drafter=prompt_lookup").run
    assert run["drafter"] == "none", "it drafts nothing, whatever drafter is named"
    assert run["acceptance_length"] == 1.0
    assert run["identical_rate"] == 1.0
    assert "control" not in run["losslessness"]


def test_sampling_reports_surprisal(fresh):
    outcome = fresh("algorithm=dyspec", "drafter=layer_skip", "temperature=0.7", "algorithm.budget=8")
    run = outcome.run
    check_consistent(outcome)
    assert (run["acceptance"], run["lossless"]) == ("recursive_rejection", True)
    for arm in ("baseline", "method", "control"):
        assert abs(run["losslessness"][arm]["z"]) < 4
        assert run["losslessness"][arm]["outside_support"] == 0
    assert run["losslessness"]["method"]["tokens"] == run["new_tokens"]


def test_lossy_rule_is_marked(fresh, capsys):
    options = ("acceptance=typical_lossy", "acceptance_options.epsilon=0.3", "acceptance_options.delta=0.09")
    outcome = fresh("algorithm=chain", "temperature=0.7", *options)
    assert outcome.code == 0
    assert outcome.run["lossless"] is False
    assert outcome.run["acceptance"] == "typical_lossy"
    assert report([str(outcome.output)]) == 0
    assert "lossy" in capsys.readouterr().out
    assert "lossy" in (outcome.output / "report" / "main_table.md").read_text()


def test_a_crash_is_recorded_and_the_sweep_goes_on(fresh, monkeypatch):
    def crash(*_):
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr("algorithms.chain.Chain.grow", crash)
    outcome = fresh("--multirun", "algorithm=chain,autoregressive", "num_prompts=1")
    assert outcome.code == 1
    assert outcome.lines[-1] == "2 points: 1 failed, 1 ok"
    assert "failed: crashed with ZeroDivisionError: division by zero" in outcome.lines
    assert any(line.startswith("Traceback") for line in outcome.lines), "a bug shows where it is"
