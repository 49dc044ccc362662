"""Text for human eyes around a position, out of the bytes of a document. Nothing here is made safe for a terminal or a page: who
shows it does that."""

from __future__ import annotations

from engine.dataset.token_tables import TokenTable


def token_name(tokens: TokenTable | None, token_id: int) -> str:
    """A token as text; `#id` where the tokens are not known or the id is none of them."""
    if tokens is None or not 0 <= token_id < len(tokens.names):
        return f"#{token_id}"
    return tokens.names[token_id] or f"#{token_id}"


def around(text: str, start: int, end: int, most_bytes: int) -> tuple[str, str, str]:
    """(what stands before, the bytes start .. end, what stands behind), each as text. Half characters are \\xNN."""
    data = text.encode("utf-8", errors="surrogatepass")
    before = data[max(0, start - most_bytes) : start]
    while before and before[0] & 0xC0 == 0x80 and start > most_bytes:  # the rest of a character that was cut off
        before = before[1:]
    after = data[end : end + most_bytes]
    behind = after.decode("utf-8", errors="ignore") if end + most_bytes < len(data) else _text(after)
    return _text(before), _text(data[start:end]), behind


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="backslashreplace")
