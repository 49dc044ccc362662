"""A number of things for a person: "1 unit", "2,000 units"."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """`number` with its thousands apart, and the name of one such thing, which takes an s where they are not one."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
