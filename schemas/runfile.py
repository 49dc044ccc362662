"""The run file: one TOML, parsed into frozen typed models. `schemas.settings` and docs/runfile.md describe every key.

run = load_run("run.toml")      # RunConfig, or RunFileError that lists every wrong key
run.teacher.model, run.student[0].name, run.output (absolute Path, or URL), run.base_dir (folder of the run file)
run.semantic()                  # the settings that change bytes or meaning: they enter the fingerprint
run.locate("models/tiny")       # absolute path if it is local, else the Hugging Face id unchanged
"""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, PrivateAttr, ValidationError, ValidationInfo, field_validator

from schemas.address import is_url, path_of, url_fault
from schemas.corpus_faults import MIXTURE_KEYS, mixture_faults
from schemas.errors import RunFileError
from schemas.products import TEACHER, student_product
from schemas.redact import redacted
from schemas.runfile_errors import Fault, Faults, explain, listed, show
from schemas.settings import QuarantineConfig, RayConfig, SettingsTable, StudentConfig, TeacherConfig, key
from schemas.settings_card import CardConfig
from schemas.settings_corpus import CorpusConfig
from schemas.settings_targets import TargetsConfig

__all__ = [
    "CardConfig",
    "CorpusConfig",
    "QuarantineConfig",
    "RayConfig",
    "RunConfig",
    "StudentConfig",
    "TargetsConfig",
    "TeacherConfig",
    "TokenizerSource",
    "load_run",
    "locate",
    "parse_run",
]


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Where one product's tokenizer comes from, and what the run file says about it."""

    product: str  # "teacher" or "student/<name>"
    where: str  # the table of the run file, for messages
    name: str  # as the run file names it
    place: str  # absolute path, or a hub id
    revision: str | None  # of the hub id
    trust_remote_code: bool
    chat_template: str | None  # as the run file gives it
    chat_template_kwargs: dict[str, Any]


