"""Runs the real entry point in this process, on a tiny model and questions in a folder."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pandas
from hydra.core.global_hydra import GlobalHydra

from runners import benchmark
from tests.test_loading import VOCABULARY, tiny_llama, tiny_tokenizer

NUM_QUESTIONS = 12
SMALL = ("num_prompts=3", "max_new_tokens=12", "repeats=1", "stage_prompts=1", "control_prompts=1", "drafter.skip=[1]")


class Outcome(NamedTuple):
    """What a call left behind."""

    code: int
    lines: list[str]  # of stderr, without empty ones
    stdout: str
    output: Path

    @property
    def points(self) -> list[Path]:
        return sorted(path.parent for path in self.output.glob("*/run.json"))

    @property
    def run(self) -> dict[str, Any]:
        (point,) = self.points
        return json.loads((point / "run.json").read_text())

    @property
    def steps(self) -> pandas.DataFrame:
        (point,) = self.points
        return pandas.read_parquet(point / "steps.parquet")


def save_model(folder: Path, vocabulary: list[str] = VOCABULARY, **changes: Any) -> Path:
    """A model folder as `save_pretrained` leaves it; the weights are large enough for outputs to depend on inputs."""
    changes = {"vocab_size": len(vocabulary), "initializer_range": 0.3, **changes}
    tiny_llama(**changes).save_pretrained(folder)
    tiny_tokenizer(vocabulary).save_pretrained(folder)
    return folder


def save_questions(file: Path, turns: int = 2) -> Path:
    rows = [
        {"question_id": i, "category": "tiny", "turns": [f"hello {i} hello {'abc'[: i % 3]}", f"lo {i}"][:turns]}
        for i in range(NUM_QUESTIONS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Bench:
    """Calls `python -m runners.benchmark` with a tiny target, two-turn questions and small settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = save_model(folder / "tiny")
        self.questions = save_questions(folder / "questions.jsonl")
        self.output = folder / "out"

    def __call__(self, *arguments: str) -> Outcome:
        given = {argument.partition("=")[0] for argument in arguments}
        choices = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        usual = "prompt_lookup" if choices.get("algorithm") in ("chain", "pairs") else "layer_skip"
        skips_layers = choices.get("drafter", usual) == "layer_skip" and "autoregressive" not in str(choices)
        settings = [
            *("target=hf", f"target.path={self.model}", "task=jsonl", f"task.path={self.questions}"),
            "launch=inline",  # patches of this process count, and no worker has to start
            *(setting for setting in SMALL if skips_layers or not setting.startswith("drafter.")),
        ]
        kept = [setting for setting in settings if setting.partition("=")[0] not in given]
        flags = [argument for argument in arguments if argument.startswith("-")]
        return self.bare(*flags, *kept, f"output={self.output}", *[a for a in arguments if a not in flags])

    def bare(self, *arguments: str) -> Outcome:
        """With these arguments and no others."""
        GlobalHydra.instance().clear()
        out, err, code = io.StringIO(), io.StringIO(), 0
        argv = patch.object(sys, "argv", ["benchmark.py", *arguments])
        with argv, redirect_stdout(out), redirect_stderr(err):
            try:
                benchmark.main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        lines = [line.strip() for line in err.getvalue().splitlines() if line.strip()]
        return Outcome(code, lines, out.getvalue(), self.output)
