"""What a student makes of every string behind a boundary, before any state of its pre-tokenizer is known.

In: strings (the ends of teacher tokens, or these behind the student's prefix space) and the student. Out: `Answers`: of each
beginning of each string the first student token, of each string whether that is decided inside one pre-token (lemma 15 a),
and, where the pre-tokenizer reads characters, its class string. States (compiled/pair.py) only look these up: this is the
expensive part, done once.

Letters: U strings, P places (a string of n bytes has n + 1), N nodes of the trie of class strings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.bpe.nfc import family
from engine.bpe.pretokenizer import Splitter
from engine.bpe.segmenter import Known, Segmenter
from engine.compiled.pair_kernels import answer_strings, class_nodes, known_bytes
from engine.kernels.flat import FlatTokenizer, joined
from engine.kernels.hash_kernels import EMPTY
from engine.kernels.merge_kernels import new_memo

Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """Progress that nobody wants to see."""


_CHUNK = 20_000  # strings between two reports of progress


@dataclass(frozen=True, eq=False)
class Answers:
    """text uint8, start int64 [U+1]: the strings. whole, known: int32 [U], bytes without an incomplete character at the end,
    and of these those that no continuation changes (`Segmenter.known`). composing: bool [U], NFC may change it, or what stands
    before it.

    firsts: int32 [P], first token of string[:i] inside a pre-token at start[r] + r + i, -1 for none; firsts_whole: the same
    where string[:i] is a whole pre-token. settled: int32 [U], first token of the known bytes where nothing changes it, else
    -1.

    Class strings (characters as units; else arrays of one entry): node_U, known_node_U: int32 [U], that of a string, and of it
    the part whose classes no continuation changes. parent_N, unit_N: int32 [N], the node without the last unit, and that unit, as
    a number into `classes`. classes: the units as (mask, own character), see `Splitter.describe`.
    """

    text: np.ndarray
    start: np.ndarray
    whole: np.ndarray
    known: np.ndarray
    composing: np.ndarray
    firsts: np.ndarray
    firsts_whole: np.ndarray
    settled: np.ndarray
    node_U: np.ndarray
    known_node_U: np.ndarray
    parent_N: np.ndarray
    unit_N: np.ndarray
    classes: tuple[tuple[int, str], ...]

    def __len__(self) -> int:
        return len(self.start) - 1


def answers_of(
    text: np.ndarray, start: np.ndarray, student: FlatTokenizer, segmenter: Segmenter, progress: Progress, what: str
) -> Answers:
    """All answers for sorted strings. Tens of seconds for 250,000 teacher tokens."""
    count = len(start) - 1
    whole = np.zeros(count, np.int32)
    known_bytes(text, start, whole)
    raw, bounds = text.tobytes(), start.tolist()
    strings = [raw[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    composing, known, said = _what_is_known(strings, whole, segmenter)
    firsts, settled = np.zeros(len(text) + count, np.int32), np.zeros(count, np.int32)
    memo = new_memo(len(student.rank_V))
    for at in range(0, count, _CHUNK):
        progress(at, count, what)
        end = min(count, at + _CHUNK)
        answer_strings(student, text, start, whole, known, at, end, firsts, settled, memo)
    progress(count, count, what)
    ask = [r for r, k in enumerate(said) if k.doubt and settled[r] < 0]
    if ask:
        settled[ask] = settled_with_kin([strings[r][: known[r]] for r in ask], [said[r].doubt for r in ask], student)
    _ask_where_unspelt(strings, start, firsts, segmenter)
    firsts_whole = _whole_pieces(strings, start, firsts, segmenter)
    classes = _classes(text, start, whole, strings, said, segmenter.splitter)
    return Answers(text, start, whole, known, composing, firsts, firsts_whole, settled, *classes)


def answers_with_firsts(
    text: np.ndarray, start: np.ndarray, strings: list[bytes], firsts: np.ndarray, segmenter: Segmenter
) -> tuple[Answers, list[Known]]:
    """Answers for sorted strings whose first tokens are known; `settled` is -1 for all. With NFC what is known of each, too."""
    count = len(strings)
    whole = np.zeros(count, np.int32)
    known_bytes(text, start, whole)
    composing, known, said = _what_is_known(strings, whole, segmenter)
    classes = _classes(text, start, whole, strings, said, segmenter.splitter)
    settled = np.full(count, -1, np.int32)
    return Answers(text, start, whole, known, composing, firsts, firsts, settled, *classes), said


def settled_strings(strings: list[bytes], student: FlatTokenizer) -> np.ndarray:
    """int32 [n]: first token of each string inside a pre-token where nothing that follows changes it (lemma 15 a), else -1."""
    order = sorted(set(strings))
    text, start = joined(order)
    size = np.diff(start).astype(np.int32)
    firsts, settled = np.zeros(len(text) + len(order), np.int32), np.zeros(len(order), np.int32)
    count = np.int64(len(order))
    answer_strings(student, text, start, size, size, np.int64(0), count, firsts, settled, new_memo(len(student.rank_V)))
    number = {s: i for i, s in enumerate(order)}
    return settled[[number[s] for s in strings]]


def settled_with_kin(known: list[bytes], doubts: list[str], student: FlatTokenizer) -> np.ndarray:
    """int32 [n]: first token of known bytes and a character behind them that may become any of its family, where that is the same
    for all of these and nothing that follows changes it (lemma 22), else -1."""
    found = settled_strings([s + c.encode() for s, c in zip(known, doubts, strict=True)], student)
    asked = [(i, known[i] + kin.encode()) for i in np.flatnonzero(found >= 0).tolist() for kin in family(doubts[i])]
    if asked:
        number = np.array([i for i, _ in asked])
        found[number[settled_strings([s for _, s in asked], student) != found[number]]] = -1
    return found


def _what_is_known(
    strings: list[bytes], whole: np.ndarray, segmenter: Segmenter
) -> tuple[np.ndarray, np.ndarray, list[Known]]:
    """(composing, known) of `Answers`; with NFC also what the segmenter says of each string."""
    if not segmenter.vocabulary.nfc:
        return np.zeros(len(strings), bool), whole, []
    if not segmenter.splitter.byte_units:
        segmenter.splitter.learn({c for r in strings for c in r.decode("utf-8", "ignore")})
    found = [segmenter.known(r) for r in strings]
    return np.array([k.composing for k in found], bool), np.array([k.size for k in found], np.int32), found


def _ask_where_unspelt(strings: list[bytes], start: np.ndarray, firsts: np.ndarray, segmenter: Segmenter) -> None:
    """Vocabularies without some bytes or characters: what the tokenizers library makes of such a string, itself asked."""
    begins = start[:-1] + np.arange(len(strings))  # the empty beginnings; these have no token
    unspelt = firsts < 0
    unspelt[begins] = False
    for at in np.flatnonzero(unspelt).tolist():
        r = int(np.searchsorted(begins, at)) - 1
        firsts[at] = segmenter.first(strings[r][: at - int(begins[r])], whole=False)


def _whole_pieces(strings: list[bytes], start: np.ndarray, firsts: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    """`firsts` where the piece is a whole pre-token: added texts, and words that only `ignore_merges` makes."""
    vocabulary = segmenter.vocabulary
    pieces = {text.encode() for text in vocabulary.added_text} | set(segmenter.whole_words)
    if vocabulary.ignore_merges:  # a special may be in the model's own vocabulary too
        for token in vocabulary.specials:
            text = vocabulary.tokenizer.id_to_token(token)
            pieces |= {text.encode()} if text else set()
    if not pieces:
        return firsts
    changed = firsts.copy()
    text = np.array(strings, object)
    for piece in sorted(pieces):
        begin = int(np.searchsorted(text, piece))
        for r in range(begin, len(strings)):
            if not strings[r].startswith(piece):
                break
            changed[int(start[r]) + r + len(piece)] = segmenter.first(piece, whole=True)
    return changed


def _classes(
    text: np.ndarray,
    start: np.ndarray,
    whole: np.ndarray,
    strings: list[bytes],
    said: list[Known],
    splitter: Splitter,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[tuple[int, str], ...]]:
    """(node_U, known_node_U, parent_N, unit_N, classes) of `Answers`. said: with NFC `Segmenter.known` of each string."""
    one = np.zeros(1, np.int32)
    if splitter.byte_units:
        return one, one, one, one, ()
    chars = sorted({c for r in strings for c in r.decode("utf-8", "ignore")})
    splitter.learn(set(chars))
    class_of = np.zeros(ord(chars[-1]) + 1 if chars else 1, np.int32)
    class_of[[ord(c) for c in chars]] = [ord(u) for u in splitter.classes("".join(chars).encode())]
    broken = np.int32(ord(splitter.classes(b"\xc3")))
    forget = np.full((64, 64), -1, np.int32)
    node_U, state = np.zeros(len(strings), np.int32), np.zeros(3, np.int64)
    size = 1 << 12
    while True:  # until the trie fits
        keys, nodes = np.full(2 * size, EMPTY, np.int64), np.zeros(2 * size, np.int32)
        parent, unit = np.zeros(size, np.int32), np.zeros(size, np.int32)
        state[0], r = 1, 0
        while 0 <= r < len(strings):
            most = int(max(class_of.max(), broken, forget.max())) + 1
            if most > len(forget):
                forget = np.pad(forget, (0, 2 * most - len(forget)), constant_values=-1)
            r = class_nodes(text, start, whole, r, class_of, forget, broken, keys, nodes, parent, unit, node_U, state)
            if 0 <= r < len(strings):
                before, after = int(state[1]), int(state[2])
                forget[before, after] = ord(splitter.join(chr(before), chr(after))[1])
        if r >= 0:
            break
        size *= 2
    parent, unit = parent[: state[0]].copy(), unit[: state[0]]
    used = np.unique(unit)
    classes = tuple(splitter.describe(chr(u)) for u in used.tolist())
    known_node_U = np.where(unit[node_U] == broken, parent[node_U], node_U)
    if said:
        classes_U, depth_N = np.array([known.classes for known in said]), [0]
        for node in parent[1:].tolist():  # a node stands behind its parent
            depth_N.append(depth_N[node] + 1)
        depth = np.array(depth_N, np.int32)
        while (longer := depth[known_node_U] > classes_U).any():
            known_node_U = np.where(longer, parent[known_node_U], known_node_U)
    return node_U, known_node_U, parent, np.searchsorted(used, unit).astype(np.int32), classes
