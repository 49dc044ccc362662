"""One chunk of text (a word and its space, mostly) goes in, its part of the context tree comes out; each distinct chunk once.

A *chunk* is a piece of a document between two certain cuts, the second of which is certain as soon as the next unit is
read (docs/design.md, definition 5). So the contexts that end inside it, or at its end, depend on its own bytes and the
trunk node before it only: chunks are small (a word and its space), few, and their subtrees are remembered.

Inside a chunk nodes have *local* numbers: ROOT (-1) is the trunk node where the chunk begins, 0..T-1 its trunk tokens,
from T on its branches, parents before children. Ends are bytes from the chunk's begin, depths count from ROOT.

Letters: C chunks, T trunk tokens, B branches, P wanted places, A contexts that end at wanted places, F fringe entries.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from engine.bpe.pending import PendingCuts, cut_text
from engine.bpe.segmenter import Segmenter

ROOT = -1
_OUTSIDE = -2  # below another first token than the given one: outside what the teacher was asked
NO_TOKEN = -1  # in a prefix tree: no tokens spell this prefix (inside a character, where there are no byte tokens)
Spelling = tuple[list[int], list[int]]
"""Of a piece: the last token of each of its beginnings, and where that token begins (`MergeTable.prefix_tree`)."""
_CHUNK_START = "\0"  # the class without any answer: before a certain cut nothing can be asked of


@dataclass(slots=True)
class Subtree:
    """One chunk's nodes in local numbers. at, fringe: per wanted place, in the order of the places."""

    token: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    at: list[list[int]] = field(default_factory=list)
    fringe: list[list[tuple[int, int]]] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    given_first: bool = False

    def add(self, parent: int, token: int, end: int) -> int:
        """The child of `parent` by `token`, made when it is new; _OUTSIDE below ROOT where the first token is given."""
        node = self.children.get((parent, token))
        if node is None:
            if parent == _OUTSIDE or (parent == ROOT and self.given_first and self.token):
                return _OUTSIDE
            node = self.children[parent, token] = len(self.token)
            self.token.append(token)
            self.parent.append(parent)
            self.end.append(end)
            self.depth.append(self.depth[parent] + 1 if parent >= 0 else 1)
        return node


