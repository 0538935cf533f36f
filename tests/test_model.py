"""What TreeModel, its cache and DraftModel keep true from prompt to commit, on one tiny Llama."""

import pytest
import torch
from torch import Tensor

from backend.drafters.draft_model import DraftModel
from backend.errors import TreebenchError
from backend.model import TreeModel
from backend.tree import NO_NODE, Accepted, TokenTree
from tests.test_architectures import LEVELS, PATHS, Rows, all_nodes, largest_error, path_logits, random_tree
from tests.tiny_models import VOCAB, tiny_llama

LENGTHS = (5, 17, 11)
PLAIN = tiny_llama()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def random_rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows([torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths])


def target(rows: Rows, capacity: int = 64) -> TreeModel:
    model = TreeModel(tiny_llama())
    model.allocate(len(rows.prefixes), capacity)
    model.prefill(*rows.padded())
    return model


def drafter(rows: Rows, vocab_size: int = VOCAB) -> DraftModel:
    model = DraftModel("small", tiny_llama(), vocab_size)
    model.allocate(len(rows.prefixes), 64)
    model.prefill(*rows.padded())
    return model


def path_of(*rows: list[int]) -> Tensor:
    width = max(1, *map(len, rows))
    return torch.tensor([row + [NO_NODE] * (width - len(row)) for row in rows])


def accepted(path: Tensor, tree: TokenTree) -> Accepted:
    return Accepted(path, tree.tokens[:, 0])


def chain(batch: int, length: int, seed: int = 0) -> TokenTree:
    tokens = torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
    tree = TokenTree.root(tokens[:, 0])
    for node in range(1, length):
        tree = tree.add(torch.full((batch, 1), node - 1), tokens[:, node : node + 1], torch.zeros(batch, 1))
    return tree


def assert_scores(model: TreeModel, rows: Rows, tree: TokenTree) -> None:
    assert largest_error(model.expand(tree, all_nodes(tree)), path_logits(PLAIN, rows, tree)) < 1e-5


def assert_drafts(found: Tensor, rows: Rows, tree: TokenTree, nodes: Tensor) -> None:
    expected = path_logits(PLAIN, rows, tree).log_softmax(2)
    expected = expected.gather(1, nodes.clamp(min=0)[:, :, None].expand(-1, -1, VOCAB))
    assert largest_error(found, expected.masked_fill((nodes == NO_NODE)[:, :, None], torch.nan)) < 1e-5


def assert_caches(model: TreeModel, rows: Rows) -> None:
    """The committed part of every layer equals that of a fresh prefill."""
    ours, fresh = model._cache(), target(rows)._cache()
    assert ours.lengths.tolist() == fresh.lengths.tolist() == [len(prefix) for prefix in rows.prefixes]
    for row, prefix in enumerate(rows.prefixes):
        for mine, other in zip(ours.stacks, fresh.stacks, strict=True):
            live = slice(0, len(prefix))
            torch.testing.assert_close(mine[:, row, :, live], other[:, row, :, live], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [(0, 0, 0), (0, 4, 1), (1, 30, 12)])
def test_prefixes_of_any_length_down_to_none(lengths):
    """A prompt of one token leaves no prefix: that token is the root."""
    rows, tree = random_rows(lengths), random_tree(1)
    assert_scores(target(rows), rows, tree)


