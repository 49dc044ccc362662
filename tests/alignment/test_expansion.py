"""Which students refine a teacher, what its tokens are in theirs (lemma 12), and the trie of all expansions."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.alignment.token_trie as trie_module
from engine.alignment.expansion import apart, byte_expansion, near_subset_gap, subset_expansion, subset_gap
from engine.alignment.refinement import exact_pairs
from engine.alignment.token_trie import build_trie
from engine.bpe.segmenter import build_segmenter
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.contexts.builder import ContextBuilder
from schemas.errors import BadDocument, TokenizerError
from tests.support.pairs import BYTES, STUDENT, Pair, stored, subset_pair
from tests.support.tiers import usual
from tests.support.toys import TableTeacher, alphabet, random_text, toy
from tests.support.vocabularies import EFFORT, HARD, SPELL, needs_shared, texts, vocabulary


def save_vocabulary(spec: dict[str, Any], folder: Path, texts: Sequence[dict[str, Any]] = ()) -> Vocabulary:
    """A tokenizer.json with <s> and </s> as begin and end, and added texts, read by the real loader."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = [t for t in ("<s>", "</s>") if t in spec["model"]["vocab"]]
    added = [*({"id": spec["model"]["vocab"][t], "content": t, **special} for t in names), *texts]
    folder.mkdir(parents=True)
    made = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "post_processor": None,
        "decoder": None,
        **spec,
    }
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    names_file = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names_file), encoding="utf-8")
    return load_vocabulary(str(folder))


def test_the_expansion_of_a_text_is_the_students_encoding(tmp_path: Path):
    """Lemma 12 on toys, added words and late merges among them."""
    rng, compared = random.Random(7), 0
    for _ in range(40 * EFFORT):
        pair = subset_pair(rng, tmp_path)
        expansion = subset_expansion(pair.teacher, pair.student)
        for _ in range(20):
            text = random_text(rng, pair.chars, 12)
            try:
                ids, wanted = pair.teacher.encode(text)[0], pair.student.encode(text)[0]
            except BadDocument:
                continue
            got = [int(u) for t in ids for u in expansion.unit[expansion.start[t] : expansion.start[t + 1]]]
            assert got == wanted, (text, pair.teacher.name)
            compared += 1
    assert compared > 500


@needs_shared
@pytest.mark.parametrize("name", usual(["qwen2.5-subset-0", "qwen2.5-subset-8000", "qwen2.5-subset-32000"]))
def test_real_subsets_are_proven_and_expand(name: str):
    teacher, student = vocabulary("qwen2.5"), vocabulary(name)
    assert subset_gap(teacher, student) is None
    expansion, compared = subset_expansion(teacher, student), 0
    for text in texts()[: 150 * EFFORT]:
        try:
            ids, wanted = teacher.encode(text)[0], student.encode(text)[0]
        except BadDocument:
            continue
        got = [int(u) for t in ids for u in expansion.unit[expansion.start[t] : expansion.start[t + 1]]]
        assert got == wanted, text[:80]
        compared += 1
    assert compared > 100


@needs_shared
def test_added_texts_of_the_teacher_alone_are_no_text():
    """Qwen3 takes `</think>` whole, a student of Qwen2.5's merges spells it: exact for all other texts."""
    teacher, student = vocabulary(HARD[0]), vocabulary("qwen2.5-subset-8000")
    assert "qwen3" in HARD[0] and subset_gap(teacher, student) is None
    assert subset_gap(vocabulary("qwen2.5-subset-8000"), teacher) is not None
    left_out = apart(teacher, student)
    assert set(left_out.values()) == set(teacher.added_text) - set(student.added_text) >= {"<think>", "</think>"}
    expansion, compared = subset_expansion(teacher, student), 0
    assert not expansion.lengths[list(left_out)].any()
    for text in [*texts()[:60], "a </think", "<tool_call>{}</tool_call>"]:
        try:
            ids, wanted = teacher.encode(text)[0], student.encode(text)[0]
        except BadDocument:
            continue
        assert [int(u) for t in ids for u in expansion.unit[expansion.start[t] : expansion.start[t + 1]]] == wanted
        compared += 1
    assert compared > 30
    ids, ends = teacher.encode("a <think> b")
    tree = ContextBuilder(build_segmenter(teacher)).build(b"a <think> b", ids, ends, (151643,))
    units, places = (np.array(x) for x in student.encode("a <think> b"))
    with pytest.raises(BadDocument, match="added_token: the teacher's token 151667 that ends at byte 9"):
        exact_pairs(tree, build_trie(expansion), expansion, units, places)


@needs_shared
@pytest.mark.parametrize(
    "name", usual(["gpt2", "llama-3", "llama-2", "smollm2", "gpt-neox-20b", "o200k_base", "starcoder2"])
)
def test_other_tokenizers_are_no_subsets(name: str):
    """Neither way round; each reason names what differs."""
    wanted = "sentencepiece" if name == "llama-2" else "merge list"
    assert wanted in (subset_gap(vocabulary("qwen2.5"), vocabulary(name)) or "")
    assert subset_gap(vocabulary(name), vocabulary("qwen2.5")) is not None
    assert subset_gap(vocabulary("qwen2.5-subset-8000"), vocabulary("qwen2.5-subset-32000")) is not None
    assert subset_gap(vocabulary("qwen2.5-subset-32000"), vocabulary("qwen2.5-subset-8000")) is None


