"""Bad input gives one line that says what to do, a non-zero exit, no stack trace and no stray files."""

import pytest
import torch

from tests.entry_point import VOCABULARY, Bench, Outcome, save_model

CHECKED_FIRST = {  # refused before anything is loaded or written: arguments -> the line
    "algorithm=egle2": "error: unknown algorithm 'egle2' (did you mean 'eagle2'?); choose one of: ",
    "task=humanevil": "error: unknown task 'humanevil' (did you mean 'humaneval'?); choose one of: alpaca,",
    "drafter=layers": "error: unknown drafter 'layers'",
    "num_promptz=3": "error: there is no option 'num_promptz' (did you mean 'num_prompts'?); --help lists",
    "algoritm=chain": "error: there is no option 'algoritm' (did you mean 'algorithm'?)",
    "+num_promptz=3": "failed: there is no option 'num_promptz' (did you mean 'num_prompts'?)",
    "algorithm.foo=1": "error: algorithm=eagle2 has no option 'foo'; it has name, depth, top_k, total_tokens",
    "algorithm=chain algorithm.dept=1": "error: algorithm=chain has no option 'dept' (did you mean 'depth'?); it has",
    "backend.tree_slot=8": "error: there is no option 'backend.tree_slot' (did you mean 'tree_slots'?); backend has",
    "+algorithm.foo=1": "failed: algorithm eagle2 has no option 'foo'; it has depth, top_k, total_tokens",
    "+drafter.skp=1": "failed: drafter layer_skip has no option 'skp' (did you mean 'skip'?)",
    "+task.colum=x": "failed: unknown key task.colum",
    "~algorithm.depth": "failed: algorithm eagle2 needs the option 'depth'",
    "algorithm.depth=deep": "failed: algorithm.depth is 'deep'; eagle2 needs a whole number",
    "algorithm=chain algorithm.draft_temperature=true": "failed: algorithm.draft_temperature is True; chain needs a",
    "drafter=layer_skip drafter.skip=3": "failed: drafter.skip is 3; layer_skip needs a list",
    "algorithm=eagle2 drafter=none": "failed: algorithm eagle2 needs a drafter: choose one with drafter=NAME",
    "drafter=small_model": "failed: drafter.path is not set: give it a value on the command line, drafter.path=...",
    "temperature=-1": "failed: temperature is -1; it must be a number of at least 0",
    "temperature=nan": "failed: temperature is nan; it must be a number of at least 0",
    "temperature=warm": "failed: temperature is 'warm'; it must be a number of at least 0",
    "top_p=2.0": "failed: top_p is 2.0; it must lie in (0, 1], or be null to keep all tokens",
    "batch_size=0": "failed: batch_size is 0; it must be a whole number of at least 1",
    "repeats=1.5": "failed: repeats is 1.5; it must be a whole number of at least 1",
    "num_prompts=true": "failed: num_prompts is True; it must be a whole number of at least 1",
    "backend.tree_slots=null": "failed: backend.tree_slots is None; it must be a whole number of at least 1",
    "backend.ops=cuda": "failed: backend.ops is 'cuda'; choose one of auto, torch, triton",
    "backend.graphs=true": "failed: backend.graphs=true needs device=cuda and backend.ops=triton, or auto",
    "backend.graphs=maybe": "failed: backend.graphs is 'maybe'; it must be true or false",
    "dtype=int8": "failed: dtype 'int8' is not supported: choose one of float32, bfloat16",
    "retry=failed": "failed: retry is 'failed'; it must be a list of some of ok, failed, skipped, timeout, oom",
    "force=maybe": "failed: force is 'maybe'; it must be true or false",
    "acceptance=typical": "failed: unknown acceptance rule 'typical'; there are greedy, target_sampling,",
    "acceptance=typical_lossy": "failed: acceptance rule 'typical_lossy' takes ['delta', 'epsilon'], not []",
    "acceptance=greedy acceptance_options.delta=1.0": "failed: acceptance rule 'greedy' takes no options, not",
    "task.split=train": "failed: task.split is 'train': choose one of report, tune",
    "nonsense": "error: Error parsing override 'nonsense'",
}
FOUND_LATER = {  # needs the model or the data: a failed record keeps the reason
    "drafter=layer_skip drafter.skip=[a]": "layer_skip.skip has 'a'; it takes layers (5) and blocks",
    "target.path=/no/such/model": "there is no model folder /no/such/model: check target.path, or give a hub name",
    "target.path=nobody/nothing": "model nobody/nothing is neither a folder nor in the local hub cache, and cannot be",
    "task.path=/no/such/file.jsonl": "cannot read prompts from /no/such/file.jsonl (no such file): set task.path",
    "num_prompts=100": "set num_prompts to 1..",
    "drafter=layer_skip drafter.skip=[7]": "layer_skip: the target has layers 0 to 1, there is no layer 7",
    "drafter=small_model drafter.path=/no/such/model": "there is no model folder /no/such/model",
    "backend.tree_slots=20": "the KV cache holds",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("errors"))


