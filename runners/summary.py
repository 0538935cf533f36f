"""Turns what was measured into a record: run-level figures and one table row per sequence and step."""

import datetime
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas
import torch

from algorithms.registry import needs_drafter
from backend.ranks import num_ranks
from runners.decoding import Generation
from runners.environment import cpu_name
from runners.measure import Pair
from runners.point import Point
from runners.pricing import basis_of, short_name
from runners.records import STEP_COLUMNS, PromptRecord, RunRecord, Unit
from runners.statistics import acceptance_length, identical_rate, speedup_summary, token_rates
from runners.store import config_hash

PACKAGES = ("torch", "transformers", "numpy", "hydra-core", "treebench")


def new_record(config: Mapping[str, Any], status: str, reason: str = "") -> RunRecord:
    """A record with everything that the config alone determines."""
    return RunRecord(
        status=status,
        reason=reason,
        algorithm=config["algorithm"]["name"],
        drafter=short_name(config["drafter"]) if needs_drafter(config["algorithm"]["name"]) else "none",
        target=short_name(config["target"]),
        task=config["task"]["name"],
        device=config["device"]["name"],
        dtype=config["dtype"],
        batch_size=config["batch_size"],
        temperature=config["temperature"],
        seed=config["seed"],
        basis=basis_of(config),
        max_new_tokens=config["max_new_tokens"] or config["task"]["max_new_tokens"],
        repeats=config["repeats"],
        config_hash=config_hash(config),
        git_commit=git_commit(),
        created=created_now(),
        config=dict(config),
        environment=environment() | ({"device_name": config["device"]["name"]} if _is_elsewhere(config) else {}),
    )


def _is_elsewhere(config: Mapping[str, Any]) -> bool:
    """Whether the device that the seconds are for is another one than this."""
    return bool(config["device"].get("roofline"))


def summarize(record: RunRecord, point: Point, pairs: Sequence[Pair], stages: dict[str, float]) -> RunRecord:
    """Fill in what was measured."""
    for pair in pairs:
        first = len(record.prompts)
        record.prompts += _prompt_records(point, pair)
        record.units.append(_unit(pair, list(range(first, len(record.prompts)))))
    speedups, rates, lengths = (
        speedup_summary(record.units, record.prompts),
        token_rates(record.units),
        acceptance_length(record.prompts),
    )
    record.reason = speedups.note
    record.acceptance, record.lossless = point.method.rule.name, point.method.rule.lossless
    record.num_prompts = len(record.prompts)
    record.new_tokens = sum(unit.new_tokens for unit in record.units)
    record.baseline_new_tokens = sum(unit.baseline_new_tokens for unit in record.units)
    record.steps = sum(prompt.steps for prompt in record.prompts)
    record.speedup, record.speedup_low, record.speedup_high = speedups.speedup, speedups.low, speedups.high
    record.speedup_median_of_pairs, record.speedup_of_totals = speedups.median_of_pairs, speedups.of_totals
    record.spec_bench_speedup, record.spec_bench_speedup_encoded = speedups.spec_bench, speedups.spec_bench_encoded
    record.acceptance_length, record.acceptance_length_macro = lengths.micro, lengths.macro
    record.acceptance_length_low, record.acceptance_length_high = lengths.low, lengths.high
    record.tokens_per_second, record.baseline_tokens_per_second = rates.method, rates.baseline
    record.prefill_seconds = sum(sum(unit.prefill_seconds) for unit in record.units)
    record.baseline_prefill_seconds = sum(sum(unit.baseline_prefill_seconds) for unit in record.units)
    record.identical_rate = identical_rate(record.prompts)
    record.stage_seconds = stages
    return record


def _unit(pair: Pair, sequences: list[int]) -> Unit:
    method, baseline = pair.method[0], pair.baseline[0]
    return Unit(
        sequences=sequences,
        new_tokens=sum(map(len, method.tokens)),
        baseline_new_tokens=sum(map(len, baseline.tokens)),
        steps=len(method.emitted),
        seconds=[generation.seconds for generation in pair.method],
        baseline_seconds=[generation.seconds for generation in pair.baseline],
        prefill_seconds=[generation.prefill_seconds for generation in pair.method],
        baseline_prefill_seconds=[generation.prefill_seconds for generation in pair.baseline],
    )


def _prompt_records(point: Point, pair: Pair) -> list[PromptRecord]:
    method, baseline = pair.method[0], pair.baseline[0]
    return [
        PromptRecord(
            id=question.id,
            category=question.category,
            turn=turn,
            prompt_tokens=len(request.prompt),
            new_tokens=len(tokens),
            steps=sum(emitted[row] > 0 for emitted in method.emitted),
            identical=tokens == expected,
            first_divergence=first_divergence(tokens, expected),
            **_texts(point.loaded.tokenizer, tokens, expected),
        )
        for row, ((question, turn), request, tokens, expected) in enumerate(
            zip(pair.prompts, pair.requests, method.tokens, baseline.tokens, strict=True)
        )
    ]


def _texts(tokenizer: Any, tokens: list[int], expected: list[int]) -> dict[str, Any]:
    text, baseline = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (tokens, expected))
    return {
        "text": text,
        "baseline_text": None if tokens == expected else baseline,
        "baseline_encoded_tokens": len(tokenizer(baseline).input_ids),
    }


def first_divergence(tokens: Sequence[int], expected: Sequence[int]) -> int | None:
    """Index of the first token that differs; a missing token differs."""
    for index in range(max(len(tokens), len(expected))):
        if tokens[index : index + 1] != expected[index : index + 1]:
            return index
    return None


def steps_table(pairs: Sequence[Pair]) -> pandas.DataFrame:
    """One row per sequence and step of the method's first repeat: STEP_COLUMNS, then what the algorithm traces."""
    rows, first = [], 0
    for pair in pairs:
        rows += [row for b in range(len(pair.requests)) for row in _steps_of(pair, pair.method[0], b, first + b)]
        first += len(pair.requests)
    traced = sorted({name for row in rows for name in row} - set(STEP_COLUMNS))
    return pandas.DataFrame(rows, columns=[*STEP_COLUMNS, *traced]).astype(STEP_COLUMNS)


def _steps_of(pair: Pair, generation: Generation, row: int, sequence: int) -> list[dict[str, Any]]:
    rows, context = [], len(pair.requests[row].prompt)
    steps = zip(generation.trees, generation.emitted, generation.traces, strict=True)
    for step, (sizes, emitted, trace) in enumerate(steps):
        if emitted[row]:
            own = (sequence, step, context, *(size[row] for size in sizes), emitted[row])
            known = dict(zip(STEP_COLUMNS, own, strict=True))
            rows.append(known | {name: values[row] for name, values in trace.items()})
            context += emitted[row]
    return rows


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the config."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "os": platform.platform(),
        "cpu": cpu_name(),
        "gpu": gpu,
        "gpus": torch.cuda.device_count(),
        "ranks": num_ranks(),
        "threads": torch.get_num_threads(),
        "device_name": gpu or cpu_name(),
        "mode": "eager",
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def created_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def git_commit() -> str:
    """Commit of this checkout, with `+` if it has uncommitted changes; empty outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
