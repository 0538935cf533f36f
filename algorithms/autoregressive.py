"""Plain decoding, the baseline of every speedup: a tree of one node in the same loop and backend."""

import torch

from algorithms.base import TreeAlgorithm
from algorithms.registry import register
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("autoregressive")
class Autoregressive(TreeAlgorithm):
    """Drafts nothing."""

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        return Draft(tree, torch.zeros_like(tree.tokens))
