"""Tiny checkpoints on disk: a folder as transformers saves it and a GGUF, with a byte-level tokenizer."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend.errors import TreebenchError

SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "hel", "lo", "hello"]
MERGES = [("h", "e"), ("he", "l"), ("l", "o"), ("hel", "lo")]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"


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


def one_line_error(call, *arguments) -> str:
    with pytest.raises(TreebenchError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
