"""Whether the tokens of a long pending part are what its bytes are encoded to, asked for each place in it: by lemma 2.

In: tokens in a tree (the teacher's contexts) or in a row (a student's tokens), with the bytes where they end. Inside one
pre-token tokens are what the merges make of their bytes if each can be made and each pair of neighbours is canonical
(docs/design.md, lemma 2). So what is known of a node follows from its parent, and the time does not grow with what is pending;
`Segmenter.agrees`, which encodes all of it, is the slow twin.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.bpe.segmenter import Segmenter

NO_NODE = -1
LONG_BYTES = 64
"""Of a pending part: behind a longer one this is asked, behind a shorter one `Segmenter.agrees`, whose answers are remembered."""


class Spelling:
    """token, parent, end: of each node, parents before children; NO_NODE: what lies before the first byte. Not thread-safe."""

    def __init__(self, segmenter: Segmenter, data: bytes, token: list[int], parent: list[int], end: list[int]) -> None:
        self.segmenter, self.merges, self.data = segmenter, segmenter.merges, data
        self.token, self.parent, self.end = token, parent, end
        self._since: dict[int, int] = {NO_NODE: 0}
        self._at: dict[int, dict[int, int | None]] = {}  # byte -> node -> its ancestor there
        self._more, self._more_at = b"", len(data)  # what stands instead of the data from a byte on

    def agrees(self, node: int, begin: int, bounds: Sequence[int], whole: int, seam: bool) -> bool:
        """Whether the tokens behind byte `begin` up to `node` are what the bytes from there are encoded to.

        bounds: bytes at which they are cut, rising, strictly between begin and `whole`, where the last whole character ends.
        seam: whether a cut lies there, too.
        """
        end = 0 if node == NO_NODE else self.end[node]
        edges = [begin, *bounds, *([whole] if seam and whole > begin else [])]
        at = edges[-1]
        if at < end:  # the beginning of a piece that goes on: merges only
            is_short = end - at <= self.segmenter.longest_apart
            if is_short and self.segmenter.added_id(self.bytes_of(at, end)) is not None:
                return False
            if self._from(node) > at:
                return False
        above = self.ancestor(node, at)
        for at, stop in zip(reversed(edges[:-1]), reversed(edges[1:]), strict=True):  # whole pieces
            if above is None:
                return False
            below, above = above, self.ancestor(above, at)
            if stop - at <= self.segmenter.longest_apart:
                if self._tokens(below, at) != list(self.segmenter.encode_whole(self.bytes_of(at, stop))):
                    return False
            elif self._from(below) > at:
                return False
        return above is not None

    def bytes_of(self, begin: int, end: int) -> bytes:
        """The bytes that the tokens spell there."""
        at = self._more_at
        if end <= at:
            return self.data[begin:end]
        return self.data[begin:at] + self._more[max(begin - at, 0) : end - at]

    def lengthen(self, node: int, tokens: Sequence[tuple[int, bytes]], whole: int) -> bytes:
        """Hang tokens, each with its bytes, behind a node, until `shorten`. Returns the bytes from `whole` (not behind the node's
        end) to their end."""
        end = self.end[node]
        self._more, self._more_at = self.data[whole:end] + b"".join(piece for _, piece in tokens), whole
        for token, piece in tokens:
            self.token.append(token)
            self.parent.append(node)
            end += len(piece)
            self.end.append(end)
            node = len(self.end) - 1
        return self._more

    def shorten(self, count: int) -> None:
        """Take away the last `count` tokens."""
        size = len(self.end) - count
        for line in (self.token, self.parent, self.end):
            del line[size:]
        for known in (self._since, *self._at.values()):
            for node in range(size, size + count):
                known.pop(node, None)
        self._more, self._more_at = b"", len(self.data)

    def ancestor(self, node: int, at: int) -> int | None:
        """The node itself or its ancestor that ends at this byte; None where none does."""
        if at == 0:
            return NO_NODE
        found, path = self._at.setdefault(at, {}), list[int]()
        while node != NO_NODE and node not in found and self.end[node] > at:
            path.append(node)
            node = self.parent[node]
        above = found[node] if node in found else node if node != NO_NODE and self.end[node] == at else None
        found.update(dict.fromkeys(path, above))
        return above

    def _from(self, node: int) -> int:
        """The first byte from which the tokens up to this node can be the beginning of one pre-token: every pair canonical."""
        known, path = self._since, list[int]()
        while node not in known:
            path.append(node)
            node = self.parent[node]
        for node in reversed(path):
            above, token = self.parent[node], self.token[node]
            since = begin = 0 if above == NO_NODE else self.end[above]
            if not self.merges.reachable(token):
                since = self.end[node]
            elif above != NO_NODE and known[above] < begin and self.merges.pair_is_canonical(self.token[above], token):
                since = known[above]
            known[node] = since
        return known[path[0]] if path else known[node]

    def _tokens(self, node: int, at: int) -> list[int]:
        out = list[int]()
        while node != NO_NODE and self.end[node] > at:
            out.append(self.token[node])
            node = self.parent[node]
        return out[::-1]
