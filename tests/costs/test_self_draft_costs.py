"""What a self-draft costs on a device that is not here: its share of the target's layers, and its smaller weights."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.roofline import Roofline
from runners.benchmark import CONF
from runners.pricing import cost_model
from tests.cascade.parts import draft, target_of

TILE = 0.33  # computing one tile of 64 rows on an H100, over reading the weights in bf16: the least a product takes
ROUNDED = {"skip": [], "fake_quant": True}
BIG = {"layers": 32, "hidden": 4096, "intermediate": 14336, "heads": 32, "kv_heads": 8, "head_size": 128}
DEVICE = yaml.safe_load((Path(CONF) / "device" / "h100.yaml").read_text())
STAND_IN = {"kind": "stand_in", "shape": BIG | {"vocabulary": 32000}, "draft": BIG | {"vocabulary": 32000, "layers": 1}}


def roofline(kind: str, target_config: dict[str, Any], **options: Any) -> Roofline:
    target = target_of()
    config: Any = {
        "device": DEVICE,
        "dtype": "bfloat16",
        "target": target_config,
        "algorithm": {"name": "chain"},
    }
    model = cost_model(config, target, draft(target, kind, **options))
    assert isinstance(model, Roofline)
    return model


@pytest.mark.parametrize(
    ("kind", "options", "layers", "compression"),
    [
        ("layer_skip", {"skip": [1, 2]}, 2, 1.0),
        ("early_exit", {"layers": 3}, 3, 1.0),
        ("activation_quantized", {"head": True, **ROUNDED}, 4, 8 / 32),
        ("activation_quantized", {"head": True, **ROUNDED, "skip": [1]}, 3, 8 / 32),
        ("weight_quantized", {"bits": 4, "group": 32, "head": True, **ROUNDED}, 4, 5 / 32),
    ],
)
def test_a_self_draft_has_its_share_of_the_targets_shape(kind, options, layers, compression):
    here = roofline(kind, {"kind": "hf"}, **options)
    assert (here.shape.layers, here.shape.compression) == (4, 1.0)
    assert here.draft is not None
    assert (here.draft.layers, here.draft.compression) == (layers, pytest.approx(compression))
    stand_in = roofline(kind, STAND_IN, **options)
    assert stand_in.draft is not None
    assert stand_in.draft.layers == 8 * layers, "the shape's `draft` is what other drafters cost"
    ratio = stand_in.draft_seconds(kind, 1, 1, 256) / stand_in.verify_seconds(1, 1, 256)
    assert ratio == pytest.approx(max(compression, TILE) * layers / 4, abs=0.05), "one row waits for the weights"


def test_an_unquantized_head_keeps_its_bytes():
    whole, layers_only = (
        roofline("weight_quantized", {"kind": "hf"}, bits=8, group=32, head=head, **ROUNDED).draft
        for head in (True, False)
    )
    assert whole is not None
    assert layers_only is not None
    assert whole.compression == 0.25 < layers_only.compression < 1.0
