"""Spec-Bench's files say what the records say, and Spec-Bench's arithmetic on them gives our figures."""

import json
from dataclasses import replace
from statistics import fmean
from typing import Any

import pandas
import pytest

from analysis.export import main
from runners.records import STEP_COLUMNS, PromptRecord, Unit
from runners.statistics import speedup_summary
from runners.store import write_point
from tests.analysis.conftest import RECORD
from tests.test_loading import tiny_tokenizer

TEXTS = ["hello lo", "abc hello", "lo lo lo", "hello"]


def record_of_two_turns():
    """Two questions of two turns, two repeats. The last answer differs from the baseline's."""
    units = [
        Unit([0], 10, 12, 4, [1.0, 1.1], [2.0, 2.2], [0.1, 0.2], [0.3, 0.3]),
        Unit([1], 20, 20, 9, [3.0, 2.5], [5.0, 5.5], [0.2, 0.2], [0.1, 0.1]),
        Unit([2], 6, 6, 3, [0.5, 0.6], [0.9, 1.1], [0.1, 0.1], [0.2, 0.2]),
        Unit([3], 9, 8, 3, [0.7, 0.8], [1.5, 1.2], [0.1, 0.1], [0.1, 0.1]),
    ]
    prompts = [
        PromptRecord(
            id=f"q/{index % 2}",
            category="writing",
            turn=index // 2,
            prompt_tokens=10,
            new_tokens=unit.new_tokens,
            steps=unit.steps,
            identical=index < 3,
            first_divergence=None,
            text=TEXTS[index],
            baseline_text="lo" if index == 3 else None,
            baseline_encoded_tokens=len(tiny_tokenizer()("lo" if index == 3 else TEXTS[index]).input_ids),
        )
        for index, unit in enumerate(units)
    ]
    summary = speedup_summary(units, prompts)
    return replace(
        RECORD,
        units=units,
        prompts=prompts,
        spec_bench_speedup=summary.spec_bench,
        spec_bench_speedup_encoded=summary.spec_bench_encoded,
        created="2026-01-02T03:04:05+00:00",
    )


def steps_of(record) -> pandas.DataFrame:
    rows = []
    for index, prompt in enumerate(record.prompts):
        emitted = [1] * (prompt.steps - 1) + [prompt.new_tokens - prompt.steps + 1]
        rows += [(index, step, 10, 5, 5, 4, count) for step, count in enumerate(emitted)]
    return pandas.DataFrame(rows, columns=list(STEP_COLUMNS))


def spec_bench(method: list[dict], baseline: list[dict], encode=None) -> float:
    """Spec-Bench's evaluation/speed.py in other words. With `encode` it counts the baseline's tokens as that does."""
    rates = [sum(row["choices"][0]["new_tokens"]) / sum(row["choices"][0]["wall_time"]) for row in method]
    plain = []
    for row in baseline:
        choice = row["choices"][0]
        tokens = sum(len(encode(turn)) - 1 for turn in choice["turns"]) if encode else sum(choice["new_tokens"])
        plain.append(tokens / sum(choice["wall_time"]))
    return fmean(rates) / fmean(plain)


@pytest.fixture
def exported(tmp_path, capsys):
    record = record_of_two_turns()
    write_point(tmp_path / "point", record, steps_of(record))
    write_point(tmp_path / "batched", replace(record, batch_size=2), None)
    assert main([str(tmp_path), "--format", "spec_bench"]) == 0
    assert "wrote 4 files" in capsys.readouterr().out
    folder = tmp_path / "report/spec_bench"
    runs = [
        [
            [json.loads(line) for line in (folder / f"run_{run}/point{suffix}.jsonl").read_text().splitlines()]
            for suffix in ("", "-baseline")
        ]
        for run in (1, 2)
    ]
    return record, runs


def test_rows_have_spec_benchs_fields(exported):
    record, ((method, baseline), _) = exported
    assert [row["question_id"] for row in method] == ["q/0", "q/1"]
    assert set(method[0]) == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
    (choice,) = method[0]["choices"]
    assert set(choice) == {"index", "turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths"}
    assert choice["turns"] == [TEXTS[0], TEXTS[2]]
    assert choice["new_tokens"] == [10, 6]
    assert choice["decoding_steps"] == [4, 3]
    assert choice["wall_time"] == pytest.approx([1.1, 0.6])
    assert sum(choice["accept_lengths"]) == 16
    assert baseline[1]["choices"][0]["turns"] == [TEXTS[1], "lo"]
    assert baseline[0]["choices"][0]["accept_lengths"] == [1] * 18
    assert record.prompts[3].turn == 1


def test_spec_bench_speedup_equals_its_arithmetic_on_the_files(exported):
    record, runs = exported
    assert record.spec_bench_speedup == pytest.approx(fmean(spec_bench(*run) for run in runs))


def test_with_its_own_counter_too(exported):
    record, runs = exported
    tokenizer: Any = tiny_tokenizer()
    encode = lambda text: tokenizer(text).input_ids  # noqa: E731
    expected = fmean(spec_bench(method, baseline, encode) for method, baseline in runs)
    assert record.spec_bench_speedup_encoded == pytest.approx(expected)
    assert record.spec_bench_speedup_encoded != pytest.approx(record.spec_bench_speedup)


def test_nothing_to_export_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--format", "spec_bench"]) == 1
    assert "no measured point of batch size 1" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "--format", "spec_bench"]) == 2
    assert "no such folder" in capsys.readouterr().err