@pytest.mark.parametrize("seed", range(4))
def test_compaction_in_place_equals_a_fresh_prefill(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, tree = random_rows(seed=seed), random_tree(seed)
    model = target(rows)
    for _ in range(3):
        model.expand(tree, all_nodes(tree))
        leaves = torch.multinomial(tree.exists.float(), 1, generator=generator)[:, 0].tolist()
        above = tree.is_ancestor(torch.arange(tree.num_nodes).expand(3, -1), torch.tensor(leaves)[:, None])[:, 0]
        path = path_of(*[row.nonzero()[:, 0].tolist() for row in above])
        model.commit(tree, accepted(path, tree))
        rows = rows.after(tree, path)
        assert_caches(model, rows)


def test_a_finished_row_keeps_its_length_and_the_others_go_on():
    rows, tree = random_rows(), random_tree(1)
    model = target(rows)
    for path in (PATHS.clone(), path_of([0], [], [0, 2]), path_of([], [], [])):
        path[1] = NO_NODE
        model.expand(tree, all_nodes(tree))
        model.commit(tree, accepted(path, tree))
        rows = rows.after(tree, path)
        assert_caches(model, rows)
    assert model._cache().lengths[1] == LENGTHS[1]


def test_garbage_slots_never_matter():
    rows, tree = random_rows(), random_tree(1)
    clean, poisoned = target(rows), target(rows)
    for row, prefix in enumerate(rows.prefixes):
        for stack in poisoned._cache().stacks:
            stack[:, row, :, len(prefix) :] = 1e6
    for model_tree in (tree, random_tree(2)):
        nodes, real = all_nodes(model_tree), model_tree.exists
        assert torch.equal(clean.expand(model_tree, nodes)[real], poisoned.expand(model_tree, nodes)[real])
        for model in (clean, poisoned):
            model.commit(model_tree, accepted(PATHS, model_tree))


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("lengths", [(9,), LENGTHS])
def test_the_bound_on_lengths_holds_with_and_without_settling(settled, lengths):
    rows = random_rows(lengths)
    model, tree = target(rows), chain(len(lengths), 4)
    path = path_of(*[[0, 1][: 1 + row % 2] + [NO_NODE] * 3 for row in range(len(lengths))])
    for _ in range(3):
        assert_scores(model, rows, tree)
        model.commit(tree, accepted(path, tree))
        rows = rows.after(tree, path)
        assert model._cache().longest >= int(model._cache().lengths.max())
        if settled:
            model.settle()
            assert model._cache().longest == int(model._cache().lengths.max())
    assert_scores(model, rows, TokenTree.root(tree.tokens[:, 0]))  # one node: the shortcut without a mask


def test_a_full_cache_is_one_clear_line():
    rows, tree = random_rows(), random_tree(1)
    target(rows, capacity=17 + tree.num_nodes).expand(tree, all_nodes(tree))
    with pytest.raises(TreebenchError, match=r"holds 29 tokens per sequence but 30 are needed; raise[^\n]*$"):
        target(rows, capacity=16 + tree.num_nodes).expand(tree, all_nodes(tree))
    with pytest.raises(TreebenchError, match=r"holds 16 tokens[^\n]*17 are needed"):
        target(rows, capacity=16)


def test_more_than_the_models_context_is_refused():
    model = TreeModel(tiny_llama())
    model.allocate(1, 512)
    with pytest.raises(TreebenchError, match=r"513 tokens per sequence are needed but the model's context holds 512"):
        model.allocate(1, 513)


def test_allocating_again_keeps_a_cache_that_is_large_enough():
    model = target(random_rows())
    cache = model.cache
    model.allocate(3, 32)
    assert model.cache is cache
    model.allocate(2, 32)
    assert model.cache is not cache


@pytest.mark.parametrize("last", [1, 4, 12])
def test_score_text_equals_a_plain_forward(last):
    text = torch.tensor(random_rows((12, 12)).prefixes)
    found = TreeModel(tiny_llama()).score_text(text, last)
    torch.testing.assert_close(found, PLAIN(text, use_cache=False).logits[:, -last:], rtol=0, atol=1e-5)


def test_an_accepted_leaf_that_was_never_expanded_is_owed():
    rows, tree, second = random_rows(), chain(3, 4), random_tree(2)
    model = drafter(rows)
    inner = torch.arange(3).expand(3, -1)
    assert_drafts(model.expand(tree, inner), rows, tree, inner)
    path = path_of([0, 1, 2, 3], [0, 1], [0, 1, 2, 3])
    model.commit(tree, accepted(path, tree))
    assert model.owed.tolist() == [1, 0, 1]
    rows = rows.after(tree, path)
    assert_drafts(model.expand(second, all_nodes(second)), rows, second, all_nodes(second))
    model.commit(second, accepted(PATHS, second))
    assert_caches(model, rows.after(second, PATHS))


def test_rows_owe_different_counts_over_several_steps_at_once():
    rows, second = random_rows(), random_tree(2)
    model = drafter(rows)
    for seed, path in enumerate((path_of([0], [0, 1, 2], []), path_of([0, 1], [0, 1, 2, 3], [0, 1]))):
        tree = chain(3, 4, seed)
        model.commit(tree, accepted(path, tree))  # another drafter grew this tree: nothing of it was expanded here
        rows = rows.after(tree, path)
    assert model.owed.tolist() == [3, 7, 2]
    assert_drafts(model.expand(second, all_nodes(second)), rows, second, all_nodes(second))
    model.commit(second, accepted(PATHS, second))
    assert_caches(model, rows.after(second, PATHS))


def test_padding_of_owed_tokens_fits_into_a_cache_without_a_slot_to_spare():
    """The longest row owes fewer than another one: its padding must stay within what the plan counted."""
    rows, tree = random_rows((4, 20)), chain(2, 5)
    model = drafter(rows)
    path = path_of([0, 1, 2, 3, 4], [0, 1, 2])
    model.commit(tree, accepted(path, tree))
    model._cache().capacity = 20 + 5 + 1
    for table in (model._cache().keys, model._cache().values):
        table.update({layer: buffer[:, :, : model._cache().capacity] for layer, buffer in table.items()})
    root, node = TokenTree.root(tree.tokens[:, 0]), torch.zeros(2, 1, dtype=torch.int64)
    assert_drafts(model.expand(root, node), rows.after(tree, path), root, node)


@pytest.mark.parametrize("nodes", [path_of([11], [10], [5]), path_of([4, 11], [5, 10], [6]), path_of([12], [], [12])])
def test_unseen_ancestors_are_caught_up_in_mid_tree(nodes):
    """A cascade: another drafter grew the tree after this one had seen its first levels."""
    rows, tree = random_rows(), random_tree(1)
    model = drafter(rows)
    seen = all_nodes(tree)[:, : 1 + LEVELS[0].shape[1]]
    model.expand(tree, seen)
    assert_drafts(model.expand(tree, nodes), rows, tree, nodes)
    later = all_nodes(tree).masked_fill((all_nodes(tree)[:, :, None] == model.entries[:, None]).any(2), NO_NODE)
    assert_drafts(model.expand(tree, later), rows, tree, later)
    model.commit(tree, accepted(PATHS, tree))
    assert_caches(model, rows.after(tree, PATHS))


def test_a_node_expanded_twice_is_an_error():
    rows, tree = random_rows(), random_tree(1)
    model = drafter(rows)
    model.expand(tree, all_nodes(tree)[:, :4])
    with pytest.raises(ValueError, match="expanded twice"):
        model.expand(tree, all_nodes(tree)[:, 3:5])


@pytest.mark.parametrize("size", [VOCAB - 11, VOCAB, VOCAB + 7])
def test_a_vocabulary_of_another_size_is_fitted(size):
    rows, tree = random_rows(), random_tree(1)
    found = drafter(rows, size).expand(tree, all_nodes(tree))
    assert found.shape[2] == size
    assert (found[:, :, VOCAB:] == -torch.inf).all()
    expected = path_logits(PLAIN, rows, tree).log_softmax(2)[:, :, :size]
    assert largest_error(found[:, :, :VOCAB].softmax(2), expected.softmax(2)) < 1e-5
