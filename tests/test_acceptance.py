"""Acceptance rules against plain sequential references, at their limits, and what they ask of the device."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from backend.acceptance import RULES, check_compatible, create_rule, default_rule
from backend.errors import Incompatible, TreebenchError
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import NO_NODE, Draft, Proposal, TokenTree
from tests.exact.reference import SAMPLER, Reference, random_case, stream

DETERMINISTIC, IID, WITHOUT = Proposal.DETERMINISTIC, Proposal.IID, Proposal.WITHOUT_REPLACEMENT
BY_RATIO = {"multi_step": (IID,), "recursive_rejection": (WITHOUT,), "traversal": (IID, WITHOUT)}


PAIRS = [(rule, p) for rule in ("greedy", "target_sampling") for p in (DETERMINISTIC, WITHOUT)]
PAIRS += [("target_sampling", IID), *[(rule, p) for rule, proposals in BY_RATIO.items() for p in proposals]]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    vocabulary=st.integers(2, 6),
    zeros=st.sampled_from([0.0, 0.3, 0.7]),
    pair=st.sampled_from(PAIRS),
)
def test_equals_the_sequential_reference(seed, sizes, vocabulary, zeros, pair):
    rule, proposal = pair
    draft, logits = random_case(seed, sizes, vocabulary, proposal, zeros)
    random = stream(len(sizes), seed)
    sampler = Sampler(0.0) if rule == "greedy" else SAMPLER
    accepted = create_rule(rule)(draft, logits, sampler, random)
    for row in range(len(sizes)):
        reference = Reference(draft, logits, random, row)
        path, bonus = reference(rule)
        assume(reference.closest > 1e-5)
        assert [node for node in accepted.path[row].tolist() if node != NO_NODE] == path
        assert accepted.bonus[row] == bonus


@pytest.mark.parametrize(("rule", "proposal"), PAIRS)
def test_independent_of_the_batch(rule, proposal):
    draft, logits = random_case(5, [7, 0, 9, 4], 5, proposal, 0.2)
    sampler = Sampler(0.0) if rule == "greedy" else SAMPLER
    whole = create_rule(rule)(draft, logits, sampler, stream(4))
    assert draft.laws is not None
    for rows in ([0], [1], [2, 0], [3, 1, 2, 0]):
        tree = draft.tree
        some = TokenTree(
            tree.tokens[rows], tree.parents[rows], tree.log_probs[rows], tree.path_log_probs[rows], tree.depths[rows],
            tree.ancestors[rows], tree.height,
        )  # fmt: skip
        part = Draft(some, draft.nodes[rows], proposal, draft.laws[rows])
        accepted = create_rule(rule)(part, logits[rows], sampler, stream(4).select(torch.tensor(rows)))
        assert torch.equal(accepted.path, whole.path[rows])
        assert torch.equal(accepted.bonus, whole.bonus[rows])


def star(tokens, laws=None, proposal=DETERMINISTIC, rows=1):
    """Children of the root, one row repeated."""
    tree = TokenTree.root(torch.zeros(rows, dtype=torch.int64))
    new = torch.tensor(tokens).expand(rows, -1)
    tree = tree.add(torch.zeros_like(new), new, torch.zeros(new.shape))
    nodes = torch.arange(tree.num_nodes).expand(rows, -1)
    return Draft(tree, nodes, proposal, None if laws is None else laws.expand(rows, tree.num_nodes, -1))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "typical_lossy"])
def test_an_empty_tree_is_plain_decoding(rule):
    rows = 3000
    proposal = BY_RATIO.get(rule, (DETERMINISTIC,))[0]
    target = torch.tensor([0.2, 0.5, 0.3])
    draft = Draft(
        TokenTree.root(torch.zeros(rows, dtype=torch.int64)), torch.zeros(rows, 1, dtype=torch.int64), proposal
    )
    if rule in BY_RATIO:
        draft = draft._replace(laws=torch.full((rows, 1, 3), 1 / 3))
    sampler = Sampler(0.0) if rule == "greedy" else SAMPLER
    accepted = create_rule(rule)(draft, target.log().expand(rows, 1, 3), sampler, stream(rows))
    assert accepted.path.tolist() == [[0]] * rows
    shares = torch.bincount(accepted.bonus, minlength=3) / rows
    expected = torch.tensor([0.0, 1.0, 0.0]) if rule == "greedy" else target
    assert (shares - expected).abs().max() < 0.05


@pytest.mark.parametrize(("rule", "proposal"), [(rule, p) for rule, ps in BY_RATIO.items() for p in ps])
def test_disjoint_supports_accept_nothing(rule, proposal):
    draft = star([0, 1], torch.tensor([0.5, 0.5, 0, 0]), proposal, rows=500)
    create = create_rule(rule)
    accepted = create(draft, torch.tensor([0, 0, 0.5, 0.5]).log().expand(500, 3, 4), SAMPLER, stream(500))
    assert accepted.num_nodes.unique().tolist() == [1]
    assert accepted.bonus.unique().tolist() == [2, 3]
    assert create.events.read() == {"invalid_rows": 0, "vanished_residuals": 0}


@pytest.mark.parametrize("rule", ["recursive_rejection", "traversal"])
def test_the_whole_vocabulary_without_replacement_is_always_accepted(rule):
    draft = star([2, 0, 1], torch.tensor([0.3, 0.3, 0.4]), WITHOUT, rows=500)
    accepted = create_rule(rule)(draft, torch.tensor([0.1, 0.8, 0.1]).log().expand(500, 4, 3), SAMPLER, stream(500))
    assert accepted.num_nodes.unique().tolist() == [2]


@pytest.mark.parametrize("rule", ["recursive_rejection", "traversal"])
def test_an_exhausted_law_stops_the_tries(rule):
    """The draft's law has one token, so a second child cannot have been drawn: it is not tried."""
    draft = star([0, 1], torch.tensor([1.0, 0, 0]), WITHOUT, rows=300)
    accepted = create_rule(rule)(draft, torch.tensor([0, 0.5, 0.5]).log().expand(300, 3, 3), SAMPLER, stream(300))
    assert accepted.num_nodes.unique().tolist() == [1]
    assert accepted.bonus.unique().tolist() == [1, 2]


