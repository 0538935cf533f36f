import json
from typing import Any

import pytest
import torch

from tests.heads.training import SETTINGS
from tests.tiny_checkpoints import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny target on disk, and conversations to train on."""
    folder = tmp_path_factory.mktemp("world")
    target = tiny_llama(num_hidden_layers=6)
    with torch.no_grad():
        target.lm_head.weight.mul_(20)  # a law with something to learn
    target.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"say hello {i} times"},
                {"role": "assistant", "content": "hello " * i},
            ]
        }
        for i in range(4, 200)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [{"path": str(folder / "chat.jsonl")}]
    corpus = {"sources": sources, "window": 48, "max_windows": 2, "min_ascii": 0.9}
    return {"folder": folder, "settings": SETTINGS | {"corpus": corpus}}


@pytest.fixture
def cache(world, monkeypatch) -> None:
    monkeypatch.setenv("TREEBENCH_CACHE", str(world["folder"] / "cache"))
