"""How one state of a student's pre-tokenizer cuts every class string that a string behind a boundary can have.

In: the trie of class strings (compiled/answers.py) and the classes of the student's pending part. Out: `ClassCuts`, per class
string where the pre-token behind the boundary ends, and what is known of it. One call of the matcher for each class string,
some thousands; none behind a beginning whose cuts are certain (lemma 5: a longer string is cut there in the same way).

Letters: N nodes of the trie, each the class string on the path to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.alignment.openness import AgreedCuts, Openness
from engine.alignment.token_range import Variants
from engine.bpe.pretokenizer import Splitter
from engine.compiled.answers import Answers
from engine.compiled.pair_kernels import CUT, JOIN, NONE, locate_classes
from engine.compiled.probe_kernels import agree


@dataclass(frozen=True, eq=False)
class ClassTrie:
    """strings: the class strings. parent_N, unit_N: int32 [N], the node without the last unit, and that unit. units_N: int32
    [N], how many units. asked_N: bool [N], whether some string has this class string itself. known_N: bool [N], whether it is
    the part of some string's that no continuation changes, and not empty."""

    strings: list[str]
    parent_N: np.ndarray
    unit_N: np.ndarray
    units_N: np.ndarray
    asked_N: np.ndarray
    known_N: np.ndarray


def class_trie(answers: Answers, splitter: Splitter) -> ClassTrie:
    """The trie of the answers in the classes of this splitter."""
    units = [splitter.unit(described) for described in answers.classes]
    strings = [""]
    for parent, unit in zip(answers.parent_N[1:].tolist(), answers.unit_N[1:].tolist(), strict=True):
        strings.append(strings[parent] + units[unit])
    length = np.array([len(s) for s in strings], np.int32)
    asked, known = np.zeros((2, len(strings)), bool)
    asked[answers.node_U], known[answers.known_node_U] = True, True
    known[0] = False
    unit = np.array([ord(s[-1:] or "\0") for s in strings], np.int32)
    return ClassTrie(strings, answers.parent_N, unit, length, asked, known)


@dataclass(frozen=True, eq=False)
class ClassCuts:
    """Arrays [N] as `settle_characters` takes them. Of a class string as if the text ended there: kind int8 (NONE: an added
    text lies across the boundary), stop int32 (units); variant: int32, number in `variants`, (cuts inside the pending part, a cut
    at the boundary) that occur. Of one that goes on: sure bool, whether these cuts are certain; where not, ways: int32, number
    of the variant that all ways to go on have, -1 where they have several; goes_on bool, whether in some way the pre-token goes
    on; other_start int32 [N+1] and other int32, its ends in all ways."""

    kind: np.ndarray
    stop: np.ndarray
    variant: np.ndarray
    sure: np.ndarray
    ways: np.ndarray
    goes_on: np.ndarray
    other_start: np.ndarray
    other: np.ndarray
    variants: Variants


def cut_classes(trie: ClassTrie, splitter: Splitter, openness: Openness, left: str) -> ClassCuts:
    """All class strings behind the pending classes `left`."""
    count = len(trie.strings)
    where = _locate(trie, splitter, left)
    kind = np.where(where.seam, CUT, JOIN).astype(np.int8)
    ways, goes_on = np.full(count, -1, np.int32), np.zeros(count, bool)
    others: list[frozenset[int]] = [frozenset()] * count
    variants: dict[tuple[tuple[int, ...], bool], int] = {}
    for inside, seam in np.unique(np.stack([where.inside, where.seam])[:, trie.asked_N], axis=1).T.tolist():
        if not inside:
            variants[(), bool(seam)] = len(variants)
    variant = np.where(where.seam, variants.get(((), True), 0), variants.get(((), False), 0)).astype(np.int32)
    # one by one: strings before which cuts lie inside the pending part, and those that are not certain
    for node in np.flatnonzero(trie.asked_N & (where.inside > 0)).tolist():
        inside = splitter.locate(left, trie.strings[node])[0]
        variant[node] = variants.setdefault((inside, bool(where.seam[node])), len(variants))
    nodes = np.flatnonzero(trie.known_N & ~where.sure).tolist()
    for node, agreed in zip(
        nodes, agreed_cuts(splitter, openness, left, [trie.strings[u] for u in nodes]), strict=True
    ):
        if agreed is not None:
            ways[node], others[node], goes_on[node] = variants.get(agreed[0], -1), agreed[1], agreed[2]
    if splitter.added:
        for node in np.flatnonzero(trie.asked_N & ~where.seam).tolist():
            right, at = trie.strings[node], int(where.stop[node])
            inside = splitter.locate(left, right)[0] if where.inside[node] else ()
            if splitter.is_added(left, right, inside[-1] if inside else 0, at):
                kind[node] = NONE
    start = np.concatenate([[0], np.cumsum([len(o) for o in others])]).astype(np.int32)
    other = np.fromiter((stop for o in others for stop in sorted(o)), np.int32, int(start[-1]))
    return ClassCuts(kind, where.stop, variant, where.sure, ways, goes_on, start, other, tuple(variants))


