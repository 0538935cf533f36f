"""Settings for all tests: no network, one thread per process (tiny models lose more than they gain on two)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import torch

torch.set_num_threads(1)
