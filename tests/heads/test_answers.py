"""A target's own answers as training text: resumed where they were cut off, and read like any other source."""

import json

import pytest

from backend.errors import TreebenchError
from backend.loading import load_model
from runners.training.answers import write_answers
from runners.training.corpus import load_corpus
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A tiny target, and the settings of a training text of ten short first messages and a long one."""
    monkeypatch.setenv("TREEBENCH_CACHE", str(tmp_path / "cache"))
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    asked = [f"say hello {number} times" for number in range(10)] + ["hello " * 60]
    turns = ({"role": "user", "content": text} for text in asked)
    answer = {"role": "assistant", "content": "hello"}
    chats = [{"messages": [turn, answer]} for turn in turns]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    corpus = {"sources": [{"path": str(tmp_path / "chat.jsonl")}], "window": 48, "max_windows": 2, "min_ascii": 0.5}
    sizes = {"batch_size": 3, "max_new_tokens": 40, "max_prompt_tokens": 30, "temperature": 0.0, "seed": 0}
    loaded = load_model(str(tmp_path / "model"), "float32", "cpu")
    return loaded, {"training": {"corpus": corpus}, **sizes}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cut_off_and_resumed_answers_equal_those_written_at_once(world, tmp_path, temperature):
    """Wherever the cut, and so whatever is answered in one batch: a question's random numbers are its own."""
    loaded, config = world
    config["temperature"] = temperature
    at_once, resumed = tmp_path / "at_once.jsonl", tmp_path / "resumed.jsonl"
    assert write_answers(loaded, config | {"num_answers": 7}, at_once) == 7
    write_answers(loaded, config | {"num_answers": 4}, resumed)
    with resumed.open("a") as file:
        file.write('{"messages": [{"role": "us')
    write_answers(loaded, config | {"num_answers": 7}, resumed)
    assert resumed.read_text() == at_once.read_text()
    chats = [json.loads(line)["messages"] for line in at_once.read_text().splitlines()]
    assert len({chat[0]["content"] for chat in chats}) == 7
    assert all(len(chat[0]["content"]) < 60 for chat in chats)
    settings = config["training"]["corpus"] | {"sources": [{"path": str(at_once)}], "min_ascii": 0.0}
    assert len(load_corpus(settings, loaded.tokenizer).offsets) > 1


def test_more_answers_than_prompts_is_one_clear_line(world, tmp_path):
    loaded, config = world
    with pytest.raises(TreebenchError, match="the training text has 10 prompts, num_answers is 11"):
        write_answers(loaded, config | {"num_answers": 11}, tmp_path / "answers.jsonl")


def test_a_source_counts_as_often_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TREEBENCH_CACHE", str(tmp_path / "cache"))
    for name, word in (("chat", "hello"), ("answers", "answer")):
        turns = [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": f"{word} " * 40}]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    sources = [{"path": str(tmp_path / "chat.jsonl")}, {"path": str(tmp_path / "answers.jsonl"), "repeat": 3}]
    corpus = load_corpus({"sources": sources, "window": 256, "max_windows": 1, "min_ascii": 0.9}, tiny_tokenizer())
    windows = [corpus.window(index).tolist() for index in range(4)]
    assert len(corpus.held_out) == 4
    assert windows[0] != windows[1]
    assert windows[1] == windows[2] == windows[3]
