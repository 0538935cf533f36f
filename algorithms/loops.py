"""The loops over nodes that trees grow by, as machine code; arrays in, arrays out, (batch, ...) each.

All of them in one file, since compiled code is renewed on disk when its own file changes, not when a callee's does.
"""

import numpy as np
from jaxtyping import Float, Int

from backend.arrays import compiled
from backend.tree import NO_NODE

Nodes = Int[np.ndarray, "batch node"]
Values = Float[np.ndarray, "batch node"]
Floor = Float[np.ndarray, "batch 1"]
Frontier = Int[np.ndarray, "batch frontier"]
Tokens = Int[np.ndarray, "batch frontier width"]
LogProbs = Float[np.ndarray, "batch frontier width"]
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]  # parents, tokens and log-probabilities, (batch, new)


@compiled
def best_places(values: Values, count: int) -> Nodes:
    """Places of the `count` largest values, ascending; ties go to the earlier place."""
    width = values.shape[1]
    count = min(count, width)
    best = np.empty((len(values), count), np.int64)
    for row in range(len(values) if count else 0):
        least = np.partition(values[row], width - count)[width - count]
        ties, found = count - (values[row] > least).sum(), 0
        for place, value in enumerate(values[row]):
            if value > least or (value == least and ties > 0):
                best[row, found] = place
                found += 1
                ties -= value == least
    return best


@compiled
def best_first(values: Values, count: int, first: int) -> tuple[Nodes, Values, Values]:
    """The nodes of the `count` largest values, largest first, where they are numbered from `first` on.

    Also gives these values and their prefix sums. Ties go to the earlier node.
    """
    places = best_places(values, count)
    nodes, ordered = np.empty_like(places), np.empty(places.shape, values.dtype)
    sums = np.empty_like(ordered)
    for row in range(len(values)):
        best = values[row][places[row]]
        order = np.argsort(-best, kind="mergesort")  # the stable one
        nodes[row], ordered[row] = places[row][order] + first, best[order]
        sums[row] = ordered[row].cumsum()
    return nodes, ordered, sums


@compiled
def first_of_each(nodes: Nodes, values: Values, counts: Int[np.ndarray, " group"]) -> Nodes:
    """The first nodes of each row that are worth anything, as many as its group wants; at least one column."""
    first = np.full((len(nodes), max(1, counts.max())), NO_NODE)
    for row in range(len(nodes)):
        for i in range(min(counts[row % len(counts)], nodes.shape[1])):
            if values[row, i] > 0:
                first[row, i] = nodes[row, i]
    return first


@compiled
def reached(parents: Nodes, first: int, above: Values, chances: Values) -> Values:
    """Path probabilities of a level: each node's chance times that of its parent, in `above` from node `first` on."""
    values = np.zeros_like(chances)
    for row, i in np.ndindex(parents.shape):
        if parents[row, i] != NO_NODE:
            values[row, i] = above[row, parents[row, i] - first] * chances[row, i]
    return values


@compiled
def compacted(nodes: Nodes) -> Nodes:
    """Ascending, without columns that are `NO_NODE` in every row; rows begin with their first node."""
    counts = (nodes != NO_NODE).sum(1)
    packed = np.full((len(nodes), counts.max()), NO_NODE)
    for row, count in enumerate(counts):
        packed[row, :count] = np.sort(nodes[row])[nodes.shape[1] - count :]  # `NO_NODE` comes first
    return packed


@compiled
def places_in(among: Nodes, nodes: Nodes, num_nodes: int) -> Nodes:
    """Where each of `nodes` stands in its row of `among`; `NO_NODE` where it does not."""
    found = np.empty_like(nodes)
    for row in range(len(nodes)):
        places = np.full(num_nodes + 1, NO_NODE)
        for place, node in enumerate(among[row]):
            places[node] = place  # of padding in the last one, for which nothing asks
        for i, node in enumerate(nodes[row]):
            found[row, i] = NO_NODE if node == NO_NODE else places[node]
    return found


