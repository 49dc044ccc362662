"""A document and the bytes that matter to its students go in; out comes the tree of all teacher contexts that end there.

A *context* is a canonical teacher-token prefix whose bytes are the document's first bytes (docs/design.md, definition 3).
Prefixes of canonical sequences are canonical, so contexts form a tree; the *trunk* is the document's own tokenization.
The tree holds the trunk and every context that ends at a *wanted* byte (the student boundaries), with all its ancestors.
More than one context can end at one byte: after `"\\n  "` a tokenizer that looks ahead has cut differently for `x` and
for another space. Contexts that end at other bytes are not evaluated; they are the *fringe*, whose mass is bounded.

A document is cut into chunks at certain cuts (engine/contexts/chunks.py). Where such cuts may lie is guessed from pairs of
neighbouring unit classes; each guess is proved once for each distinct chunk and next unit by `Splitter.certain`, and a
chunk whose end is not proved grows to the next guess. Chunks hang together at trunk nodes, so a document's tree is its
chunks' subtrees put end to end.

Bytes are counted in the teacher's own byte string: the prefix (a space, for SentencePiece) and then the text.
Letters: N nodes, n trunk tokens, P wanted places, C chunks, K unit classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.bpe.pending import PendingCuts, starts_of_units
from engine.bpe.segmenter import Segmenter
from engine.contexts.chunks import ChunkGrower, ChunkStore
from engine.contexts.tree import ContextTree
from schemas.errors import BadDocument, IdentityError

_NOT_A_CHUNK = -1  # the number of a key whose end is no certain cut
_GIVEN_FIRST = b"\xff\xff"  # before the key of a first chunk without BOS; no other key has a second byte above 1
_UNKNOWN = -1
_MOST_REMEMBERED = 256 << 20  # bytes; beyond this all that is remembered of chunks is forgotten


class ContextBuilder:
    """Builds trees for one teacher vocabulary; remembers subtrees of chunks. Not thread-safe."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.vocabulary, self.merges, self.splitter = segmenter.vocabulary, segmenter.merges, segmenter.splitter
        self._cuts = PendingCuts(self.vocabulary, self.splitter)
        self._grower = ChunkGrower(segmenter, self._cuts)
        self._stores = {True: ChunkStore(), False: ChunkStore()}  # by whether the fringe is asked for
        self._seams = np.empty((0, 0), np.int8)  # [K, K]: may a certain cut lie between two classes; _UNKNOWN
        self._length = np.array([len(b or b"") for b in self.vocabulary.token_bytes], np.int32)

    def build(
        self,
        data: bytes,
        ids: Sequence[int] | np.ndarray,
        wanted: Sequence[int] | np.ndarray,
        bos: tuple[int, ...],
        *,
        fringe: bool = True,
    ) -> ContextTree:
        """data: prefix + text; ids: its canonical tokens; wanted: rising bytes of `data`; bos: given tokens, maybe none.

        Without BOS the first token of the text is given, and wanted bytes before its end are left out. `fringe` False
        leaves the fringe arrays empty. Raises BadDocument("too_short") when no token is left to score,
        BadDocument("too_long") for a monstrous pre-token, IdentityError when ids are not the tokens of data.
        """
        if not bos and len(ids) < 2:
            raise BadDocument(
                "too_short", f"the text is {len(ids)} teacher token(s), the first is given: nothing to score"
            )
        tokens = np.asarray(ids, np.int32)
        ends = np.cumsum(self._length[tokens], dtype=np.int32)
        places = np.asarray(wanted, np.int32)
        if not bos:
            places = places[places >= ends[0]]
        if (np.diff(places) <= 0).any():
            raise ValueError("contexts: wanted bytes must rise")
        store = self._stores[fringe]
        if store.size > _MOST_REMEMBERED:
            self._forget()
            store = self._stores[fringe]
        chunks, begins = self._chunks(store, data, tokens, ends, places, bool(bos), fringe)
        return self._assemble(store, chunks, begins, tokens, ends, places, bos)

    def _forget(self) -> None:
        """Empty every cache that grows with the text: a job may see terabytes."""
        self._stores = {True: ChunkStore(), False: ChunkStore()}
        self._cuts.forget()
        self.splitter.forget()
        self.merges.forget()

    def _chunks(
        self,
        store: ChunkStore,
        data: bytes,
        tokens: np.ndarray,
        ends: np.ndarray,
        places: np.ndarray,
        has_bos: bool,
        fringe: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the chunks in the store, the bytes where they begin), int64 [C]. Learns the chunks that are new.

        A chunk's key holds, byte after byte, the byte and whether the place behind it is wanted, up to the next unit.
        """
        if not data:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        flags = np.zeros(len(data) + 1, np.uint8)
        flags[places] = 1
        marks = np.zeros(2 * len(data) + 1, np.uint8)
        marks[::2] = flags
        marks[1::2] = np.frombuffer(data, np.uint8)
        marked = marks.tobytes()
        stops, tails = self._guesses(data, flags)
        number, found, begins, begin = store.number, [], [], 0
        for stop, tail in zip(stops, tails, strict=True):
            key = marked[2 * begin + 1 : tail]
            if not begin and not has_bos:
                key = _GIVEN_FIRST + key
            chunk = number.get(key)
            if chunk is None:
                given_first = not begin and not has_bos
                chunk = self._learn(store, key, data, begin, stop, tail // 2, tokens, ends, flags, given_first, fringe)
            if chunk != _NOT_A_CHUNK:
                found.append(chunk)
                begins.append(begin)
                begin = stop
        return np.array(found, np.int64), np.array(begins, np.int64)

    def _guesses(self, data: bytes, flags: np.ndarray) -> tuple[list[int], list[int]]:
        """Bytes at which a chunk may end, with the data's end, and where its key then ends in the marked bytes.

        No wanted byte lies inside the unit that follows: all that is asked behind the cut knows that unit.
        """
        units = self.splitter.classes(data)
        code = np.frombuffer(units.encode("utf-32-le"), np.uint32)
        left, right = code[:-1], code[1:]
        if int(code.max()) >= len(self._seams):
            self._widen(int(code.max()) + 1)
        seams = self._seams[left, right]
        if (seams == _UNKNOWN).any():
            unknown = np.unique(np.stack([left, right])[:, seams == _UNKNOWN], axis=1)
            for a, b in unknown.T.tolist():  # behind a certain cut nothing before is asked for, hence "\0" before a
                pair = self.splitter.canonical(chr(a) + chr(b), "\0")
                self._seams[a, b] = 1 in self.splitter.certain(pair)
            seams = self._seams[left, right]
        unit = np.flatnonzero(seams == 1) + 1  # the unit behind each guessed cut
        if len(code) == len(data):
            stop, behind = unit, unit + 1
        else:
            byte_of = starts_of_units(self.splitter, data)
            stop, behind = byte_of[unit], byte_of[unit + 1]
            before = np.cumsum(flags)  # [bytes + 1] wanted bytes up to each byte
            keep = before[behind - 1] == before[stop]
            stop, behind = stop[keep], behind[keep]
        return [*stop.tolist(), len(data)], [*(2 * behind).tolist(), 2 * len(data) + 1]

    def _widen(self, classes: int) -> None:
        """Make room for twice as many classes."""
        wider = np.full((2 * classes, 2 * classes), _UNKNOWN, np.int8)
        wider[: len(self._seams), : len(self._seams)] = self._seams
        self._seams = wider

    def _learn(
        self,
        store: ChunkStore,
        key: bytes,
        data: bytes,
        begin: int,
        stop: int,
        behind: int,
        tokens: np.ndarray,
        ends: np.ndarray,
        flags: np.ndarray,
        given_first: bool,
        fringe: bool,
    ) -> int:
        """Number of a chunk seen for the first time: data[begin:stop], when its end is certain once data[:behind] is read.

        Here the guess is proved: by lemma 5 (or 6) the cut at `stop` is in every text that begins with data[:behind], so all that
        definition 4 asks for inside the chunk depends on its own bytes ("chunks", docs/design.md, section 3).
        """
        splitter = self.splitter
        if stop < len(data):
            units = splitter.canonical(splitter.classes(data[begin:behind]), "\0")
            whole = stop - begin if splitter.byte_units else len(units) - 1
            if whole not in splitter.certain(units):
                store.note(key, _NOT_A_CHUNK)
                return _NOT_A_CHUNK
        first, last = np.searchsorted(ends, [begin, stop], side="right").tolist()
        if (first and ends[first - 1] != begin) or (not first and begin) or not last or ends[last - 1] != stop:
            at = begin if begin and (not first or ends[first - 1] != begin) else stop
            raise IdentityError(
                f"contexts: byte {at} is a certain cut but no token ends there (tokens {tokens[:20].tolist()} ...)"
            )
        wanted, trunk = flags[begin + 1 : stop + 1], tokens[first:last]
        same = (data[begin:stop], wanted.tobytes(), trunk.tobytes(), given_first)  # whatever unit follows
        chunk = store.same.get(same)
        if chunk is None:
            places = (np.flatnonzero(wanted) + 1).tolist()
            tree = self._grower.grow(
                same[0], places, trunk.tolist(), given_first=given_first, fringe=fringe, shift=begin
            )
            chunk = store.same[same] = store.put(tree, len(trunk), places)
        store.note(key, chunk)
        return chunk

    def _assemble(
        self,
        store: ChunkStore,
        chunks: np.ndarray,
        begins: np.ndarray,
        tokens: np.ndarray,
        ends: np.ndarray,
        places: np.ndarray,
        bos: tuple[int, ...],
    ) -> ContextTree:
        """The document's tree: its chunks' subtrees, their local numbers turned into nodes.

        Rows of the five pools of `ChunkStore`, chunk after chunk. counts: int64 [5, C], rows of each chunk in each pool.
        """
        (trunk, branch, place, at, hang), counts = store.gather(chunks)
        if not np.array_equal(trunk[:, 0], tokens):
            raise IdentityError(
                f"contexts: the same chunks of text have other tokens here than before ({tokens[:20].tolist()} ...)"
            )
        trunk_count, branch_count = counts[0], counts[1]
        behind = len(bos) + len(tokens)  # the first branch
        trunk_start = len(bos) + np.cumsum(trunk_count) - trunk_count  # [C] node of each chunk's first trunk token
        # [C] node of a chunk's first branch, less its trunk tokens: what its local numbers of branches are shifted by
        branch_shift = behind + np.cumsum(branch_count) - branch_count - trunk_count

        def node_of(local: np.ndarray, count: np.ndarray) -> np.ndarray:
            """Local numbers -> nodes; ROOT is the trunk node before the chunk's first."""
            on_trunk = local < np.repeat(trunk_count, count)
            return local + np.where(on_trunk, np.repeat(trunk_start, count), np.repeat(branch_shift, count))

        found = place[:, 0] + np.repeat(begins, counts[2])
        at_node, at_count, hang_count = node_of(at[:, 0], counts[3]), place[:, 1], place[:, 2]
        if len(places) and places[0] == 0:  # before the first chunk; with BOS only
            found, at_node = np.append(0, found), np.append(len(bos) - 1, at_node)
            at_count, hang_count = np.append(1, at_count), np.append(0, hang_count)
        if not np.array_equal(found, places):
            raise IdentityError(f"contexts: {len(places)} bytes wanted, {len(found)} in the chunks; want all of them")
        spine = np.arange(behind)
        return ContextTree(
            token=_joined(np.array(bos, np.int32), tokens, branch[:, 0]),
            parent=_joined(spine - 1, node_of(branch[:, 1], branch_count)),
            end=_joined(np.zeros(len(bos), np.int32), ends, branch[:, 2] + np.repeat(begins, branch_count)),
            depth=_joined(spine, branch[:, 3] + np.repeat(trunk_start - 1, branch_count)),
            trunk=spine[len(bos) :].astype(np.int32),
            given=max(len(bos) - 1, 0),
            places=places,
            at_start=_joined([0], np.cumsum(at_count)),
            at_node=at_node.astype(np.int32),
            fringe_start=_joined([0], np.cumsum(hang_count)),
            fringe_node=node_of(hang[:, 0], counts[4]).astype(np.int32),
            fringe_token=hang[:, 1].copy(),
        )


def _joined(*parts: np.ndarray | list[int]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32, copy=False)