class RunConfig(SettingsTable):
    """The whole run file. `load_run` and `parse_run` build it: they also set `base_dir` and make a local `output` absolute."""

    output: Path | str = key(
        semantic=False,
        wanted="a text: the folder of the results",
        about="Folder of the results, relative to the folder of the run file; or a URL such as `s3://bucket/prefix`.",
    )
    teacher: TeacherConfig = key(semantic=True, about="The model whose distributions are stored.")
    corpus: CorpusConfig = key(semantic=True, about="The documents.")
    targets: TargetsConfig = key(TargetsConfig(), semantic=True, about="What is stored.")
    student: tuple[StudentConfig, ...] = key(  # behind `targets`: `_something_to_store` looks at both
        (),
        semantic=True,
        strict=False,
        validate_default=True,
        wanted="at least one [[student]] table",
        about="The students' vocabularies; the teacher runs once for all of them. May be absent where `[targets]` says "
        "`bytes = true`, `hidden = true` or `teacher = true` in so many words.",
    )
    ray: RayConfig = key(RayConfig(), semantic=False, about="Where the work runs.")
    quarantine: QuarantineConfig = key(
        QuarantineConfig(), semantic=False, about="How many bad documents the run may have."
    )
    card: CardConfig = key(CardConfig(), semantic=False, about="What the dataset card says beside what the run knows.")

    _base_dir: Path = PrivateAttr(default_factory=Path.cwd)
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @field_validator("output", mode="before")
    @classmethod
    def _path_or_url(cls, value: Any) -> Any:
        """A URL stays a text, since a Path would take one of its slashes; all other texts become paths."""
        if not isinstance(value, str) or not is_url(value):
            return path_of(value) if isinstance(value, str) else value
        if fault := url_fault(value):
            raise Faults(Fault("output", show(redacted(value)), *fault))
        return value.rstrip("/")

    @field_validator("output")
    @classmethod
    def _own_folder(cls, value: Path | str) -> Path | str:
        if value == Path("."):
            raise Faults(
                Fault("output", '"" or "."', "a folder of its own: its files are managed", 'write output = "out"')
            )
        return value

    @field_validator("student", mode="before")
    @classmethod
    def _something_to_store(cls, students: Any, info: ValidationInfo) -> Any:
        """Without students a run must say itself what it stores; that one was forgotten is likelier."""
        targets = info.data.get("targets")  # None: wrong itself, and reported
        if students in ([], ()) and targets is not None:
            named = targets.teacher and "teacher" in targets.model_fields_set
            if not (targets.bytes or targets.hidden or named):
                raise Faults(
                    Fault(
                        "",
                        "nothing: the table is missing" if students == () else "an empty list",
                        "at least one [[student]] table, or another product: bytes, hidden, or the teacher's own view",
                        "add [[student]] with name = ... and tokenizer = ..., or write bytes = true, hidden = true or "
                        "teacher = true under [targets]",
                    )
                )
        return students

    @field_validator("student")
    @classmethod
    def _unique_names(cls, students: tuple[StudentConfig, ...]) -> tuple[StudentConfig, ...]:
        seen: dict[str, int] = {}
        faults = []
        for number, student in enumerate(students, start=1):
            # Names are folders, and some file systems do not tell "A" from "a".
            first = seen.setdefault(student.name.casefold(), number)
            if first != number:
                got = f"{show(student.name)} for [[student]] number {first} and number {number}"
                faults.append(
                    Fault("name", got, "names that differ by more than upper and lower case", "rename one of the two")
                )
        if faults:
            raise Faults(*faults)
        return students

    @property
    def base_dir(self) -> Path:
        """Absolute folder of the run file: relative paths in it start here. No part of the fingerprint."""
        return self._base_dir

    @property
    def given(self) -> dict[str, Any]:
        """What the file says, as TOML values, without the keys that change no result; {} where it was no file."""
        return self._given

    def locate(self, value: str) -> str:
        """See `locate`; relative to the folder of this run file."""
        return locate(value, self._base_dir)

    @property
    def tokenizers(self) -> tuple[TokenizerSource, ...]:
        """The tokenizer of the teacher, then of each student. The teacher's own, not named apart, has the model's revision."""
        teacher, found = self.teacher, []
        own = (teacher.model, teacher.revision)
        name, revision = own if teacher.tokenizer is None else (teacher.tokenizer, teacher.tokenizer_revision)
        tables = [(TEACHER, "[teacher]", name, revision, teacher)]
        tables += [(student_product(s.name), f"[[student]] {s.name}", s.tokenizer, s.revision, s) for s in self.student]
        for product, where, name, revision, table in tables:
            place = self.locate(name)
            chat = (table.chat_template, table.chat_template_kwargs)
            found.append(TokenizerSource(product, where, name, place, revision, table.trust_remote_code, *chat))
        return tuple(found)

    def semantic(self) -> dict[str, Any]:
        """JSON-able settings that change bytes or meaning, defaults included. Students by name: their order is free."""
        settings = _semantic(self)
        settings["student"] = sorted(settings["student"], key=lambda student: student["name"])
        if self.corpus.parts:
            settings["corpus"] = [_semantic(part) for part in self.corpus.parts]
        return settings


class _MixtureRun(RunConfig):
    """The run file with several [[corpus]] tables."""

    corpus: tuple[CorpusConfig, ...] = key(  # pyright: ignore[reportIncompatibleVariableOverride]
        semantic=True, strict=False, min_length=1, about="The documents, from several sources."
    )


