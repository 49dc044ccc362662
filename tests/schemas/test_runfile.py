"""The run file: what loads, what each wrong key is told, what enters the fingerprint, and that its page is complete."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.errors import RunFileError
from schemas.runfile import RunConfig, load_run, locate
from schemas.settings import RayConfig
from schemas.settings_targets import TargetsConfig

MINIMAL = """
output = "out"
[teacher]
model = "path-or-hub-id"          # any Hugging Face causal LM
[corpus]
paths = ["data/*.jsonl"]
text = "text"
[[student]]
name = "small"
tokenizer = "path-or-hub-id"
[targets]
regime = "auto"
top_k = 64
"""


def load(tmp_path: Path, text: str) -> RunConfig:
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    return load_run(file)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(RunFileError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "pydantic" not in message and "http" not in message and "Input should" not in message
    return message


def block(message: str, where: str) -> dict[str, str]:
    """got, wanted and fix of the one block headed `where`."""
    lines = message.splitlines()
    assert lines.count(f"  {where}") == 1, message
    at = lines.index(f"  {where}")
    return {key.strip(): told.strip() for key, told in (part.split(":", 1) for part in lines[at + 1 : at + 4])}


def test_the_minimal_run_file_loads_with_defaults(tmp_path: Path) -> None:
    run = load(tmp_path, MINIMAL)
    assert run.teacher.model == "path-or-hub-id" and run.teacher.dtype == "auto" and run.teacher.overlap == 128
    assert run.corpus.paths == ("data/*.jsonl",) and run.corpus.unit_documents == 256
    assert [student.name for student in run.student] == ["small"]
    assert run.targets.top_k == 64 and run.targets.teacher and run.ray.actors == "auto"
    assert run.output == tmp_path / "out" and run.base_dir == tmp_path


def test_targets_and_ray_may_be_left_out_and_a_bom_is_fine(tmp_path: Path) -> None:
    run = load(tmp_path, "\ufeff" + MINIMAL.split("[targets]")[0])
    assert run.targets == TargetsConfig() and run.ray == RayConfig()


def test_every_key_can_be_set(tmp_path: Path) -> None:
    run = load(
        tmp_path,
        """
        output = "~/elsewhere"
        [teacher]
        model = "m"
        tokenizer = "t"
        revision = "main"
        tokenizer_revision = "v2"
        dtype = "bfloat16"
        device = "cuda"
        max_length = 512
        overlap = 0
        bos = false
        batch_tokens = 1
        attention = "tree"
        trust_remote_code = true
        [corpus]
        dataset = "org/data"
        name = "small"
        split = "test[:10]"
        revision = "v1"
        template = "{question} {{}} {answer}"
        id = "key"
        limit = 5
        unit_documents = 1
        unit_bytes = 1
        [[student]]
        name = "a.b-c_1"
        tokenizer = "t"
        revision = "r"
        trust_remote_code = true
        [[student]]
        name = "2"
        tokenizer = "u"
        [targets]
        regime = "beam"
        top_k = 1024
        teacher = false
        store_text = false
        end = false
        [ray]
        address = "auto"
        actors = 3
        actors_per_node = 1
        num_cpus = 0.5
        num_gpus = 1
        max_in_flight = 1
        """,
    )
    assert run.output == Path.home() / "elsewhere"
    assert run.teacher.bos is False and run.ray.actors == 3 and run.ray.num_gpus == 1.0
    assert run.corpus.split == "test[:10]" and len(run.student) == 2


def test_a_run_is_frozen_and_travels_between_processes(tmp_path: Path) -> None:
    run = load(tmp_path, MINIMAL)
    with pytest.raises(ValidationError):
        run.targets.top_k = 3  # pyright: ignore[reportAttributeAccessIssue]
    copy = pickle.loads(pickle.dumps(run))
    assert copy == run and copy.base_dir == tmp_path


def test_relative_paths_start_at_the_run_file_not_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    load(folder, MINIMAL)
    monkeypatch.chdir(tmp_path)
    run = load_run("runs/run.toml")
    assert run.base_dir == folder and run.output == folder / "out"


# ==== local path or hub id


def test_locate(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert locate("models/tiny", tmp_path) == str(tmp_path / "models" / "tiny")
    assert locate("./models/none", tmp_path) == str(tmp_path / "models" / "none")
    assert locate("../x", tmp_path) == str(tmp_path.parent / "x")
    assert locate("/somewhere/else", tmp_path) == "/somewhere/else"
    assert locate("~/m", tmp_path) == str(Path.home() / "m")
    assert locate("org/model", tmp_path) == "org/model"
    assert locate("gpt2", tmp_path) == "gpt2"


# ==== the file itself


def test_a_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"nowhere\.toml: there is no such run file") as caught:
        load_run(tmp_path / "nowhere.toml")
    assert caught.value.exit_code == 2


def test_a_folder_is_not_a_run_file(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="Is a directory.*wanted a TOML file"):
        load_run(tmp_path)


def test_invalid_toml_shows_the_line(tmp_path: Path) -> None:
    message = refused(tmp_path, 'output = "out"\n[teacher]\nmodel = gpt2\n')
    assert "run.toml: not valid TOML" in message and "line 3: model = gpt2" in message


def test_toml_that_ends_too_early(tmp_path: Path) -> None:
    assert "not valid TOML" in refused(tmp_path, 'output = """out')


