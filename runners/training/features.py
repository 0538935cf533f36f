"""What the target computes over the training text, made by processes of their own while the drafter learns."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from backend.loading import load_target
from backend.memory import keep_freed_memory
from backend.model import TreeModel
from runners.training.corpus import Corpus, load_corpus

DELAY = 64  # batches until one comes again; their features are kept, 10 MB each of the default target
BUCKET = 64  # batches that are sorted by length together, so that little is padding


class Batch(NamedTuple):
    """Right-padded windows, the features that a head reads, and what the target's LM head reads."""

    tokens: Int[Tensor, "batch row"]
    lengths: Int[Tensor, " batch"]
    features: Float[Tensor, "batch row feature"]
    final: Float[Tensor, "batch row hidden"]


class FeatureExtractor:
    """A target forward without its LM head: hidden states of chosen layers and the last one."""

    def __init__(self, target: TreeModel, layers: tuple[int, ...]) -> None:
        self.target = target
        self.hidden = target.model.config.hidden_size
        self.num_layers = target.model.config.num_hidden_layers
        target.tap_features((*layers, self.num_layers))

    @torch.no_grad()  # not inference mode: the drafter's gradients pass by these tensors
    def __call__(self, windows: list[Tensor]) -> Batch:
        lengths = torch.tensor([len(window) for window in windows])
        tokens = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
        self.target.allocate(*tokens.shape)
        self.target.prefill(tokens, lengths)
        features = self.target.features
        read, final = features.split([features.shape[2] - self.hidden, self.hidden], 2)
        return Batch(tokens, lengths, read.clone(), final.clone())


class FeatureStream(IterableDataset):
    """Batches `start`, `start + 1`, ... of an endless, seeded order of the training windows."""

    def __init__(self, config: Mapping[str, Any], layers: tuple[int, ...], start: int) -> None:
        self.config, self.layers, self.start = config, layers, start

    def __iter__(self) -> Iterator[Batch]:
        settings = self.config["training"]
        torch.set_num_threads(settings["threads"])
        keep_freed_memory()
        loaded = load_target(self.config["target"], self.config["dtype"], self.config["device"]["torch_device"])
        corpus = load_corpus(settings["corpus"], loaded.tokenizer)
        extract = FeatureExtractor(TreeModel(loaded.model), self.layers)
        worker = get_worker_info()
        lanes, own = (worker.num_workers, worker.id) if worker else (1, 0)
        kept: dict[int, Batch] = {}
        first, lane = divmod(self.start + own, lanes)
        most = 1 + DELAY * (settings["passes"] - 1)
        order = lru_cache(maxsize=2)(partial(pass_order, corpus, settings["batch_size"], self.config["seed"]))
        per_pass = len(order(0))
        if not per_pass:
            return

        def made(number: int) -> Batch:
            indices = order(number // per_pass)[number % per_pass]
            return extract([corpus.window(index) for index in indices.tolist()])

        for number in visits(lane, lanes, settings["passes"], first):
            yield recall(kept, number, most, made)


def visits(lane: int, lanes: int, passes: int, start: int) -> Iterator[int]:
    """Numbers of the batches that one of `lanes` processes gives, from its `start`-th on: each of its own comes
    `passes` times, `DELAY` of them apart, so that a target's forward serves several steps.

    Fresh and known ones alternate: the processes are busy at all times, and nothing is learned by heart in between.
    """
    own = (place // passes - DELAY * (place % passes) for place in count())
    for index in islice((index for index in own if index >= 0), start, None):
        yield index * lanes + lane


T = TypeVar("T")


def recall(kept: dict[int, T], number: int, most: int, make: Callable[[int], T]) -> T:
    """What is kept under a number, or else made and kept; of more than `most`, those with the highest numbers stay.

    A stream that starts in the middle makes old ones again, which must not drive out those that are yet to come twice.
    """
    if number not in kept:
        if len(kept) == most:
            del kept[min(kept)]
        kept[number] = make(number)
    return kept[number]


def loader(stream: FeatureStream) -> DataLoader[Batch]:
    """In processes of their own, which do not wait for each other inside every operation as threads do."""
    workers = stream.config["training"]["feature_workers"]
    return DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=4, multiprocessing_context="spawn")


def batches(corpus: Corpus, size: int, seed: int, start: int) -> Iterator[list[int]]:
    """Batches from `start` on, pass after pass over the training windows."""
    per_pass = len(corpus.indices(held_out=False)) // size
    while per_pass:
        rows = pass_order(corpus, size, seed, start // per_pass)[start % per_pass :]
        yield from rows.tolist()
        start += len(rows)


def pass_order(corpus: Corpus, size: int, seed: int, number: int) -> Int[Tensor, "batch size"]:
    """The windows of each batch of a pass, an order of its own for each; windows of like length come together."""
    windows, lengths = corpus.indices(held_out=False), corpus.lengths()
    per_pass = len(windows) // size
    shuffle = torch.Generator().manual_seed(seed * 1_000_003 + number)
    order = windows[torch.randperm(len(windows), generator=shuffle)][: per_pass * size]
    sorted_runs = [run[lengths[run].argsort(stable=True)] for run in order.split(BUCKET * size)]
    whole = torch.cat(sorted_runs).view(-1, size)
    return whole[torch.randperm(per_pass, generator=shuffle)]
