"""docs/security.md, held: no way to run code from data, no path from data, no secret in what is written."""

from __future__ import annotations

import ast
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.chat.template import ChatTemplate
from engine.corpus.document import Message
from engine.dataset.layout import load_plan, read_quarantine, sealed_units
from engine.plan.teacher_files import teacher_files
from engine.reader.targets import Targets
from engine.teacher.model import load_teacher
from jobs.look.side_by_side import show_document
from schemas.errors import BadDocument, RunFileError, TeacherError
from schemas.redact import redacted, without_secrets
from schemas.runfile import load_run, parse_run
from schemas.settings import StudentConfig, TeacherConfig
from tests.support.faults import Call
from tests.support.runs import ASSETS, score_here, write_run

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for folder in ("schemas", "engine", "jobs", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "subprocess", "pty", "ctypes"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
FORBIDDEN_METHODS = {
    ("os", "system"), ("os", "popen"), ("torch", "load"), ("torch", "save"), ("yaml", "load"), ("np", "load"),
    ("torch", "compile"), ("importlib", "import_module"),
}  # fmt: skip

LAZY = "importlib.import_module"  # of the project's own modules (and numba's settings), by names that stand in the file
ALLOWED = {
    "benchmarks/streaming.py": "import subprocess",  # measures the command as a process; its words stand in the file
    "benchmarks/real.py": "import subprocess",  # runs each measurement as a process of its own
    "benchmarks/planned.py": "import subprocess",  # the commands beside each other; their words stand in the file
    "engine/scoring/room.py": "import subprocess",  # asks for the GPUs in a process of its own; its words stand in the file
    "benchmarks/stage_times.py": LAZY,
    "engine/*/__init__.py": LAZY,
    "engine/exchange/megatron.py": "torch.save",  # tensors in the form that Megatron reads; read back by weights_only=True
    "engine/kernels/jit.py": LAZY,
    "jobs/app.py": LAZY,
}

# ---- no code from data


def findings(path: Path) -> list[str]:
    """What a file does that could run code from data."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
            taken = [(node.module or "", alias.name) for alias in node.names]
            found += [f"line {node.lineno}: {'.'.join(one)}" for one in taken if one in FORBIDDEN_METHODS]
        found += [f"line {node.lineno}: import {name}" for name in names if name in FORBIDDEN_IMPORTS]  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
                found.append(f"line {node.lineno}: {called.id}()")
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                given = {(g.arg, ast.unparse(g.value)) for g in node.keywords}
                plain = {"np": ("allow_pickle", "False"), "torch": ("weights_only", "True")}.get(
                    called.value.id
                ) in given
                if (called.value.id, called.attr) in FORBIDDEN_METHODS and not plain:
                    found.append(f"line {node.lineno}: {called.value.id}.{called.attr}")
            for given in node.keywords:
                risky = {"trust_remote_code", "shell", "allow_pickle"}
                if given.arg in risky and isinstance(given.value, ast.Constant) and given.value.value is True:
                    found.append(f"line {node.lineno}: {given.arg}=True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_can_run_code_from_data(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    allowed = next((finding for pattern, finding in ALLOWED.items() if fnmatch(name, pattern)), None)
    assert [finding for finding in findings(path) if allowed is None or not finding.endswith(allowed)] == []


PLAIN = ("np.load(p, allow_pickle=False)", "torch.load(p, weights_only=True)")


def test_the_walk_finds_what_it_looks_for(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    lines = ("import pickle", "from subprocess import run", "eval('1')", "torch.load(p)", "f(trust_remote_code=True)")
    bad.write_text("\n".join([*lines, "from os import system", "np.load(p)", *PLAIN]))
    assert [found.partition(": ")[2] for found in sorted(findings(bad))] == [
        "import pickle", "import subprocess", "eval()", "torch.load", "trust_remote_code=True", "os.system", "np.load",
    ]  # fmt: skip


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "teacher", folder))


class Payload:
    """Unpickled, it makes a file: what a hostile pytorch_model.bin would do, harmlessly."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_weights_that_hold_code_are_refused(tmp_path: Path) -> None:
    teacher, mark = copied(tmp_path / "teacher"), tmp_path / "ran"
    (teacher / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload(mark)}, teacher / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"can hold code, so it was not\s+loaded.*safetensors"):
        load_teacher(TeacherConfig(model=str(teacher)), str(teacher), tokenizer_end=None)
    assert not mark.exists()