def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b'output = "out"\n# caf\xe9\n')
    with pytest.raises(RunFileError, match="line 2: got bytes that are not UTF-8"):
        load_run(file)


# ==== wrong keys


def test_an_empty_file_lists_all_that_is_missing(tmp_path: Path) -> None:
    message = refused(tmp_path, "")
    assert "4 settings are wrong" in message
    assert block(message, "output")["fix"].startswith('add output = "..." at the top')
    assert block(message, "[teacher]")["fix"] == "add [teacher] with model = ..."
    assert "missing" in block(message, "[corpus]")["got"]
    assert block(message, "[[student]]")["fix"].startswith("add [[student]] with name = ... and tokenizer = ..., or")


PATHS, TEXT = 'paths = ["data/*.jsonl"]', 'text = "text"'
TEMPLATE = "[corpus] template"

# (what to replace, by what, where the message points, what it says under got, wanted and fix)
WRONG = {
    "mistyped key": ("model =", "modle =", "[teacher] modle", '"path-or-hub-id", but', "model", "did you mean model?"),
    "key left out": ("model =", "# model =", "[teacher] model", "missing", "a text", 'add model = "..."'),
    "key of another table": ("[targets]", "[ray]", "[ray] top_k", "64, but", "actors", "move it to [targets]"),
    "key of the top": ("[targets]", '[targets]\noutput = "x"', "[targets] output", '"x"', "regime", "top of the file"),
    "unknown table": ("[targets]", "[target]", "target", "a table, but", "targets", "did you mean [targets]?"),
    "unlike any key": ("top_k", "zzz", "[targets] zzz", "64, but", "top_k", "docs/runfile.md"),
    "mistyped choice": ('"auto"', '"fsat"', "[targets] regime", '"fsat"', '"exact", "fast"', 'regime = "fast"?'),
    "choice unlike any": ('"auto"', '"qq"', "[targets] regime", '"qq"', '"exact", "fast"', "give regime one of"),
    "too large": ("64", "1025", "[targets] top_k", "1025", "a whole number, 1 to 1024", "give top_k"),
    "too small": ("64", "0", "[targets] top_k", "0", "a whole number, 1 to 1024", "give top_k"),
    "eps too large": ("64", "64\neps = 1.0", "[targets] eps", "1.0", "below 1", "give eps"),
    "semantics": ("64", '64\nsemantics = "canonical-mask"', "[targets] semantics", "mask", "-masked", "did you mean"),
    "number in quotes": ("64", '"64"', "[targets] top_k", '"64"', "a whole number", "remove the quotes: top_k = 64"),
    "broken number": ("64", "64.5", "[targets] top_k", "64.5", "a whole number", "give top_k"),
    "true as number": ("64", "true", "[targets] top_k", "true", "a whole number", "give top_k"),
    "a date": ("64", "2024-01-01", "[targets] top_k", '"2024-01-01"', "a whole number", "give top_k"),
    "switch in quotes": ("top_k", 'end = "true"\ntop_k', "[targets] end", '"true"', "true or false", "end = true"),
    "text as number": ('"text"', "3", "[corpus] text", "3", "a text", 'put it in quotes: "3"'),
    "empty text": ('"text"', '""', "[corpus] text", '""', "a text, not empty", "between the quotes"),
    "one path": ('["data/*.jsonl"]', '"d"', "[corpus] paths", '"d"', "a list of texts", 'write paths = ["d"]'),
    "a path no text": ('["data/*.jsonl"]', '["d", 3]', "[corpus] paths, item 2", "3", "a list of texts", '"3"'),
    "no paths": ('["data/*.jsonl"]', "[]", "[corpus] paths", "neither paths nor dataset", "one of the two", "add"),
    "no source": (PATHS, "", "[corpus] paths", "neither", "one of the two", 'paths = ["data/'),
    "two sources": ("paths", 'dataset = "d"\npaths', "[corpus] paths", "both paths", "one", "remove dataset"),
    "split of files": ("paths", 'split = "x"\npaths', "[corpus] split", '"x"', "together with dataset", "remove split"),
    "chat and text": ("text = ", 'messages = "m"\ntext = ', "[corpus] messages", "both", "one of", "remove messages"),
    "roles": (TEXT, 'roles = ["user"]', "[corpus] roles", '["user"]', "together with messages", "remove roles"),
    "chat specials": (TEXT, 'messages = "m"\nspecials = "boundary"', "[corpus] specials", "messages", "plain", "remove"),
    "text and template": ("text = ", 'template="{a}"\ntext = ', TEMPLATE, "both", "one of", "remove text"),
    "template, no column": (TEXT, 'template = "a"', TEMPLATE, '"a"', "at least one {column}", "real braces"),
    "template, open brace": (TEXT, 'template = "{a"', TEMPLATE, '"{a"', "columns", "write {{"),
    "template, attribute": (TEXT, 'template = "{a.b}"', TEMPLATE, "{a.b}", "plain column", "such as"),
    "template, item": (TEXT, 'template = "{a[0]}"', TEMPLATE, "{a[0]}", "plain column", "such as"),
    "template, nameless": (TEXT, 'template = "{}"', TEMPLATE, "{}", "plain column", "such as"),
    "template, format": (TEXT, 'template = "{a:>9}"', TEMPLATE, "{a:>9}", "plain column", "such as"),
    "delimiter of a dataset": (PATHS, 'dataset = "d"\ndelimiter = "x"', "[corpus] delimiter", '"x"', "plain", "remove"),
    "table as text": ("[teacher]\nmodel = ", "teacher = ", "[teacher]", '"path-or', "a table", "write [teacher]"),
    "single brackets": ("[[student]]", "[student]", "[[student]]", "a table", "at least one", "write [[student]]"),
    "student's name": ('"small"', '"-s/m"', "[[student]] number 1 name", '"-s/m"', "begins with a letter", "give name"),
    "no tokenizer": ("model =", 'tokenizer_revision = "x"\nmodel =', "[teacher] tokenizer_revision", '"x"', "hub id", "remove"),
    "windows": ("model =", "max_length = 64\nmodel =", "[teacher] overlap", "128 with", "fewer", "overlap = 16"),
    "bos": ("model =", 'bos = "yes"\nmodel =', "[teacher] bos", '"yes"', '"auto" or true or false', "give bos"),
    "no actors": ("[targets]", "[ray]\nactors = 0\n[targets]", "[ray] actors", "0", '"auto" or a whole', "give"),
    "no number": ("[targets]", "[ray]\nnum_cpus = nan\n[targets]", "[ray] num_cpus", "NaN", "a number, 0", "give"),
    "parts of GPUs": ("[targets]", "[ray]\nnum_gpus = 1.5\n[targets]", "[ray] num_gpus", "1.5", "whole", "num_gpus = 2"),
    "tiny parts": ("[targets]", "[ray]\nnum_cpus = 1e-5\n[targets]", "[ray] num_cpus", "1e-05", "4 digits", "0.0001"),
    "output is the folder": ('"out"', '"."', "output", ".", "a folder of its own", 'output = "out"'),
    "output as number": ('"out"', "3", "output", "3", "the folder of the results", "quotes"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "fix"),
    [
        ("model =", "modle =", "did you mean model?"),
        ("[teacher]", "[teachr]", "did you mean [teacher]?"),
        ("tokenizer =", "tokeniser =", "did you mean tokenizer?"),
        ("[[student]]", "[[studnet]]", "did you mean [[student]]?"),
        ("output =", "outptu =", "did you mean output?"),
    ],
)
def test_a_required_key_that_is_misspelt_is_told_once(tmp_path: Path, old: str, new: str, fix: str) -> None:
    """Not as missing and as unknown."""
    said = refused(tmp_path, MINIMAL.replace(old, new, 1))
    assert "1 setting is wrong" in said and fix in said and "missing" not in said


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_key_is_told_where_got_wanted_and_fix(tmp_path: Path, case: str) -> None:
    old, new, where, got, want, fix = WRONG[case]
    assert MINIMAL.count(old) >= 1
    told = block(refused(tmp_path, MINIMAL.replace(old, new, 1)), where)
    assert got in told["got"] and want in told["wanted"] and fix in told["fix"], told


