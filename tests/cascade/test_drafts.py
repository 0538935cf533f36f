"""Self-drafts and cascades: their laws, the cache that they share, what they cost in forwards, what is refused."""

from typing import Any

import pytest
import torch

from backend.drafters.layer_skip import expanded, without_layers
from backend.drafters.pool import Pool
from backend.drafters.registry import clocked_models, once_more
from backend.errors import TreebenchError
from backend.layers import SUPPORTED
from backend.tree import NO_NODE, Accepted, TokenTree, Verified
from tests.cascade.parts import BLOCKS, INT8, LOOKUP, PROMPT, SKIP, draft, pool, random_tree, ready, target_of
from tests.parts import prompts
from tests.tiny_models import tiny_llama

ROWS = [PROMPT, [*prompts([6])[0], 5]]
TEXT = torch.tensor([[5, 9, 7, 5, 9]])


def one_shot(target: Any, member: Any, tree: TokenTree) -> torch.Tensor:
    every = torch.arange(tree.num_nodes).expand_as(tree.tokens)
    return ready(target, once_more(member), ROWS).expand(tree, every.masked_fill(~tree.exists, NO_NODE))


@torch.inference_mode()
def test_members_of_a_pool_take_turns_within_one_tree():
    """Each member's answers are those of a fresh one asked about the whole tree, whoever drafted in between; a member
    that is called in late catches up, and the keys of its skipped blocks are nobody's."""
    target = target_of()
    drafter, tree = pool(target), random_tree(ROWS)
    expected = {name: one_shot(target, member, tree) for name, member in drafter.members.items()}
    ready(target, drafter, ROWS)
    names = list(drafter.members)
    for turn, nodes in enumerate(([0], [1, 2], [4, 3], [5, 6])):
        asked = torch.tensor([nodes, nodes]).masked_fill(~tree.exists[:, nodes], NO_NODE)
        for name in names[turn % 2 :: 2] if turn < 3 else names:
            found = drafter.members[name].expand(tree, asked)
            there = asked != NO_NODE
            wanted = expected[name].gather(1, asked.clamp(min=0)[:, :, None].expand(-1, -1, found.shape[2]))
            torch.testing.assert_close(
                found[there], wanted[there], atol=2e-5, rtol=1e-5, msg=lambda m, n=name: f"{n} {m}"
            )


@torch.inference_mode()
def test_members_are_distinct_and_share_weights():
    target = target_of()
    drafter = pool(target)
    tree = random_tree(ROWS)
    laws = {name: one_shot(target, member, tree) for name, member in drafter.members.items()}
    assert torch.allclose(laws["int8"][0], laws["vc_int8"][0], atol=2e-5), "a vertical cascade has its top draft's law"
    for one, other in (("int8", "skip"), ("skip", "blocks"), ("int8", "lookup")):
        assert not torch.allclose(laws[one][0], laws[other][0], atol=1e-3)
    weights = {weight.data_ptr() for weight in target.model.parameters()}
    for model in clocked_models(drafter):
        assert {weight.data_ptr() for weight in model.model.parameters()} <= weights
        assert model.cache is None
    top: Any = drafter.members["vc_int8"]
    assert top.top.model is drafter.members["int8"].model, "referred to, not quantized again"


