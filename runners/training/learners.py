"""What can be trained: an EAGLE-3 or EAGLE-1 head, or a small independent draft LM. Each gives a loss for a batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from backend.checkpoints import load_exactly, read_safetensors, write_safetensors
from backend.heads import Eagle1Head, Eagle3Head, EagleHead, feature_layers
from backend.loading import LoadedModel
from runners.training.corpus import Corpus, frequent_tokens
from runners.training.distillation import distillation
from runners.training.features import Batch
from runners.training.fitting import feature_scale, fit_fusion, start_eagle1, start_eagle3, stream_size, use_tokens
from runners.training.sampled_softmax import SampledSoftmax
from runners.training.unroll import StepResult, chosen_rows, unroll

EMBEDDINGS, TIED = "model.embed_tokens.weight", "lm_head.weight"  # of a small LM, which has them once


class Learner(ABC):
    """A module in fp32 and its loss. `layers` are the hidden states of the target that it reads."""

    module: nn.Module
    layers: tuple[int, ...] = ()

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.buffers: dict[str, Tensor] = {}  # chosen or fitted once, checkpointed with the weights

    def start(self, batches: Sequence[Batch]) -> None:  # noqa: B027
        """Fit to some batches what can be fitted without gradients; called once, not on resuming."""

    def restore(self, buffers: dict[str, Tensor]) -> None:
        """Take a checkpoint's buffers."""
        self.buffers = buffers

    def load(self, folder: Path) -> None:
        """Begin with the weights that `export` wrote there."""
        path = folder / "model.safetensors"
        load_exactly(self.module, read_safetensors(path), str(path))

    @abstractmethod
    def steps(self, batch: Batch, generator: torch.Generator, whole: bool) -> list[StepResult]:
        """Results of the simulated steps; `whole`: all rows in every step, for evaluation."""

    @abstractmethod
    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write what the drafter loads: config.json and model.safetensors in bf16."""


class HeadLearner(Learner):
    def __init__(self, loaded: LoadedModel, corpus: Corpus, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        target: Any = loaded.model
        eagle3 = settings["kind"] == "eagle3"
        self.layers = feature_layers(target.config, eagle3)
        self.embeddings = target.get_input_embeddings()
        self.config = head_config(target.config, settings, self.layers)
        lm_head = target.get_output_embeddings()
        if eagle3:
            count = self.config.draft_vocab_size
            tokens = frequent_tokens(corpus, count, loaded.eos_token_ids, target.config.vocab_size)
            self.buffers["draft_tokens"] = tokens
            self.head: EagleHead = start_eagle3(Eagle3Head(self.config), target, tokens)
            self.teacher = lm_head.weight[tokens]
        else:
            self.head = start_eagle1(Eagle1Head(self.config, lm_head))
            self.teacher = lm_head.weight
        self.lm_head = lm_head
        self.module = self.head
        self.is_fitted = False

    def restore(self, buffers: dict[str, Tensor]) -> None:
        super().restore(buffers)
        if isinstance(self.head, Eagle3Head):  # the text may be another by now, with other frequent tokens
            use_tokens(self.head, buffers["draft_tokens"])
            self.teacher = self.lm_head.weight[buffers["draft_tokens"]]

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.is_fitted = True
        if self.head.draft_tokens is not None:
            self.restore({"draft_tokens": self.head.draft_tokens})

    def start(self, batches: Sequence[Batch]) -> None:
        if isinstance(self.head, Eagle3Head):
            self.buffers["scale"] = scale = feature_scale(batches)
            if self.is_fitted:
                self.head.fc.weight.data /= scale
                return
            stream = stream_size(batches, self.config.hidden_size)
            fit_fusion(self.head, map(self._scaled, batches), stream)

    def _scaled(self, batch: Batch) -> Batch:
        """Features of like spread: gradients are lost on a few huge ones otherwise."""
        scale = self.buffers.get("scale")
        return batch if scale is None else batch._replace(features=batch.features.float() * scale)

    def steps(self, batch: Batch, generator: torch.Generator, whole: bool) -> list[StepResult]:
        fraction = 1.0 if whole else self.settings["unroll_fraction"]
        count = self.settings["eval_steps" if whole else "unroll_steps"]
        rows = chosen_rows(batch.tokens.shape[1], count, fraction, generator)
        rows = [rows[1] if whole and count > 1 else rows[0], *rows[1:]]
        return unroll(self.head, self.embeddings, self.teacher, self._scaled(batch), rows, self.settings["regression"])

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        self.config.save_pretrained(folder)
        if "scale" in self.buffers:  # the drafter reads features as they are
            weights = {**weights, "fc.weight": weights["fc.weight"] * self.buffers["scale"]}
        stored = {name: _half(weight) for name, weight in weights.items()}
        write_safetensors(folder / "model.safetensors", stored)


def head_config(target: Any, settings: Mapping[str, Any], layers: tuple[int, ...]) -> Any:
    """A config.json in the public heads' style: a Llama config of one layer."""
    eagle3 = settings["kind"] == "eagle3"
    make: Any = LlamaConfig  # which takes any further key
    return make(
        architectures=["LlamaForCausalLMEagle3" if eagle3 else "LlamaForCausalLMEagle"],
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        head_dim=getattr(target, "head_dim", None) or target.hidden_size // target.num_attention_heads,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters=target.rope_parameters,
        max_position_embeddings=target.max_position_embeddings,
        vocab_size=target.vocab_size,
        draft_vocab_size=min(settings["draft_vocab_size"] or target.vocab_size, target.vocab_size),
        bias=True,
        tie_word_embeddings=False,
        eagle_feature_layers=list(layers),
        bos_token_id=target.bos_token_id,
        eos_token_id=target.eos_token_id,
        pad_token_id=target.pad_token_id,
    )


