"""The dataset card: valid for the Hub's own library whatever its texts hold, without secrets, the same whoever writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from engine.card.describe import describe
from engine.card.headline import Headline, figures_table, headline, sample_note
from engine.card.inputs import SHOWN_FILES, checksums, inputs_of, run_file
from engine.card.limits import limits
from engine.card.markdown import block, code, plain
from engine.dataset.finish import finish
from engine.dataset.layout import CARD, CROISSANT, MANIFEST, load_manifest, load_plan
from engine.dataset.store import open_store
from engine.figures import collect, open_published
from schemas.errors import OutputError, RunFileError
from schemas.manifest import Plan
from schemas.runfile import RunConfig, load_run
from tests.support.runs import ASSETS, write_run
from tests.support.tables import facts_of, small_plan

SECRET = "hf_" + "s" * 34
RENDER = MarkdownIt("gfm-like", {"linkify": False})
TEXTS = ('a | b ` c `` d \\ <i> [x](y) *z* _u_ # "q" $x$ ~~s~~', "`", "``a", "a`", "&lt;", "  ", "line\nbreak", "")


def card_of(out: Path, run: RunConfig | None = None) -> str:
    store, plan = open_store(out), load_plan(out)
    return describe(store, plan, load_manifest(out), run)[CARD].decode()


def test_the_hubs_library_reads_a_card_of_hostile_texts(finished: Path, hostile: RunConfig) -> None:
    data = DatasetCard.load(finished / CARD).data.to_dict()
    assert (data["pretty_name"], data["license"], data["language"]) == (
        hostile.card.title,
        "cc-by-4.0",
        ["en", "zh-Hant"],
    )
    assert [one["config_name"] for one in data["configs"]] == ["bytes", "student-small", "teacher"]
    assert [one.get("default") for one in data["configs"]] == [None, True, None]
    html = RENDER.render(DatasetCard.load(finished / CARD).text)
    assert "<script>" not in html and "<b>" not in html and 'href="http://y"' not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "Ada: | *Example*" in html
    assert "Apache-2.0 | see `LICENSE`" in html and "ODC-By: 1.0 #" in html


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stay_texts(text: str) -> None:
    shown = text.replace("\n", " ")
    cell = RENDER.render(f"| a | b |\n|---|---|\n| {plain(text)} | {code(text)} |\n")
    tokens = [
        one for one in RENDER.parse(f"| a | b |\n|---|---|\n| {plain(text)} | {code(text)} |\n") if one.type == "inline"
    ]
    assert cell.count("<td>") == 2
    inside = [
        ("".join(child.content for child in one.children or []), [c.type for c in one.children or []])
        for one in tokens[2:]
    ]
    assert inside[0][0].strip() == shown.strip() and set(inside[0][1]) <= {"text", "text_special"}
    assert inside[1] == (shown, ["code_inline"]) or not shown.strip()
    (fence,) = RENDER.parse(block(text, "toml"))
    assert fence.type == "fence" and fence.content == (text.rstrip("\n") + "\n" if text else "\n")


def test_without_a_run_file_there_is_a_card_all_the_same(finished: Path) -> None:
    card = card_of(finished)
    assert DatasetCard(card).data.to_dict()["pretty_name"] == "Targets of teacher"
    assert "license" not in DatasetCard(card).data.to_dict() and "not stated" in card and "```toml" not in card


def test_the_run_file_is_in_it_without_secrets_and_without_where_it_ran(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "correct-horse-battery")
    more = '[ray]\naddress = "ray://10.0.0.1:10001"\n[quarantine]\nmax_share = 0.5\n[card]\nlicense = "mit"'
    file = write_run(tmp_path, extra=more, targets="top_k = 16\neps = 0.001")
    text = file.read_text().replace(
        'paths = ["corpus.jsonl"]',
        f'paths = ["corpus.jsonl", "https://me:{SECRET}@host/x.jsonl", "correct-horse-battery"]',
    )
    with pytest.raises(RunFileError, match="without user and password"):
        file.write_text(text)
        load_run(file)
    file.write_text(text.replace(f"me:{SECRET}@", "") + f"# {SECRET}\n")
    run = load_run(file)
    card = card_of(finished, run)
    assert "eps = 0.001" in card and "top_k = 16" in card and "student_sp" in card and "https://host/x.jsonl" in card
    for word in (SECRET, "correct-horse-battery", "10.0.0.1", "max_share", 'output = "out"'):
        assert word not in card
    assert run.semantic() == load_run(file).semantic() and "card" not in run.semantic()


def test_teacher_tokenizers_and_corpora_have_names_revisions_and_hashes(finished: Path, tmp_path: Path) -> None:
    """The run file names branches; the card has the commits that were read."""
    text = (
        write_run(tmp_path, students={})
        .read_text()
        .replace(json.dumps(str(ASSETS / "teacher")), '"org/teacher"\nrevision = "main"')
    )
    text = text.replace("[targets]", '[[student]]\nname = "small"\ntokenizer = "org/student"\n[targets]')
    text = text.replace("[corpus]", '[[corpus]]\nsource = "web"\ndataset = "org/texts"\nrevision = "v2"\n[[corpus]]')
    (tmp_path / "run.toml").write_text(text)
    run = load_run(tmp_path / "run.toml")
    teacher, student = "1" * 40, "2" * 40
    pinned = run.model_copy(
        update={
            "teacher": run.teacher.model_copy(update={"revision": teacher}),
            "student": (run.student[0].model_copy(update={"revision": student}),),
        }
    )
    plan = small_plan(units=1, vocabularies={"teacher": "a" * 64, "student/small": "b" * 64})
    assert [
        (one.what, one.name, one.revision, one.content) for one in inputs_of(plan, load_manifest(finished), run, pinned)
    ] == [
        ("teacher", "org/teacher", teacher, "files below"),
        ("tokenizer of the teacher", "org/teacher", teacher, f"vocabulary {'a' * 64}"),
        ("tokenizer of student/small", "org/student", student, f"vocabulary {'b' * 64}"),
        ("corpus web", "org/texts, train", "v2", "sha256 below"),
        ("corpus corpus2", "corpus.jsonl", "", "files below"),
    ]
    assert run_file(run).count("[[corpus]]") + run_file(run).count("corpus = [") >= 1 and 'revision = "v2"' in run_file(
        run
    )


def test_the_same_run_gives_the_same_card_wherever_it_ran(finished: Path, tmp_path: Path) -> None:
    runs = []
    for number, folder in enumerate(("here", "there")):
        (tmp_path / folder).mkdir()
        extra = f"[ray]\nactors = {number + 1}\nmax_in_flight = {number + 1}"
        runs.append(load_run(write_run(tmp_path / folder, extra=extra, output=f"out-{folder}")))
    store, plan, manifest = open_store(finished), load_plan(finished), load_manifest(finished)
    assert describe(store, plan, manifest, runs[0]) == describe(store, plan, manifest, runs[1])


def test_a_card_that_is_there_stays_and_one_that_is_removed_is_made_anew(finished: Path) -> None:
    plan, manifest = load_plan(finished), (finished / MANIFEST).read_bytes()
    before = {name: (finished / name).read_bytes() for name in (CARD, CROISSANT)}
    (finished / CROISSANT).unlink()
    (finished / CARD).write_text("by hand")
    finish(finished, plan, engine_version="test", describe=describe)
    assert (finished / CARD).read_text() == "by hand" and (finished / CROISSANT).exists()

    def never(*_: object) -> dict[str, bytes]:
        raise AssertionError("nothing is missing")

    finish(finished, plan, engine_version="test", describe=never)
    for name, data in before.items():
        (finished / name).write_bytes(data)
    assert (finished / MANIFEST).read_bytes() == manifest


def test_a_damaged_shard_is_found_before_the_manifest(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    for name in (CARD, CROISSANT, MANIFEST):
        (out / name).unlink()
    victim = next((out / "data/student/small").glob("*.parquet"))
    data = bytearray(victim.read_bytes())
    data[40:80] = bytes(40)
    victim.write_bytes(data)
    with pytest.raises(OutputError, match=victim.name):
        finish(out, load_plan(out), engine_version="test", describe=describe)
    assert not (out / MANIFEST).exists() and not (out / CARD).exists()


def test_figures_are_those_of_stats_and_a_sample_is_called_one(finished: Path) -> None:
    store, plan, manifest = open_store(finished), load_plan(finished), load_manifest(finished)
    whole = headline(store, plan, manifest)
    told = collect(open_published(finished))
    assert whole.products == told.products and not whole.sampled
    some = headline(store, plan, manifest, most_positions=1)
    assert some.sampled and some.units_read == 1 and "of 1 unit, drawn with the seed 0" in sample_note(some)
    names = {product: product for product in plan.products}
    assert figures_table(whole, names).count("\n") == 2 + len(plan.products)


def test_checksums_name_every_file_or_say_how_many_are_left() -> None:
    files = [
        {"label": f"f{i}\n.jsonl", "sha256": f"{i:064x}", "n_bytes": 1, "n_rows": 1, "text_bytes": 1, "unit_rows": [1]}
        for i in range(SHOWN_FILES + 3)
    ]
    plan = small_plan(units=1, teacher_files={"b": "2" * 64, "a": "1" * 64}, corpus={"files": files})
    lines = checksums(plan).splitlines()
    assert lines[:2] == [f"{'1' * 64}  teacher/a", f"{'2' * 64}  teacher/b"]
    assert lines[2] == f"{0:064x}  {json.dumps('corpus/f0' + chr(10) + '.jsonl')}" and len(lines) == SHOWN_FILES + 3
    assert lines[-1] == "# 3 more: semantic.corpus.files in _engine/plan.json"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('title = "a\\nb"', "one line of visible characters"),
        ('authors = ["Ada", " "]', "one line of visible characters"),
        ('license = "MIT License"', "a licence by its id on the Hub"),
        ('language = ["english"]', "codes of languages"),
        ('licence = "mit"', "license"),
    ],
)
def test_wrong_keys_are_told(tmp_path: Path, lines: str, says: str) -> None:
    with pytest.raises(RunFileError, match=says) as raised:
        load_run(write_run(tmp_path, extra=f"[card]\n{lines}"))
    assert "[card]" in str(raised.value)


def test_what_was_imported_is_called_so_and_its_files_are_named(finished: Path) -> None:
    facts = {"teacher": facts_of(regime="imported")}
    semantic = {"imported": {"form": "trl", "files": [{"name": "rows.parquet", "bytes": 3, "sha256": "c" * 64}]}}
    plan = Plan.make(semantic, [], facts)
    manifest = load_manifest(finished).model_copy(update={"products": facts, "totals": {}, "shards": ()})
    assert checksums(plan) == f"{'c' * 64}  imported/rows.parquet"
    lines = "\n".join(limits(plan, manifest, Headline({}, 0, False), {"teacher": "teacher"}))
    assert "nothing is certified" in lines and "exact" not in lines
