"""What a tree consists of, as arrays on the host, and the loops that write it."""

from typing import NamedTuple

import numpy as np

from backend.arrays import compiled

NO_NODE = -1
WORD_BITS = 64


class Fields(NamedTuple):
    """A tree's tensors as arrays (batch, place, ...) on the host, with room behind the last node."""

    tokens: np.ndarray
    parents: np.ndarray
    log_probs: np.ndarray
    path_log_probs: np.ndarray
    depths: np.ndarray
    ancestors: np.ndarray


@compiled
def with_room(fields: Fields, room: int):
    """Larger copies of the fields; their last place holds what `NO_NODE` finds."""
    shape, used = (len(fields.tokens), room), fields.tokens.shape[1]
    tokens, parents, depths = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int64)
    log_probs, path_log_probs = np.empty(shape, np.float32), np.empty(shape, np.float32)
    ancestors = np.empty((*shape, room // WORD_BITS), np.int64)
    tokens[:, :used], parents[:, :used], depths[:, :used] = fields.tokens, fields.parents, fields.depths
    log_probs[:, :used], path_log_probs[:, :used] = fields.log_probs, fields.path_log_probs
    ancestors[:, :used] = 0
    ancestors[:, :used, : fields.ancestors.shape[2]] = fields.ancestors
    tokens[:, -1], parents[:, -1], depths[:, -1] = 0, NO_NODE, -1
    log_probs[:, -1], path_log_probs[:, -1] = -np.inf, -np.inf
    ancestors[:, -1] = 0
    return tokens, parents, log_probs, path_log_probs, depths, ancestors


@compiled
def append(fields: Fields, start: int, new_parents, new_tokens, new_log_probs, nodes) -> bool:
    """Write new nodes into the fields, and what they are called into `nodes`; whether a place was left empty."""
    has_gaps = False
    for row in range(new_parents.shape[0]):
        for i in range(new_parents.shape[1]):
            node, log_prob = start + i, new_log_probs[row, i]
            exists = new_parents[row, i] != NO_NODE and log_prob != -np.inf
            parent = new_parents[row, i] if exists else NO_NODE
            has_gaps |= not exists
            nodes[row, i] = node if exists else NO_NODE
            fields.tokens[row, node] = new_tokens[row, i]
            fields.parents[row, node] = parent
            fields.log_probs[row, node] = log_prob if exists else -np.inf
            fields.path_log_probs[row, node] = fields.path_log_probs[row, parent] + fields.log_probs[row, node]
            fields.depths[row, node] = fields.depths[row, parent] + 1
            for word in range(fields.ancestors.shape[2]):
                fields.ancestors[row, node, word] = fields.ancestors[row, parent, word]
            if exists:
                fields.ancestors[row, node, node // WORD_BITS] |= np.int64(1) << np.int64(node % WORD_BITS)
    return has_gaps
