"""Names of products, id of the end of bytes."""

from __future__ import annotations

BYTES_END = 256
"""Id of "the text ends" in the byte product; ids 0..255 are the bytes."""
TEACHER, BYTES, HIDDEN = "teacher", "bytes", "hidden"