def test_safetensors_are_taken_where_there_are_both(tmp_path: Path) -> None:
    teacher, mark = copied(tmp_path / "teacher"), tmp_path / "ran"
    torch.save({"model.embed_tokens.weight": Payload(mark)}, teacher / "pytorch_model.bin")
    loaded = load_teacher(TeacherConfig(model=str(teacher), device="cpu"), str(teacher), tokenizer_end=None)
    assert loaded.vocab_rows == 2048 and not mark.exists()


def test_remote_code_is_off_unless_the_run_file_says_so(tmp_path: Path) -> None:
    assert TeacherConfig(model="m").trust_remote_code is False
    assert StudentConfig(name="s", tokenizer="t").trust_remote_code is False
    teacher, mark = copied(tmp_path / "teacher"), tmp_path / "ran"
    config = json.loads((teacher / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (teacher / "config.json").write_text(json.dumps(config))
    (teacher / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Own: pass\n")
    with pytest.raises(TeacherError, match="contains custom code"):
        load_teacher(TeacherConfig(model=str(teacher)), str(teacher), tokenizer_end=None)
    assert not mark.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{% set x = messages.append(1) %}{{ messages }}",
        "{% include '/etc/hostname' %}",
    ],
)
def test_a_chat_template_is_sandboxed(template: str) -> None:
    with pytest.raises((BadDocument, RunFileError)):
        made = ChatTemplate(template, {}, "[teacher]")
        made.check()
        made.render([Message("user", "a"), Message("assistant", "b")])


# ---- no path from data


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "/tmp/x", "..", ".", "", "a\nb", "a\x00b", "-a", "a\\b", "con:", "a b"]
)
def test_a_student_cannot_name_a_path(name: str, tmp_path: Path) -> None:
    table = {
        "output": "out",
        "teacher": {"model": "m"},
        "corpus": {"paths": ["c.jsonl"]},
        "student": [{"name": name, "tokenizer": "t"}],
    }
    with pytest.raises(RunFileError, match="name"):
        parse_run(table, base_dir=tmp_path)


HOSTILE_IDS = (
    "../../escaped",
    "/etc/passwd",
    "a\x00b",
    "\x1b[2Jclear",
    "..",
    "x" * 3000,
    "C:\\x",
    "[bold]b[/]",
    "%s{0}",
)


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_document_ids_are_names_and_never_paths(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, texts=())
    lines = [json.dumps({"id": doc_id, "text": "3 + 4 = 7"}) for doc_id in HOSTILE_IDS]
    lines += [json.dumps({"id": doc_id, "text": ""}) for doc_id in HOSTILE_IDS]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    before = set(everything(tmp_path))
    out = score_here(run_file)
    assert [document.doc_id for document in Targets(out, "sp").documents()] == list(HOSTILE_IDS)
    assert sum(len(read_quarantine(out, unit)) for unit in sealed_units(out)) == len(HOSTILE_IDS)
    wanted = re.compile(
        r"out/(data/(teacher|student/(sp|bl))/train-\d{5}-of-\d{5}\.parquet"
        r"|_engine/((shards|quarantine)/\d{5}\.jsonl?|plan\.json|manifest\.json|continuations\.parquet|vocabulary/(teacher|student/(sp|bl))\.parquet)|README\.md|croissant\.json)"
    )
    made = set(everything(tmp_path)) - before
    assert made and all(wanted.fullmatch(name) for name in made), made
    assert not list(tmp_path.parent.glob("escaped*"))
    shown = io.StringIO()
    for number in range(len(HOSTILE_IDS)):
        show_document(out, doc=str(number), rows="0:2", top=1, student="sp", view=None, stream=shown)
    assert "\x1b" not in shown.getvalue() and "\\x1b[2Jclear" in shown.getvalue()  # a name cannot clear the screen


