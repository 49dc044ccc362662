"""Marks in place of contents: what is put into a conversation to find, in what a template makes of it, where each content lies.

contents -> contents with marks; a rendering of these -> what stands between the marks, and which white space is kept
"""

from __future__ import annotations

import re

# Private use characters around a number: in no template, and no white space. The pads differ in length, so that what is left
# of them is told apart by length alone.
MARK = "\ue0f0{}\ue0f1"
LEFT_PAD, RIGHT_PAD = " \t", "\t\n "
# What templates look for in contents, left as it is when words are marked; what stands between is words and white space.
_TAG = re.compile(r"(<[^<>\n]{1,60}>|\[/?[A-Z_]+\]|\s+)")
# What opens and closes thinking, at the end of a text.
_THINKING = re.compile(r"(?:\s|</?think(?:ing)?>|\[/?THINK\])*\Z")


def with_words_masked(content: str, i: int) -> str:
    """The content of message i with a mark in place of each word; tags and white space as they are. White space alone, and
    nothing: a mark."""
    if not content.strip():
        return MARK.format(i)
    parts = _TAG.split(content)
    return "".join(part if k % 2 or not part else MARK.format(f"{i}.{k}") for k, part in enumerate(parts))


def kept_spans(content: str) -> list[tuple[int, int]]:
    """What a template may keep of a content: all, or all but white space at one end or both."""
    start, stop = len(content) - len(content.lstrip()), len(content.rstrip())
    return [(0, len(content)), (start, len(content)), (0, stop), (start, stop)]


def unthinking(text: str) -> str:
    """A prompt without what opens and closes thinking at its end."""
    return _THINKING.sub("", text)


def between(text: str, marks: list[str]) -> list[str]:
    """What stands before, between and behind the marks; [] when they are not all there in this order."""
    out, at = [], 0
    for mark in marks:
        place = text.find(mark, at)
        if place < 0:
            return []
        out.append(text[at:place])
        at = place + len(mark)
    return [*out, text[at:]]


def ends_kept(padded: list[str], frames: list[str]) -> list[tuple[bool, bool]]:
    """Of each content: whether white space at its left and right end is kept. Where that cannot be seen: kept; whether it was
    is then seen when all is put together."""
    left, right = [True] * (len(frames) - 1), [True] * (len(frames) - 1)
    for i, frame in enumerate(frames if len(padded) == len(frames) else []):
        for before in (True, False):  # what is behind content i - 1 and before content i
            for after in (True, False):
                whole = (RIGHT_PAD if before and i else "") + frame
                whole += LEFT_PAD if after and i < len(left) else ""
                if whole == padded[i]:
                    if i:
                        right[i - 1] = before
                    if i < len(left):
                        left[i] = after
    return list(zip(left, right, strict=True))
