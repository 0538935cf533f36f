"""Models load from folders and packages, and every bad input ends in one line that says what to do."""

import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from backend import loading
from backend.targets import check_target
from tests.tiny_checkpoints import VOCABULARY, one_line_error, tiny_llama, tiny_tokenizer

TARGETS = Path(__file__).parents[1] / "conf" / "target"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read from the environment at import
    monkeypatch.setenv("TREEBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A model folder as `save_pretrained` leaves it."""
    tiny_llama().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_folder_loads_frozen_in_eval_mode(folder, dtype, expected):
    loaded = loading.load_target({"kind": "hf", "path": str(folder), "name": None, "revision": None}, dtype)
    assert loaded.name == "tiny"
    assert loaded.provenance == f"local folder {folder}"
    assert loaded.eos_token_ids == (2,)
    assert {p.dtype for p in loaded.model.parameters()} == {expected}
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_folder_keeps_the_weights(folder):
    ids = torch.tensor([[5, 6, 7]])
    loaded = loading.load_model(str(folder), "float32", "cpu")
    assert torch.equal(loaded.model(ids).logits, tiny_llama()(ids).logits)


def test_every_end_of_text_id_counts(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert loading.load_model(str(folder), "float32", "cpu").eos_token_ids == (2, 7, 9)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert loading.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TREEBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loading.cache_folder() == tmp_path / "treebench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert loading.cache_folder() == Path.home() / ".cache" / "treebench"


def test_absent_hub_model_fails_at_once():
    start = time.monotonic()
    line = one_line_error(loading.load_model, "nobody/no-such-model", "float32", "cpu")
    assert time.monotonic() - start < 5
    assert line.startswith("model nobody/no-such-model is neither a folder nor in the local hub cache")
    assert "`hf download nobody/no-such-model`" in line


def test_hub_model_comes_from_the_cache(folder, monkeypatch):
    snapshot = folder.rename(folder.with_name("0123abc"))
    calls = []

    def cached(path, revision, local_files_only=False, **_):
        calls.append(local_files_only)
        return str(snapshot)

    monkeypatch.setattr(loading, "snapshot_download", cached)
    loaded = loading.load_model("owner/tiny", "float32", "cpu")
    assert (loaded.name, loaded.provenance) == ("tiny", "owner/tiny@0123abc")
    assert calls == [True]


def test_what_comes_with_the_project_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    head = "results/drafters/eagle3_smollm2"
    assert loading.resolve_folder(head, None) == (loading.REPOSITORY / head, f"local folder {head}")


def test_incomplete_hub_snapshot_is_downloaded(folder, monkeypatch, tmp_path):
    snapshots = {True: tmp_path / "partial", False: folder}
    monkeypatch.setattr(
        loading, "snapshot_download", lambda *_, local_files_only=False, **__: snapshots[local_files_only]
    )
    assert loading.load_model("owner/tiny", "float32", "cpu").provenance == "owner/tiny@tiny"


def without_shard(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


BROKEN = {
    "pickled .bin weights only": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "lacks model.safetensors or shards of it": without_shard,
    "cannot load model": lambda f: (f / "model.safetensors").write_bytes(b"truncated"),
    "its files lack 9 weights, first model.layers.2": lambda f: tiny_llama(num_hidden_layers=3).config.save_pretrained(
        f
    ),
    "there is no model folder": lambda f: f.rename(f.with_name("gone")),
    "has no config.json": lambda f: [(f / name).unlink() for name in ("config.json", "model.safetensors")],
    "is a file": lambda f: [f.rename(f.with_name("gone")), f.touch()],
}


@pytest.mark.parametrize("line", BROKEN)
def test_broken_folder(folder, line):
    BROKEN[line](folder)
    message = one_line_error(loading.load_model, str(folder), "float32", "cpu")
    assert line in message
    assert str(folder) in message


def test_dtype_and_device_are_checked_first():
    assert "choose one of float32, bfloat16, float16" in one_line_error(loading.load_model, "x", "int8", "cpu")
    assert "needs a GPU" in one_line_error(loading.load_model, "x", "float16", "cpu")
    assert "unknown device 'gpu'" in one_line_error(loading.load_model, "x", "float32", "gpu")
    if not torch.cuda.is_available():
        assert "no CUDA device" in one_line_error(loading.load_model, "x", "float32", "cuda")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"kind": "onnx"}, "target.kind is 'onnx': choose one of hf, packaged_gguf"),
        ({}, "target.kind is None: choose one of hf, packaged_gguf"),
        ({"kind": "hf", "path": "???"}, "target.path is not set: kind hf needs path"),
        ({"kind": "hf", "path": "a", "pth": 1}, "unknown key target.pth: kind hf takes path, name, revision, parallel"),
    ],
)
def test_target_config_is_checked_before_loading(config, line):
    assert one_line_error(loading.load_target, config) == line


@pytest.mark.parametrize("file", sorted(TARGETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_targets_have_valid_keys(file):
    with initialize_config_dir(str(TARGETS.parent), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose(f"target/{file.stem}").target)
    check_target({key: "given" if value == "???" else value for key, value in config.items()})


def test_same_tokenizer(folder):
    tokenizer = tiny_tokenizer()
    assert loading.same_tokenizer(tokenizer, AutoTokenizer.from_pretrained(folder))
    swapped = [*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]]
    assert not loading.same_tokenizer(tokenizer, tiny_tokenizer(swapped))


@pytest.mark.slow
def test_default_target_writes_sensible_text(monkeypatch):
    monkeypatch.delenv("TREEBENCH_CACHE")
    config: Any = OmegaConf.to_container(OmegaConf.load(TARGETS / "smollm2.yaml"))
    loaded: Any = loading.load_target(config)
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = loaded.tokenizer.apply_chat_template(
        ask, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = loaded.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(answer[0])
