"""Thinking inside a content: an assistant's content goes in, how many of its characters are its thoughts comes out."""

from __future__ import annotations

import re

_CLOSE = re.compile(
    r".*(?:</think>|</thinking>|\[/THINK\])\s*", re.DOTALL
)  # up to the last one, as templates look for it


def thinking_end(content: str) -> int:
    """Characters of thinking at the beginning of a content, with the tag that closes it and the white space behind; 0: none. The
    tag that opens it may be missing: some templates write it before the content."""
    found = _CLOSE.match(content)
    return found.end() if found else 0
