"""Prompts that the teacher has no room for: what of them is left out, the oldest first, before a scored part.

Of a conversation whole turns are left out, never a system message at its beginning; of a plain prompt, the oldest tokens. What is
left out is the same text for every product, so that all of them read the same. How much it is, the teacher's tokens decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.chat.conversation import ChatEncoder
from engine.chat.readings import Part, Reading, Seen, fixed, see
from engine.corpus.document import Message
from schemas.products import TEACHER

_SPARE = 8
"""Tokens: a prompt's parts are encoded apart in the end, which may take a few more than here."""


def see_shortened(
    encoders: Mapping[str, ChatEncoder], messages: Sequence[Message], i: int, *, score_thoughts: bool, room: int | None
) -> dict[str, Seen]:
    """Product -> message i as its model saw it. room: teacher tokens that may stand before it; the oldest turns are left out for
    that, as few as will do, and the same ones for all products. None: nothing is left out. Raises BadDocument."""
    begin = fixed(messages)
    ways = [0, *(k - begin for k in range(begin + 1, i) if messages[k].role == "user")] if room is not None else [0]
    for omitted in ways:
        teacher = see(encoders[TEACHER].template, messages, i, score_thoughts=score_thoughts, omitted=omitted)
        count = len(encoders[TEACHER].frame_ids(teacher.text[: teacher.begin], first=True))
        if room is None or count + _SPARE <= room or omitted == ways[-1]:
            out: dict[str, Seen] = {}
            for product, encoder in encoders.items():
                same = encoder.template.writes_as(encoders[TEACHER].template)
                out[product] = (
                    teacher
                    if same
                    else see(encoder.template, messages, i, score_thoughts=score_thoughts, omitted=omitted)
                )
            return out
    raise AssertionError("the last way returns")


def plain_readings(teacher: ChatEncoder, reading: Reading, room: int) -> list[Reading]:
    """A text in parts with nothing between them, read with at most `room` teacher tokens before each scored part: together as
    long as there is room, then each part behind the last tokens before it."""
    first: list[Part] = []
    out: list[Reading] = []
    before = 0
    for k, part in enumerate(reading.parts):
        if part.scored and before > room:
            kept = _last_tokens(teacher, reading.parts[:k], room)
            out.append(Reading([*[""] * (len(kept) + 1), reading.frames[k + 1]], [*kept, part]))
        elif not out:
            first.append(part)
        vocabulary = teacher.full if not k else teacher.full.bare
        before += len(vocabulary.encode(part.text)[0]) if part.text else 0
    if any(part.scored for part in first):
        out.insert(0, Reading([""] * (len(first) + 1), first))
    return out


def _last_tokens(teacher: ChatEncoder, parts: Sequence[Part], room: int) -> list[Part]:
    """The end of these parts, in at most `room` of the teacher's tokens, as context."""
    kept: list[Part] = []
    for part in reversed(parts):
        ids, ends = teacher.full.bare.encode(part.text) if part.text else ([], [])
        data, begin = part.text.encode(), 0
        if len(ids) > room:
            begin = ends[len(ids) - room - 1] if room else len(data)
            while begin < len(data) and data[begin] & 0xC0 == 0x80:  # not inside a character
                begin += 1
        lead = len(data[:begin].decode())
        kept.insert(0, Part(part.message, part.start + lead, part.text[lead:], False))
        room -= len(ids)
        if room <= 0:
            break
    return kept
