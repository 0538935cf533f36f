"""Settings for all tests: no network, one thread per process (tiny models lose more than they gain on two)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

if os.environ.get("TREE_DEVICE") != "cuda":  # read when Triton is first imported: kernels run on CPU tensors
    os.environ["TRITON_INTERPRET"] = "1"

import torch

torch.set_num_threads(1)
