"""Writes a Llama-architecture GGUF as a Hugging Face folder: config, tokenizer and dequantized safetensors."""

from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from backend.errors import TreebenchError


def convert_gguf(source: Path, folder: Path) -> None:
    """Write config, tokenizer and float32 weights of a Llama-architecture GGUF in Hugging Face's layout."""
    reader = gguf.GGUFReader(source)
    if (architecture := reader.fields["general.architecture"].contents()) != "llama":
        raise TreebenchError(f"{source.name} has architecture {architecture}: only llama is converted from GGUF")
    config = AutoConfig.from_pretrained(str(source.parent), gguf_file=source.name)
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    pre = reader.fields.get("tokenizer.ggml.pre")
    if pre is not None and pre.contents() == "smollm":  # transformers drops SmolLM's splitting of digits
        split_digits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split_digits)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float32"
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(_llama_weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # a cache may be shared


def _llama_weights(reader: gguf.GGUFReader, config: Any) -> dict[str, Tensor]:
    """Dequantized tensors under their Hugging Face names; a tied `lm_head` is left out."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with torch.device("meta"):
        wanted = set(AutoModelForCausalLM.from_config(config).state_dict())
    wanted -= {"lm_head.weight"} if config.tie_word_embeddings else set()
    weights = {}
    for name in sorted(wanted):
        tensor = stored[names.get_name(name, try_suffixes=(".weight", ".bias")) or ""]
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        weights[name] = (_rotary_halves(weight, heads) if heads else weight).contiguous()
    return weights


def _rotary_halves(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's interleaving of the rotary dimensions: Hugging Face keeps them as two halves."""
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape_as(weight)
