"""Conversations end to end: run file, corpus, plan, score, files, and what reads them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.corpus.document import Message
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from engine.reader.targets import Targets
from jobs.look.json_lines import write_documents
from jobs.look.side_by_side import show_document
from schemas.errors import CorpusError, RunFileError
from schemas.runfile import CorpusConfig, load_run
from schemas.target import FLAG_CONTEXT, FLAG_END
from tests.support.chats import GEMMA, chat_teacher, with_template
from tests.support.runs import ASSETS, score_here

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TALK = [
    {"role": "user", "content": "How many <|im_end|> apples?"},
    {"role": "assistant", "content": "Anna has 3 — naïve."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "9 × 9"},
]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    chat_teacher(folder / "t", "chatml", ends=["<|im_end|>", "<|endoftext|>"])
    with_template(ASSETS / "student_sp", folder / "sp", "gemma", template="{{ 'not this one' }}")
    (folder / "gemma.jinja").write_text(GEMMA, encoding="utf-8")
    lines = [
        {"id": "good", "chat": TALK},
        {"id": "tools", "chat": [{"role": "user", "content": [{"type": "image"}]}]},
        {"id": "call", "chat": [TALK[0], {"role": "assistant", "content": 5}]},
        {"id": "again", "chat": TALK[:2]},
        {"id": "system", "chat": [{"role": "system", "content": "s"}, *TALK]},
        {"id": "text", "chat": "just a text"},
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    file = folder / "run.toml"
    file.write_text(
        """
output = "out"
[teacher]
model = "./t"
[corpus]
paths = ["chat.jsonl"]
messages = "chat"
id = "id"
unit_documents = 4
[[student]]
name = "sp"
tokenizer = "./sp"
chat_template = "gemma.jinja"
[targets]
top_k = 16
bytes = true
""",
        encoding="utf-8",
    )
    return file


def test_from_the_run_file_to_the_reader(run_file: Path) -> None:
    out = score_here(run_file)
    records = [
        json.loads(line) for file in sorted(out.glob("_engine/quarantine/*")) for line in file.read_text().splitlines()
    ]
    assert {(r["doc_id"], r["reason"]) for r in records} == {
        ("chat.jsonl#1", "has_media"),
        ("chat.jsonl#2", "not_messages"),
        ("system", "template_error"),
        ("chat.jsonl#5", "not_messages"),
    }
    assert any("content is a number" in r["detail"] for r in records)
    for product, batched in (("sp", True), ("teacher", True), ("bytes", False)):
        targets = Targets(out, product)
        found = list(targets.documents())
        assert [d.doc_id for d in found] == ["good", "again"]
        first = found[0]
        assert first.text == "".join(message["content"] for message in TALK)
        asked = first.flags & FLAG_CONTEXT == 0
        np.testing.assert_array_equal(asked, first.scored)
        assert (first.flags & FLAG_END != 0).sum() == 2
        if batched:
            batch = next(targets.batches(2))
            np.testing.assert_array_equal(batch["mask"][0, : len(asked)].numpy(), asked)
    stream = io.StringIO()
    write_documents(out, student="sp", view=None, limit=1, max_width=None, stream=stream, notes=io.StringIO())
    assert json.loads(stream.getvalue())["flags"].count(FLAG_CONTEXT) > 10
    for view in ("student", "teacher", "bytes"):
        stream = io.StringIO()
        show_document(out, doc="good", rows=":", top=2, student=None, view=view, stream=stream, near=[run_file.parent])
        said = stream.getvalue()
        assert "context" in said and "end" in said
        if view == "student":
            assert "<end_of_turn>" in said and "<|im_end|>" in said


def test_templates_are_part_of_the_fingerprint_by_content(run_file: Path, tmp_path: Path) -> None:
    run = load_run(run_file)
    plan = make_plan(run, scan_corpus(run.corpus, run.base_dir))
    pinned = pin(run)
    assert pinned.student[0].chat_template == GEMMA
    assert make_plan(pinned, scan_corpus(run.corpus, run.base_dir)).fingerprint == plan.fingerprint
    other = run.student[0].model_copy(update={"chat_template": GEMMA + "{# more #}"})
    changed = run.model_copy(update={"student": (other,)})
    again = make_plan(changed, scan_corpus(run.corpus, run.base_dir))
    assert any("chat_templates" in line for line in plan.difference(again))
    assert plan.products["teacher"].eos_id == 2049  # the end of a turn


def test_what_a_template_is_given_is_part_of_the_fingerprint_where_it_is_given(run_file: Path) -> None:
    run = load_run(run_file)
    scan = scan_corpus(run.corpus, run.base_dir)
    prints = set()
    for given in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        teacher = run.teacher.model_copy(update={"chat_template_kwargs": given})
        plan = make_plan(run.model_copy(update={"teacher": teacher}), scan)
        assert ("chat_template_kwargs" in plan.semantic["settings"]["teacher"]) is bool(given)
        prints.add(plan.fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"gemma.jinja"', '"none.jinja"', "none.jinja"),
        ('"gemma.jinja"', '"{{ messages[0].content | upper }}"', "as it stands"),
        ('messages = "chat"', 'text = "chat"', "no \\[corpus\\] messages"),
        (
            'model = "./t"',
            'model = "./t"\nchat_template = "{{ strftime_now }"',
            "jinja",
        ),
        ('model = "./t"', 'model = "./t"\nbos = true', "chat template"),
        ('chat_template = "gemma.jinja"', "", "cannot write|as it stands|drops"),
    ],
)
def test_what_cannot_be_rendered_is_refused_before_any_work(run_file: Path, old: str, new: str, told: str) -> None:
    text = run_file.read_text()
    assert old in text
    file = run_file.parent / "wrong.toml"
    file.write_text(text.replace(old, new, 1))
    run = load_run(file)
    with pytest.raises(RunFileError, match=told):
        make_plan(run, scan_corpus(run.corpus, run.base_dir))


def test_a_tokenizer_without_a_template_is_refused_with_what_to_do(run_file: Path) -> None:
    file = run_file.parent / "bare.toml"
    text = run_file.read_text().replace('chat_template = "gemma.jinja"\n', "")
    file.write_text(text.replace('"./sp"', json.dumps(str(ASSETS / "student_sp"))))
    run = load_run(file)
    with pytest.raises(RunFileError, match=r"no chat template comes with.*chat_template = "):
        make_plan(run, scan_corpus(run.corpus, run.base_dir))
    file.write_text(
        text.replace('"./t"', json.dumps(str(ASSETS / "teacher"))).replace(
            '"./sp"', json.dumps(str(ASSETS / "student_sp"))
        )
    )
    run = load_run(file)
    with pytest.raises(
        RunFileError, match=r"\[teacher\]: no chat template.*\[\[student\]\] .*: no chat template"
    ):  # all at once
        make_plan(run, scan_corpus(run.corpus, run.base_dir))


def test_the_template_of_the_examples_serves_base_models(run_file: Path) -> None:
    """The refusal names it: conversations under it end each turn with the tokenizer's own end token where <|im_end|> is none."""
    template = json.dumps(str(EXAMPLES / "chatml.jinja"))
    file = run_file.parent / "base.toml"
    text = run_file.read_text().replace('"gemma.jinja"', template)
    file.write_text(text.replace('"./sp"', json.dumps(str(ASSETS / "student_sp"))))
    run = load_run(file)
    assert make_plan(run, scan_corpus(run.corpus, run.base_dir)).units


