"""Token trees: what growing one keeps true, checked on random ragged trees of up to three mask words."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backend.arrays import on_host
from backend.tree import NO_NODE, WORD_BITS, Accepted, Draft, TokenTree, TreeBuilder

SIZES = [3, 20, 64, 65, 100, 129, 150]


def random_tree(seed: int, batch: int, num_nodes: int, missing: float = 0.2) -> TokenTree:
    """Grown a random number of nodes at a time; a parent is any existing earlier node of its row."""
    generator = torch.Generator().manual_seed(seed)
    tree = TokenTree.root(torch.randint(0, 1000, (batch,), generator=generator))
    while tree.num_nodes < num_nodes:
        new = min(int(torch.randint(1, 40, (), generator=generator)), num_nodes - tree.num_nodes)
        parents = torch.multinomial(tree.exists.float(), new, replacement=True, generator=generator)
        parents = parents.masked_fill(torch.rand(parents.shape, generator=generator) < missing, NO_NODE)
        tokens = torch.randint(0, 1000, parents.shape, generator=generator)
        tree = tree.add(parents, tokens, -torch.rand(parents.shape, generator=generator))
    return tree


def walk(tree: TokenTree, row: int, node: int) -> list[int]:
    """From the node up to the root."""
    path = []
    while node != NO_NODE:
        path.append(node)
        node = int(tree.parents[row, node])
    return path


def closed_choice(tree: TokenTree, seed: int) -> Draft:
    """The ancestors of some random nodes of each row, padded."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(tree.tokens.shape[0]):
        existing = tree.exists[row].nonzero()[:, 0]
        picked = existing[torch.rand(existing.shape, generator=generator) < 0.2].tolist()
        rows.append(sorted({0, *(node for leaf in picked for node in walk(tree, row, leaf))}))
    width = max(map(len, rows)) + 1
    return Draft(tree, torch.tensor([row + [NO_NODE] * (width - len(row)) for row in rows]))


trees = st.builds(random_tree, st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(SIZES))


def every(tree: TokenTree) -> Tensor:
    return torch.arange(tree.num_nodes).expand(tree.tokens.shape[0], -1)


@settings(max_examples=25, deadline=None)
@given(trees)
def test_ancestors_depths_and_path_scores_equal_a_plain_walk(tree):
    seen = tree.is_ancestor(every(tree), every(tree))
    for row, node in tree.exists.nonzero().tolist():
        path = walk(tree, row, node)
        assert seen[row, node].nonzero()[:, 0].tolist() == path[::-1]
        assert tree.depths[row, node] == len(path) - 1 <= tree.height
        torch.testing.assert_close(tree.path_log_probs[row, node], tree.log_probs[row, path].sum())


