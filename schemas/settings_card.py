"""The table [card] of the run file: what the dataset card says that no file of the run can tell. It changes no result."""

from __future__ import annotations

import re

from pydantic import ValidationInfo, field_validator

from schemas.runfile_errors import Fault, Faults, show
from schemas.settings import SettingsTable, key

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


class CardConfig(SettingsTable):
    """[card]: what the dataset card (`README.md`, `croissant.json`) says beside what the run knows."""

    title: str | None = key(
        None, semantic=False, min_length=1, about="Name of the dataset. Not given: `Targets of` and the teacher's name."
    )
    description: str | None = key(
        None, semantic=False, min_length=1, about="What it is for, in Markdown, one or several paragraphs."
    )
    authors: tuple[str, ...] = key(
        (), semantic=False, strict=False, about="Who made it, a text each: people or organisations."
    )
    license: str | None = key(
        None,
        semantic=False,
        pattern=r"^[a-z0-9][a-z0-9.+-]*$",
        wanted='a licence by its id on the Hub, such as "apache-2.0", "cc-by-4.0" or "other"',
        about="Licence of the dataset, by its id on the Hugging Face Hub, which refuses ids that it does not know.",
    )
    language: tuple[str, ...] = key(
        (),
        semantic=False,
        strict=False,
        about='Languages of the texts, as codes of ISO 639: `["en", "de"]`.',
    )
    teacher_license: str | None = key(
        None, semantic=False, min_length=1, about="Licence of the teacher, in words; it may bind what is made with it."
    )
    corpus_license: str | None = key(
        None, semantic=False, min_length=1, about="Licence of the corpus, in words; its texts may be in the dataset."
    )

    @field_validator("title", "authors", "teacher_license", "corpus_license")
    @classmethod
    def _one_line(cls, value: str | tuple[str, ...] | None, info: ValidationInfo) -> str | tuple[str, ...] | None:
        """Other texts would end the heading, list or table that they are put into."""
        for text in (value,) if isinstance(value, str) else value or ():
            if not text.isprintable() or not text.strip():
                wanted = "one line of visible characters"
                raise Faults(Fault(str(info.field_name), show(text), wanted, "put longer texts into description"))
        return value

    @field_validator("language")
    @classmethod
    def _codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not _LANGUAGE.fullmatch(code):
                wanted = 'codes of languages such as "en", "de" or "zh-Hant"'
                raise Faults(Fault("language", show(code), wanted, "write the code, not the name"))
        return value