def test_conversations_in_every_kind_of_file_are_the_same(tmp_path: Path) -> None:
    wanted = tuple(Message(m["role"], m["content"]) for m in TALK)
    rows = [{"m": TALK}, {"m": None}, {"m": [{"role": "user", "content": None}]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    config = CorpusConfig(paths=("*.json*", "c.parquet"), messages="m")
    scan = scan_corpus(config, tmp_path)
    documents = [d for _, found in read_units(config, scan, range(scan.n_units)) for d in found]
    assert [d.messages for d in documents] == [wanted, (), ()] * 3
    assert [d.problem and d.problem[0] for d in documents] == [None, "not_messages", "not_messages"] * 3
    data = tmp_path / "set"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), data / "train.parquet")
    config = CorpusConfig(dataset=str(data), messages="m")
    scan = scan_corpus(config, tmp_path)
    documents = [d for _, found in read_units(config, scan, range(scan.n_units)) for d in found]
    assert [d.messages for d in documents] == [wanted, (), ()]
    (tmp_path / "d.txt").write_text("text")
    with pytest.raises(CorpusError, match="plain text"):
        scan_corpus(CorpusConfig(paths=("d.txt",), messages="m"), tmp_path)


def test_roles_of_a_dataset_are_part_of_its_hash(tmp_path: Path) -> None:
    hashes = set()
    for role in ("user", "tool"):
        data = tmp_path / role
        data.mkdir()
        pq.write_table(pa.Table.from_pylist([{"m": [{"role": role, "content": "a"}]}]), data / "train.parquet")
        hashes.add(scan_corpus(CorpusConfig(dataset=str(data), messages="m"), tmp_path).files[0].sha256)
    assert len(hashes) == 2