class Counting:
    """A draft that counts the calls to it."""

    def __init__(self, drafter: Any) -> None:
        self.drafter, self.calls = drafter, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def expand(self, tree: TokenTree, nodes: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.drafter.expand(tree, nodes)


@torch.inference_mode()
@pytest.mark.parametrize(("lookahead", "calls"), [(0, 6), (3, 2)])
def test_a_right_lookahead_saves_forwards(lookahead, calls):
    """The bottom draft copies 9 7 5 9 7 ...; asked along that passage, the top draft runs once for four nodes."""
    target = target_of()
    cascade = draft(target, "vertical_cascade", top=SKIP, bottom=LOOKUP, lookahead=lookahead, lenience=1.0)
    cascade.top = Counting(cascade.top)
    ready(target, cascade, [PROMPT])
    tree = TokenTree.root(torch.tensor([5]))
    for parent, token in enumerate([9, 7, 5, 9, 7]):
        cascade.expand(tree, torch.tensor([[parent]]))
        tree = tree.add(torch.tensor([[parent]]), torch.tensor([[token]]), torch.zeros(1, 1))
    cascade.expand(tree, torch.tensor([[5]]))
    assert cascade.top.calls == calls
    accepted = Accepted(torch.tensor([[0, 1, 2]]), torch.tensor([8]))
    cascade.commit(tree, accepted, Verified(torch.tensor([[0, 1, 2, 3]]), torch.zeros(1, 4, 61)))
    assert cascade.bottom.rows[0].tokens == [*PROMPT[:-1], 5, 9, 7]


@torch.inference_mode()
def test_lenience_takes_the_bottom_drafts_token_within_its_factor():
    target, root = target_of(), TokenTree.root(torch.tensor([5]))
    exact = ready(target, draft(target, **SKIP), [PROMPT]).expand(root, torch.tensor([[0]]))[0, 0]
    factor = float((exact.max() - exact[9]).exp())
    assert factor > 1, "the lookup's token is not the favourite"
    for lenience, likeliest in ((factor * 0.99, int(exact.argmax())), (factor * 1.01, 9)):
        cascade = draft(target, "vertical_cascade", top=SKIP, bottom=LOOKUP, lookahead=2, lenience=lenience)
        law = ready(target, cascade, [PROMPT]).expand(root, torch.tensor([[0]]))[0, 0]
        assert int(law.argmax()) == likeliest
        assert law.exp().sum() == pytest.approx(1, abs=1e-5)


@torch.inference_mode()
def test_a_horizontal_cascade_asks_by_depth():
    target = target_of()
    cascade = draft(target, "horizontal_cascade", drafts=[SKIP, BLOCKS, LOOKUP], lengths=[1, 1])
    tree = random_tree(ROWS)
    laws = [one_shot(target, part, tree) for part in cascade.parts]
    found = one_shot(target, cascade, tree)
    for node, whose in enumerate((0, 1, 1, 2, 2, 2)):
        assert torch.allclose(found[0, node], laws[whose][0, node], atol=2e-5)


@torch.inference_mode()
def test_cascades_nest():
    target = target_of()
    inner = {"kind": "vertical_cascade", "top": SKIP, "bottom": LOOKUP, "lookahead": 2, "lenience": 1.0}
    outer = {"kind": "horizontal_cascade", "drafts": [inner, "skip"], "lengths": [2]}
    drafter = draft(target, "pool", members={"outer": outer, "skip": SKIP})
    tree = random_tree(ROWS)
    laws = [one_shot(target, member, tree) for member in drafter.parts]
    there = tree.exists
    torch.testing.assert_close(laws[0][there], laws[1][there], atol=2e-5, rtol=1e-5)
    assert len(list(clocked_models(drafter))) == 3


def test_skipping_both_blocks_skips_the_layer():
    model: Any = tiny_llama()
    whole = without_layers(model, [1])(TEXT, use_cache=False).logits
    blocks = without_layers(model, ["1.attention", "1.mlp"])(TEXT, use_cache=False).logits
    assert torch.equal(whole, blocks)
    assert not torch.allclose(whole, without_layers(model, ["1.mlp"])(TEXT, use_cache=False).logits)
    assert torch.equal(model(TEXT, use_cache=False).logits, tiny_llama()(TEXT, use_cache=False).logits)


def test_early_exit_leaves_after_its_layers():
    target, shallow = target_of(), tiny_llama()
    leaving = draft(target, "early_exit", layers=2)
    shallow.model.layers = shallow.model.layers[:2]  # type: ignore[union-attr]
    expected = shallow(TEXT, use_cache=False).logits
    ready(target, leaving, [[5]])
    assert torch.allclose(
        leaving.expand(TokenTree.root(TEXT[:, 0]), torch.tensor([[0]]))[0, 0], expected[0, 0].log_softmax(0), atol=1e-5
    )
    with pytest.raises(TreebenchError, match=r"^early_exit.layers is 9; the target has 1 to 4 layers to leave after$"):
        draft(target, "early_exit", layers=9)


def test_a_skip_set_may_come_from_a_file(tmp_path):
    file = tmp_path / "set.json"
    file.write_text('{"skip": [1, "2.mlp"]}')
    assert expanded([0, str(file)]) == [0, 1, "2.mlp"]
    file.write_text("{}")
    with pytest.raises(TreebenchError, match=r"is no result of runners\.search_layers"):
        expanded([str(file)])


@pytest.mark.parametrize("item", ["1.norm", "x.mlp", "mlp"])
def test_unknown_blocks(item):
    with pytest.raises(TreebenchError, match=r"it takes layers \(5\) and blocks \(5.attention, 5.mlp\)"):
        without_layers(tiny_llama(), [item])


def test_unknown_layouts_are_refused_with_what_is_supported():
    model: Any = tiny_llama()
    model.model.layers[1].mixer = model.model.layers[1].mlp
    del model.model.layers[1].mlp
    with pytest.raises(
        TreebenchError, match="'llama' cannot be skipped block by block: layer 1 consists of"
    ) as refusal:
        without_layers(model, ["1.mlp"])
    assert str(refusal.value).endswith(f"mixer; {SUPPORTED}")
    for part in ("one module list", "an attention block called self_attn or attn", "an mlp block called mlp or"):
        assert part in SUPPORTED


def test_a_layer_that_does_more_than_adding_is_refused():
    model: Any = tiny_llama()
    layer = model.model.layers[1]
    kind: Any = type(layer)

    class Doubling(kind):
        def forward(self, hidden_states):
            return 2 * hidden_states

    class Demanding(kind):
        def forward(self, hidden_states, needed):
            return hidden_states

    layer.__class__ = Doubling
    with pytest.raises(TreebenchError, match=r"\(a layer does more .*\); skip whole layers instead$"):
        without_layers(model, ["1.mlp"])
    layer.__class__ = Demanding
    with pytest.raises(TreebenchError, match=r"missing .* 'needed'\); skip whole layers instead$"):
        without_layers(model, ["1.mlp"])


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("pool", {"members": {}}, "drafter pool has no members"),
        ("pool", {"members": {"a": "b"}}, r"there is no draft 'b' to refer to \(made before it: none"),
        ("pool", {"members": {"a": {"skip": []}}}, "has no kind"),
        ("horizontal_cascade", {"drafts": [SKIP, LOOKUP], "lengths": []}, "2 drafts need 1 lengths of at least 1"),
        ("vertical_cascade", {"top": SKIP, "bottom": LOOKUP, "lookahead": 2, "lenience": 0.5}, "must be at least 1"),
        ("vertical_cascade", {"top": SKIP, "bottom": LOOKUP, "lookahead": -1, "lenience": 1.0}, "must be at least 0"),
        ("weight_quantized", INT8 | {"kind": 0, "bits": 3, "group": 32}, "bits is 3; it must be 4 or 8"),
        ("weight_quantized", INT8 | {"kind": 0, "bits": 4, "group": 48}, "group is 48; it must be 32, 64, 128 or 256"),
        (
            "weight_quantized",
            INT8 | {"kind": 0, "bits": 4, "group": 256},
            "groups of 256 do not divide a weight with 32",
        ),
    ],
)
def test_bad_options(kind, options, line):
    with pytest.raises(TreebenchError, match=line):
        draft(target_of(), kind, **{key: value for key, value in options.items() if key != "kind"})


def test_a_pool_is_a_drafter_of_its_own():
    target = target_of()
    drafter = pool(target)
    assert isinstance(drafter, Pool)
    assert [member.name for member in drafter.parts] == list(drafter.members)
    tree, root = TokenTree.root(torch.tensor([5])), torch.tensor([[0]])
    law = ready(target, drafter, [PROMPT]).expand(tree, root)
    assert torch.equal(law, ready(target, drafter, [PROMPT]).members["int8"].expand(tree, root))
