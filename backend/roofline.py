"""Seconds of forwards on a device that is not here: the roofline model (Williams et al. 2009) on datasheet figures.

Bandwidth and dense FLOP/s come from the vendors' datasheets, efficiencies and launch costs are assumptions; all of them
are in `conf/device/`. Times are projections and are always called so.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np

from backend.costs import Seconds, Widths
from backend.errors import TreebenchError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _check_names(kind: type, options: Mapping[str, Any], where: str) -> None:
    """TreebenchError names the first option that is missing or unknown; what has a default is no option."""
    names = [field.name for field in fields(kind) if field.default is MISSING]
    if wrong := sorted(set(names) ^ set(options)):
        raise TreebenchError(f"{where} takes {', '.join(names)}: check {wrong[0]!r}")


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer decoder that decide its cost. A mixture of experts is not covered.

    `compression`: bytes of its weights as they are stored, over their bytes in the dtype of the run.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    compression: float = 1.0

    @classmethod
    def of_options(cls, options: Mapping[str, Any], where: str) -> "Shape":
        """From YAML; TreebenchError names a missing, unknown or impossible size."""
        _check_names(cls, options, where)
        for name, value in options.items():
            if not isinstance(value, int) or value < 1:
                raise TreebenchError(f"{where}.{name} is {value!r}; it must be a whole number of at least 1")
        return cls(**options)

    @classmethod
    def of_config(cls, config: Any, layers: int | None = None) -> "Shape":
        """Of a Hugging Face model config; `layers` where some of them are skipped."""
        text = config.get_text_config()
        return cls(
            layers=layers or text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Of one layer's matrices: queries, keys, values, output, and a gated MLP."""
        attention = self.hidden * self.head_size * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary


@dataclass(frozen=True)
class Device:
    """`bandwidth` in bytes/s and `flops` dense in FLOP/s by dtype are peaks; what is reached of them are the
    efficiencies. Matrix products compute whole tiles of `tile` rows. `launch_seconds` are paid per layer (kernel
    launches, or gaps in a graph), `step_seconds` per verification for all else, `lookup_seconds` per level of a drafter
    that is no model."""

    bandwidth: float
    flops: Mapping[str, float]
    bandwidth_efficiency: float
    flops_efficiency: float
    tile: int
    launch_seconds: float
    step_seconds: float
    lookup_seconds: float

    @classmethod
    def of_options(cls, options: Mapping[str, Any], where: str) -> "Device":
        _check_names(cls, options, where)
        for name, value in options.items():
            numbers = value.values() if name == "flops" and isinstance(value, Mapping) else [value]
            if not all(isinstance(number, int | float) and number >= 0 for number in numbers):
                raise TreebenchError(f"{where}.{name} is {value!r}; it must be a number of at least 0")
        return cls(**options)


@dataclass(frozen=True)
class Roofline:
    """A target of `shape` and a drafter of `draft` (None: a drafter without a model) on a device.

    A matrix product takes the longer of reading its weights and computing its tiles; attention the longer of reading
    the cache and its own products. Layers follow one another, so their times add up.
    """

    device: Device
    dtype: str
    shape: Shape
    draft: Shape | None

    def __post_init__(self) -> None:
        if self.dtype not in self.device.flops:
            known = ", ".join(self.device.flops)
            raise TreebenchError(f"this device has no figure for dtype {self.dtype}: choose one of {known}")

    def verify_seconds(self, batch: int, width: Widths, context: int) -> Seconds:
        return self.forward_seconds(self.shape, batch, width, context)

    def draft_seconds(self, drafter: str, batch: int, width: Widths, context: int) -> Seconds:
        if self.draft is None:
            return np.full_like(np.asarray(width, dtype=float), self.device.lookup_seconds)
        return self.forward_seconds(self.draft, batch, width, context)

    def overhead_seconds(self, drafter: str | None, batch: int, width: Widths) -> Seconds:
        return np.full_like(np.asarray(width, dtype=float), self.device.step_seconds)

    def forward_seconds(self, shape: Shape, batch: int, width: Widths, context: int) -> Seconds:
        rows = batch * np.asarray(width, dtype=np.float64)
        attention = self._attention_seconds(shape, batch, rows, context)
        values = 2 * (shape.hidden + shape.intermediate), shape.hidden + shape.vocabulary
        layer = self._product_seconds(shape.layer_weights, shape.compression, rows, values[0]) + attention
        head = self._product_seconds(shape.head_weights, shape.compression, rows, values[1])
        return shape.layers * (layer + self.device.launch_seconds) + head + self.device.launch_seconds

    def _product_seconds(self, weights: int, compression: float, rows: Seconds, values_per_row: int) -> Seconds:
        """`values_per_row` are activations read and written; products run in the dtype of the run."""
        tiled = np.ceil(rows / self.device.tile) * self.device.tile
        moved = weights * compression + rows * values_per_row
        return np.maximum(self._moving(moved), self._computing(2.0 * weights * tiled))

    def _attention_seconds(self, shape: Shape, batch: int, rows: Seconds, context: int) -> Seconds:
        cached = batch * context + rows
        moved = cached * 2 * shape.kv_heads * shape.head_size + rows * 2 * shape.heads * shape.head_size
        products = 4.0 * rows * (context + rows / batch) * shape.heads * shape.head_size
        return np.maximum(self._moving(moved), self._computing(products))

    def _moving(self, values: Seconds) -> Seconds:
        return values * DTYPE_BYTES[self.dtype] / (self.device.bandwidth * self.device.bandwidth_efficiency)

    def _computing(self, operations: Seconds) -> Seconds:
        return operations / (self.device.flops[self.dtype] * self.device.flops_efficiency)
