"""Operations that cost less in Python than in torch where the numbers lie on the host."""

from jaxtyping import Int
from torch import Tensor

from backend.tree import NO_NODE, Accepted, Draft, Proposal


def follow(draft: Draft, picks: Int[Tensor, "batch width"]) -> Accepted:
    """As `matching.follow`, node by node; waits for the device."""
    rows = zip(*(field.tolist() for field in (draft.nodes, picks, draft.tree.tokens, draft.tree.parents)), strict=True)
    distinct = draft.proposal is Proposal.IID
    followed = [_follow_row(*row, distinct=distinct) for row in rows]
    width = draft.tree.height + 1
    paths = [path + [NO_NODE] * (width - len(path)) for path, _ in followed]
    return Accepted(draft.nodes.new_tensor(paths), picks.new_tensor([bonus for _, bonus in followed]))


def _follow_row(
    nodes: list[int], picks: list[int], tokens: list[int], parents: list[int], distinct: bool
) -> tuple[list[int], int]:
    """The path and the pick where it ends. Distinct: only the first of siblings with the same token counts."""
    paths = {nodes[0]: [nodes[0]]}
    pick_after = dict(zip(nodes, picks, strict=True))
    taken = set()
    best = nodes[0]
    for node in nodes[1:]:
        parent = parents[node] if node != NO_NODE else NO_NODE
        if parent in paths and tokens[node] == pick_after[parent] and not (distinct and parent in taken):
            taken.add(parent)
            paths[node] = [*paths[parent], node]
            best = max(best, node, key=lambda some: len(paths[some]))
    return paths[best], pick_after[best]