def _given(table: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The semantic keys of a valid table, as they stand in the file; tables that are left empty are left out."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        field = model.model_fields[name]
        extra = field.json_schema_extra
        if not (isinstance(extra, dict) and extra["semantic"]):
            continue
        kinds: tuple[Any, ...] = (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            parts = [_given(part, inner) for part in (value if isinstance(value, list) else [value])]
            value = parts if isinstance(value, list) else parts[0]
        if value != {}:
            found[name] = value
    return found


def _semantic(table: BaseModel) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, field in type(table).model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict) and isinstance(extra.get("semantic"), bool), f"{name} has no mark"
        value = getattr(table, name)
        if extra["semantic"] and not (extra.get("newer") and value == field.default):
            settings[name] = (
                [_semantic(item) if isinstance(item, BaseModel) else item for item in value]
                if isinstance(value, tuple)
                else _semantic(value)
                if isinstance(value, BaseModel)
                else value
            )
    return settings


def locate(value: str, base_dir: Path) -> str:
    """Absolute path when `value` is local, else `value` itself: a Hugging Face id.

    Local means: absolute, or begins with "./", "../" or "~", or exists relative to `base_dir`. A local path need not
    exist; whoever opens it says so.
    """
    expanded = os.path.expanduser(value)
    candidate = os.path.normpath(os.path.join(base_dir, expanded))
    said = os.path.isabs(expanded) or value in (".", "..") or value.startswith(("./", "../", "~"))
    return candidate if said or os.path.exists(candidate) else value


def load_run(path: str | os.PathLike[str]) -> RunConfig:
    """Read the run file at `path`. RunFileError: no such file, no valid TOML, or wrong keys, all of them listed."""
    file, text = Path(path), ""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RunFileError(
            f"{file}, line {line}: got bytes that are not UTF-8; a run file is UTF-8 text. Save it again as UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = f"\n  line {found[1]}: {text.splitlines()[int(found[1]) - 1]}" if found else ""
        raise RunFileError(
            f"{file}: not valid TOML: {error}.{line}\n  fix: correct that line; texts need quotes."
        ) from error
    except FileNotFoundError as error:
        raise RunFileError(
            f"{file}: there is no such run file. Check the path, or write one: see docs/runfile.md."
        ) from error
    except OSError as error:
        raise RunFileError(f"{file}: cannot be read ({error.strerror}); wanted a TOML file. Check the path.") from error
    return parse_run(table, base_dir=file.parent, source=str(file))


def parse_run(table: dict[str, Any], *, base_dir: Path, source: str = "run file") -> RunConfig:
    """A RunConfig from an already parsed TOML `table`; messages call it `source`. RunFileError as in `load_run`."""
    base, parts = Path(os.path.abspath(base_dir)), tuple[CorpusConfig, ...]()
    root = _MixtureRun if isinstance(table.get("corpus"), list) else RunConfig
    try:
        run = root.model_validate(table)
    except ValidationError as error:
        raise RunFileError(explain(error, root, source)) from None  # pydantic's words help nobody here
    if isinstance(run, _MixtureRun):
        parts = tuple(
            part if part.source else part.model_copy(update={"source": f"corpus{number}"})
            for number, part in enumerate(cast(tuple[CorpusConfig, ...], run.corpus), start=1)
        )
        run = RunConfig.model_validate({**table, "corpus": table["corpus"][0]}).model_copy(update={"corpus": parts[0]})
        run.corpus._parts = parts
        faults = list(mixture_faults(parts))
    else:
        wanted = "this key only in a mixture, whose tables are headed [[corpus]]"
        faults = [
            ("[corpus]", Fault(name, show(getattr(run.corpus, name)), wanted, f"remove {name}, or write [[corpus]]"))
            for name in MIXTURE_KEYS
            if name in run.corpus.model_fields_set
        ]
    if faults:
        raise RunFileError(listed(faults, source))
    if isinstance(run.output, Path):
        run = run.model_copy(update={"output": Path(os.path.normpath(base / run.output.expanduser()))})
    run._base_dir, run._given = base, _given(table, root)
    for part in parts or (run.corpus,):
        if part.input_ids is not None:
            part._ids_source = _ids_source(run, part, source)
    return run


def _ids_source(run: RunConfig, part: CorpusConfig, file: str) -> tuple[str, str | None]:
    """(place, revision) of the tokenizer that the input_ids of a [corpus] table are of. Raises RunFileError."""
    asked = part.input_ids_of
    for tokenizer in run.tokenizers:
        if tokenizer.product in (asked, student_product(asked)):
            return tokenizer.place, tokenizer.revision
    names = ", ".join(show(student.name) for student in run.student)
    raise RunFileError(
        f'{file}: [corpus] input_ids_of: got {show(asked)}; wanted "teacher", or the name of a student ({names}). Correct it'
    )