@pytest.fixture
def bench(shared, tmp_path) -> Bench:
    shared.output = tmp_path / "sweep"
    return shared


def the_line(outcome: Outcome) -> str:
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert len(outcome.lines) == 1, outcome.lines
    return outcome.lines[0]


@pytest.mark.parametrize("arguments", CHECKED_FIRST)
def test_bad_settings(bench, arguments):
    line = the_line(bench(*arguments.split(" ")))
    assert line.startswith(CHECKED_FIRST[arguments])
    assert not bench.output.exists()


@pytest.mark.parametrize("arguments", FOUND_LATER)
def test_bad_model_or_data(bench, arguments):
    outcome = bench(*arguments.split(" "))
    line = the_line(outcome)
    assert line.startswith("failed: ")
    assert FOUND_LATER[arguments] in line
    check_failed_record(outcome, line)


def check_failed_record(outcome: Outcome, line: str) -> None:
    """It says why, has no figures and no steps, and does not count as measured."""
    run = outcome.run
    assert (run["status"], f"failed: {run['reason']}") == ("failed", line)
    assert run["speedup"] is None
    assert run["prompts"] == []
    assert [file.name for file in outcome.points[0].iterdir()] == ["run.json"]


def test_task_without_a_path_names_the_key(bench):
    line = the_line(bench.bare("task=jsonl", f"output={bench.output}"))
    assert line == "failed: task.path is not set: give it a value on the command line, task.path=..."
    assert not bench.output.exists()


def test_target_without_a_path_names_the_key(bench):
    line = the_line(bench.bare("target=hf", f"output={bench.output}"))
    assert line == "failed: target.path is not set: give it a value on the command line, target.path=..."


def test_drafter_with_another_tokenizer(bench, tmp_path):
    swapped = [*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]]
    other = save_model(tmp_path / "other", swapped)
    outcome = bench("drafter=small_model", f"drafter.path={other}")
    line = the_line(outcome)
    assert line.startswith("failed: drafter other has another tokenizer than target tiny; choose")
    check_failed_record(outcome, line)


def test_prompt_longer_than_the_context(bench, tmp_path):
    short = save_model(tmp_path / "short", max_position_embeddings=32)
    outcome = bench(f"target.path={short}", "backend.tree_slots=16", "algorithm=chain")
    line = the_line(outcome)
    assert line.startswith("failed: the prompt of question ")
    for part in (
        "tokens; with max_new_tokens 12 and backend.tree_slots 16",
        "more than the 32 that the model's context",
    ):
        assert part in line
    check_failed_record(outcome, line)


def test_the_context_of_the_drafter_counts_too(bench, tmp_path):
    short = save_model(tmp_path / "short", max_position_embeddings=32)
    outcome = bench("drafter=small_model", f"drafter.path={short}", "algorithm=chain", "backend.tree_slots=16")
    assert "more than the 32 that the model's context" in the_line(outcome)


def test_tree_wider_than_its_slots_fails_in_the_first_step(bench):
    outcome = bench("backend.tree_slots=40", "max_new_tokens=60", "drafter=layer_skip")
    line = the_line(outcome)
    assert "raise backend.tree_slots" in line
    check_failed_record(outcome, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(bench):
    line = the_line(bench("device=cuda"))
    assert line == "failed: device cuda is not available here: PyTorch sees no CUDA device, use device=cpu"


@pytest.mark.parametrize(
    "arguments", ["acceptance=recursive_rejection temperature=0.7", "acceptance=greedy temperature=1.0"]
)
def test_parts_that_do_not_fit_are_skipped_with_a_reason(bench, arguments):
    outcome = bench("algorithm=chain", *arguments.split(" "))
    assert outcome.code == 0
    assert outcome.run["status"] == "skipped"
    assert outcome.lines == [f"skipped: {outcome.run['reason']}"]
    assert outcome.run["reason"].startswith(arguments.split("=")[1].split(" ")[0])


def test_one_bad_point_does_not_end_a_sweep(bench):
    outcome = bench("--multirun", "batch_size=0,1", "algorithm=chain", "num_prompts=1")
    assert outcome.code == 1
    assert outcome.lines[-1] == "2 points: 1 failed, 1 ok"
    assert len(outcome.points) == 1


def test_a_failed_point_is_tried_again(bench):
    assert bench("algorithm=chain", "num_prompts=100").code == 2
    assert bench("algorithm=chain", "num_prompts=100").lines[0].startswith("failed: ")


def test_help_teaches(bench):
    outcome = bench.bare("--help")
    assert outcome.code == 0
    for axis in ("algorithm", "drafter", "target", "task", "device", "sweep", "tracker", "launch"):
        assert f"{axis}: " in outcome.stdout
    for part in (
        "eagle2",
        "prompt_lookup",
        "humaneval",
        "task.path=FILE",
        "plugins=FOLDER",
        "run.json",
        "analysis.report",
    ):
        assert part in outcome.stdout
    for setting in ("batch_size: 1", "temperature: 0.0", "num_prompts: 8", "tree_slots: 640", "total_tokens: 60"):
        assert setting in outcome.stdout
    assert not bench.output.exists()