@settings(max_examples=15, deadline=None)
@given(trees)
def test_parents_precede_children_and_exist(tree):
    children = tree.exists.clone()
    children[:, 0] = False
    assert (tree.parents[children] < every(tree)[children]).all()
    assert tree.exists.gather(1, tree.parents.clamp(min=0))[children].all()
    assert tree.ancestors.shape[2] == -(-tree.num_nodes // WORD_BITS)


@settings(max_examples=15, deadline=None)
@given(trees)
def test_a_node_that_a_row_lacks_is_nobodys_ancestor_and_worth_nothing(tree):
    seen = tree.is_ancestor(every(tree), every(tree))
    missing = ~tree.exists
    assert not seen.transpose(1, 2)[missing].any()
    assert not seen[missing].any()
    assert (tree.log_probs[missing] == -torch.inf).all()
    assert (tree.path_log_probs[missing] == -torch.inf).all()


@settings(max_examples=10, deadline=None)
@given(trees, st.integers(0, 100))
def test_adding_changes_nothing_that_was_there(tree, seed):
    size = 1 + seed % tree.num_nodes
    parents = torch.full((tree.tokens.shape[0], size), 0)
    grown = tree.add(parents, parents, parents.float())
    for name in ("tokens", "parents", "log_probs", "path_log_probs", "depths"):
        assert torch.equal(getattr(grown, name)[:, : tree.num_nodes], getattr(tree, name))
    words = tree.ancestors.shape[2]
    assert torch.equal(grown.ancestors[:, : tree.num_nodes, :words], tree.ancestors)
    assert not grown.ancestors[:, : tree.num_nodes, words:].any()


def test_trees_that_a_builder_has_handed_out_stay_as_they_were():
    builder, whole = TreeBuilder(TokenTree.root(torch.tensor([3, 4]))), random_tree(5, 2, 300)
    handed_out = []
    for node in range(1, 300):  # one by one, whatever the parent
        builder.add(*(on_host(values[:, [node]]) for values in (whole.parents, whole.tokens, whole.log_probs)))
        handed_out.append((builder.tree, builder.tree.ancestors.clone(), builder.tree.path_log_probs.clone()))
    for tree, ancestors, path_log_probs in handed_out:
        words = ancestors.shape[2]
        assert torch.equal(tree.ancestors, ancestors)
        assert torch.equal(tree.path_log_probs, path_log_probs)
        assert torch.equal(ancestors, whole.ancestors[:, : tree.num_nodes, :words])
        assert torch.equal(tree.depths, whole.depths[:, : tree.num_nodes])
        assert tree.height == tree.num_nodes - 1  # a bound
        assert words == -(-tree.num_nodes // WORD_BITS)


def test_a_chain_over_three_words_sees_exactly_what_is_above_it():
    tree = TokenTree.root(torch.tensor([7]))
    for node in range(1, 150):
        tree = tree.add(torch.tensor([[node - 1]]), torch.tensor([[node]]), torch.zeros(1, 1))
    assert torch.equal(tree.is_ancestor(every(tree), every(tree))[0], torch.ones(150, 150).tril().bool())
    assert tree.height == 149


def test_no_node_as_key_or_query_is_never_related():
    tree = random_tree(0, 2, 10)
    nobody = torch.full((2, 3), NO_NODE)
    assert not tree.is_ancestor(nobody, every(tree)).any()
    assert not tree.is_ancestor(every(tree), nobody).any()


def test_scores_stay_fp32_whatever_the_drafter_hands_in():
    roots = torch.zeros(1, 2, dtype=torch.int64)
    tree = TokenTree.root(torch.tensor([1])).add(roots, roots, torch.zeros(1, 2).bfloat16())
    assert tree.log_probs.dtype == tree.path_log_probs.dtype == torch.float32


@settings(max_examples=25, deadline=None)
@given(trees, st.integers(0, 100))
def test_parent_places_point_at_the_parent(tree, seed):
    draft = closed_choice(tree, seed)
    places = draft.parent_places()
    for row, nodes in enumerate(draft.nodes.tolist()):
        for node, place in zip(nodes, places[row].tolist(), strict=True):
            parent = NO_NODE if node == NO_NODE else int(tree.parents[row, node])
            assert place == (NO_NODE if parent == NO_NODE else nodes.index(parent))


@settings(max_examples=15, deadline=None)
@given(trees, st.integers(0, 100))
def test_values_come_in_the_order_of_the_chosen_nodes(tree, seed):
    draft = closed_choice(tree, seed)
    tokens = draft.of_nodes(tree.tokens)
    for row, nodes in enumerate(draft.nodes.tolist()):
        assert tokens[row].tolist() == [int(tree.tokens[row, max(node, 0)]) for node in nodes]
    assert torch.equal(draft.exists, draft.nodes != NO_NODE)


@settings(max_examples=25, deadline=None)
@given(trees, st.data())
def test_emitted_tokens_are_the_path_after_the_root_then_the_bonus(tree, data):
    rows, expected = [], []
    for row in range(tree.tokens.shape[0]):
        leaf = data.draw(st.sampled_from([NO_NODE, *tree.exists[row].nonzero()[:, 0].tolist()]))
        path = walk(tree, row, leaf)[::-1]
        rows.append(path)
        expected.append([*tree.tokens[row, path[1:]].tolist(), 2000 + row] if path else [])
    width = max(1, *map(len, rows)) + 1
    path = torch.tensor([nodes + [NO_NODE] * (width - len(nodes)) for nodes in rows])
    accepted = Accepted(path, 2000 + torch.arange(len(rows)))
    assert accepted.num_nodes.tolist() == list(map(len, rows))
    assert accepted.emitted(tree) == expected