def test_what_differs_between_near_subsets_is_told(tmp_path: Path):
    """The same merges under another pre-tokenizer: a conversion that lost a step, mostly."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "vocab": {s: i for i, s in enumerate([*SPELL.values(), "ab", "<s>", "</s>"])}}
    merges, made = [["a", "b"]], {}
    for name, steps, mine in (
        ("teacher", level, merges),
        ("lost", digits, merges),
        ("one", {"type": "Sequence", "pretokenizers": [split, level]}, merges),
        ("three", {"type": "Sequence", "pretokenizers": [{**split, "pattern": {"Regex": r"\p{N}"}}, level]}, merges),
        ("other", digits, [["b", "a"]]),
    ):
        vocab = {("ba" if token == "ab" and mine != merges else token): i for token, i in model["vocab"].items()}
        spec = {"model": {**model, "vocab": vocab, "merges": mine}, "pre_tokenizer": steps}
        made[name] = save_vocabulary(spec, tmp_path / name)
    assert "(Digits and ByteLevel beside ByteLevel)" in (near_subset_gap(made["teacher"], made["lost"]) or "")
    assert "{1,3}" in (near_subset_gap(made["one"], made["three"]) or "")
    assert near_subset_gap(made["teacher"], made["other"]) is None
    assert near_subset_gap(made["teacher"], made["teacher"]) is None


def test_a_student_of_bytes_is_a_subset_of_any_tokenizer(tmp_path: Path):
    """Whatever the pre-tokenizers: the student that reads single bytes gets the rows of the byte product."""
    rng, compared = random.Random(10), 0
    spec = {
        "model": {
            "type": "BPE",
            "vocab": {SPELL[b]: 255 - b for b in range(256)} | {"<s>": 256, "</s>": 257},
            "merges": [],
        },
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    }
    student = save_vocabulary(spec, tmp_path / "bytes")
    for _ in range(12):
        teacher = subset_pair(rng, tmp_path).teacher
        if teacher.prefix_bytes or teacher.added_text:
            continue
        assert subset_gap(teacher, student) is None
        pair = Pair(teacher, student, ("a", " "), subset=True, bytes=True)
        table = TableTeacher(teacher, alphabet(rng), rng.randrange(1 << 30), masked=False)
        try:
            doc = pair.prepare("a  aa a", (teacher.bos_id or 0,))
        except BadDocument:
            continue
        rows = pair.emit([doc], table)
        ours, theirs = rows[STUDENT], rows[BYTES]
        for k in range(ours.start[1]):
            q = stored(ours, k, student.size)
            by_byte = np.array([*(q[255 - b] for b in range(256)), q[257]])
            np.testing.assert_allclose(by_byte, stored(theirs, k, 257), atol=1e-12)
            compared += 1
    assert compared > 30


def test_what_is_no_subset(tmp_path: Path):
    """One change at a time to a student that is a subset; each is found and named."""
    rng = random.Random(9)
    teacher = toy(rng, tmp_path / "t", "gpt2", ("a", "b", " "), whole=False, merges=8)
    spec = json.loads(teacher.tokenizer.to_str())

    def student(name: str, **changes) -> Vocabulary:
        made = json.loads(json.dumps(spec))
        for path, value in changes.items():
            place = made
            *parents, last = path.split("__")
            for parent in parents:
                place = place[parent]
            place[last] = value
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
        return load_vocabulary(str(tmp_path / name))

    assert subset_gap(teacher, student("same")) is None
    merges = spec["model"]["merges"]
    assert "merge 0" in (
        subset_gap(teacher, student("swapped", model__merges=[merges[1], merges[0], *merges[2:]])) or ""
    )
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    assert "pre-tokenizer" in (subset_gap(teacher, student("uncut", pre_tokenizer=plain)) or "")
    assert "ignore_merges" in (subset_gap(teacher, student("words", model__ignore_merges=True)) or "")
    assert "normaliser" in (subset_gap(teacher, student("nfc", normalizer={"type": "NFC"})) or "")
    added = [*spec["added_tokens"], {**spec["added_tokens"][0], "content": "ab", "special": False, "id": 13}]
    assert "added token" in (subset_gap(teacher, student("added", added_tokens=added)) or "")


@pytest.mark.parametrize("seed", range(4))
def test_the_trie_is_the_set_of_expansions(seed: int, tmp_path: Path):
    """Every state and interval against a dictionary of prefixes; the cells are a partition of the tokens."""
    pair = subset_pair(random.Random(100 + seed), tmp_path)
    for expansion in (byte_expansion(pair.teacher), subset_expansion(pair.teacher, pair.student)):
        trie = build_trie(expansion)
        spelt = {
            t: tuple(expansion.unit[expansion.start[t] : expansion.start[t + 1]].tolist())
            for t in range(len(expansion.lengths))
        }
        states: dict[int, tuple[int, ...]] = {0: ()}
        for state in range(len(trie.depth)):
            z = states[state]
            beyond = {u for s in spelt.values() if s[: len(z)] == z and len(s) > len(z) for u in [s[len(z)]]}
            children = range(trie.first[state], trie.first[state + 1])
            assert {int(trie.unit[c]) for c in children} == beyond and len(children) == len(beyond)
            for child in children:
                to = (*z, int(trie.unit[child]))
                inside = {int(t) for t in trie.order[trie.lo[child] : trie.hi[child]]}
                assert inside == {t for t, s in spelt.items() if s[: len(to)] == to}
                assert trie.step(np.array([state]), np.array([to[-1]])).tolist() == [child]
                if trie.state[child] >= 0:
                    states[int(trie.state[child])] = to
        assert len(states) == len(trie.depth)
        prefix_of_cell = [states[0] + (int(trie.unit[c]),) for c in range(trie.top)]
        prefix_of_cell += [
            (*prefix_of_cell[int(above)], int(trie.unit[trie.top + i])) for i, above in enumerate(trie.above)
        ]
        assert len(prefix_of_cell) == trie.cells
        for token, s in spelt.items():
            cell, heap = int(trie.cell_of[token]), int(trie.heap_of[token])
            assert cell == trie.cells if not s else prefix_of_cell[cell] in (s[:1], s[:2]), (token, s)
            assert cell == (heap if heap <= trie.cells else int(trie.spill[heap - trie.cells - 1]))


def test_heaps_hold_few_ids():
    """A cell of many ids is summed in heaps of at most 64 of them, every id in one heap of its cell."""
    cell_of = np.array([0] * 200 + [1] * 64 + [2] * 65 + [3])
    heap_of, spill = trie_module._heaps(cell_of, 3)
    assert np.bincount(heap_of).max() <= 64
    assert np.array_equal(np.where(heap_of <= 3, heap_of, spill[np.maximum(heap_of - 4, 0)]), cell_of)


def test_pairs_that_look_like_subsets(tmp_path: Path):
    """What a review found: lists that begin alike and still write some text differently. All are refused, or expand right."""

    def bytelevel(
        name: str, merges: list[str], added: dict[str, bool] | None = None, normalizer: Any = None
    ) -> Vocabulary:
        """A byte-level tokenizer; added: text of an added token -> whether it is matched after the normaliser."""
        vocab = {SPELL[b]: b for b in range(256)} | {"<s>": 256, "</s>": 257}
        for merge in merges:
            vocab.setdefault(merge.replace(" ", ""), len(vocab))
        special = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
        texts = []
        for text, normalized in (added or {}).items():
            texts.append(
                {"id": vocab.setdefault(text, len(vocab)), "content": text, "normalized": normalized, **special}
            )
        cuts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        model = {"type": "BPE", "vocab": vocab, "merges": merges}
        spec = {"model": model, "pre_tokenizer": cuts, "normalizer": normalizer}
        return save_vocabulary(spec, tmp_path / name, texts)

    # an added text that the teacher's merges make, too: it is the student's added token, not its pieces
    teacher, student = (
        bytelevel("t1", ["a b", "b c", "bc a"], {"bc": False}), bytelevel("s1", ["a b"], {"bc": False})
    )  # fmt: skip
    assert subset_gap(teacher, student) is None
    expansion = subset_expansion(teacher, student)
    for text in ("bc", "abca", "abcbc", "bca bc"):
        ids, wanted = teacher.encode(text)[0], student.encode(text)[0]
        assert [int(u) for t in ids for u in expansion.unit[expansion.start[t] : expansion.start[t + 1]]] == wanted
    # a merge named twice: the last one counts
    assert "twice" in (subset_gap(bytelevel("t2", ["a b", "b c", "a b"]), bytelevel("s2", ["a b", "b c"])) or "")
    # added texts of which one is matched before the normaliser
    lower = {"type": "NFC"}
    ours, theirs = ({"ab": True, "bc": False}, {"ab": False, "bc": True})
    gap = subset_gap(bytelevel("t3", ["a b"], theirs, lower), bytelevel("s3", ["a b"], ours, lower))
    assert "normaliser" in (gap or "")
    assert "normaliser" in (subset_gap(bytelevel("t4", ["a b"], None, lower), bytelevel("s4", ["a b"])) or "")


def test_byte_tokens_are_complete_or_refused(tmp_path: Path):
    """Fallback tokens are found by their byte; a vocabulary that lacks one would name another's."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256) if b != 0x41}
    vocab |= {"\u2581": 300, "a": 301}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    with pytest.raises(TokenizerError, match="<0x41>"):
        save_vocabulary({"model": model, "pre_tokenizer": None, "normalizer": mark}, tmp_path / "holes")