class ChunkGrower:
    """Makes subtrees for one teacher vocabulary, byte by byte. Not thread-safe."""

    def __init__(self, segmenter: Segmenter, cuts: PendingCuts) -> None:
        self.segmenter, self.cuts = segmenter, cuts
        self.vocabulary, self.merges = segmenter.vocabulary, segmenter.merges
        self._longest_apart = segmenter.longest_apart

    def grow(
        self, chunk: bytes, places: list[int], trunk: list[int], *, given_first: bool, fringe: bool, shift: int
    ) -> Subtree:
        """places: wanted bytes 1..len(chunk), rising; trunk: the chunk's tokens; given_first: no BOS stands before the
        chunk, so its first token is given. Raises BadDocument("too_long") for a monstrous pre-token.

        For each wanted byte (lemma 7): the tokens up to the last certain cut are the trunk's. Behind it the pending part is
        cut in one of its ways; a way is a *route*: tokens of the pieces that end before the byte lead to a node, `head`, and
        the last piece, which begins at byte `at`, grows from there. Contexts that end at the byte are the ends of the routes'
        last pieces. All encodings of the beginnings of one piece are one prefix tree (lemma 4), made once for the longest
        beginning that is asked.
        """
        tree, node, end = Subtree(given_first=given_first), ROOT, 0
        node_at = {0: ROOT}  # byte -> the trunk node that ends there
        for token in trunk:
            end += len(self.vocabulary.token_bytes[token] or b"")
            node = node_at[end] = tree.add(node, token, end)
        text = cut_text(self.cuts.splitter, chunk, before=_CHUNK_START, shift=shift)
        # (place, head, at, whether the piece may end at the place, whether it may go on)
        routes: list[tuple[int, int, int, bool, bool]] = []
        stretch: dict[int, int] = {}  # at -> the furthest place that a route from there goes to
        route_at = [0]  # [P+1] routes of places[i]: routes[route_at[i]:route_at[i + 1]]
        pieces: dict[int, Spelling] = {}  # at -> prefix tree of the piece that begins there, as far as it was asked for
        # (head, at) -> length of a prefix of the piece -> its node, for the prefixes whose nodes are known
        known: dict[tuple[int, int], dict[int, int]] = {}
        heads: dict[tuple[int, int], dict[int, int]] = {}  # the same, of pieces that end before a place
        for place, part in zip(places, text.parts(places), strict=True):
            for cuts, whole, goes in self.cuts.ways(text, place, part.start, part.unit, part.left):
                head, at = node_at[part.begin], part.begin
                for cut in cuts:
                    stop = int(text.byte_of[cut])
                    if stop - at > self._longest_apart and not self.cuts.splitter.byte_units:  # along the prefix tree
                        prefixes = heads.setdefault((head, at), {0: head})
                        node = self._along(tree, self._spelt(pieces, chunk, at, stop), prefixes, at, stop - at)
                        assert node is not None  # a cut lies behind whole characters
                        head, at = node, stop
                        continue
                    for token in self.segmenter.encode_whole(chunk[at:stop]):
                        at += len(self.vocabulary.token_bytes[token] or b"")
                        head = tree.add(head, token, at)
                    at = stop
                if whole or goes:  # else an added text lies across the place, and only `head` is a context
                    routes.append((place, head, at, whole, goes))
                    stretch[at] = place
            route_at.append(len(routes))
        for at, stop in stretch.items():
            self._spelt(pieces, chunk, at, stop)
        for first, last in zip(route_at, route_at[1:], strict=False):
            nodes: dict[int, None] = {}
            for place, head, at, whole, _ in routes[first:last]:
                prefixes = known.setdefault((head, at), {0: head})
                self._ends(tree, chunk, pieces[at], prefixes, at, place, whole, nodes)
            nodes.pop(_OUTSIDE, None)
            tree.at.append(list(nodes))
        tops: dict[tuple[int, int], list[tuple[int, int] | None]] = {}
        for first, last in zip(route_at, route_at[1:], strict=False) if fringe else ():
            found: dict[tuple[int, int], None] = {}
            for place, head, at, _, goes in routes[first:last]:
                if goes and len(known[head, at]) <= stretch[at] - at:  # else each beginning of the piece has its node
                    top = tops.get((head, at))
                    if top is None:
                        top = tops[head, at] = self._tops(tree, pieces[at], stretch[at] - at, head)
                    first_live = max(place - at - self.merges.longest_bytes + 1, 1)
                    found.update((entry, None) for entry in top[first_live : place - at] if entry is not None)
            tree.fringe.append(list(found))
        return tree

    def _spelt(self, pieces: dict[int, Spelling], chunk: bytes, at: int, stop: int) -> Spelling:
        """The prefix tree of the piece from `at` on, at least up to `stop`."""
        known = pieces.get(at)
        if known is None:
            known = pieces[at] = ([-1], [-1])
        if len(known[0]) <= stop - at:
            self.merges.lengthen(chunk[at:stop], known)
        return known

    def _along(self, tree: Subtree, spelling: Spelling, prefixes: dict[int, int], at: int, size: int) -> int | None:
        """The node at the end of the first `size` bytes of the piece that begins at `at`, made where it is new; None where no
        tokens spell them. prefixes: length of a beginning -> its node, filled on the way."""
        token, parent = spelling
        steps, i = [], size  # from the end back to a beginning that has its node
        while i not in prefixes:
            steps.append(i)
            i = parent[i] if token[i] != NO_TOKEN else 0
        if steps and token[steps[-1]] == NO_TOKEN:
            return None
        node = prefixes[i]
        for i in reversed(steps):
            node = prefixes[i] = tree.add(node, token[i], at + i)
        return node

    def _ends(
        self,
        tree: Subtree,
        chunk: bytes,
        spelling: Spelling,
        prefixes: dict[int, int],
        at: int,
        place: int,
        whole: bool,
        nodes: dict[int, None],
    ) -> None:
        """Add the nodes at the end of the piece at .. place; two where a whole-word-only token can end here.

        spelling: prefix tree of the whole growing piece (`MergeTable.prefix_tree`). prefixes: as for `_along`. whole: the piece
        may end here. nodes: an ordered set.
        """
        apart = place - at <= self._longest_apart  # short enough for an added text or a word of `ignore_merges`
        piece = chunk[at:place] if apart else b""
        added = apart and self.segmenter.added_id(piece) is not None
        if not added:  # an added text is never spelt by BPE
            node = self._along(tree, spelling, prefixes, at, place - at)
            if node is not None:
                nodes[node] = None
        if (
            whole and apart and (added or self.vocabulary.ignore_merges)
        ):  # "not by merges" (section 2); else the same tokens
            node, end = prefixes[0], at
            for t in self.segmenter.encode_whole(piece):
                end += len(self.vocabulary.token_bytes[t] or b"")
                node = tree.add(node, t, end)
            nodes[node] = None

    def _tops(self, tree: Subtree, spelling: Spelling, size: int, head: int) -> list[tuple[int, int] | None]:
        """For each beginning of a piece what of its context hangs off the tree: (node, token) of the first one of its ancestors,
        or itself, that is not in the tree; None where all are. By the length of the beginning.

        Lemma 7, p < e: a live context that ends inside the last, still growing piece is a node of its prefix tree. nodes[i]: the
        node of the piece's first i bytes, _OUTSIDE where it is not in the tree.
        """
        token, parent = spelling
        nodes, tops = [head] + [_OUTSIDE] * size, list[tuple[int, int] | None]([None] * (size + 1))
        for i in range(1, size + 1):
            if token[i] == NO_TOKEN:
                continue
            above = nodes[parent[i]]
            if above == _OUTSIDE:
                tops[i] = tops[parent[i]]
                continue
            child = tree.children.get((above, token[i]))
            if child is not None:
                nodes[i] = child
            elif above != ROOT or not tree.given_first:
                tops[i] = (above, token[i])
        return tops


