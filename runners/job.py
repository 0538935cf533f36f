"""Measures one point and writes its record: what a sweep runs in a worker, and a single point in this process."""

import gc
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from backend.errors import Incompatible, TreebenchError
from backend.memory import OutOfMemory, first_line, ran_out
from backend.ranks import require_same
from runners.console import Meter, console
from runners.followers import CRASHED, announce, leave_if_out_of_step
from runners.losslessness import losslessness
from runners.measure import measure, measure_stages, num_pairs
from runners.plugins import load_once
from runners.point import build, check
from runners.prompts import load_questions
from runners.records import Outcome, RunRecord
from runners.store import point_name, write_point
from runners.summary import new_record, steps_table, summarize
from runners.trees import trees_table

Started = Callable[[RunRecord, Path], None]


def run_point(config: Mapping[str, Any], started: Started = lambda record, folder: None) -> Outcome:
    """Check, measure, write the record. `started` gets the record to leave behind should this process die.

    Settings that cannot be right leave no record; whatever comes to light later does, so that a report can list it.
    """
    disable_progress_bar()  # transformers' own bars while weights load
    try:
        if config["plugins"]:
            load_once(Path(config["plugins"]).expanduser())
        check(config)
        announce(config)
    except TreebenchError as error:
        return Outcome("failed", f"failed: {error}")
    record = new_record(config, "failed")
    folder = Path(config["output"]) / point_name(vars(record), record.config_hash)
    started(record, folder)
    record, *tables = attempt(config, record)
    write_point(folder, record, *tables)
    leave_if_out_of_step(record)
    return Outcome(record.status, summary_line(record, folder), str(folder))


def attempt(config: Mapping[str, Any], record: RunRecord) -> tuple[RunRecord, Any, Any]:
    """The measured record, its steps and its trees, or the given one with the reason why there is no measurement."""
    try:
        return measure_point(config)
    except TreebenchError as error:
        kinds = {OutOfMemory: "oom", Incompatible: "skipped"}
        record.status = next((status for kind, status in kinds.items() if isinstance(error, kind)), "failed")
        record.reason = str(error)
    except Exception as error:  # noqa: BLE001 - a crash must not cost a sweep its other points
        if ran_out(error):
            record.status, record.reason = "oom", f"out of memory at batch {record.batch_size}: {first_line(error)}"
        else:
            console.print(traceback.format_exc(), style="dim")
            record.reason = f"{CRASHED} {type(error).__name__}: {' '.join(str(error).split())}"
    if record.status == "oom":
        _free_memory()
    return record, None, None


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_point(config: Mapping[str, Any]) -> tuple[RunRecord, Any, Any]:
    questions = load_questions(config["task"], config["num_prompts"], config["seed"])
    point = build(config)
    record = new_record(config, "ok")
    title = f"{record.algorithm} / {record.task}"
    with Meter(title, num_pairs(questions, config["batch_size"])) as meter:
        pairs = measure(point, questions, config, meter.advance)
        require_same([g.tokens for pair in pairs for g in (*pair.baseline, *pair.method)], "the decoded tokens")
        meter.describe(f"{title}: stage clocks")
        stages = measure_stages(point, pairs, config)
        meter.describe(f"{title}: losslessness report")
        record.losslessness = losslessness(point, pairs, config)
    return summarize(record, point, pairs, stages), steps_table(pairs), trees_table(pairs, point.loaded.tokenizer)


def summary_line(record: RunRecord, folder: Path) -> str:
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    interval = f" [{record.speedup_low:.2f}, {record.speedup_high:.2f}]" if record.speedup_low is not None else ""
    return (
        f"{record.algorithm} ({record.drafter}) on {record.task}: speedup {record.speedup:.2f}x{interval}, "
        f"acceptance length {record.acceptance_length:.2f}, {record.tokens_per_second:.1f} tokens/s "
        f"(baseline {record.baseline_tokens_per_second:.1f}), "
        f"{record.identical_rate:.0%} of answers identical to plain decoding -> {folder}"
    )