def test_a_weight_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    teacher = copied(tmp_path / "teacher")
    (teacher / "model.safetensors").unlink()
    (teacher / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../../etc/hostname"}}))
    run_file = write_run(tmp_path)
    run_file.write_text(run_file.read_text().replace(str(ASSETS / "teacher"), str(teacher)))
    with pytest.raises(TeacherError, match="want plain file names beside it"):
        teacher_files(load_run(run_file))


# ---- no secret in what is written

PASSWORD, TOKEN, KEY = "pa55-w0rd-x", "hf_" + "aBcD1234" * 5, "s3cr3t-of-the-environment"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("s3://me:pw@bucket/a and https://tok@host/x", "s3://***@bucket/a and https://***@host/x"),
        ("https:/u:p@host/corpus.jsonl#3", "https:/***@host/corpus.jsonl#3"),
        (f"use {TOKEN}.", "use ***."),
        ("at s3://me:a/b@c/d+e=@bucket/out, https://u:p@ss@h/x", "at s3://***@bucket/out, https://***@h/x"),
        ("https://h/x?a=1&X-Amz-Signature=abc&token=t#z", "https://h/x?a=1&X-Amz-Signature=***&token=***#z"),
        ("data/a@b.jsonl, mail me@host.org, key = 5, 10:30", "data/a@b.jsonl, mail me@host.org, key = 5, 10:30"),
    ],
)
def test_what_is_redacted(text: str, wanted: str) -> None:
    assert redacted(text) == wanted and redacted(wanted) == wanted


@pytest.mark.parametrize(
    "output",
    ["s3://me:a/b+c@bucket/out", "s3://me:p@ss/w@bucket/out", "s3://me:pa#x@bucket/out", "s3://key:secret/out"],
)
def test_an_output_with_credentials_is_refused_and_not_told(output: str, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="credentials belong into the environment") as refused:
        load_run(write_run(tmp_path, output=output))
    assert "@bucket" not in output or output[8:-11] not in str(refused.value)


def test_secrets_of_the_environment_leave_messages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    assert without_secrets(f"no access with {KEY}") == "no access with ***"
    assert without_secrets(f"{tmp_path} is missing") == f"{tmp_path} is missing"


def command(*arguments: object, **secrets: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    env = plain | {"PYTHONPATH": str(ROOT)} | secrets
    return subprocess.run(done, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


class Silent(http.server.SimpleHTTPRequestHandler):
    """Does not print the requests, which hold the secrets, beside what the command says."""

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.ray
def test_a_run_with_secrets_leaves_no_trace_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """The corpus has a signed URL, the tokenizer lies in a folder that is called like a URL with a password and a token; more
    lies in the environment. Nothing of it is in any file of the output, nor in what the command prints."""
    place, targets = f"https://user:{PASSWORD}@hub.example", "top_k = 16\ncalibration_documents = 1"
    run_file = write_run(tmp_path, lines='{"text": ""}\n', students={}, targets=targets, extra="[ray]\nactors = 1")
    folder = tmp_path / "https:" / f"user:{PASSWORD}@hub.example" / TOKEN
    folder.mkdir(parents=True)
    shutil.copytree(ASSETS / "student_sp", folder / "tokenizer")
    (folder / TOKEN).mkdir()
    (tmp_path / "corpus.jsonl").rename(folder / TOKEN / "corpus.jsonl")
    serve = partial(Silent, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served = f"http://127.0.0.1:{server.server_port}"
    signed = json.dumps(f"{served}/{TOKEN}/corpus.jsonl?X-Amz-Signature={PASSWORD}")
    text = run_file.read_text().replace('"corpus.jsonl"', signed).replace('id = "id"\n', "")
    student = f'[[student]]\nname = "sp"\ntokenizer = "{place}/{TOKEN}/tokenizer"\n'
    run_file.write_text(text.replace("[targets]", f"{student}[targets]"))
    done = command("score", run_file, HF_TOKEN=TOKEN, AWS_SECRET_ACCESS_KEY=KEY)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert load_plan(out).products["student/sp"].tokenizer == "https://***@hub.example/***/tokenizer"
    (record,) = [r for unit in sealed_units(out) for r in read_quarantine(out, unit)]
    assert record["source"] == "corpus.jsonl" and record["doc_id"] == "corpus.jsonl#5"
    for secret in (PASSWORD, TOKEN, KEY):
        assert not [name for name, data in everything(out).items() if secret.encode() in data]
        assert secret not in done.stdout + done.stderr
    shown = "".join(document.doc_id for document in Targets(out, "sp").documents())
    assert PASSWORD not in shown and TOKEN not in shown

    (folder / TOKEN / "corpus.jsonl").unlink()  # and errors name the place without them
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    code, _, said = call("score", run_file)
    assert code == 2 and f"{served}/***/corpus.jsonl: the file is gone" in said
    server.shutdown()
    server.server_close()
    assert PASSWORD not in said and TOKEN not in said