class LanguageModelLearner(Learner):
    """A narrow Llama on the target's tokenizer, distilled from the target's law.

    Embeddings start as the principal components of the target's, so that tokens of like use start alike.
    """

    def __init__(self, loaded: LoadedModel, corpus: Corpus, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        target: Any = loaded.model
        self.config = small_config(target.config, settings)
        self.model: Any = LlamaForCausalLM(self.config)
        self.model.get_input_embeddings().weight.data = principal_components(
            target.get_input_embeddings().weight.float(), self.config.hidden_size
        )
        self.model.tie_weights()
        self.tokenizer: Any = loaded.tokenizer
        self.teacher = target.get_output_embeddings().weight
        self.module = self.model
        vocab_size = target.config.vocab_size
        always = frequent_tokens(corpus, settings["softmax_frequent"], loaded.eos_token_ids, vocab_size)
        self.softmax = SampledSoftmax(always, vocab_size, settings["softmax_sampled"])

    def steps(self, batch: Batch, generator: torch.Generator, whole: bool) -> list[StepResult]:
        hidden = self.model.model(input_ids=batch.tokens).last_hidden_state
        real = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        tokens, shift = self.softmax.whole() if whole else self.softmax.draw(generator)
        said = F.linear(hidden[real], self.model.lm_head.weight[tokens])
        wanted = F.linear(batch.final[real], self.teacher[tokens])
        loss, agrees = distillation(said + shift.to(said.dtype), wanted + shift.to(wanted.dtype))
        agree = torch.zeros_like(real).masked_scatter(real, agrees)
        depths = range(self.settings["eval_steps"] if whole else 1)
        return [StepResult(loss.mean(), _ahead(agree, depth), _ahead(real, depth)) for depth in depths]

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.tokenizer.is_fast:  # which writes a quarter of a million lines otherwise
            self.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        stored = {name: _half(weight) for name, weight in weights.items() if name != TIED}
        write_safetensors(folder / "model.safetensors", stored)

    def load(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        stored = read_safetensors(path)
        load_exactly(self.module, stored | {TIED: stored.get(EMBEDDINGS, torch.empty(0))}, str(path))


def _ahead(values: Tensor, by: int) -> Tensor:
    """What holds `by` rows further on, false beyond the end: a chain's next token is drafted after the text's own."""
    return F.pad(values[:, by:], (0, by))


def small_config(target: Any, settings: Mapping[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=settings["hidden_size"],
        intermediate_size=settings["intermediate_size"],
        num_hidden_layers=settings["num_layers"],
        num_attention_heads=settings["num_heads"],
        num_key_value_heads=settings["num_heads"],
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters=target.rope_parameters,
        max_position_embeddings=target.max_position_embeddings,
        vocab_size=target.vocab_size,
        tie_word_embeddings=True,
        bos_token_id=target.bos_token_id,
        eos_token_id=target.eos_token_id,
        pad_token_id=target.pad_token_id,
    )


def principal_components(embeddings: Tensor, size: int) -> Tensor:
    """Rows projected on their `size` widest directions, scaled to a standard deviation of 0.02 times sqrt(size)."""
    centred = embeddings - embeddings.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    projected = centred @ vectors[:, -size:]
    return projected / projected.std() * 0.05


def _half(weight: Tensor) -> Tensor:
    return weight.bfloat16() if weight.is_floating_point() else weight


LEARNERS = {"eagle3": HeadLearner, "eagle1": HeadLearner, "small_model": LanguageModelLearner}
