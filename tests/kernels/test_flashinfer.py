"""FlashInfer as a cross-check: what it is given (by a stand-in with its documented signature), and what is refused.

On a CUDA machine that has the package, our kernel is compared with it.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from backend.errors import TreebenchError
from backend.ops.select import create_ops
from tests.kernels.cases import BOUNDS, DEVICE, AttentionCase, plan_on_device

pytestmark = pytest.mark.kernels
HAS_FLASHINFER = DEVICE.type == "cuda" and find_spec("flashinfer") is not None


def single_prefill_with_kv_cache(
    q: Tensor, k: Tensor, v: Tensor, *, custom_mask: Tensor, kv_layout: str, sm_scale: float,
    logits_soft_cap: float | None,
) -> Tensor:  # fmt: skip
    """q (token, head, size); k and v (kv_head, slot, size) for the layout HND; the mask (token, slot) shows True."""
    assert kv_layout == "HND"
    assert q.is_contiguous()
    assert k.is_contiguous()
    assert custom_mask.dtype == torch.bool
    group = q.shape[1] // k.shape[0]
    scores = torch.einsum("thd,hsd->hts", q.double(), k.double().repeat_interleave(group, 0)) * sm_scale
    if logits_soft_cap:
        scores = logits_soft_cap * torch.tanh(scores / logits_soft_cap)
    weights = scores.masked_fill(~custom_mask, -torch.inf).softmax(2)
    return torch.einsum("hts,hsd->thd", weights, v.double().repeat_interleave(group, 0)).to(q.dtype)


@pytest.fixture
def attention(monkeypatch):
    stand_in = ModuleType("flashinfer")
    stand_in.single_prefill_with_kv_cache = single_prefill_with_kv_cache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", stand_in)
    monkeypatch.delitem(sys.modules, "backend.ops.flashinfer_attention", raising=False)
    yield importlib.import_module("backend.ops.flashinfer_attention")
    sys.modules.pop("backend.ops.flashinfer_attention", None)


def cases(*options: str) -> list[AttentionCase]:
    """Without attention sinks, and with each of `options`."""
    found = [case for case in map(AttentionCase.random, range(60)) if case.options["sinks"] is None]
    return [case for case in found if all(case.options[option] is not None for option in options)][:4]


@pytest.mark.parametrize("options", [(), ("window",), ("softcap",), ("window", "softcap")])
def test_equals_the_reference(attention, options):
    for case in cases(*options):
        found = attention.tree_attention(case.query, *case.clean(), case.plan, **case.options)
        assert case.error(found) < BOUNDS[case.query.dtype]


def test_attention_sinks_are_refused(attention):
    case = next(case for case in map(AttentionCase.random, range(60)) if case.options["sinks"] is not None)
    with pytest.raises(TreebenchError, match=r"know no attention sinks: use backend.ops=triton"):
        attention.tree_attention(case.query, *case.clean(), case.plan, **case.options)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 64), (torch.bfloat16, 80)])
def test_shapes_that_it_lacks_are_refused(attention, dtype, size):
    with pytest.raises(TreebenchError, match=rf"size 64, 128 or 256, not {str(dtype)[6:]} of size {size}"):
        attention.check_shapes(dtype, size)


def test_it_needs_a_gpu():
    with pytest.raises(TreebenchError, match=r"ops=flashinfer needs a CUDA GPU, this is cpu"):
        create_ops("flashinfer", torch.device("cpu"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.delitem(sys.modules, "backend.ops.flashinfer_attention", raising=False)
    with pytest.raises(TreebenchError, match=r"pip install flashinfer-python, or use backend.ops=triton"):
        create_ops("flashinfer", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_FLASHINFER, reason="needs a GPU and flashinfer-python")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_our_kernel_agrees_with_it(dtype):
    found = [case for case in map(AttentionCase.random, range(130)) if case.options["sinks"] is None]
    shapes = [case for case in found if case.query.dtype == dtype and case.query.shape[3] in (64, 128, 256)]
    for case in shapes:
        plan, query = plan_on_device(case.plan), case.query.to(DEVICE)
        key, value = (tensor.to(DEVICE) for tensor in case.clean())
        both = [
            create_ops(name, DEVICE).attention(query, key, value, plan, **case.options)
            for name in ("triton", "flashinfer")
        ]
        assert float(((both[0] - both[1]).abs().cpu() * case.live()).max()) < 2 * BOUNDS[dtype]