@compiled
def candidates_at(places: Nodes, frontier: Frontier, tokens: Tokens, log_probs: LogProbs) -> Candidates:
    """Those at some places of each row's children, none at `NO_NODE`; a single row of places stands for all."""
    batch, _, width = tokens.shape
    shape = (batch, places.shape[1])
    parents, chosen, chances = np.full(shape, NO_NODE), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for row in range(batch):
        for i, place in enumerate(places[row % len(places)]):
            if place != NO_NODE:
                node, child = place // width, place % width
                parents[row, i] = frontier[row, node]
                chosen[row, i], chances[row, i] = tokens[row, node, child], log_probs[row, node, child]
    return parents, chosen, chances


@compiled
def slot_values(log_probs: LogProbs, first: Values, floor: Floor, is_drawn: bool) -> LogProbs:
    """Values of next children, from those of the first ones; 0 from where they do not exceed `floor`.

    Drawn ones are valued before their token is known.
    """
    values = np.zeros_like(log_probs)
    for row, node in np.ndindex(first.shape):
        drawn = np.float32(0)  # mass of the elder siblings
        for child, log_prob in enumerate(log_probs[row, node]):
            chance = np.exp(log_prob)
            value = first[row, node] * (np.float32(1) - drawn if is_drawn else chance)
            if value <= floor[row, 0] or chance == 0:
                break
            values[row, node, child] = value
            drawn += chance
    return values


@compiled
def best_slots(
    slots: LogProbs, budget: int, frontier: Frontier, tokens: Tokens, log_probs: LogProbs
) -> tuple[Values, np.ndarray, np.ndarray, np.ndarray]:
    """Values, parents, tokens and log-probabilities of the `budget` best ones above 0; parent `NO_NODE` at padding."""
    counts = np.array([min(budget, (slots[row] > 0).sum()) for row in range(len(slots))])
    places, values = np.full((len(slots), counts.max()), NO_NODE), np.zeros((len(slots), counts.max()), slots.dtype)
    for row, count in enumerate(counts):
        flat = slots[row].ravel()
        chosen = np.flatnonzero(flat > 0)
        if len(chosen) > budget:
            chosen = chosen[best_places(flat[chosen].reshape(1, -1), budget)[0]]
        places[row, :count], values[row, :count] = chosen, flat[chosen]
    return (values, *candidates_at(places, frontier, tokens, log_probs))


@compiled
def first_slot_values(path_log_probs: Values, nodes: Nodes, values: Values) -> Values:
    """That a node is reached, but never above its own slot's value."""
    worth = np.empty_like(values)
    for row, i in np.ndindex(nodes.shape):
        worth[row, i] = min(np.exp(path_log_probs[row, nodes[row, i]]), values[row, i])
    return worth


@compiled
def raised(floor: Floor, values: Values, budget: int) -> Floor:
    """The value of the `budget`-th best node below the root, where it is above `floor`."""
    higher, width = floor.copy(), values.shape[1] - 1
    for row in range(len(values) if width >= budget else 0):
        higher[row, 0] = max(floor[row, 0], np.partition(values[row, 1:], width - budget)[width - budget])
    return higher


@compiled
def worth_expanding(
    path_log_probs: Values, nodes: Nodes, filled: Values, values: Values, floor: Floor, budget: int
) -> tuple[Nodes, Values, Values, Floor]:
    """Of new nodes in slots worth `filled`: those whose first slot exceeds the raised floor, and what that is worth.

    Also gives the values of all slots so far, and that floor.
    """
    values = np.concatenate((values, filled), axis=1)
    floor = raised(floor, values, budget)
    worth = first_slot_values(path_log_probs, nodes, filled)
    counts = np.array([(worth[row] > floor[row, 0]).sum() for row in range(len(worth))])
    kept, first = np.full((len(worth), counts.max()), NO_NODE), np.zeros((len(worth), counts.max()), worth.dtype)
    for row, count in enumerate(counts):
        above = worth[row] > floor[row, 0]
        kept[row, :count], first[row, :count] = nodes[row][above], worth[row][above]
    return kept, first, values, floor


@compiled
def best_nodes(values: Values, budget: int) -> Nodes:
    """The root and the `budget` best nodes worth anything, `NO_NODE` for others; the earlier one wins a tie."""
    best = best_places(values, budget + 1)
    for row, i in np.ndindex(best.shape):
        if values[row, best[row, i]] <= 0:
            best[row, i] = NO_NODE
    return best