class ChunkStore:
    """Subtrees of distinct chunks, numbered, end to end in flat int32 pools, one for each width of rows:

    trunk [., 1] token; branch [., 4] token, parent, end, depth; place [., 3] place, contexts there, fringe entries there;
    at [., 1] node; fringe [., 2] node, token. `size`: about how many bytes are held.
    """

    WIDTHS = (1, 4, 3, 1, 2)

    def __init__(self) -> None:
        self.number: dict[bytes, int] = {}  # key of a chunk and the unit behind it -> its number, or that it is none
        self.same: dict[tuple[bytes, bytes, bytes, bool], int] = {}  # all that a subtree is made of -> its number
        self.size = 0
        self._pools = [array("i") for _ in self.WIDTHS]
        self._starts = array("q", [0] * len(self.WIDTHS))  # rows of each pool before chunk 0, before chunk 1, ...

    def note(self, key: bytes, number: int) -> None:
        """Remember the number of a key."""
        self.number[key] = number
        self.size += len(key) + 150

    def put(self, tree: Subtree, trunk: int, places: list[int]) -> int:
        """Store a subtree of `trunk` trunk tokens; returns its number."""
        number = len(self._starts) // len(self.WIDTHS) - 1
        branches = zip(tree.token[trunk:], tree.parent[trunk:], tree.end[trunk:], tree.depth[trunk:], strict=True)
        fringe = tree.fringe or [[]] * len(places)
        counts = ((place, len(at), len(f)) for place, at, f in zip(places, tree.at, fringe, strict=True))
        self._pools[0].extend(tree.token[:trunk])
        self._pools[1].extend([value for row in branches for value in row])
        self._pools[2].extend([value for row in counts for value in row])
        self._pools[3].extend([node for nodes in tree.at for node in nodes])
        self._pools[4].extend([value for entries in fringe for row in entries for value in row])
        self._starts.extend(len(pool) // width for pool, width in zip(self._pools, self.WIDTHS, strict=True))
        self.size += 4 * (trunk + 4 * len(tree.token) + 5 * len(places)) + 8 * len(self.WIDTHS) + 400
        return number

    def gather(self, chunks: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """For chunks [C] in order: the rows of each pool, int32 [rows, width], and how many rows each has, int64 [5, C]."""
        starts = np.frombuffer(self._starts, np.int64).reshape(-1, len(self.WIDTHS))
        first = starts[chunks].T
        counts = starts[chunks + 1].T - first
        behind = np.cumsum(counts, axis=1)
        shift = first - behind + counts
        rows = []
        for pool, width, move, count in zip(self._pools, self.WIDTHS, shift, counts, strict=True):
            index = np.repeat(move, count)
            index += np.arange(len(index))
            flat = np.frombuffer(pool, np.int32) if len(pool) else np.empty(0, np.int32)
            rows.append(flat.reshape(-1, width)[index])
        return rows, counts
