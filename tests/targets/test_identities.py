"""Probability identities on real models and hard texts: whitespace, scripts, joiners, what tokenizers do in corners.

Teachers: two Llama-2-style ones (SentencePiece, byte fallback), the demo's (byte-level, a pattern that looks ahead), and a
random model under the real Qwen2.5 tokenizer. Students: the beginning of the teacher's own merges, bytes, and the
teacher's own tokenizer. TopK are taken from the engine before anything is rounded.

Specials that end no text (unknown, BOS, chat marks) are in the teacher's own distributions and in nobody's bytes; where
both are compared, the model is made to give them nothing (`without_specials`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import unicodedata
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.plan.vocabularies import Vocabularies
from engine.scoring.prepare import whole_passage
from engine.scoring.scorer import Scorer
from engine.scoring.stages import derive_stages
from engine.targets.positions import TopK
from engine.teacher.evaluate import hidden_states
from schemas.products import BYTES, TEACHER
from schemas.runfile import parse_run
from tests.scoring.test_scorer import documents
from tests.support.oracle import encode_closed
from tests.support.runs import ASSETS
from tests.support.vocabularies import EFFORT, SHARED, needs_shared

pytestmark = needs_shared
FOLDERS = {
    "stories260K": SHARED / "models/stories260K",
    "vachan-gpt2-280K": SHARED / "models/vachan-gpt2-280K",
    "demo": ASSETS / "teacher",
    "qwen2.5": SHARED / "golden/subset_qwen2.5/teacher",
}
SMALL = ("stories260K", "vachan-gpt2-280K", "demo")

RUNS = tuple(" " * n for n in (2, 3, 5, 8))
HARD = (
    *(f"a{run}b{run}7{run}\nc" for run in RUNS),  # before letters, digits, newlines
    *(f"{run}start and end{run}" for run in RUNS),
    *(f"x ={run}'s{run}(y){run}" for run in RUNS[:2]),
    "\ta\t\tb\t 7\t\n \t x",
    "one\n\ntwo\n\n\n\n three\n \n\t\n 4\n",
    "line\r\nline\r\n\r\n  end\r",
    "def f(x):\n    if x:\n        return  1\n\n\treturn {'a': [ ]}\n",
    "\n\n  ",
    "漢字かな交じり文、한국어 텍스트。 第3章",
    "مرحبا بالعالم ١٢٣ كِتَاب",
    "नमस्ते दुनिया १२३ क्षत्रिय",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ok🇩🇪!",
    "q\u0307\u0323 x\u0301\u0302 \u0915\u093c".replace("q\u0307\u0323", "q\u0323\u0307"),  # stable under NFC
    "naïve “quotes” … 3.14×10⁻⁵ \u00a0\u2003\u3000 end\u200b",
    "it's WE'LL don'T 12345678 1,000.50 a1b2 ___ --- ###\n/* x */",
    "mixed 漢 字\n\n   مرحبا  7 \t👍🏽   नम \r\n  x",
)
CHANGED_BY_NFC = "e\u0301 and \u0958"


def hard_of(name: str) -> tuple[str, ...]:
    """All of them where a text takes no time."""
    return HARD if name not in ("demo", "qwen2.5") or EFFORT > 1 else HARD[::2]


def make(name: str, students: dict[str, Path], **targets: object) -> Scorer:
    """A scorer that stores whole vocabularies (of Qwen2.5's own 151,665 ids the first 64)."""
    run = {
        "output": "unused",
        "teacher": {"model": str(FOLDERS[name]), "dtype": "float32", "device": "cpu"},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": student, "tokenizer": str(path)} for student, path in students.items()],
        "targets": {"bytes": True, **targets},
    }
    return widened(Scorer(parse_run(run, base_dir=Path.cwd())))


def widened(made: Scorer) -> Scorer:
    sizes = {TEACHER: made.stages.vocabulary.size, BYTES: 257} | {p: v.size for p, v in made.stages.students.items()}
    top_k = {product: size if size < 50_000 else 64 for product, size in sizes.items()}
    made.stages = dataclasses.replace(made.stages, emitter=dataclasses.replace(made.stages.emitter, top_k=top_k))
    return made


def without_specials(made: Scorer) -> Scorer:
    teacher = made.stages.teacher
    others = [i for i in made.stages.vocabulary.specials if i not in teacher.end_ids]

    def logits(hidden_CD: torch.Tensor) -> torch.Tensor:
        return teacher.logits(hidden_CD).index_fill(1, torch.tensor(others, dtype=torch.long), -torch.inf)

    made.stages = dataclasses.replace(made.stages, teacher=dataclasses.replace(teacher, _logits=logits))
    return made


def beginning(name: str, share: float, folder: Path) -> Path:
    """A student made of the first merges of a teacher: tokens that only later merges make are left out, ids move up."""
    path = folder / f"{name}-{share}"
    if path.exists():
        return path
    spec = json.loads((FOLDERS[name] / "tokenizer.json").read_text(encoding="utf-8"))
    model = spec["model"]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    count = int(len(pairs) * share)
    dropped = {a + b for a, b in pairs[count:]} - {token for a, b in pairs[:count] for token in (a, b, a + b)}
    model["merges"] = model["merges"][:count]
    kept = [t for t in sorted(model["vocab"], key=model["vocab"].get) if t not in dropped]
    model["vocab"] = {token: i for i, token in enumerate(kept)}
    for i, token in enumerate(spec["added_tokens"]):
        token["id"] = model["vocab"].get(token["content"], len(kept) + i)
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    shutil.copy(FOLDERS[name] / "tokenizer_config.json", path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("students")


@cache
def plain(name: str, folder: Path) -> Scorer:
    """Made once; no test changes it."""
    if name == "qwen2.5":
        sizes = (0, 8000, 32000) if EFFORT > 1 else (0,)  # the golden values are of 8000
        return make(name, {f"s{n}": SHARED / f"tokenizers/qwen2.5-subset-{n}" for n in sizes})
    return make(name, {"cut": beginning(name, 0.5, folder)})


@cache
def masked(name: str, folder: Path) -> Scorer:
    """Made once; no test changes it."""
    students = {f"cut{share}": beginning(name, share, folder) for share in (0.2, 0.7)}
    return without_specials(make(name, students, semantics="canonical-masked"))


def rows_of(made: Scorer, text: str) -> dict[str, TopK]:
    """float64 rows of every product, before rounding."""
    doc = whole_passage(made.stages, documents([text])[0])
    out = made.stages.emitter.emit(
        [doc],
        hidden_states(made.stages.teacher, [doc], made.stages.run.teacher, made.stages.pruner),
        made.stages.teacher.logits,
    )
    assert doc.bad is None
    return cast(dict[str, TopK], out)


def dense(rows: TopK, size: int) -> np.ndarray:
    """float64 [positions, size] probabilities; all 0 where unscored."""
    q = np.zeros((len(rows.ids), size))
    row, column = np.nonzero(rows.ids >= 0)
    q[row, rows.ids[row, column]] = np.exp(rows.logps[row, column])
    return q


@pytest.mark.timeout(600)  # what is legal behind so many kinds of whitespace takes long to find for Qwen2.5
@pytest.mark.parametrize("name", [*SMALL, pytest.param("qwen2.5", marks=pytest.mark.thorough)])
def test_hard_texts_are_scored_and_every_row_has_mass_one(name: str, folder: Path):
    """None fails; only what a normaliser would change is in quarantine; stored + tail = 1 on every row but the given."""
    made = plain(name, folder)
    texts = hard_of(name)
    unit = made.score_unit(documents([*texts, CHANGED_BY_NFC]))
    refused = [(record["doc_row"], record["reason"]) for record in unit.quarantine]
    assert refused == ([(len(texts), "not_reversible")] if made.stages.vocabulary.nfc else [])
    assert set(made.stages.regimes.values()) == {"subset"}
    for text in texts:
        check_mass(made, text, rows_of(made, text))


def check_mass(made: Scorer, text: str, products: dict[str, TopK]) -> None:
    for product, rows in products.items():
        mass = np.exp(rows.logps).sum(1) + np.exp(rows.tail_logp)
        first = int(np.argmax(rows.scored))
        assert rows.scored[first:].all() and (first == 0 or not made.stages.bos), (text, product)
        np.testing.assert_allclose(mass[first:], 1, rtol=0, atol=1e-6, err_msg=f"{text!r} {product}")
        assert np.isfinite(rows.gold_logp[first:]).all() and (rows.err[first:] == 0).all(), (text, product)
        if made.stages.emitter.top_k[product] > 64:  # the whole vocabulary is stored: nothing is left outside
            assert (np.exp(rows.tail_logp[first:]) < 1e-12).all()


@pytest.mark.parametrize("name", SMALL)
def test_the_teachers_own_tokenizer_as_a_student_is_the_teacher(name: str, tmp_path: Path):
    """A copy of the tokenizer under another path: the same rows, bit for bit. Taken as a subset of itself, through the
    trie: only the trunk spells a text in the student's units, so its rows are the teacher's to float64."""
    shutil.copy(FOLDERS[name] / "tokenizer.json", tmp_path)
    shutil.copy(FOLDERS[name] / "tokenizer_config.json", tmp_path)
    texts = hard_of(name)
    made, product = without_specials(make(name, {"copy": tmp_path}, bytes=False)), "student/copy"
    assert made.stages.regimes == {product: "same"}
    for text in texts:
        rows = rows_of(made, text)
        for name, theirs in vars(rows[TEACHER]).items():
            np.testing.assert_array_equal(getattr(rows[product], name), theirs, err_msg=f"{text!r} {name}")
    known = Vocabularies(made.stages.vocabulary, made.stages.students, {}, {})
    made.stages = derive_stages(made.stages.run, known, made.stages.teacher, {product: "subset"})
    widened(made)
    assert (made.stages.expansions[product][0].lengths <= 1).all()
    for text in texts:
        rows = rows_of(made, text)  # of one pass of the teacher: another tree has other rounding
        ours, theirs = (dense(rows[p], made.stages.vocabulary.size) for p in (product, TEACHER))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12, err_msg=repr(text))
        assert rows[product].scored.all() and rows[TEACHER].scored.all()


@pytest.mark.parametrize("name", SMALL)
def test_masked_text_has_one_probability_however_it_is_cut(name: str, folder: Path):
    """canonical-masked is a distribution over texts: its tokens, the tokens of two subsets and the bytes multiply to one
    number. What a SentencePiece teacher puts before the text is a byte of its own: P(prefix) is added to the bytes'."""
    made, texts = masked(name, folder), hard_of(name)
    prefix, pieces = made.stages.vocabulary.prefix_bytes, made.stages.vocabulary.token_bytes
    begins = np.array([(piece or b"").startswith(prefix) and bool(piece) for piece in pieces])
    for text in texts:
        rows = rows_of(made, text)
        nats = {product: float(r.gold_logp.sum()) for product, r in rows.items()}
        if prefix:
            nats[BYTES] += float(np.log(dense(rows[TEACHER], len(pieces))[0, begins].sum()))
        assert all(r.scored.all() for r in rows.values())
        for product, value in nats.items():
            assert value == pytest.approx(nats[TEACHER], abs=1e-4), (text, product)


@cache
def begun_characters(name: str) -> frozenset[bytes]:
    """What a text can have of a character that has no token of its own, before all its bytes are there; b"" too."""
    known = set(load_vocabulary(str(FOLDERS[name])).id_of_bytes)
    found = {b""}
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        if (char := chr(code).encode()) not in known:
            found.update(char[:n] for n in range(1, len(char)))
    return frozenset(found)


def is_context(vocab: Vocabulary, data: bytes, tokens: tuple[int, ...]) -> bool:
    """Whether some text has these first tokens; without a pre-tokenizer: whether they are the encoding of their bytes."""
    text = data.removeprefix(vocab.prefix_bytes)
    whole = valid_utf8_prefix(text)
    begins = data.startswith(vocab.prefix_bytes) and text[whole:] in begun_characters("stories260K")
    return begins and encoded(vocab, data) == tokens


def encoded(vocab: Vocabulary, data: bytes) -> tuple[int, ...]:
    """The tokens of the prefix and a text; of the prefix alone, what a text goes on from."""
    alone = data == vocab.prefix_bytes
    return (vocab.id_of_bytes[data],) if alone else tuple(encode_closed(vocab, data.removeprefix(vocab.prefix_bytes)))


@pytest.mark.parametrize("text", ["Lily said: 3 dogs.\n  Go  on", "  a   b", "tell  'em\n\n 42"])
def test_bytes_multiply_to_the_prefix_probability(text: str, folder: Path):
    """F(x[:p]) added up by hand for every p: contexts are found by encoding x[:q], legal tokens by encoding what they make,
    the model runs on each context alone. The merges know no pre-tokenizer, so that one context ends at each byte."""
    made = masked("stories260K", folder)
    vocab, data = made.stages.vocabulary, b" " + text.encode()
    assert vocab.prefix_bytes == b" " and vocab.pre_tokenizer is None and vocab.eos_id is not None and made.stages.bos
    pieces = [piece or b"" for piece in vocab.token_bytes]
    contexts = [(), *(encoded(vocab, data[:q]) for q in range(1, len(data)))]
    table: dict[tuple[int, ...], np.ndarray] = {}
    for q, context in enumerate(contexts):
        legal = [bool(piece) and is_context(vocab, data[:q] + piece, (*context, t)) for t, piece in enumerate(pieces)]
        legal[vocab.eos_id] = q != 1  # the prefix alone is the encoding of no text
        with torch.inference_mode():
            logits = (
                made.stages.teacher.model(input_ids=torch.tensor([[*made.stages.bos, *context]])).logits[0, -1].double()
            )
        p = np.exp((logits - logits.max()).numpy()) * legal
        table[context] = p / p.sum()
    weight = {c: float(np.prod([table[c[:i]][c[i]] for i in range(len(c))])) for c in contexts}
    reached = []
    for p in range(1, len(data) + 1):
        total = 0.0
        for q, context in enumerate(contexts[:p]):
            for token, piece in enumerate(pieces):
                if len(piece) >= p - q and piece.startswith(data[q:p]):
                    total += weight[context] * table[context][token]
        reached.append(np.log(total))
    gold = rows_of(made, text)[BYTES].gold_logp
    for p in range(1, len(data)):
        assert gold[:p].sum() == pytest.approx(reached[p] - reached[0], abs=1e-4), (text, p)  # fp32


@pytest.mark.thorough
def test_rows_of_the_student_without_merges_are_the_byte_rows(folder: Path):
    """Qwen2.5 without merges spells bytes, under ids of its own; added words, whole tokens to it, count with their first
    byte (no text here begins one). Every row has mass one, and what NFC would change is in quarantine."""
    made = plain("qwen2.5", folder)
    student = made.stages.students["student/s0"]
    assert {len(b) for i, b in enumerate(student.token_bytes) if b and i not in student.added_only} == {1}
    to_byte = np.zeros((student.size, 257))
    for token, piece in enumerate(student.token_bytes):
        if piece is not None:
            to_byte[token, piece[0]] = 1
    assert student.eos_id is not None
    to_byte[student.eos_id, 256] = 1
    compared = 0
    (refused,) = made.score_unit(documents([HARD[0], CHANGED_BY_NFC])).quarantine
    assert made.stages.vocabulary.nfc and (refused["doc_row"], refused["reason"]) == (1, "not_reversible")
    for text in hard_of("qwen2.5"):
        assert "<" not in text
        rows = rows_of(made, text)
        check_mass(made, text, rows)
        ours, theirs = rows["student/s0"], rows[BYTES]
        assert (ours.scored == theirs.scored).all()
        np.testing.assert_allclose(dense(ours, student.size) @ to_byte, dense(theirs, 257), rtol=0, atol=1e-6)
        compared += int(ours.scored.sum())
    assert compared > 250


def test_the_texts_are_what_they_are_called():
    """Every hard text is its own NFC, and the one for the quarantine is not."""
    assert [t for t in HARD if unicodedata.normalize("NFC", t) != t] == []
    assert unicodedata.normalize("NFC", CHANGED_BY_NFC) != CHANGED_BY_NFC
    assert len(set(HARD)) == len(HARD)
