"""The synthetic pair: acceptance is what was pinned, drafts are calibrated, and decoding with any tree is lossless."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from algorithms.registry import create
from backend.acceptance import create_rule
from backend.errors import TreebenchError
from backend.sampling import Sampler
from backend.synthetic import VOCABULARY, Law, SyntheticDrafter, SyntheticTarget, byte_tokenizer, fitted, law_of, mixed
from backend.timing import Stopwatch
from backend.tree import TokenTree
from runners.decoding import Decoder, Generation, Limits, Request, generate
from tests.parts import options_of

RATES = [[0.6, 0.2, 0.1], [0.5, 0.2, 0.1], [0.3, 0.2, 0.1]]
LIMITS = Limits(max_new_tokens=200, eos_token_ids=(), tree_slots=64)


def decode(law: Law, name: str, options: dict[str, object], rows: int = 4) -> Generation:
    target, drafter = SyntheticTarget(law), SyntheticDrafter(law)
    algorithm = create(name, drafter if name != "autoregressive" else None, options)
    decoder = Decoder(target, algorithm, drafter, create_rule("greedy"), Sampler(0.0), 0)
    requests = [Request(row, [row + 1, 7, 9]) for row in range(rows)]
    return generate(decoder, requests, LIMITS, Stopwatch(torch.device("cpu")))


def contexts(count: int) -> np.ndarray:
    return mixed(np.arange(count, dtype=np.uint64), 5)


@pytest.mark.parametrize("concentration", [1.0, 20.0])
def test_every_rank_is_right_as_often_as_pinned(concentration):
    law, found = Law(RATES, concentration, seed=1), contexts(20_000)
    truth = law.next_token(found)
    for depth, pinned in enumerate(RATES):
        log_probs = law.log_probs(found, np.full(len(found), depth))
        own = np.exp(log_probs[np.arange(len(found)), truth])
        chances = law.chances(found, np.full(len(found), depth))[:, :-1]
        place = np.abs(chances - own[:, None]).argmin(1)
        rates = [((place == rank) & (own > 0)).mean() for rank in range(3)]
        assert rates == pytest.approx(pinned, abs=0.015)


def test_stated_chances_come_true():
    law, found = Law(RATES, 2.0, seed=0), contexts(20_000)
    probs = np.exp(law.log_probs(found, np.zeros(len(found), dtype=np.int64)))
    best, truth = probs.argmax(1), law.next_token(found)
    stated = probs.max(1)
    for low in (0.3, 0.5, 0.7, 0.9):
        chosen = (stated > low) & (stated < low + 0.1)
        assert (best == truth)[chosen].mean() == pytest.approx(stated[chosen].mean(), abs=0.05)


def test_depth_counts_from_the_root_of_the_step():
    """Where deep drafts are never right, a chain yields at most two tokens; with more mass, more."""
    chain = options_of("chain", {"children": "top_k"})
    shallow = decode(Law([[0.9], [0.0]], 50.0, seed=0), "chain", chain)
    assert max(map(max, shallow.emitted)) == 2
    deep = decode(Law([[0.9]], 50.0, seed=0), "chain", chain)
    assert len(deep.emitted) < len(shallow.emitted)


def test_any_tree_gives_the_laws_own_text():
    law = Law(RATES, 2.0, seed=3)
    plain = decode(law, "autoregressive", {})
    tree = decode(law, "eagle2", {"depth": 3, "top_k": 3, "total_tokens": 10})
    assert tree.tokens == plain.tokens
    assert len(tree.emitted) < 0.7 * len(plain.emitted)
    text = torch.tensor([[1, 7, 9, *plain.tokens[0][:-1]]])
    assert SyntheticTarget(law).score_text(text, last=200)[0].argmax(1).tolist() == plain.tokens[0]


def test_other_seeds_and_contexts_give_other_texts():
    one, other = (decode(Law(RATES, 2.0, seed), "autoregressive", {}) for seed in (0, 1))
    assert one.tokens != other.tokens
    assert one.tokens[0] != one.tokens[1]


@pytest.mark.parametrize("tau", [1.5, 3.5])
def test_a_published_length_is_met(tau):
    widths = [3, 2, 1, 1, 1]
    law = Law(fitted(tau, widths), 1e4, seed=0)  # contexts alike: the order of ranks is the same in all of them
    result = decode(law, "fixed_tree", options_of("fixed_tree", {"widths": widths, "children": "top_k"}))
    steps = sum(count > 0 for counts in result.emitted for count in counts)
    assert sum(map(len, result.tokens)) / steps == pytest.approx(tau, rel=0.08)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": None}, "needs either acceptance or tau"),
        ({"acceptance": [[0.5]]}, "needs either acceptance or tau"),
        ({"acceptance": [[0.8, 0.3]], "tau": None}, "sum of at most 1"),
        ({"tau": 99.0}, "yields between 1 and 7"),
        ({"colour": 1}, "check 'colour'"),
    ],
)
def test_impossible_laws_are_refused(change, message):
    options = OmegaConf.to_container(OmegaConf.load("conf/target/synthetic.yaml").law)
    assert isinstance(options, dict)
    with pytest.raises(TreebenchError, match=message):
        law_of({str(key): value for key, value in options.items()} | change)


def test_every_text_has_ids():
    ids = byte_tokenizer()("Grüße 世界\n")["input_ids"]
    assert len(ids) == len("Grüße 世界\n".encode())
    assert all(0 <= i < VOCABULARY for i in ids)
    assert byte_tokenizer().decode(ids) == "Grüße 世界\n"


def test_padding_is_never_proposed_for():
    law = Law(RATES, 2.0, seed=0)
    drafter = SyntheticDrafter(law)
    drafter.prefill(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    log_probs = drafter.expand(TokenTree.root(torch.tensor([3])), torch.tensor([[0, -1]]))
    assert log_probs[0, 0].exp().sum() == pytest.approx(0.9, abs=0.2)
    assert (log_probs[0, 1] == -torch.inf).all()
