"""The target's own answers to the first messages of the training text: what a drafter is to predict when it is used."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from backend.errors import TreebenchError
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.sampling import Sampler
from runners.console import metered
from runners.decoding import plain_answers
from runners.prompts import render
from runners.training.corpus import benchmark_prompts, conversations, corpus_file, is_wanted


def write_answers(loaded: LoadedModel, config: Mapping[str, Any], path: Path) -> int:
    """Append to a JSONL of conversations until it holds `num_answers`; returns how many it holds.

    A file that was cut off in the middle of a line goes on after its last whole one.
    """
    done = _whole_lines(path)
    prompts = wanted_prompts(loaded, config)
    if len(prompts) < config["num_answers"]:
        raise TreebenchError(f"the training text has {len(prompts)} prompts, num_answers is {config['num_answers']}")
    todo = prompts[done : config["num_answers"]]
    target = TreeModel(loaded.model)
    batches = range(0, len(todo), config["batch_size"])
    with path.open("a", encoding="utf-8") as file:
        for start in metered(batches, f"batches of {config['batch_size']} answers", len(batches)):
            questions = todo[start : start + config["batch_size"]]
            answers = _answers(loaded, target, questions, config, done + start)
            for question, answer in zip(questions, answers, strict=True):
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            file.flush()
    return _whole_lines(path)


def _answers(
    loaded: LoadedModel, target: TreeModel, questions: list[str], config: Mapping[str, Any], first: int
) -> list[str]:
    """`first` numbers the first question among all: no two of them share their random numbers."""
    prompts = [render(loaded.tokenizer, [question], []) for question in questions]
    limits = loaded.eos_token_ids, config["max_new_tokens"]
    answers = plain_answers(target, prompts, *limits, Sampler(config["temperature"]), config["seed"], first)
    return [str(loaded.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]


def wanted_prompts(loaded: LoadedModel, config: Mapping[str, Any]) -> list[str]:
    """Distinct first messages of users, in a seeded order; those too long for `max_prompt_tokens` are left out."""
    forbidden, settings = benchmark_prompts(), config["training"]["corpus"]
    texts = [text for text in _first_messages(settings) if is_wanted(text, settings["min_ascii"], forbidden)]
    distinct = sorted(set(texts))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(config["seed"]))
    shuffled = [distinct[index] for index in order.tolist()]
    longest = 6 * config["max_prompt_tokens"]  # characters; a token is about four
    short = [text for text in shuffled if len(text) <= longest][: 2 * config["num_answers"]]
    lengths = [len(ids) for ids in loaded.tokenizer(short)["input_ids"]] if short else []
    return [text for text, length in zip(short, lengths, strict=True) if length <= config["max_prompt_tokens"]]


def _first_messages(settings: Mapping[str, Any]) -> Iterator[str]:
    for source in settings["sources"]:
        for messages in conversations(corpus_file(source)):
            if messages[0]["role"] == "user":
                yield messages[0]["content"]


def _whole_lines(path: Path) -> int:
    """How many there are; what comes after the last is cut off."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return whole.count(b"\n")
