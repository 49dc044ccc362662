"""The table [corpus] of the run file: which documents a run has, and how a text or a conversation is taken from a record."""

from __future__ import annotations

import codecs
import re
import string
from typing import Literal

from pydantic import PrivateAttr, ValidationInfo, field_validator, model_validator

from schemas.address import is_url, source_fault
from schemas.corpus_faults import corpus_faults
from schemas.redact import redacted
from schemas.runfile_errors import Fault, Faults, show
from schemas.settings import STUDENT_NAME, SettingsTable, key


class CorpusConfig(SettingsTable):
    """[corpus]: the documents. Give `paths` or `dataset`."""

    paths: tuple[str, ...] = key(
        (),
        semantic=True,
        strict=False,
        about="Files or globs (`**` included), relative to the folder of the run file, or URLs and their globs (`s3://`, "
        "`gs://`, `az://`, `hf://datasets/...`, `https://`): .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .tar, or "
        "plain text (.txt, .md, .tex ...), each also .gz, .zst, .xz or .bz2.",
    )
    dataset: str | None = key(
        None,
        semantic=True,
        min_length=1,
        about="A Hugging Face dataset instead of `paths`: a hub id or a local folder, also one of `save_to_disk`.",
    )
    name: str | None = key(None, semantic=True, min_length=1, about="Configuration (subset) of `dataset`.")
    split: str = key(
        "train", semantic=True, min_length=1, about="Split of `dataset`; slices such as `train[:1%]` work."
    )
    revision: str | None = key(
        None, semantic=True, min_length=1, about="Branch, tag or commit of `dataset` on the hub. Not given: main."
    )
    streaming: bool = key(
        False,
        semantic=True,
        newer=True,
        about="`dataset` only: its files are read where they lie, file by file, and not downloaded first.",
    )
    source: str | None = key(
        None,
        semantic=True,
        newer=True,
        pattern=STUDENT_NAME,
        wanted='a text of letters, digits, ".", "_" and "-" that begins with a letter or digit',
        about="Mixtures only: name of this [[corpus]] table, stored with each document. Not given: `corpus1`, `corpus2` ...",
    )
    weight: float | None = key(
        None,
        semantic=True,
        newer=True,
        gt=0,
        wanted="a number above 0",
        about="Mixtures only: how many documents of this table there are beside those of the others. Not given: all of them.",
    )
    text: str = key("text", semantic=True, min_length=1, about="Column that holds the text. Plain text has no columns.")
    messages: str | None = key(
        None,
        semantic=True,
        min_length=1,
        about="Column that holds a conversation, used instead of `text`: a list of objects with `role` and `content`, or with "
        "`from` and `value` (ShareGPT), and other usual forms. Each side renders it with its own chat template.",
    )
    tools: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="Chat corpora only: column of the tools that a conversation's assistant may call, given to the chat templates. Not "
        "given: `tools`, where there is one.",
    )
    role_key: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="Chat corpora only: key of a message that holds its role. Not given: `role`, else `from`.",
    )
    content_key: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="Chat corpora only: key of a message that holds its content. Not given: `content`, beside `from` `value`.",
    )
    role_names: dict[str, str] = key(
        {},
        semantic=True,
        newer=True,
        wanted='a table of texts such as {bot = "assistant"}',
        about='Chat corpora only: what roles of the data are called in chat templates, such as `{bot = "assistant"}`. Not given: '
        "the roles of ShareGPT (human, gpt ...) where it is `from` that holds them.",
    )
    system: Literal["keep", "user"] = key(
        "keep",
        semantic=True,
        newer=True,
        about="Chat corpora only: `user` puts a system message before the first user's content, a blank line between, for "
        "templates that know no system role (Gemma).",
    )
    thinking: Literal["score", "keep", "drop"] = key(
        "score",
        semantic=True,
        newer=True,
        about="Chat corpora only: an assistant's thoughts before its answer. `score`: scored like the answer; `keep`: context of "
        "the answer; `drop`: taken out of the conversation.",
    )
    roles: tuple[str, ...] = key(
        ("assistant",),
        semantic=True,
        strict=False,
        min_length=1,
        about="Chat corpora only: the roles whose contents, and the ends of turn behind them, are scored.",
    )
    specials: Literal["text", "boundary"] = key(
        "text",
        semantic=True,
        about="What strings such as `<|im_end|>` inside a text are. `text`: plain text on both sides. `boundary`: a string "
        "that is a special token of the teacher is that token, and on each student its special token of the same role.",
    )
    template: str | None = key(
        None,
        semantic=True,
        min_length=1,
        about="Text made of several columns, used instead of `text`, for example `{question}\\n{answer}`. Columns hold "
        "text or whole numbers; `{{` and `}}` are braces.",
    )
    prompt: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="Column of a text that stands before the one to be scored, used with `completion`; it is read and not scored.",
    )
    prompt_template: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="The same made of several columns, as in `template`, for example `Q: {question}\\nA:`.",
    )
    completion: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="Column of the text that is scored behind `prompt` or `prompt_template`, used instead of `text`.",
    )
    too_long_prompt: Literal["truncate", "drop", "quarantine"] = key(
        "truncate",
        semantic=True,
        newer=True,
        about="What is done where the teacher has no room for what stands before a scored part. `truncate`: its oldest turns "
        "(but a system message), of a `prompt` its oldest tokens, are left out; `drop`: that part is not scored; `quarantine`: "
        "the document is left out.",
    )
    input_ids: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="Column of a text's tokens, used instead of `text`: the text is decoded where that is exact.",
    )
    labels: str | None = key(
        None,
        semantic=True,
        newer=True,
        min_length=1,
        about="Column of labels beside `input_ids`: what has -100 is read and not scored. Not given: all is scored.",
    )
    input_ids_of: str = key(
        "teacher",
        semantic=True,
        newer=True,
        min_length=1,
        about="Whose tokens `input_ids` are: `teacher`, or the name of a student.",
    )
    id: str | None = key(
        None,
        semantic=True,
        min_length=1,
        about="Column that holds the document's name, unique in the corpus. Not given: `<file>#<record from 0>`.",
    )
    delimiter: str | None = key(
        None,
        semantic=True,
        min_length=1,
        about="Plain text only: what stands between two documents, for example `<eos>`. Not given: a file is "
        "one document.",
    )
    encoding: str = key(
        "utf-8",
        semantic=True,
        newer=True,
        min_length=1,
        about="Encoding of plain text, JSON and delimited tables, by a name that Python knows: `utf-16`, `latin-1`, `cp1252` ... "
        "A byte order mark of UTF-16 or UTF-32 is recognised without it.",
    )
    join: str | None = key(
        None,
        semantic=True,
        newer=True,
        about="What is put between the texts of a column that holds a list of them, for example `\\n`. Not given: such a "
        "record is no text.",
    )
    limit: int | None = key(
        None,
        semantic=True,
        ge=1,
        about="Only the first so many records of the whole corpus; in a mixture, of this table.",
    )
    longest_run: int = key(
        256,
        semantic=True,
        newer=True,
        ge=16,
        about="Longest stretch in which no tokenizer cuts for certain, in characters, with runs of one kind (letters, `=`, "
        "spaces ...) counted as some ten at most: quotes or accented letters of several kinds in a row, mostly. Documents "
        "with a longer one go to quarantine (`too_long`); each character of one may take a tenth of a second, once.",
    )
    unit_documents: int = key(
        256,
        semantic=True,
        ge=1,
        about="Most records in one work unit. A unit is scored by one actor and becomes one shard.",
    )
    unit_bytes: int = key(
        4_000_000,
        semantic=True,
        ge=1,
        about="Most bytes of text in one work unit; one longer document is a unit by itself.",
    )

    _ids_source: tuple[str, str | None] | None = PrivateAttr(None)
    _parts: tuple[CorpusConfig, ...] = PrivateAttr(())

    @property
    def ids_source(self) -> tuple[str, str | None] | None:
        """(place, revision) of the tokenizer of `input_ids`; schemas.runfile finds it."""
        return self._ids_source

    @property
    def parts(self) -> tuple[CorpusConfig, ...]:
        """The [[corpus]] tables of a mixture, of which this is the first; () for a single [corpus]. schemas.mixture sets them."""
        return self._parts

    @property
    def in_parts(self) -> bool:
        """Whether a document is read and scored in parts: messages, a prompt and its completion, tokens with labels."""
        return self.messages is not None or self.completion is not None or self.labels is not None

    @property
    def key_of_columns(self) -> str | None:
        """The key that names a column which a plain text cannot have; None: a plain text will do."""
        return next((name for name in ("messages", "completion", "input_ids") if getattr(self, name) is not None), None)

    @field_validator("paths")
    @classmethod
    def _readable_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        faults = [
            Fault("paths", show(redacted(path)), *fault)
            for path in value
            if is_url(path) and (fault := source_fault(path))
        ]
        if faults:
            raise Faults(*faults)
        return value

    @field_validator("encoding")
    @classmethod
    def _encoding_of_texts(cls, value: str) -> str:
        try:
            codecs.lookup(value)
            "".encode(value)  # LookupError for one that is not of texts
        except LookupError as error:
            raise Faults(
                Fault(
                    "encoding",
                    show(value),
                    "an encoding of texts that Python knows",
                    'set for example encoding = "utf-16"',
                )
            ) from error
        return value

    @field_validator("template", "prompt_template")
    @classmethod
    def _plain_fields(cls, value: str, info: ValidationInfo) -> str:
        try:
            columns = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
            plain = not any(spec or conversion for _, _, spec, conversion in string.Formatter().parse(value))
        except ValueError as error:
            raise Faults(
                Fault(
                    str(info.field_name),
                    f"{show(value)} ({error})",
                    "columns in braces",
                    "write {{ and }} for real braces",
                )
            ) from error
        # "{a.b}" and "{a[0]}" would reach into Python objects; a column of that very name is given by `text`.
        if not columns or not plain or any(not name or re.search(r"[.\[]", name) for name in columns):
            raise Faults(
                Fault(
                    str(info.field_name),
                    show(value),
                    "at least one {column}, each a plain column name",
                    'write it such as "{question}\\n{answer}"; {{ and }} are real braces',
                )
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        if faults := corpus_faults(self):
            raise Faults(*faults)
        return self
