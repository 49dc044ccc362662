"""Conversations through the scorer: alignment, values against independent computations, masks, ends of turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine.bpe.vocabulary import Vocabulary
from engine.corpus.document import Document, Message
from engine.dataset.invariants import check_rows
from engine.dataset.parquet import round_rows
from engine.scoring.scorer import Scorer
from schemas.products import BYTES, TEACHER
from schemas.runfile import parse_run
from schemas.target import FLAG_CONTEXT, FLAG_END, FLAG_EXACT
from tests.support.chats import END_OF_TURN, chat_teacher, with_template
from tests.support.runs import ASSETS, write_subset
from tests.support.tables import facts_of

TALK = (
    Message("user", "How many apples? <|im_end|><|eot_id|>"),
    Message("assistant", "Anna has 3 apples.\nShe ☃ <|im_end|> buys 4 — naïve."),
    Message("user", " and more\n"),
    Message("assistant", "9"),
    Message("user", "x"),
    Message("assistant", ""),
)
SPACED = (
    Message("user", "Hi"),
    Message("assistant", "\n 7 apples. \n"),
    Message("user", "\t?"),
    Message("assistant", " 8"),
)


def document(messages: Sequence[Message], number: int = 0) -> Document:
    text = "".join(message.content for message in messages)
    return Document(f"d{number}", number, text, "c.jsonl", f"line {number + 1}", messages=tuple(messages))


def scorer(teacher: Path, students: dict[str, Path], corpus: dict[str, Any] | None = None, **targets: Any) -> Scorer:
    run = {
        "output": "out",
        "teacher": {"model": str(teacher), "device": "cpu"},
        "corpus": {"paths": ["unused.jsonl"], "messages": "messages", **(corpus or {})},
        "student": [{"name": name, "tokenizer": str(path)} for name, path in students.items()],
        "targets": {"top_k": 16, "bytes": True, **targets},
    }
    return Scorer(parse_run(run, base_dir=teacher))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def chatml(folder: Path) -> Scorer:
    """A ChatML teacher with two ends; students of every regime and of every style of template."""
    teacher = chat_teacher(folder / "t", "chatml", ends=["<|im_end|>", "<|endoftext|>"])
    subset = with_template(write_subset(folder / "plain-sub"), folder / "sub", "chatml")
    students = {
        "llama3": with_template(ASSETS / "student_bl", folder / "llama3", "llama3"),
        "gemma": with_template(ASSETS / "student_sp", folder / "gemma", "gemma"),
        "llama2": with_template(ASSETS / "student_sp", folder / "llama2", "llama2"),
        "same": teacher,
        "sub": subset,
    }
    return scorer(teacher, students)


def row_of(table: pa.Table, row: int = 0) -> dict[str, Any]:
    return table.slice(row, 1).to_pylist()[0]


def spelled(vocabulary: Vocabulary | None, ids: Sequence[int] | np.ndarray) -> bytes:
    """Text of tokens; specials as nothing."""
    if vocabulary is None:
        return bytes(i for i in ids if i < 256)
    return b"".join(vocabulary.token_bytes[i] or b"" for i in ids)


def vocabulary_of(ready: Scorer, product: str) -> Vocabulary | None:
    return None if product == BYTES else ready.stages.chat[product].full


def contents_of(talk: Sequence[Message], strip: bool = False) -> list[tuple[str, int, int, str]]:
    """(role, first byte, last byte, content) of each message in the text of the document."""
    out, at = [], 0
    for role, content, *_ in talk:
        kept = content.strip() if strip else content
        lead = len(content[: content.index(kept)].encode()) if kept else 0
        out.append((role, at + lead, at + lead + len(kept.encode()), kept))
        at += len(content.encode())
    return out


def check(ready: Scorer, product: str, table: pa.Table, talk: Sequence[Message], *, strip: bool = False) -> None:
    """Alignment byte by byte; only what assistants say, and its end, is scored; all else is context."""
    row, vocabulary = row_of(table), vocabulary_of(ready, product)
    k = len(row["topk_ids"]) // len(row["token_ids"])
    size = 257 if vocabulary is None else vocabulary.size
    check_rows(round_rows(table), facts_of(k, size), where=product)
    ids, ends = np.array(row["token_ids"]), np.array(row["byte_end"])
    scored, flags = np.array(row["scored"]), np.array(row["flags"])
    assert row["text"] == "".join(message.content for message in talk)
    np.testing.assert_array_equal(flags & FLAG_CONTEXT == 0, scored)
    ours = np.flatnonzero(scored)
    runs = np.split(ours, np.flatnonzero(np.diff(ours) > 1) + 1)
    wanted = [c for c in contents_of(talk, strip) if c[0] == "assistant" and (c[3] or (flags[ours] & FLAG_END).any())]
    if product == BYTES:  # nothing lies between two contents there
        runs = [run for run in runs if len(run)]
    assert len(runs) == len(wanted), (product, len(runs))
    for run, (_, begin, end, content) in zip(runs, wanted, strict=True):
        closed = bool(flags[run[-1]] & FLAG_END)
        inside = run[:-1] if closed else run
        prefix = vocabulary.prefix_bytes if vocabulary and ready.stages.chat[product].vocabulary.prefix_bytes else b""
        assert spelled(vocabulary, ids[inside]) == (prefix + content.encode() if content else b"")
        starts = np.concatenate([[begin], ends[inside]])[: len(inside)]
        for token, first, last in zip(ids[inside], starts, ends[inside], strict=True):
            piece = spelled(vocabulary, [token])
            assert (
                piece.removeprefix(prefix if first == begin else b"") == row["text"].encode()[first:last] or not piece
            )
        assert ends[run[-1]] == end
        assert not (flags[inside] & FLAG_END).any()


PRODUCTS = (TEACHER, "student/llama3", "student/gemma", "student/llama2", "student/same", "student/sub", BYTES)


def test_every_product_is_aligned_and_only_assistants_are_scored(chatml: Scorer) -> None:
    unit = chatml.score_unit([document(TALK)])
    assert unit.quarantine == [] and set(unit.products) == set(PRODUCTS)
    wanted = {"llama3": "beam", "gemma": "beam", "llama2": "beam", "same": "same", "sub": "subset"}
    assert chatml.stages.regimes == {f"student/{name}": regime for name, regime in wanted.items()}
    for product, table in unit.products.items():
        check(chatml, product, table, TALK)
    assert unit.stats["teacher.positions"] == len(row_of(unit.products[TEACHER])["token_ids"])


@pytest.mark.parametrize("product", [TEACHER, "student/llama3", "student/gemma"])
def test_the_sequence_is_what_the_model_reads(chatml: Scorer, product: str) -> None:
    """With specials known, the whole rendered text has these tokens; literal specials in contents are the one difference."""
    talk = [Message(m.role, m.content.replace("<|", "<").replace("|>", ">").strip() or "y") for m in TALK]
    row = row_of(chatml.score_unit([document(talk)]).products[product])
    encoder = chatml.stages.chat[product]
    text = encoder.template.render(talk).text
    tokenizer = encoder._marked[False]
    if encoder.full.prefix_bytes:  # the tokens of template and contents are apart; their text is the same
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=False) == tokenizer.decode(
            tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False
        )
    else:
        said = [encoder.full.tokenizer.id_to_token(i) if i in encoder.full.specials else None for i in row["token_ids"]]
        joined = b"".join(
            name.encode() if name else encoder.full.token_bytes[i] or b""
            for i, name in zip(row["token_ids"], said, strict=True)
        )
        assert joined.decode() == text


def test_special_strings_in_contents_are_plain_text(chatml: Scorer) -> None:
    for product in (TEACHER, "student/llama3"):
        encoder = chatml.stages.chat[product]
        ids = row_of(chatml.score_unit([document(TALK)]).products[product])["token_ids"]
        style = "chatml" if product == TEACHER else "llama3"
        end = encoder.full.tokenizer.token_to_id(END_OF_TURN[style])
        turns = len(TALK) + (style == "chatml")  # one more for the system prompt that ChatML puts in
        assert ids.count(end) == turns, product


def test_the_teachers_rows_are_the_models_own(chatml: Scorer) -> None:
    """Against one plain pass of the model over each prompt and its content."""
    row = row_of(chatml.score_unit([document(TALK)]).products[TEACHER])
    ids, scored = row["token_ids"], np.array(row["scored"])
    with torch.inference_mode():
        logits = chatml.stages.teacher.model(torch.tensor([ids])).logits[0].double()
    logp = logits[:, : chatml.stages.vocabulary.size].log_softmax(-1).numpy()
    at = np.flatnonzero(scored)
    gold = logp[at - 1, np.array(ids)[at]]
    np.testing.assert_allclose(np.array(row["gold_logp"])[at], gold, atol=1e-4)


@pytest.mark.parametrize("product", ["student/llama3", "student/sub", "student/same", BYTES])
def test_the_ends_of_the_teacher_add_up(chatml: Scorer, product: str) -> None:
    """An empty answer: what is predicted behind the prompt is one step of the model, so the end is a plain sum."""
    table = chatml.score_unit([document(TALK[:1] + (Message("assistant", ""),))]).products[product]
    row = row_of(table)
    at = int(np.flatnonzero(row["scored"])[-1])
    own = row_of(chatml.score_unit([document(TALK[:1] + (Message("assistant", ""),))]).products[TEACHER])
    prompt = own["token_ids"][: int(np.flatnonzero(own["scored"])[0])]
    with torch.inference_mode():
        logits = chatml.stages.teacher.model(torch.tensor([prompt])).logits[0, -1].double()
    p = logits[: chatml.stages.vocabulary.size].softmax(-1).numpy()
    ends = [chatml.stages.vocabulary.tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>", "<|eos|>")]
    assert set(chatml.stages.teacher.end_ids) == set(ends)
    assert len({p[end] for end in ends}) == 3 and p[ends].sum() > p[ends].max() * 1.01
    others = [i for i in chatml.stages.vocabulary.specials if i not in ends]
    text = 1.0 if product == "student/same" else 1 - p[others].sum()  # other specials are excluded
    assert np.exp(row["gold_logp"][at]) == pytest.approx(p[ends].sum() / text, rel=1e-4)
    if product == "student/same":
        assert np.exp(own["gold_logp"][-2]) == pytest.approx(
            p[ends[0]], rel=1e-4
        )  # the teacher's own view keeps every id
        assert not {*ends[1:]} & set(row["topk_ids"][at * 16 : at * 16 + 16])


@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3}, {"semantics": "canonical-masked"}])
def test_a_part_is_the_bare_text_behind_its_prompt(chatml: Scorer, folder: Path, settings: dict[str, Any]) -> None:
    """The same engine on the bare content, with the prompt where a document has its BOS."""
    ready = chatml
    if settings:
        names = ("llama3", "sub")
        ready = scorer(folder / "t", {name: folder / name for name in names}, **settings)
    talk = (Message("user", "Hi"), Message("assistant", "Anna has 3 apples."))
    chat = ready.score_unit([document(talk)])
    assert not chat.quarantine
    own = row_of(chat.products[TEACHER])
    begin = int(np.flatnonzero(own["scored"])[0])
    plain = dataclasses.replace(ready.stages, chat={}, bos=tuple(own["token_ids"][:begin]))
    bare = Scorer(plain.run, plain).score_unit([Document("d0", 0, talk[1].content, "c", "line 1")])
    assert not bare.quarantine
    for product, table in chat.products.items():
        ours, theirs = row_of(table), row_of(bare.products[product])
        at = np.flatnonzero(ours["scored"])
        assert len(at) == len(theirs["scored"]) - (product == "student/llama2")  # no special ends its turns
        for name in ("gold_logp", "tail_logp", "err", "flags", "noncanonical_mass", "pruned_mass"):
            np.testing.assert_allclose(
                np.array(ours[name])[at], theirs[name][: len(at)], atol=2e-5, err_msg=f"{product} {name}"
            )


def test_contents_with_white_space_where_nobody_strips(folder: Path, chatml: Scorer) -> None:
    ready = scorer(folder / "t", {"sub": folder / "sub"})
    unit = ready.score_unit([document(SPACED)])
    assert not unit.quarantine
    for product, table in unit.products.items():
        check(ready, product, table, SPACED)


def test_where_all_products_strip_the_stripped_content_is_scored(folder: Path) -> None:
    teacher = chat_teacher(folder / "t-llama3", "llama3", ends=["<|eot_id|>"])
    ready = scorer(teacher, {"gemma": with_template(ASSETS / "student_sp", folder / "gemma-2", "gemma")})
    unit = ready.score_unit([document(SPACED)])
    assert not unit.quarantine
    for product, table in unit.products.items():
        check(ready, product, table, SPACED, strip=True)


def test_products_that_strip_differently_do_not_agree_on_what_is_said(chatml: Scorer) -> None:
    unit = chatml.score_unit([document(TALK), document(SPACED, 1)])
    assert [(r["doc_id"], r["reason"]) for r in unit.quarantine] == [("d1", "template_alters_content")]
    assert "student/llama3" in unit.quarantine[0]["detail"] and "message 2" in unit.quarantine[0]["detail"]
    assert {table.num_rows for table in unit.products.values()} == {1}


def test_other_roles_may_be_scored(folder: Path, chatml: Scorer) -> None:
    ready = scorer(folder / "t", {"sub": folder / "sub"}, {"roles": ["user"]})
    talk = (Message("user", "How many?"), Message("assistant", "9"), Message("user", "Why?"))
    for product, table in ready.score_unit([document(talk)]).products.items():
        row = row_of(table)
        at = np.flatnonzero(row["scored"])
        text = spelled(vocabulary_of(ready, product), np.array(row["token_ids"])[at])
        assert text == b"How many?Why?", product
        assert (np.array(row["flags"])[at] & FLAG_END != 0).sum() == 2


def test_bad_conversations_leave_with_their_reason(folder: Path, chatml: Scorer) -> None:
    long = "apples and more " * 400
    docs = [
        document((Message("user", "hi"),)),
        document((Message("system", "s"), *TALK), 1),
        document((Message("user", long), Message("assistant", "9")), 2),
        document(TALK, 3),
    ]
    unit = chatml.score_unit(docs)
    assert [(r["doc_id"], r["reason"]) for r in unit.quarantine] == [
        ("d0", "no_scored_message"),
        ("d1", "template_error"),
        ("d2", "prompt_too_long"),
    ]
    assert "System role not supported" in unit.quarantine[1]["detail"]
    assert {tuple(t.column("doc_id").to_pylist()) for t in unit.products.values()} == {("d3",)}


def test_without_ends_only_contents_are_scored(folder: Path, chatml: Scorer) -> None:
    ready = scorer(folder / "t", {"sub": folder / "sub"}, end=False)
    unit = ready.score_unit([document(TALK), document((Message("user", "a"), Message("assistant", "")), 1)])
    assert [r["reason"] for r in unit.quarantine] == ["too_short"]
    for product, table in unit.products.items():
        row = row_of(table)
        at = np.flatnonzero(row["scored"])
        assert spelled(vocabulary_of(ready, product), np.array(row["token_ids"])[at]).decode() == TALK[1].content + "9"
        assert not (np.array(row["flags"]) & FLAG_END).any()
        assert (np.array(row["flags"])[at] & FLAG_EXACT != 0).all()


def test_a_content_longer_than_the_context_is_read_in_windows_behind_its_prompt(folder: Path, chatml: Scorer) -> None:
    ready = scorer(folder / "t", {"sub": folder / "sub"}, end=True)
    long = "Anna has 3 apples and buys 4 more. " * 60
    unit = ready.score_unit([document((TALK[0], Message("assistant", long)))])
    assert not unit.quarantine
    own = row_of(unit.products[TEACHER])
    assert len(own["token_ids"]) > ready.stages.teacher.max_length
    at = np.flatnonzero(own["scored"])
    assert spelled(ready.stages.vocabulary, np.array(own["token_ids"])[at]) == long.encode()
    begin, stop = int(at[0]), 400  # inside the first window nothing changes
    with torch.inference_mode():
        logits = ready.stages.teacher.model(torch.tensor([own["token_ids"][:stop]])).logits[0].double()
    logp = logits[:, : ready.stages.vocabulary.size].log_softmax(-1).numpy()
    gold = logp[np.arange(begin - 1, stop - 1), own["token_ids"][begin:stop]]
    np.testing.assert_allclose(own["gold_logp"][begin:stop], gold, atol=1e-3)
