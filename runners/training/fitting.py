"""How heads start: from the target's weights, and from what least squares can fit, before any gradient."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from backend.heads import Eagle1Head, Eagle3Head
from runners.training.features import Batch


def start_eagle3(head: Eagle3Head, target: Any, tokens: Int[Tensor, " draft"]) -> Eagle3Head:
    """Start as the target's last layer, reading the state half of its inputs, with the target's own norm and LM head.

    What the layer adds starts at zero, so that the head says what `fit_fusion` has fitted.
    """
    decoder, hidden = target.get_decoder(), head.config.hidden_size
    last = decoder.layers[-1].state_dict()
    with torch.no_grad():
        for name, parameter in head.midlayer.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                parameter.normal_(std=0.02)
                parameter[:, hidden:] = last[name].float()
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif name in last:
                parameter.copy_(last[name])
        head.lm_head.weight.copy_(target.get_output_embeddings().weight[tokens])
        head.norm.weight.copy_(decoder.norm.weight)
    use_tokens(head, tokens)
    return head


def use_tokens(head: Eagle3Head, tokens: Int[Tensor, " draft"]) -> None:
    """Draft these of the target's tokens, which are distinct and ascend."""
    if len(tokens) < head.config.vocab_size:
        head.d2t.copy_(tokens - torch.arange(len(tokens)))
        head.t2d.zero_()[tokens] = True


def feature_scale(batches: Sequence[Batch]) -> Float[Tensor, " feature"]:
    """One over the spread of each feature, the first row of a text left out: there a model parks huge values."""
    features = torch.cat([b.features[i, 1:n].float() for b in batches for i, n in enumerate(b.lengths.tolist())])
    return 1 / features.std(0).clamp(min=1e-6)


def stream_size(batches: Sequence[Batch], hidden: int) -> float:
    """Root mean square of the target's residual stream where it is read last: what its layers are used to."""
    sizes = torch.cat([batch.features[:, 1:, -hidden:].float().square().mean(2).flatten() for batch in batches])
    return float(sizes.median().sqrt())


def fit_fusion(head: Eagle3Head, batches: Iterable[Batch], stream: float) -> None:
    """EAGLE-3's fusion by ridge regression: features at i to what the target's LM head reads at i + 1, before its norm.

    A fit that explains little should not be sure of itself: the norm is scaled by the share explained. The state gets
    the size of the target's `stream`, which changes nothing but how far a step of the layer's weights goes.
    """
    size, scale = head.fc.in_features, head.norm.weight.detach()
    square, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, head.fc.out_features).double()
    energy = 0.0
    for batch in batches:
        real = torch.arange(1, batch.tokens.shape[1]) < batch.lengths[:, None]
        real[:, 0] = False
        read, wanted = batch.features[:, :-1][real].float(), batch.final[:, 1:][real].float() / scale
        square += (read.T @ read).double()
        cross += (read.T @ wanted).double()
        energy += float(wanted.double().square().sum())
    square.diagonal().mul_(1.01)
    solution = torch.linalg.solve(square, cross)
    with torch.no_grad():
        head.fc.weight.copy_(stream * solution.T)
        head.norm.weight.mul_(float((solution * cross).sum() / energy))


def start_eagle1(head: Eagle1Head) -> Eagle1Head:
    """Start by handing the state on: the last true feature is the first guess at the next."""
    hidden = head.config.hidden_size
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.02)
        head.fc.weight[:, hidden:] += torch.eye(hidden)
        if head.fc.bias is not None:
            head.fc.bias.zero_()
    return head
