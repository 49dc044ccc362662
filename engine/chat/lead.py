"""A text without a template whose very beginning is to be scored, for tokenizers that put a space before a text (Llama-2): its
first token is read and not scored.

Everything that is scored is read as it stands behind something, without that space; a beginning has it. So the first tokens are
taken as a prompt: up to the first place where every tokenizer, or else the teacher's, has the same tokens with and without the
cut. Their rows are context (flag 64), like those of a prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice

from engine.chat.conversation import ChatEncoder
from engine.corpus.document import Document
from schemas.products import TEACHER

_TRIED = 32
"""Ends of tokens at which a text is cut at most, before the teacher's word alone counts."""
_SEEN = 1000
"""Characters of a text that are looked at for this. Wherever the cut is, what is scored is encoded apart, as behind a prompt."""


def with_lead(encoders: Mapping[str, ChatEncoder], document: Document, roles: Collection[str]) -> Document:
    """The document with its first tokens as a message that is not scored, where they would be scored with a space before them;
    else as it is. Raises BadDocument where a tokenizer cannot read it."""
    first = document.messages[0]
    if not first.content or not first.learned or first.role not in roles:
        return document
    if not any(encoder.full.prefix_bytes for encoder in encoders.values()):
        return document
    stop = _cut(encoders, first.content[:_SEEN]) or len(first.content)
    lead = first._replace(content=first.content[:stop], learned=False)
    rest = (first._replace(content=first.content[stop:]),) if stop < len(first.content) else ()
    return replace(document, messages=(lead, *rest, *document.messages[1:]))


def _cut(encoders: Mapping[str, ChatEncoder], text: str) -> int:
    """Characters of the lead; 0 where there is no place to cut."""
    raw, fallback = text.encode(), None
    ends = encoders[TEACHER].full.encode(text)[1]
    inside = (end for end in dict.fromkeys(ends) if 0 < end < len(raw) and raw[end] & 0xC0 != 0x80)
    for end in islice(inside, _TRIED):
        stop = len(raw[:end].decode())
        if not _stands(encoders[TEACHER], text, stop):
            continue
        if all(_stands(encoder, text, stop) for encoder in encoders.values()):
            return stop
        fallback = fallback or stop
    return fallback or 0


def _stands(encoder: ChatEncoder, text: str, stop: int) -> bool:
    """Whether the tokens of the text are those of its two parts."""
    head, rest = encoder.full.encode(text[:stop])[0], encoder.full.bare.encode(text[stop:])[0]
    return [*head, *rest] == encoder.full.encode(text)[0]
