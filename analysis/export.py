"""`python -m analysis.export SWEEP_DIR --format spec_bench`: answers in Spec-Bench's JSONL, for its own scripts."""

import argparse
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from analysis.load import Point, load_sweep
from runners.records import PromptRecord, RunRecord, Unit
from runners.store import read_steps, write_bytes

NOTHING_TO_EXPORT, WRONG_USE = 1, 2
HELP = """\
Writes to OUTPUT, for every measured point and repeat R, run_R/POINT.jsonl and run_R/POINT-baseline.jsonl: a line per
question with question_id, category, answer_id, model_id, tstamp and choices [{index, turns, decoding_steps,
new_tokens, wall_time, accept_lengths}]. wall_time has the prefill in it, as there. Spec-Bench's speed script reads a
method's and a baseline's file; it counts the baseline's tokens by encoding its text anew, we write ours.

Points with batches of several sequences are left out: Spec-Bench times one question at a time.

exit status: 0 exported, 1 nothing to export, 2 wrong use"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.export",
        description="Records in other tools' formats.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR", help="folder that benchmark runs wrote (output=)")
    parser.add_argument("--format", choices=["spec_bench"], required=True, help="whose files to write")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: SWEEP_DIR/report/spec_bench")
    options = parser.parse_args(arguments)
    errors, console = (Console(stderr=stderr, highlight=False, soft_wrap=True) for stderr in (True, False))
    if not options.sweep_dir.is_dir():
        errors.print(Text(f"{options.sweep_dir}: no such folder; give the output= folder of a benchmark run"))
        return WRONG_USE
    target = options.output or options.sweep_dir / "report" / "spec_bench"
    written = export(options.sweep_dir, target)
    if not written:
        errors.print(Text(f"{options.sweep_dir}: no measured point of batch size 1 to export"))
        return NOTHING_TO_EXPORT
    console.print(Text(f"wrote {len(written)} files to {target}"))
    return 0


def export(sweep_dir: Path, target: Path) -> list[Path]:
    """The files written."""
    steps, _ = read_steps(sweep_dir, "SELECT point, sequence, emitted FROM steps ORDER BY point, sequence, step")
    lengths: dict[tuple[str, int], list[int]] = {}
    for name, sequence, emitted in zip(steps["point"], steps["sequence"], steps["emitted"], strict=True):
        lengths.setdefault((str(name), int(sequence)), []).append(int(emitted))
    written = []
    for point in load_sweep(sweep_dir).succeeded:
        if point.record.batch_size == 1 and point.record.units:
            written += list(_export_point(point, lengths, target))
    return written


def _export_point(point: Point, lengths: dict[tuple, list[int]], target: Path) -> Iterator[Path]:
    record, name = point.record, point.folder.name
    accepted = {sequence: lengths.get((name, sequence), []) for sequence in range(len(record.prompts))}
    for repeat in range(min(len(unit.seconds) for unit in record.units)):
        folder = target / f"run_{repeat + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, baseline in (("", False), ("-baseline", True)):
            rows = answers(record, name, accepted, repeat, baseline)
            path = folder / f"{name}{suffix}.jsonl"
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_bytes(path, lines.encode(errors="replace"))
            yield path


def answers(
    record: RunRecord, name: str, lengths: dict[int, list[int]], repeat: int, baseline: bool
) -> list[dict[str, Any]]:
    """Spec-Bench's rows of one repeat. `lengths` are the emitted tokens per step, by sequence."""
    questions: dict[str, dict[str, Any]] = {}
    for unit in record.units:
        (sequence,) = unit.sequences
        prompt = record.prompts[sequence]
        row = questions.setdefault(prompt.id, _empty_row(record, prompt, name, baseline))
        turn = _turn(prompt, unit, lengths[sequence], repeat, baseline)
        for key, value in turn.items():
            row["choices"][0][key] += value
    return list(questions.values())


def _empty_row(record: RunRecord, prompt: PromptRecord, name: str, baseline: bool) -> dict[str, Any]:
    method = "baseline" if baseline else f"{record.algorithm}-{record.drafter}"
    lists = ("turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths")
    return {
        "question_id": prompt.id,
        "category": prompt.category,
        "answer_id": f"{name}-{prompt.id}",
        "model_id": f"{record.target}-{method}",
        "choices": [{"index": 0, **{key: [] for key in lists}}],
        "tstamp": datetime.fromisoformat(record.created).timestamp() if record.created else 0.0,
    }


def _turn(prompt: PromptRecord, unit: Unit, lengths: list[int], repeat: int, baseline: bool) -> dict[str, list]:
    if baseline:
        text = prompt.text if prompt.baseline_text is None else prompt.baseline_text
        tokens, times = unit.baseline_new_tokens, (unit.baseline_seconds, unit.baseline_prefill_seconds)
        lengths = [1] * tokens
    else:
        text, tokens, times = prompt.text, unit.new_tokens, (unit.seconds, unit.prefill_seconds)
    return {
        "turns": [text],
        "decoding_steps": [len(lengths)],
        "new_tokens": [tokens],
        "wall_time": [sum(seconds[repeat] for seconds in times if repeat < len(seconds))],
        "accept_lengths": lengths,
    }


if __name__ == "__main__":
    raise SystemExit(main())
