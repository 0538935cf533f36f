"""Projected points: the virtual clock adds up, records say projected, and impossible combinations are refused."""

import dataclasses
import json
from typing import Any, cast

import pytest
import torch

from backend.timing import Stopwatch
from benchmarks import projection, published
from runners.decoding import Decoder, Limits, Request, generate
from runners.projection import Ledger, ProjectedDrafter, VirtualClock, projected
from runners.records import RunRecord
from runners.store import write_point
from tests.costs.parts import Formulas
from tests.entry_point import Bench
from tests.parts import make_decoder, prompts

pytestmark = pytest.mark.xdist_group("projection")  # one worker sets its fixtures up

LIMITS = Limits(max_new_tokens=12, eos_token_ids=(), tree_slots=64)
UNITS = Formulas(lambda b, w, c: 1000 * b + w + c * 1e-6, lambda b, w, c: 10 * w + 0 * c, overhead=0.125)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("projection"))


@pytest.fixture
def fresh(bench, tmp_path) -> Bench:
    bench.output = tmp_path / "sweep"
    return bench


def on_ledger(decoder: Decoder, ledger: Ledger) -> Decoder:
    """The wrapping of runners.point, by hand."""
    drafter: Any = ProjectedDrafter(cast(Any, decoder.drafter), ledger)
    cast(Any, decoder.algorithm).drafter = drafter
    return projected(Decoder(decoder.target, decoder.algorithm, drafter, decoder.rule, decoder.sampler, 0), ledger)


def test_seconds_are_those_of_the_calls_and_nothing_else():
    requests = [Request(i, prompt) for i, prompt in enumerate(prompts([9, 4]))]
    decoder = make_decoder("fixed_tree", {"widths": [3, 1]}, "small_model")
    expected = generate(decoder, requests, LIMITS, Stopwatch(torch.device("cpu")))
    ledger = Ledger(UNITS)
    result = generate(on_ledger(decoder, ledger), requests, LIMITS, VirtualClock(ledger))
    steps = len(result.emitted)
    assert result.tokens == expected.tokens
    assert round(result.seconds, 3) == pytest.approx(steps * (2000 + 7 + 10 * (1 + 3) + 0.125), abs=0.01)
    assert result.prefill_seconds == pytest.approx(2000 + 8 + 80)


def test_context_grows_with_what_is_committed():
    ledger = Ledger(UNITS)
    decoder = on_ledger(make_decoder("fixed_tree", {"widths": [2]}, "small_model"), ledger)
    UNITS.asked.clear()
    result = generate(decoder, [Request(0, prompts([9])[0])], LIMITS, VirtualClock(ledger))
    verified = [context for kind, context in UNITS.asked if kind == "verify"][1:]  # the first is the prefill
    committed = [8]
    for (count,) in result.emitted[:-1]:
        committed.append(committed[-1] + count)
    assert verified == committed


def test_stages_of_a_projection_add_up():
    ledger = Ledger(UNITS)
    clock = VirtualClock(ledger, stages=True)
    decoder = on_ledger(make_decoder("fixed_tree", {"widths": [2]}, "small_model"), ledger)
    result = generate(decoder, [Request(0, prompts([9])[0])], LIMITS, clock)
    assert sum(clock.stage_seconds.values()) == pytest.approx(result.seconds)


def test_a_named_device_projects(fresh):
    outcome = fresh("device=h100", "algorithm=cast_rate", "drafter=token_recycling", "dtype=float32", "batch_size=2")
    assert outcome.code == 0, outcome.lines
    run = outcome.run
    assert (run["basis"], run["device"], run["environment"]["device_name"]) == ("projected", "h100", "h100")
    assert run["identical_rate"] == 1.0
    assert run["config"]["device"]["roofline"]["bandwidth"] > 1e12
    again = fresh(
        "device=h100", "algorithm=cast_rate", "drafter=token_recycling", "dtype=float32", "batch_size=2", "force=true"
    )
    assert again.run["speedup"] == run["speedup"]  # no clock of this machine is in it


