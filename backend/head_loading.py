"""Loads EAGLE heads from safetensors: our own and the public layouts of EAGLE-1/2 and EAGLE-3."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel

from backend.checkpoints import load_exactly, read_safetensors
from backend.errors import TreebenchError
from backend.heads import Eagle1Head, Eagle3Head, EagleHead, feature_layers
from backend.loading import resolve_folder

EMBEDDINGS = "embed_tokens.weight"  # public heads store a copy of the target's


def load_head(path: str, target: PreTrainedModel, revision: str | None = None) -> tuple[EagleHead, tuple[int, ...]]:
    """The head, and the target's layers whose states it reads. Its layout is known by its keys.

    Raises TreebenchError for pickles, damaged files, missing, unknown or misshapen weights, and for another target.
    """
    folder, _ = resolve_folder(path, revision, "drafter.path")
    config = _config(folder)
    tensors = _tensors(folder)
    eagle3 = any(name.startswith("midlayer.") for name in tensors)
    _check_target(config, target, path, eagle3)
    if not eagle3:
        config.bias = "fc.bias" in tensors
    config.qkv_bias = any(name.endswith("self_attn.q_proj.bias") for name in tensors)
    embeddings = _own_embeddings(tensors.pop(EMBEDDINGS, None), config, target, path)
    lm_head: Any = target.get_output_embeddings()
    head = Eagle3Head(config) if eagle3 else Eagle1Head(config, lm_head)
    load_exactly(head, _without_unused(tensors, head), f"the head {path}")
    _check_draft_tokens(head, path)
    head.embeddings = embeddings
    layers = getattr(config, "eagle_feature_layers", None) or feature_layers(target.config, eagle3)
    return head, tuple(layers)


def _config(folder: Path) -> Any:
    try:
        values = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise TreebenchError(f"{folder} has no readable config.json: give the folder of an EAGLE head") from error
    return LlamaConfig(**{key: value for key, value in values.items() if key not in ("model_type", "torch_dtype")})


def _tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise TreebenchError(
            f"{folder} holds no model.safetensors: train or download the head; a pickled .bin is not loaded, "
            "convert it where you trust it with `safetensors.torch.save_file(torch.load('pytorch_model.bin', "
            "weights_only=True), 'model.safetensors')`"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(file)
    return tensors


def _check_target(config: Any, target: PreTrainedModel, path: str, eagle3: bool) -> None:
    text: Any = target.config.get_text_config()
    width = getattr(config, "target_hidden_size", None) or config.hidden_size
    for name, own, wanted in (
        ("hidden size", width, text.hidden_size),
        ("vocabulary", config.vocab_size, text.vocab_size),
    ):
        if own != wanted:
            raise TreebenchError(f"the head {path} was made for a target of {name} {own}; this one has {wanted}")


def _own_embeddings(stored: Tensor | None, config: Any, target: PreTrainedModel, path: str) -> nn.Embedding | None:
    """Most heads store a copy of the target's embeddings, which is not kept; a head of another width has its own."""
    shape = (config.vocab_size, config.hidden_size)
    if stored is not None and tuple(stored.shape) != shape:
        raise TreebenchError(f"the head {path} has embeddings of shape {tuple(stored.shape)}; its config says {shape}")
    own: Any = target.get_input_embeddings()
    if config.hidden_size == own.weight.shape[1]:
        return None
    if stored is None:
        raise TreebenchError(f"the head {path} is not as wide as its target and lacks {EMBEDDINGS}")
    return nn.Embedding.from_pretrained(stored)


def _without_unused(tensors: dict[str, Tensor], head: EagleHead) -> dict[str, Tensor]:
    """Public heads of full vocabulary may carry `d2t` and `t2d` all the same."""
    known = head.state_dict()
    return {name: value for name, value in tensors.items() if name not in ("d2t", "t2d") or name in known}


def _check_draft_tokens(head: EagleHead, path: str) -> None:
    tokens, vocabulary = head.draft_tokens, head.config.vocab_size
    if tokens is None:
        return
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary or len(tokens.unique()) < len(tokens):
        raise TreebenchError(f"the head {path}: d2t does not name distinct tokens of a vocabulary of {vocabulary}")
