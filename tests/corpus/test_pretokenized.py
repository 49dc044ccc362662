"""Corpora of prompts and completions, and of tokens with labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models

from engine.corpus.columns import Columns, Record
from engine.corpus.document import Message
from engine.corpus.pretokenized import TokenColumns
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units
from engine.corpus.values import Problem
from schemas.errors import CorpusError, RunFileError
from schemas.runfile import RunConfig, parse_run
from tests.support.corpora import corpus
from tests.support.runs import ASSETS
from tests.support.vocabularies import SHARED

TEXT = "Anna has 3 apples — naïve."


def run_of(teacher: Path, **settings: Any) -> RunConfig:
    table = {
        "output": "out",
        "teacher": {"model": str(teacher)},
        "corpus": {"paths": ["a.*"], **settings},
        "student": [{"name": "sp", "tokenizer": str(ASSETS / "student_sp")}],
    }
    return parse_run(table, base_dir=teacher)


def one(item: dict[str, Any], **settings: Any) -> Record:
    return Columns.of(run_of(ASSETS / "teacher", **settings).corpus).of_object(0, "row 0", item)


def tokens(text: str, folder: Path = ASSETS / "teacher") -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="no shared data: set TARGETSMITH_SHARED")
def test_the_cases_of_users() -> None:
    line = json.loads((SHARED / "cases" / "prompt_completion.jsonl").read_text())
    assert one(line, prompt="prompt", completion="completion").messages == (
        Message("user", "Q: 6+6? A:"), Message("assistant", " 12"),
    )  # fmt: skip
    line = json.loads((SHARED / "cases" / "pretokenized.jsonl").read_text())
    stories = run_of(SHARED / "models" / "stories260K", input_ids="input_ids").corpus
    assert Columns.of(stories).of_object(0, "row 0", line).text == "Once upon a"
    masked = run_of(SHARED / "models" / "stories260K", input_ids="input_ids", labels="labels").corpus
    assert Columns.of(masked).of_object(0, "row 0", line).messages == (Message("assistant", "Once upon a"),)


def test_a_prompt_may_be_made_of_several_columns() -> None:
    item = {"question": "6+6?", "n": 7, "answer": "12"}
    found = one(item, prompt_template="Q{n}: {question}\nA: ", completion="answer")
    assert (
        found.messages == (Message("user", "Q7: 6+6?\nA: "), Message("assistant", "12"))
        and found.text == "Q7: 6+6?\nA: 12"
    )
    missing = one({"question": "6+6?"}, prompt="question", completion="answer").problem
    assert missing is not None and missing.reason == "missing_column"


def test_tokens_become_their_text_and_labels_say_what_is_scored() -> None:
    ids = tokens(TEXT)
    assert one({"ids": [2046, *ids, 2047]}, input_ids="ids").text == TEXT
    for cut in range(1, len(ids)):
        labels = [-100] * (cut + 1) + ids[cut:] + [2047]
        found = one({"ids": [2046, *ids, 2047], "y": labels}, input_ids="ids", labels="y")
        if found.problem is None:
            assert [m.role for m in found.messages] == ["user", "assistant"] and found.text == TEXT
            assert tokens(found.messages[0].content) == ids[:cut]
        else:
            assert "inside a character" in found.problem.detail


def test_tokens_of_a_student_with_a_space_of_its_own() -> None:
    ids = tokens(TEXT, ASSETS / "student_sp")
    assert one({"ids": ids}, input_ids="ids", input_ids_of="sp").text == TEXT


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({"ids": [5, 2047, 6]}, "special token '<|eos|>' stands inside"),
        ({"ids": [5, 10**6]}, "wanted ids below"),
        ({"ids": [5, -1]}, "wanted ids below"),
        ({"ids": "5 6"}, "is a text, wanted a list of whole numbers"),
        ({"ids": [5, 1.5]}, "a list of other things"),
        ({"ids": [72, 101, 108, 108, 111]}, "in other tokens"),
        ({"ids": [5, 6], "y": [5]}, "1 labels for 2 tokens"),
    ],
)
def test_what_is_no_text_says_why(item: dict[str, Any], told: str) -> None:
    labels = {"labels": "y"} if "y" in item else {}
    problem = one(item, input_ids="ids", **labels).problem
    assert problem is not None and problem.reason == "tokens_not_text" and told in problem.detail


def test_a_special_token_with_the_id_0_is_seen_inside_a_text(tmp_path: Path) -> None:
    """As `<unk>` in Llama-2's vocabulary, or `<|endoftext|>` in GPT-NeoX's."""
    tokenizer = Tokenizer(models.BPE(vocab={"<e>": 0, "a": 1, "b": 2}, merges=[]))
    tokenizer.add_special_tokens(["<e>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = TokenColumns("ids", None, str(tmp_path), None).read({"ids": [1, 0, 2]})
    assert isinstance(found, Problem) and "special token '<e>' stands inside" in found.detail


def test_a_label_that_changes_inside_a_character_is_refused() -> None:
    tokenizer = Tokenizer.from_file(str(ASSETS / "teacher" / "tokenizer.json"))
    ids = tokens("☃")
    assert len(ids) > 1 and tokenizer.decode(ids) == "☃"
    columns = TokenColumns("ids", "y", str(ASSETS / "teacher"), None)
    problem = columns.read({"ids": ids, "y": [-100, *ids[1:]]})
    assert isinstance(problem, Problem) and "inside a character" in problem.detail


def test_tokens_of_every_kind_of_file_are_the_same(tmp_path: Path) -> None:
    rows = [{"ids": tokens(TEXT), "y": [-100, *tokens(TEXT)[1:]]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    config = run_of(ASSETS / "teacher", input_ids="ids", labels="y").corpus
    found = []
    for name in ("a.jsonl", "a.parquet"):
        one_file = config.model_copy(update={"paths": (name,)})
        scan = scan_corpus(one_file, tmp_path)
        found.append([d for _, documents in read_units(one_file, scan, range(scan.n_units)) for d in documents])
    assert found[0][0].messages == found[1][0].messages and len(found[0][0].messages) == 2
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(CorpusError, match="plain text.*input_ids"):
        scan_corpus(config.model_copy(update={"paths": ("b.txt",)}), tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompt": "a"}, "wanted: completion"),
        ({"completion": "a"}, "one of prompt and prompt_template"),
        ({"prompt": "a", "prompt_template": "{a}", "completion": "b"}, "one of prompt and prompt_template"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "both completion and text"),
        ({"prompt": "a", "completion": "b", "messages": "c"}, "both completion and messages"),
        ({"input_ids": "a", "messages": "c"}, "both input_ids and messages"),
        ({"labels": "a"}, "together with input_ids"),
        ({"prompt_template": "none", "completion": "b"}, "prompt_template\n"),
        ({"input_ids": "a", "input_ids_of": "nobody"}, 'wanted "teacher", or the name of a student'),
        ({"prompt": "a", "completion": "b", "specials": "boundary"}, "remove specials"),
    ],
)
def test_keys_that_do_not_go_together(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(RunFileError) as caught:
        run_of(ASSETS / "teacher", **settings)
    assert told in str(caught.value)


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="input_ids_of"):
        TokenColumns("ids", None, str(tmp_path), None).read({"ids": [1]})
    assert corpus(paths=["a"]).ids_source is None