@pytest.mark.slow
def test_a_stand_in_has_the_shape_of_one_model_and_the_text_of_another(fresh, tmp_path):
    outcome = fresh(
        "device=a100", "target=llama3_8b", "target@target.runs=hf", f"target.runs.path={fresh.model}", "target.path=",
        "algorithm=eagle2_small",
    )  # fmt: skip
    assert outcome.code == 2  # target.path belongs to the model that runs
    outcome = fresh.bare(
        "device=a100", "target=llama3_8b", "target@target.runs=hf", f"target.runs.path={fresh.model}", "task=jsonl",
        f"task.path={fresh.questions}", "num_prompts=2", "max_new_tokens=8", "repeats=1", "algorithm=eagle2_small",
        "dtype=float32", f"output={tmp_path / 'stand_in'}",
    )  # fmt: skip
    (file,) = (tmp_path / "stand_in").glob("*/run.json")
    run = json.loads(file.read_text())
    assert outcome.code == 0, outcome.lines
    assert run["target"] == "llama3_8b-shape"
    assert run["identical_rate"] == 1.0
    assert 0.005 < 1 / run["baseline_tokens_per_second"] < 0.1  # an 8B model in fp32 on an A100


def test_a_projection_is_compared_with_what_was_measured(monkeypatch, tmp_path):
    records = {"measured": 2.0, "projected": 2.1}
    for basis, speedup in records.items():
        config = {"algorithm": "a"}
        record = RunRecord("ok", "", "a", "d", "m", "t", "cpu", "float32", 1, 0.0, 0, basis=basis, speedup=speedup)
        write_point(tmp_path / basis / "point", dataclasses.replace(record, config=config), None)
    folders = [str(tmp_path / basis) for basis in records]
    for tolerance, code in (("0.1", 0), ("0.01", 1)):
        monkeypatch.setattr("sys.argv", ["projection", *folders, "--tolerance", tolerance])
        with pytest.raises(SystemExit) as stop:
            projection.main()
        assert stop.value.code == code


def test_a_published_curve_is_compared_in_size_and_in_shape(tmp_path, capsys):
    for batch, speedup in ((2, 3.62), (8, 1.62)):
        chosen = {"device": {"name": "h100"}, "algorithm": {"name": "chain", "depth": 3}}
        record = RunRecord("ok", "", "chain", "d", "m", "t", "h100", "float16", batch, 0.0, 0, basis="projected")
        record = dataclasses.replace(record, config=chosen, speedup=speedup, acceptance_length=2.5)
        write_point(tmp_path / "sweep" / f"b{batch}", record, None)
    assert published.main([str(tmp_path / "sweep")]) == 0
    rows = [[cell.strip() for cell in line.split("|")[3:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["2", "1.81", "3.62", "2.50", "2.00", "1.00"], ["8", "1.62", "1.62", "2.50", "1.00", "0.50"]]
    assert published.main([str(tmp_path)]) == 1
    assert "run the sweeps that --help names" in capsys.readouterr().err


SYNTHETIC = (
    "target=synthetic",
    "drafter=synthetic",
    "num_prompts=2",
    "max_new_tokens=24",
    "repeats=1",
    "dtype=bfloat16",
)


def synthetic(fresh: Bench, tmp_path, *arguments: str):
    task = ("task=jsonl", f"task.path={fresh.questions}", f"output={tmp_path / 'out'}")
    fresh.output = tmp_path / "out"
    return fresh.bare(*SYNTHETIC, *task, *arguments)


def test_a_synthetic_pair_runs_at_a_batch_no_machine_here_has(fresh, tmp_path):
    outcome = synthetic(fresh, tmp_path, "device=h200", "algorithm=cast", "batch_size=9", "num_prompts=9")
    assert outcome.code == 0, outcome.lines
    assert outcome.run["basis"] == "projected"
    assert outcome.run["identical_rate"] == 1.0
    assert outcome.run["config"]["target"]["law"]["tau"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("algorithm=cast",), "choose a named device, such as device=h100"),
        (("device=h100", "algorithm=eagle2", "temperature=1"), "decodes greedily only"),
        (("device=h100", "algorithm=eagle2", "device.basis=measured"), "its basis can only be projected"),
        (("device=h100", "algorithm=eagle2", "drafter=layer_skip"), "drafter layer_skip needs a TreeModel as target"),
        (("device=h100", "algorithm=eagle2", "target.shape.layers=0"), "target.shape.layers is 0"),
    ],
)
def test_what_cannot_be_projected_is_refused_in_one_line(fresh, tmp_path, arguments, message):
    outcome = synthetic(fresh, tmp_path, *arguments)
    assert outcome.code in (0, 2)  # a pair that does not fit is skipped, not failed
    assert len(outcome.lines) == 1
    assert message in outcome.lines[0]
