"""Which implementation runs, and what is refused by name."""

import importlib
import sys

import pytest
import torch

from backend.errors import TreebenchError
from backend.model import TreeModel
from backend.ops import launch
from backend.ops.select import HOST, TORCH, create_ops
from tests.architectures import config_of, random_model

CPU = torch.device("cpu")


def test_auto_reads_the_tree_on_the_host_of_a_cpu():
    assert create_ops("auto", CPU) is HOST
    assert create_ops("torch", CPU) is TORCH


@pytest.mark.skipif(not launch.IS_INTERPRETED, reason="says what the interpreter allows")
def test_triton_runs_on_a_cpu_in_the_interpreter():
    assert create_ops("triton", CPU).name == "triton"


def test_triton_without_the_interpreter_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(launch, "IS_INTERPRETED", False)
    with pytest.raises(TreebenchError, match=r"backend.ops=triton needs a GPU: use backend.ops=torch, or set TRITON"):
        create_ops("triton", CPU)


def test_other_devices_are_refused():
    with pytest.raises(TreebenchError, match=r"does not run on meta: use backend.ops=torch"):
        create_ops("triton", torch.device("meta"))


def test_a_missing_package_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("backend.ops.triton_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(TreebenchError, match="needs the package triton: pip install triton"):
        create_ops("triton", CPU)
    monkeypatch.undo()
    importlib.import_module("backend.ops.triton_attention")


@pytest.mark.parametrize(("capability", "is_refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_old_gpus_are_refused_by_name(capability, is_refused):
    if not is_refused:
        return launch.check_capability("A GPU", capability)
    with pytest.raises(TreebenchError, match=r"Tesla T4 has compute capability 7.5, but the kernels need 8.0"):
        launch.check_capability("Tesla T4", capability)


def test_a_head_size_without_a_kernel_is_refused_with_the_architecture():
    model = random_model(config_of("qwen3", head_dim=264))
    with pytest.raises(TreebenchError, match=r"'qwen3' cannot be tree-verified: float32 heads of size 264 "):
        TreeModel(model, ops=create_ops("triton", CPU))
    assert TreeModel(random_model(config_of("qwen3", head_dim=264)), ops=TORCH).ops is TORCH


def test_an_unknown_implementation_is_refused():
    with pytest.raises(TreebenchError, match="choose one of auto, torch, triton, flashinfer"):
        create_ops("cuda", CPU)
