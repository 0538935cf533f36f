"""Counter-based random numbers: every draw is a function of (seed, sequence, position, purpose, counter) alone.

Nothing is consumed, so a result depends neither on the other sequences of a batch nor on their order, and the integer
arithmetic is the same on every device. The draw primitives below are the only places where randomness meets
probabilities.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backend.top_k import top_k

NO_TOKEN = -1

_GOLDEN = -0x61C8864680B583EB  # SplitMix64 (Steele, Lea & Flood, 2014); constants as signed integers
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_GOLDEN_32 = -0x61C88647  # lowbias32 (Wellons, 2018)
_FACTORS_32 = (0x7FEB352D, -0x7B935975)
_CACHED = 1 << 17  # probabilities raced at once on a CPU: some twenty passes over them stay in its cache
_BLOCK = 256  # tokens summed at once when a distribution function is inverted


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's is arithmetic."""
    return (bits >> by).bitwise_and_((1 << (8 * bits.element_size() - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer, in place: a bijection of 64-bit words whose outputs look independent."""
    bits.bitwise_xor_(_shift(bits, 30)).mul_(_FACTORS[0])
    bits.bitwise_xor_(_shift(bits, 27)).mul_(_FACTORS[1])
    return bits.bitwise_xor_(_shift(bits, 31))


def _mix_32(bits: Tensor, salt: Tensor) -> Tensor:
    """lowbias32, in place, salted half way: five times faster than 64 bits where a vocabulary of words is needed."""
    bits.bitwise_xor_(_shift(bits, 16)).mul_(_FACTORS_32[0])
    bits.bitwise_xor_(_shift(bits, 15)).add_(salt).mul_(_FACTORS_32[1])
    return bits.bitwise_xor_(_shift(bits, 16))


def _derive(keys: Tensor, counters: Tensor) -> Tensor:
    return _mix(keys + (counters + 1) * _GOLDEN)


@lru_cache(maxsize=8)
def _steps(num_lanes: int, device: torch.device) -> Int[Tensor, " lane"]:
    return torch.arange(num_lanes, device=device, dtype=torch.int32) * _GOLDEN_32


@lru_cache(maxsize=64)
def _number_of(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little", signed=True)


def _signed(seed: int) -> int:
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True)
class RandomStream:
    """One stream of random numbers per sequence of a batch.

    A `counter` numbers the draws of a stream, mostly by node; the same counter gives the same numbers again. It is an
    integer or a tensor that broadcasts against the leading dimensions of the probabilities. Count with something that
    does not depend on the other rows, such as a node's place in `Draft.nodes` (padding comes last there).
    """

    keys: Int[Tensor, " batch"]

    @classmethod
    def keyed(cls, seed: int, sequences: Int[Tensor, " batch"], positions: Int[Tensor, " batch"]) -> "RandomStream":
        """`positions`: the committed length, which is different in each decode step. Free until something is drawn."""
        return _KeyedStream(seed, sequences, positions)

    def of(self, purpose: str) -> "RandomStream":
        """An independent stream; acceptance uses "accept" and "residual", algorithms use "draft"."""
        return self._with_keys(_mix(self.keys ^ _number_of(purpose)))

    def select(self, rows: Int[Tensor, " row"]) -> "RandomStream":
        """The streams of some of the sequences."""
        return self._with_keys(self.keys[rows])

    def _with_keys(self, keys: Int[Tensor, " row"]) -> "RandomStream":
        return type(self)(keys)

    def uniforms(self, counter: Int[Tensor, "batch ..."], num_lanes: int) -> Float[Tensor, "batch ... lane"]:
        """Uniform in [0, 1), 53 bits, fp64: a coarser grid would give small probabilities a visible error."""
        steps = torch.arange(num_lanes, device=self.keys.device)
        return _shift(_derive(self._keys_of(counter)[..., None], steps), 11).double() * 2.0**-53

    def exponentials(self, counter: Int[Tensor, "batch ..."], num_lanes: int) -> Float[Tensor, "batch ... lane"]:
        """Exp(1), fp32, in steps of 2**-31 near 0, where the races of unlikely tokens are decided."""
        halves = self._keys_of(counter)[..., None].view(torch.int32)
        words = _shift(_mix_32(_steps(num_lanes, halves.device) + halves[..., :1], halves[..., 1:]), 1)
        uniforms = words.float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
        return uniforms.neg_().log1p_().neg_()

    def _keys_of(self, counter: Tensor) -> Tensor:
        return _derive(self.keys.reshape(-1, *[1] * (counter.dim() - 1)), counter)

    def accepts(
        self,
        numerator: Float[Tensor, "batch ..."],
        denominator: Float[Tensor, "batch ..."],
        counter: int | Int[Tensor, "..."],
    ) -> Bool[Tensor, "batch ..."]:
        """True with probability min(1, numerator / denominator); strict, so never where the numerator is 0."""
        uniforms = self.uniforms(_counters(counter, numerator), 1).squeeze(-1)
        return uniforms * denominator.double() < numerator.double()

    def choose(
        self, weights: Float[Tensor, "batch *node vocab"], counter: int | Int[Tensor, "..."]
    ) -> Int[Tensor, "batch *node"]:
        """One token per law in proportion to its weights, never one of weight 0; token 0 if all weights are 0."""
        tokens = self._invert(weights, 1, counter).squeeze(-1)
        return tokens.clamp(min=0)

    def draw_iid(
        self, laws: Float[Tensor, "batch node vocab"], k: int, counter: int | Int[Tensor, "..."]
    ) -> Int[Tensor, "batch node k"]:
        """`k` independent tokens of each law, duplicates kept; `NO_TOKEN` where a law is all zero."""
        return self._invert(laws, k, counter)

    def draw_without_replacement(
        self, laws: Float[Tensor, "batch node vocab"], k: int, counter: int | Int[Tensor, "..."]
    ) -> Int[Tensor, "batch node k"]:
        """`k` distinct tokens in draw order, by one exponential race; `NO_TOKEN` after the last of the support."""
        counters = _counters(counter, laws[..., 0])
        few = max(1, _CACHED // max(1, laws[:, :1].numel())) if laws.device.type == "cpu" else laws.shape[1]
        parts = zip(laws.split(few, 1), counters.split(few, 1), strict=True)
        tokens = torch.cat([self._race(*part, k) for part in parts], 1)
        return torch.nn.functional.pad(tokens, (0, k - tokens.shape[-1]), value=NO_TOKEN)

    def _race(self, laws: Float[Tensor, "batch node vocab"], counters: Tensor, k: int) -> Int[Tensor, "batch node k"]:
        race = laws.float() / self.exponentials(counters, laws.shape[-1])
        speeds, tokens = top_k(race, k)
        return tokens.masked_fill(~(speeds > 0), NO_TOKEN)

    def _invert(self, weights: Tensor, num_draws: int, counter: int | Tensor) -> Tensor:
        """Inverse of the distribution function in two levels: first a block of tokens, then a token of it.

        Masses are compared in fp64, since a running sum in fp32 swallows tokens below 6e-8.
        """
        blocks = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
        masses = blocks.sum(-1)
        uniforms = self.uniforms(_counters(counter, weights[..., 0]), num_draws)
        block, rest = _first_above(masses, uniforms)
        inner = blocks.gather(-2, block[..., None].expand(*block.shape, _BLOCK))
        token, _ = _first_above(inner, rest[..., None])
        empty = ~(masses.sum(-1, keepdim=True) > 0)
        return (block * _BLOCK + token.squeeze(-1)).masked_fill(empty, NO_TOKEN)


class _KeyedStream(RandomStream):
    """Works its keys out when they are asked for: a greedy step never asks."""

    def __init__(self, seed: int, sequences: Tensor, positions: Tensor) -> None:
        object.__setattr__(self, "_origin", (seed, sequences, positions))

    @cached_property
    def keys(self) -> Int[Tensor, " batch"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        seed, sequences, positions = self._origin  # pyright: ignore[reportAttributeAccessIssue]
        key = torch.full_like(sequences, _signed(seed), dtype=torch.int64)
        return _derive(_derive(_mix(key), sequences.long()), positions.long())

    def _with_keys(self, keys: Int[Tensor, " row"]) -> RandomStream:
        return RandomStream(keys)


def _first_above(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The index whose share of the total holds each uniform, and the uniform's place, in [0, 1], within that share.

    Never an index of weight 0: where rounding hits one, the likeliest index stands in.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    targets = uniforms * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, targets, right=True).clamp_(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, index)
    index = torch.where(weight > 0, index, weights.argmax(-1, keepdim=True))
    above = cumulative.gather(-1, index) - targets
    return index, (1 - above / weights.gather(-1, index)).clamp_(0, 1)


def _counters(counter: int | Tensor, like: Tensor) -> Tensor:
    if isinstance(counter, int):
        return torch.full_like(like, counter, dtype=torch.int64)
    return counter.long().expand(like.shape)
