"""Which prefixes' KV cells are resident: a tree of token runs, each of which owns its cells.

A node is a run of tokens after those of its parents. It has a sequence id of its own, under which
the memory holds the cells of that run and no others, so that a cell is counted once however many
sequences see it. A sequence that computes is let see the cells of a path of nodes, which it then
holds: what is held is never evicted. Nodes are told apart by token ids alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Memory(Protocol):
    """What of a KV cache is needed here; engine.llama.Context is one."""

    def share(self, source: int, target: int, start: int, end: int) -> None: ...
    def remove(self, sequence: int, start: int, end: int) -> None: ...
    def forget(self, sequence: int) -> None: ...


@dataclass(eq=False)
class Node:
    sequence: int
    start: int  # position of the first token
    tokens: list[int]
    parent: "Node | None"
    children: dict[int, "Node"] = field(default_factory=dict)  # by their first token
    holders: int = 0  # sequences that see this run
    last_used: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class PrefixCache:
    def __init__(self, memory: Memory, ids: Iterable[int]) -> None:
        """`ids` are the sequence ids that nodes may use; with none, nothing is ever resident."""
        self._memory = memory
        self._free_ids = list(ids)
        self._root = Node(sequence=-1, start=0, tokens=[], parent=None)
        self._nodes: set[Node] = set()
        self._holds: dict[int, Node] = {}  # computing sequence -> deepest node of its path
        self._clock = 0
        self.cells = 0  # of all nodes

    @property
    def held_cells(self) -> int:
        """Cells that cannot be evicted."""
        return sum(len(node.tokens) for node in self._nodes if node.holders)

    @property
    def nodes(self) -> int:
        return len(self._nodes)

    def length(self, sequence: int) -> int:
        """Tokens of the path that the sequence holds."""
        return self._deepest(sequence).end

    def resident(self, tokens: Sequence[int]) -> int:
        """How many of the tokens are resident; changes nothing."""
        node, length = self._root, 0
        while length < len(tokens) and (child := node.children.get(tokens[length])):
            length += common_prefix(child.tokens, tokens[length : length + len(child.tokens)])
            if length < child.end:
                break
            node = child
        return length

    def share(self, sequence: int, tokens: Sequence[int]) -> int:
        """Lets the sequence see what is resident of `tokens`; returns how many tokens that is.

        What it holds already must be a prefix of `tokens`. Cells that it computed itself for tokens
        that are resident too are given up.
        """
        node = self._deepest(sequence)
        self._clock += 1
        while node.end < len(tokens) and (child := node.children.get(tokens[node.end])):
            same = common_prefix(child.tokens, tokens[node.end : node.end + len(child.tokens)])
            if same < len(child.tokens):
                upper = self._split(child, same)
                if upper is None:
                    break
                child = upper
            self._memory.remove(sequence, child.start, child.end)
            self._memory.share(child.sequence, sequence, child.start, child.end)
            child.holders += 1
            self._holds[sequence] = node = child
        self._touch(node)
        return node.end

    def insert(self, sequence: int, tokens: Sequence[int]) -> None:
        """Makes `tokens`, all of them computed by the sequence, resident, and held by it.

        Where no sequence id is left for a node, the rest stays the sequence's own.
        """
        self.share(sequence, tokens)
        node = self._deepest(sequence)
        if node.end == len(tokens) or tokens[node.end] in node.children:
            return
        start, rest = node.end, list(tokens[node.end :])
        if node is not self._root and not node.children and node.holders == 1:
            node.tokens += rest
        else:
            new_id = self._take_id()
            if new_id is None:
                return
            parent = node
            node = Node(new_id, start, rest, parent, holders=1, last_used=self._clock)
            parent.children[rest[0]] = node
            self._nodes.add(node)
            self._holds[sequence] = node
        self._memory.share(sequence, node.sequence, start, len(tokens))
        self.cells += len(rest)

    def release(self, sequence: int) -> None:
        """The sequence sees nothing any more; what it made resident stays until evicted."""
        self._memory.forget(sequence)
        node: Node | None = self._holds.pop(sequence, None)
        self._clock += 1
        while node and node is not self._root:
            node.holders -= 1
            node.last_used = self._clock
            node = node.parent

    def evict(self, cells: int) -> int:
        """Frees up to so many cells, least recently used first, runs from their ends."""
        wanted = cells
        while cells > 0 and (leaf := self._oldest_leaf()):
            count = min(cells, len(leaf.tokens))
            self._trim(leaf, count)
            cells -= count
        return wanted - cells

    def clear(self) -> None:
        """Frees whatever is not held."""
        self.evict(self.cells)

    def _deepest(self, sequence: int) -> Node:
        return self._holds.get(sequence, self._root)

    def _touch(self, node: Node | None) -> None:
        while node:
            node.last_used = self._clock
            node = node.parent

    def _split(self, node: Node, count: int) -> Node | None:
        """A new node with the first `count` tokens, above the node, which keeps the others.

        None if no sequence id is left. The deepest node of a path stays the same object, so that
        whoever holds the node now holds both.
        """
        # The node itself may be the one that would be evicted for its id.
        new_id = self._take_id(besides=node)
        if new_id is None:
            return None
        assert node.parent is not None  # noqa: S101 (the root is never split)
        border = node.start + count
        upper = Node(
            new_id,
            node.start,
            node.tokens[:count],
            node.parent,
            {node.tokens[count]: node},
            node.holders,
            node.last_used,
        )
        self._memory.share(node.sequence, new_id, node.start, border)
        self._memory.remove(node.sequence, node.start, border)
        node.parent.children[upper.tokens[0]] = upper
        node.parent, node.start, node.tokens = upper, border, node.tokens[count:]
        self._nodes.add(upper)
        return upper

    def _take_id(self, besides: Node | None = None) -> int | None:
        if not self._free_ids and (leaf := self._oldest_leaf(besides)):
            self._trim(leaf, len(leaf.tokens))
        return self._free_ids.pop() if self._free_ids else None

    def _oldest_leaf(self, besides: Node | None = None) -> Node | None:
        leaves = (
            node
            for node in self._nodes
            if not node.children and not node.holders and node is not besides
        )
        return min(leaves, key=lambda node: node.last_used, default=None)

    def _trim(self, leaf: Node, count: int) -> None:
        """Frees the last `count` tokens' cells, and the node if none are left."""
        first = leaf.tokens[0]
        self._memory.remove(leaf.sequence, leaf.end - count, leaf.end)
        del leaf.tokens[len(leaf.tokens) - count :]
        self.cells -= count
        if not leaf.tokens:
            assert leaf.parent is not None  # noqa: S101 (the root is no leaf of _nodes)
            del leaf.parent.children[first]
            self._nodes.remove(leaf)
            self._free_ids.append(leaf.sequence)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(first), len(second))
    return next((at for at in range(length) if first[at] != second[at]), length)
