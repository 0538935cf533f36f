"""Measures benchmark points: `python -m runners.benchmark --help`."""

import sys
import traceback
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pandas import DataFrame
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from backend.errors import Incompatible, TreebenchError
from runners.cli import one_line, run_hydra
from runners.losslessness import losslessness
from runners.measure import measure, measure_stages, num_pairs
from runners.point import build, check
from runners.prompts import load_questions
from runners.records import RunRecord
from runners.store import point_name, read_point, write_point
from runners.summary import new_record, steps_table, summarize
from runners.trees import trees_table

CONF = str(Path(__file__).parent.parent / "conf")
console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)  # messages may hold brackets


def run(cfg: DictConfig) -> str:
    """One point: measure it unless a record of it exists, write the record, say how it went; returns the status.

    Settings that cannot be right leave no record; whatever comes to light later does, so that a report can list it.
    """
    try:
        config = to_plain(cfg)
        check(config)
    except (OmegaConfBaseException, TreebenchError) as error:
        console.print(f"failed: {one_line(error)}", style="red")
        return "failed"
    record = new_record(config, "failed")
    folder = Path(config["output"]) / point_name(vars(record), record.config_hash)
    done = read_point(folder) if not config["force"] else None
    if done is not None and done.status == "ok":
        console.print(f"{folder.name}: already measured (force=true measures again)")
        return "done"
    try:
        record, *tables = measure_point(config)
    except TreebenchError as error:
        record.status = "skipped" if isinstance(error, Incompatible) else "failed"
        record.reason, tables = str(error), [None]
    except Exception as error:  # noqa: BLE001 - a crash must not cost a sweep its other points
        console.print(traceback.format_exc(), style="dim")
        record.reason, tables = f"crashed with {type(error).__name__}: {' '.join(str(error).split())}", [None]
    write_point(folder, record, *tables)
    console.print(summary_line(record, folder), style="red" if record.status == "failed" else None)
    return record.status


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items() if key != "hydra"}


def measure_point(config: dict[str, Any]) -> tuple[RunRecord, DataFrame, DataFrame]:
    questions = load_questions(config["task"], config["num_prompts"], config["seed"])
    point = build(config)
    record = new_record(config, "ok")
    title = f"{record.algorithm} / {record.task}"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(title, total=num_pairs(questions, config["batch_size"]))
        pairs = measure(point, questions, config, lambda: progress.advance(bar))
        progress.update(bar, description=f"{title}: stage clocks")
        stages = measure_stages(point, pairs, config)
        progress.update(bar, description=f"{title}: losslessness report")
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


def main() -> None:
    """Exit code 0 if every point is measured or skipped, 1 if one failed, 2 for bad input."""
    statuses: list[str] = []

    def run_and_note(cfg: DictConfig) -> None:
        statuses.append(run(cfg))

    run_hydra(run_and_note, CONF, "benchmark")
    failed = statuses.count("failed")
    if len(statuses) > 1:
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
        console.print(f"{len(statuses)} points: {counts}")
    sys.exit(2 if failed and len(statuses) == 1 else bool(failed))


if __name__ == "__main__":
    main()
