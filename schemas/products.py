"""Names of the products, and the id that ends a text in the byte product. Every other file takes them from here."""

from __future__ import annotations

TEACHER, BYTES, HIDDEN = "teacher", "bytes", "hidden"
STUDENT = "student/"
"""Products that begin so are students': "student/<name>", the name as the run file gives it."""

BYTES_END = 256
"""Id of "the text ends" in the byte product; ids 0..255 are the bytes."""


def student_product(name: str) -> str:
    """The product of the student that the run file calls `name`."""
    return STUDENT + name