def test_no_students(tmp_path: Path) -> None:
    text = MINIMAL.split("[[student]]")[0]
    assert "missing" in block(refused(tmp_path, text), "[[student]]")["got"]
    assert "an empty list" in block(refused(tmp_path, "student = []\n" + text), "[[student]]")["got"]
    assert "missing" in block(refused(tmp_path, text + "[targets]\nteacher = false"), "[[student]]")["got"]


@pytest.mark.parametrize("asked", ["bytes = true", "bytes = true\nteacher = false", "teacher = true"])
def test_students_may_be_absent_where_something_else_is_asked_for(asked: str, tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL.split("[[student]]")[0] + "[targets]\n" + asked).student == ()


def test_two_students_of_one_name(tmp_path: Path) -> None:
    again = '[[student]]\nname = "SMALL"\ntokenizer = "t"\n'
    told = block(refused(tmp_path, MINIMAL + again), "[[student]] name")
    assert '"SMALL" for [[student]] number 1 and number 2' in told["got"]
    # A third one is a second mistake, and is listed too.
    assert "2 settings are wrong" in refused(tmp_path, MINIMAL + again + again)


def test_all_wrong_keys_are_in_one_message(tmp_path: Path) -> None:
    text = MINIMAL.replace("64", '"many"').replace("model", "modle").replace('"text"', "1").replace('"small"', '"?"')
    message = refused(tmp_path, text)
    assert "run.toml: 4 settings are wrong" in message
    for where in (
        "[teacher] modle",
        "[corpus] text",
        "[[student]] number 1 name",
        "[targets] top_k",
    ):
        assert block(message, where)["fix"]


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    told = block(refused(tmp_path, MINIMAL.replace('"auto"', f'"{"x" * 9999}"')), "[targets] regime")
    assert told["got"].endswith("...") and len(told["got"]) < 80


