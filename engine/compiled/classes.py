"""How one state of a student's pre-tokenizer cuts every class string that a string behind a boundary can have.

In: the trie of class strings (compiled/answers.py) and the classes of the student's pending part. Out: `ClassCuts`, per class
string where the pre-token behind the boundary ends, and what is known of it. One call of the matcher for each class string,
some thousands; none behind a beginning whose cuts are certain (lemma 5: a longer string is cut there in the same way).

Letters: N nodes of the trie, each the class string on the path to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.alignment.openness import Openness
from engine.alignment.token_range import Variants
from engine.bpe.pretokenizer import Splitter
from engine.compiled.answers import Answers
from engine.compiled.pair_kernels import CUT, JOIN, NONE


@dataclass(frozen=True, eq=False)
class ClassTrie:
    """units_N, known_N: int32 [N], units of the class string, and of these those that no continuation changes. strings: the
    class strings. asked_N: bool [N], whether some string has this class string itself."""

    parent_N: list[int]
    strings: list[str]
    units_N: np.ndarray
    known_N: np.ndarray
    asked_N: list[bool]


def class_trie(answers: Answers, splitter: Splitter, *, nfc: bool) -> ClassTrie:
    """The trie of the answers in the classes of this splitter."""
    broken = splitter.classes(b"\xc3")
    units = [splitter.unit(described) for described in answers.classes]
    strings = [""]
    for parent, unit in zip(answers.parent_N[1:].tolist(), answers.unit_N[1:].tolist(), strict=True):
        strings.append(strings[parent] + units[unit])
    length = np.array([len(s) for s in strings], np.int32)
    incomplete = np.array([s.endswith(broken) for s in strings])
    asked = np.zeros(len(strings), bool)
    asked[answers.node_U] = True
    known = np.maximum(length - incomplete - nfc, 0).astype(np.int32)
    return ClassTrie(answers.parent_N.tolist(), strings, length, known, asked.tolist())


@dataclass(frozen=True, eq=False)
class ClassCuts:
    """Arrays [N] as `settle_characters` takes them: kind int8 (NONE: an added text lies across the boundary), stop int32
    (units), sure, agrees, goes_on bool; other_start int32 [N+1] and other int32, ends in other ways. variants: (cuts inside
    the pending part, a cut at the boundary) that occur."""

    kind: np.ndarray
    stop: np.ndarray
    sure: np.ndarray
    agrees: np.ndarray
    goes_on: np.ndarray
    other_start: np.ndarray
    other: np.ndarray
    variants: Variants


def cut_classes(trie: ClassTrie, splitter: Splitter, openness: Openness, left: str, *, nfc: bool) -> ClassCuts:
    """All class strings behind the pending classes `left`."""
    count, n = len(trie.strings), len(left)
    kind, stop = np.zeros(count, np.int8), np.zeros(count, np.int32)
    sure, agrees, goes_on = np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, bool)
    sure_list: list[tuple[int, int] | None] = [None] * count  # (kind, stop) where the cuts are certain
    others: list[frozenset[int]] = [frozenset()] * count
    variants: dict[tuple[tuple[int, ...], bool], None] = {}
    for node in range(1, count):
        right = trie.strings[node]
        told = sure_list[trie.parent_N[node]]
        if told is not None:
            sure_list[node] = told
            kind[node], stop[node], sure[node] = *told, True
            continue
        if not trie.asked_N[node]:
            ends = splitter.certain(splitter.join(left, right))
            if not ends or ends[-1] <= n:
                continue
        inside, seam, at, certain = splitter.locate(left, right)
        does = CUT if seam else JOIN
        if not seam and splitter.added and splitter.is_added(left, right, inside[-1] if inside else 0, at):
            does = NONE
        kind[node], stop[node], sure[node] = does, at, certain
        if certain:
            sure_list[node] = does, at
        if trie.asked_N[node] or certain:
            variants[inside, seam] = None
        # nothing is decided by no known unit, and nothing is open that is certain (but for NFC, which may still change the end)
        if trie.asked_N[node] and trie.known_N[node] and (not certain or (nfc and at >= len(right))):
            ways = openness.cuts(left, right[: trie.known_N[node]])
            if ways is not None and ways[0] == (inside, seam):
                agrees[node], others[node], goes_on[node] = True, ways[1], ways[2]
    start = np.concatenate([[0], np.cumsum([len(o) for o in others])]).astype(np.int32)
    other = np.fromiter((stop for o in others for stop in sorted(o)), np.int32, int(start[-1]))
    return ClassCuts(kind, stop, sure, agrees, goes_on, start, other, tuple(variants))