def agreed_cuts(splitter: Splitter, openness: Openness, left: str, rights: Sequence[str]) -> list[AgreedCuts | None]:
    """`Openness.cuts` of the classes `left` and each of `rights`, none of which is empty. Characters as units; where an added
    text lies in them, or may be coming, and for a pattern that has no instructions, it is asked itself."""
    machine, n = splitter.machine, len(left)
    found: list[AgreedCuts | None] = [None] * len(rights)
    plain, strings = list[int](), list[str]()
    for i, right in enumerate(rights):
        both = splitter.join(left, right)
        if machine is None or openness.names_added(both):
            found[i] = openness.cuts(left, right)
        else:
            plain.append(i)
            strings.append(splitter.disown(both))
    if machine is None or not strings:
        return found
    units = np.frombuffer(bytearray("".join(strings).encode("utf-32-le")), np.int32)
    start = np.concatenate([[0], np.cumsum([len(s) for s in strings])]).astype(np.int64)
    probes = np.array([ord(u) for u in openness.probes], np.int32)
    agrees = np.zeros(len(strings), np.uint8)
    inside = np.zeros((len(strings), n + 1), np.uint8)
    stops = np.zeros((len(strings), int(np.diff(start).max()) - n + 1), np.uint8)
    at, asked = 0, np.zeros(2, np.int64)
    while at < len(strings):
        at = agree(machine.up_to_date(), units, start, n, probes, at, agrees, inside, stops, asked)
        if at < len(strings):
            machine.learn(int(asked[0]), int(asked[1]), ord(splitter.join(chr(asked[0]), chr(asked[1]))[1]))
    known = {row: tuple(np.flatnonzero(np.frombuffer(row, np.uint8)).tolist()) for row in {r.tobytes() for r in inside}}
    ends = {
        row: frozenset(np.flatnonzero(np.frombuffer(row, np.uint8)).tolist()) for row in {r.tobytes() for r in stops}
    }
    for i, row, stop in zip(np.flatnonzero(agrees).tolist(), inside[agrees == 1], stops[agrees == 1], strict=True):
        cuts, behind = known[row.tobytes()], ends[stop.tobytes()]
        variant = tuple(c for c in cuts if c < n), n == 0 or n in cuts
        found[plain[i]] = AgreedCuts(variant, behind - {0}, 0 in behind)
    return found


def cuts_inside(trie: ClassTrie, splitter: Splitter, left: str) -> bool:
    """Whether some class string behind the pending classes `left` makes a cut inside them: whether `cut_classes` has such a
    variant."""
    return bool((_locate(trie, splitter, left).inside[trie.asked_N] > 0).any())


class _Located(NamedTuple):
    """`Splitter.locate` for every node [N]: stop int32, seam and sure bool; inside int32, the number of cuts inside the
    pending part. Zeros where a node is neither asked for nor certain."""

    stop: np.ndarray
    seam: np.ndarray
    sure: np.ndarray
    inside: np.ndarray


def _locate(trie: ClassTrie, splitter: Splitter, left: str) -> _Located:
    count, machine = len(trie.strings), splitter.machine
    stop, inside = np.zeros(count, np.int32), np.zeros(count, np.int32)
    seam, sure = np.zeros(count, bool), np.zeros(count, bool)
    if machine is None:  # a pattern that has no instructions
        for node in range(1, count):
            parent = trie.parent_N[node]
            if sure[parent]:
                stop[node], seam[node], sure[node], inside[node] = stop[parent], seam[parent], True, inside[parent]
            else:
                cuts, seam[node], stop[node], sure[node] = splitter.locate(left, trie.strings[node])
                inside[node] = len(cuts)
        return _Located(stop, seam, sure, inside)
    pending = np.array([ord(u) for u in left], np.int32)
    node, asked = 0, np.zeros(3, np.int64)
    while node < count:
        node = locate_classes(
            machine.up_to_date(), pending, trie.parent_N, trie.unit_N, trie.asked_N, node, trie.units_N, stop, seam, sure,
            inside, asked,
        )  # fmt: skip
        if node < count:
            machine.learn(int(asked[0]), int(asked[1]), ord(splitter.join(chr(asked[0]), chr(asked[1]))[1]))
    return _Located(stop, seam, sure, inside)