# ==== what enters the fingerprint


def test_semantic_is_json_and_leaves_out_what_changes_nothing(tmp_path: Path) -> None:
    base = load(tmp_path, MINIMAL).semantic()
    assert json.loads(json.dumps(base)) == base
    assert set(base) == {"teacher", "corpus", "student", "targets"}
    operational = MINIMAL.replace('"out"', '"other"').replace("model =", 'device = "cpu"\nbatch_tokens = 5\nmodel =')
    assert load(tmp_path, operational + "[ray]\nactors = 7\n").semantic() == base


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model =", 'dtype = "float16"\nmodel ='),
        ("model =", "bos = true\nmodel ="),
        ('"text"', '"body"'),
        ("text =", "unit_documents = 255\ntext ="),
        ('"small"', '"tiny"'),
        ("64", "63"),
    ],
)
def test_semantic_follows_what_changes_something(tmp_path: Path, old: str, new: str) -> None:
    assert load(tmp_path, MINIMAL.replace(old, new, 1)).semantic() != load(tmp_path, MINIMAL).semantic()


def test_the_order_of_students_is_free(tmp_path: Path) -> None:
    one, two = ('[[student]]\nname = "a"\ntokenizer = "t"\n', '[[student]]\nname = "b"\ntokenizer = "u"\n')
    assert load(tmp_path, MINIMAL + one + two).semantic() == load(tmp_path, MINIMAL + two + one).semantic()