class Rejects(RandomStream):
    """Its uniform numbers are as large as they can be."""

    def uniforms(self, counter, num_lanes):
        return torch.full((*counter.shape, num_lanes), 1 - 2.0**-53, dtype=torch.float64)


@pytest.mark.parametrize("rule", BY_RATIO)
def test_a_vanished_residual_keeps_the_target_and_is_counted(rule):
    """The target's row sums to a little less than the draft's: a rejection that exact arithmetic rules out."""
    target = torch.tensor([0.5, 0.5])
    draft = star([0], target * (1 + 2**-20), BY_RATIO[rule][0])
    create = create_rule(rule)
    accepted = create(draft, target.log().expand(1, 2, 2), SAMPLER, Rejects(torch.zeros(1, dtype=torch.int64)))
    assert create.events.read()["vanished_residuals"] == 1
    assert accepted.path.tolist() == [[0, NO_NODE]]
    assert accepted.bonus.tolist() == [1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_without_a_law_emit_token_0_and_are_counted(rule, bad):
    proposal = BY_RATIO.get(rule, (DETERMINISTIC,))[0]
    options = {"epsilon": 0.3, "delta": 0.09} if rule == "typical_lossy" else {}
    draft = star([1, 2], torch.tensor([0.0, 0.5, 0.5]), proposal)
    logits = torch.zeros(1, 3, 3)
    logits[0, 0, 1] = bad
    create = create_rule(rule, **options)
    accepted = create(draft, logits, Sampler(0.0) if rule == "greedy" else SAMPLER, stream(1))
    assert accepted.path.tolist() == [[0, NO_NODE]]
    assert accepted.bonus.tolist() == [0]
    assert create.events.read()["invalid_rows"] == 1


def test_padding_counts_for_nothing():
    draft, logits = random_case(1, [6, 1], 4, DETERMINISTIC, 0.0)
    logits[~draft.exists] = float("nan")
    for rule, sampler in (("greedy", Sampler(0.0)), ("target_sampling", SAMPLER)):
        create = create_rule(rule)
        accepted = create(draft, logits, sampler, stream(2))
        assert create.events.read()["invalid_rows"] == 0
        assert accepted.num_nodes.max() <= draft.tree.height + 1


def test_greedy_takes_the_first_of_equal_logits():
    accepted = create_rule("greedy")(
        star([1, 0]), torch.tensor([2.0, 2.0, 1.0]).expand(1, 3, 3), Sampler(0.0), stream(1)
    )
    assert accepted.path.tolist() == [[0, 2]]


def test_typical_acceptance_is_lossy_and_follows_its_thresholds():
    rule = create_rule("typical_lossy", epsilon=0.3, delta=0.09)
    assert not rule.lossless
    assert [name for name in RULES if not create_rule(name, **_options(name)).lossless] == ["typical_lossy"]
    flat, peaked = torch.tensor([0.3, 0.4, 0.3]), torch.tensor([0.02, 0.97, 0.01])
    for law_, expected in ((flat, [0, 1]), (peaked, [0, NO_NODE])):
        accepted = rule(star([0]), law_.log().expand(1, 2, 3), SAMPLER, stream(1))
        assert accepted.path.tolist() == [expected]
    likelier = rule(star([0, 1]), flat.log().expand(1, 3, 3), SAMPLER, stream(1))
    assert likelier.path.tolist() == [[0, 2]]


def _options(name):
    return {"epsilon": 0.3, "delta": 0.09} if name == "typical_lossy" else {}


def test_the_table_of_compatible_pairs():
    valid = {(rule, p) for rule in RULES for p in Proposal if _is_compatible(rule, p)}
    any_proposal = {(rule, p) for rule in ("greedy", "target_sampling", "typical_lossy") for p in Proposal}
    assert valid == any_proposal | {(rule, p) for rule, proposals in BY_RATIO.items() for p in proposals}
    for proposal in Proposal:
        for temperature in (0.0, 0.7):
            check_compatible(default_rule(proposal, temperature), proposal, temperature)


def _is_compatible(rule, proposal):
    try:
        check_compatible(rule, proposal)
    except Incompatible as reason:
        return "\n" in str(reason)
    return True


def test_misuse_is_refused():
    laws = torch.full((4,), 0.25)
    logits = torch.zeros(1, 2, 4)
    with pytest.raises(Incompatible, match="iid drafts"):
        create_rule("recursive_rejection")(star([0], laws, IID), logits, SAMPLER, stream(1))
    with pytest.raises(Incompatible, match="laws"):
        create_rule("recursive_rejection")(star([0], None, WITHOUT), logits, SAMPLER, stream(1))
    with pytest.raises(Incompatible, match="temperature 0"):
        create_rule("greedy")(star([0]), logits, SAMPLER, stream(1))
    for name, options in (("optimistic", {}), ("greedy", {"epsilon": 0.1}), ("typical_lossy", {"epsilon": 0.1})):
        with pytest.raises(TreebenchError):
            create_rule(name, **options)


class NoSync(TorchDispatchMode):
    """Fails on operations that bring a number to the host or whose result's size depends on data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        indices = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        masked = any(index is not None and index.dtype is torch.bool for index in indices)
        synchronizes = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
        assert name not in synchronizes and not masked, f"{name} waits for the device"  # noqa: PT018
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("rule", "temperature"), [("greedy", 0.0), ("target_sampling", 0.8), ("typical_lossy", 0.8)])
@pytest.mark.parametrize("proposal", [DETERMINISTIC, IID])
def test_nothing_waits_for_the_device(rule, temperature, proposal):
    draft, logits = random_case(3, [8, 5, 70], 6, proposal, 0.1)
    create = create_rule(rule, **_options(rule))
    random = stream(3)
    with NoSync():
        create(draft, logits, Sampler(temperature, 3, 0.9), random)
    with pytest.raises(AssertionError), NoSync():
        create.events.read()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 12))
def test_a_larger_tree_never_accepts_less(seed, size):
    draft, logits = random_case(seed, [size], 3, DETERMINISTIC, 0.0)
    rule, lengths = create_rule("greedy"), []
    for width in range(1, draft.nodes.shape[1] + 1):
        part = draft._replace(nodes=draft.nodes[:, :width], laws=None)
        lengths.append(int(rule(part, logits[:, :width], Sampler(0.0), stream(1)).num_nodes))
    assert lengths == sorted(lengths)
    assert lengths[-1] <= draft.tree.height + 1
