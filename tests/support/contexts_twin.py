"""The slow, obvious twin of engine/contexts/builder.py: one wanted byte after another, every path inserted into one tree.

Contents and errors are those of `ContextBuilder.build`; the order of nodes is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.bpe.merges import MergeTable
from engine.bpe.pending import CutText, cut_text
from engine.bpe.pretokenizer import Splitter
from engine.bpe.utf8 import characters_from
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import BadDocument, IdentityError
from tests.support.vocabularies import encoding_of_prefix

NO_NODE = -1
NO_TOKEN = -1  # in a prefix tree: no tokens spell this prefix (inside a character, where there are no byte tokens)


def begins_at(text: str, at: int, added: Iterable[str]) -> bool:
    """Whether an added text is taken at this place of a text."""
    i = 0
    while i < at:
        i += max((len(a) for a in added if text.startswith(a, i)), default=1)
    return i == at


@dataclass(slots=True)
class TwinTree:
    """Nodes 0..N-1, parents before children. `given` is the node of the given context (the last BOS
    token, or the first token of the text when there is no BOS); nodes before it have no use but as its ancestors.

    token, parent, end, depth: per node; `end` in bytes of prefix + text. at_byte: wanted byte -> nodes that end there.
    fringe: wanted byte -> (node, token) of canonical contexts not in the tree whose continuations may cross that byte.
    """

    token: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    trunk: list[int] = field(default_factory=list)
    given: int = 0
    at_byte: dict[int, list[int]] = field(default_factory=dict)
    fringe: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, parent: int, token: int, end: int) -> int:
        """The child of `parent` by `token`, made when it is new."""
        key = (parent, token)
        node = self.children.get(key)
        if node is None:
            node = self.children[key] = len(self.token)
            self.token.append(token)
            self.parent.append(parent)
            self.end.append(end)
            self.depth.append(self.depth[parent] + 1 if parent >= 0 else 0)
        return node


class TwinBuilder:
    """Builds trees for one teacher vocabulary; remembers what depends on pre-tokens only. Not thread-safe."""

    def __init__(self, vocabulary: Vocabulary, merges: MergeTable, splitter: Splitter) -> None:
        self.vocabulary, self.merges, self.splitter = vocabulary, merges, splitter
        self._variants: dict[tuple[str, bool], list[tuple[tuple[int, ...], bool, bool]]] = {}
        self._trees: dict[bytes, tuple[list[int], list[int]]] = {}
        self._whole: dict[bytes, list[int]] = {}
        self._probes: list[str] | None = None
        self._partials: dict[bytes, tuple[str, ...]] = {}

    def build(self, data: bytes, ids: list[int], wanted: list[int], bos: tuple[int, ...]) -> TwinTree:
        """data: prefix + text; ids: its canonical tokens; wanted: rising bytes of `data`; bos: given tokens, maybe none.

        Raises BadDocument("too_short") when no token is left to score, BadDocument("too_long") for a monstrous pre-token.
        """
        tree = TwinTree()
        node = NO_NODE
        for token in bos:
            node = tree.add(node, token, 0)
        trunk_at = {0: node}
        tree.given = max(len(bos) - 1, 0)
        end = 0
        for token in ids:
            end += len(self.vocabulary.token_bytes[token] or b"")
            node = tree.add(node, token, end)
            trunk_at[end] = node
            tree.trunk.append(node)
        if not bos and len(ids) < 2:
            raise BadDocument(
                "too_short", f"the text is {len(ids)} teacher token(s), the first is given: nothing to score"
            )
        given = tree.end[0] if not bos else 0
        text = cut_text(self.splitter, data)
        wanted = [w for w in wanted if w >= given]
        routes = []
        for place, (start, unit, begin) in zip(wanted, text.pendings(wanted), strict=True):
            base = trunk_at.get(begin)
            if base is None:
                raise IdentityError(
                    f"contexts: byte {begin} is a certain cut but no token ends there (tokens {ids[:20]} ...)"
                )
            routes.append((place, base, begin, self._segments(text, place, start, unit)))
        for place, base, begin, segments in routes:
            nodes = tree.at_byte.setdefault(place, [])
            for cuts, whole_end, goes_on in segments:
                at = [int(text.byte_of[c]) for c in cuts]
                if not (whole_end or goes_on):  # an added text lies across the place
                    self._insert(tree, base, self._paths(data, begin, at[:-1], at[-1], True)[-1])
                    continue
                for path in self._paths(data, begin, at, place, whole_end):
                    node = self._insert(tree, base, path)
                    if node != NO_NODE and node not in nodes:
                        nodes.append(node)
        for place, base, begin, segments in routes:
            tree.fringe[place] = list(dict.fromkeys(self._fringe(tree, text, data, place, base, begin, segments)))
        return tree

    def _segments(self, text: CutText, place: int, start: int, unit: int) -> list[tuple[tuple[int, ...], bool, bool]]:
        """Ways in which the pending part may turn out to be cut: (absolute unit cuts, ends whole here, may go on)."""
        inside = (
            int(text.byte_of[unit]) != place
        )  # the byte lies inside a character: its unit belongs to what is pending
        pendings = [text.units[start:unit]]
        if inside:  # the bytes so far begin characters of other classes too
            ahead = self._units_from(text.data[int(text.byte_of[unit]) : place])
            pendings = list(dict.fromkeys(self.splitter.join(pendings[0], u) for u in ahead))
        found: dict[tuple[int, ...], tuple[bool, bool]] = {}
        for pending in pendings:
            known = self._variants.get((pending, inside))
            if known is None:
                known = self._variants[pending, inside] = self._find_variants(pending, inside)
            for cuts, ends, goes in known:
                before = found.get(cuts, (False, False))
                found[cuts] = (before[0] or ends, before[1] or goes)
        return [(tuple(start + c for c in cuts), ends, goes) for cuts, (ends, goes) in found.items()]

    def _units_from(self, partial: bytes) -> tuple[str, ...]:
        """The unit classes of all characters that begin with these bytes."""
        known = self._partials.get(partial)
        if known is None:
            units = self.splitter.classes("".join(characters_from(partial)).encode("utf-8"))
            known = self._partials[partial] = tuple(dict.fromkeys(units))
        return known

    def _find_variants(self, pending: str, inside: bool) -> list[tuple[tuple[int, ...], bool, bool]]:
        if not pending:
            return [((), not inside, True)]
        splitter, n = self.splitter, len(pending)
        units = splitter.own(pending)
        added = [a.encode().decode("latin-1") for a in splitter.added] if splitter.byte_units else splitter.added
        found: dict[tuple[int, ...], list[bool]] = {}
        i = rest = 0
        while i < n:  # added texts up to the place, and places before it at which one may begin that ends behind it
            here = units[i:]
            stop = i + max((len(a) for a in added if here.startswith(a)), default=0)
            if i and any(
                a.startswith(here) and (len(a) > len(here) or inside) and begins_at(units[:i] + a, i, added)
                for a in added
            ):
                found.setdefault(splitter.pieces(pending[:i]), [False, False])
            rest, i = (stop, stop) if stop > i else (rest, i + 1)
        if rest == n:
            if not inside:
                found[tuple(e for e in splitter.pieces(pending) if e < n)] = [True, False]
        else:
            before = tuple(e for e in splitter.pieces(pending) if e <= rest) if rest else ()
            behind = splitter.disown(splitter.join("\0", pending[rest:])[1:]) if rest else splitter.disown(pending)
            for probe in [""] if splitter.byte_units else self._all_probes():
                cuts, seam, _, _ = splitter.locate(behind, probe)
                flags = found.setdefault((*before, *(rest + c for c in cuts)), [False, False])
                flags[0] |= (seam or splitter.byte_units) and not inside
                flags[1] |= not seam or inside or splitter.byte_units
        return [(cuts, ends, goes) for cuts, (ends, goes) in found.items()]

    def _all_probes(self) -> list[str]:
        """All continuations of two characters, by class: no pattern of the dialect in use looks further than that
        (three characters in a contraction, the first of which is pending); tested on real continuations."""
        if self._probes is None:
            heads = {b.decode("utf-8", "ignore")[:2] for b in self.vocabulary.token_bytes if b}
            pairs = {self.splitter.canonical(self.splitter.classes(h.encode())) for h in heads if h}
            pairs = {self.splitter.disown(pair) for pair in pairs}
            singles = sorted({c for pair in pairs for c in pair})
            self._probes = ["", *sorted(pairs | set(singles) | {a + b for a in singles for b in singles})]
        return self._probes

    def _paths(
        self, data: bytes, begin: int, cuts: list[int], place: int, whole_end: bool
    ) -> list[list[tuple[int, int]]]:
        """Token paths [(token, end byte)] from `begin` to `place`; two where a whole-word-only token can end here."""
        head: list[tuple[int, int]] = []
        at = begin
        for cut in cuts:
            for token in self._encode_whole(data[at:cut]):
                at += len(self.vocabulary.token_bytes[token] or b"")
                head.append((token, at))
        last = data[at:place]
        added = bool(self.vocabulary.added_text) and last.decode("utf-8", "replace") in self.vocabulary.added_text
        ways: list[list[int]] = []
        if not added and NO_TOKEN not in (part := self._encode_part(last)):  # an added text is never spelt by BPE
            ways.append(part)
        if whole_end and (self.vocabulary.ignore_merges or self.vocabulary.added_text):
            whole = self._encode_whole(last)
            if whole not in ways:
                ways.append(whole)
        out = []
        for tokens in ways:
            end, path = at, list(head)
            for token in tokens:
                end += len(self.vocabulary.token_bytes[token] or b"")
                path.append((token, end))
            out.append(path)
        return out

    def _encode_part(self, segment: bytes) -> list[int]:
        if not segment:
            return []
        return encoding_of_prefix(self._tree_of(segment), len(segment))

    def _tree_of(self, segment: bytes) -> tuple[list[int], list[int]]:
        known = self._trees.get(segment)
        if known is None:
            known = self._trees[segment] = self.merges.prefix_tree(segment)
        return known

    def _encode_whole(self, segment: bytes) -> list[int]:
        known = self._whole.get(segment)
        if known is None:
            added = self.vocabulary.added_text.get(segment.decode("utf-8", "replace"))
            known = self._whole[segment] = [added] if added is not None else self.vocabulary.bpe(segment)
        return known

    def _insert(self, tree: TwinTree, base: int, path: list[tuple[int, int]]) -> int:
        node = base
        for index, (token, end) in enumerate(path):
            if node == NO_NODE and (index or tree.children.get((NO_NODE, token)) is None):
                return NO_NODE  # another first token than the given one: outside what the teacher was asked
            node = tree.add(node, token, end)
        return node

    def _fringe(self, tree, text: CutText, data: bytes, place: int, base: int, begin: int, segments):
        """(node, token) of contexts inside the last, still growing segment that are not in the tree but hang off it."""
        for cuts, _, goes_on in segments:
            at = int(text.byte_of[cuts[-1]]) if cuts else begin
            if not goes_on or place - at < 2:
                continue
            node = base
            if cuts:
                path = self._paths(data, begin, [int(text.byte_of[c]) for c in cuts], at, False)[0]
                node = self._insert(tree, base, path)
            last, parent = self._tree_of(data[at:place])
            nodes = [node] + [NO_NODE] * (place - at)
            live = [True] + [False] * (place - at)  # entry 0 may be the empty context, which is no node
            for i in range(1, place - at):
                above = nodes[parent[i]]
                if last[i] < 0 or not live[parent[i]]:
                    continue
                child = tree.children.get((above, last[i]))
                if child is not None:
                    nodes[i], live[i] = child, True
                elif above != NO_NODE:
                    yield above, last[i]
