"""Text around a position: whole characters at the far ends, bytes as \\xNN where a token cuts one."""

from __future__ import annotations

from engine.dataset.token_tables import TokenTable
from engine.figures.texts import around, token_name

TEXT = "aé—b"  # bytes: a 1, é 2, — 3, b 1


def test_whole_characters() -> None:
    assert around(TEXT, 1, 3, 10) == ("a", "é", "—b")
    assert around(TEXT, 3, 6, 1) == ("", "—", "b")  # the byte before is half a character
    assert around(TEXT, 6, 7, 3) == ("—", "b", "")
    assert around(TEXT, 6, 7, 2) == ("", "b", "")
    assert around(TEXT, 0, 1, 1) == ("", "a", "")


def test_a_token_inside_a_character() -> None:
    assert around(TEXT, 4, 5, 2) == ("é\\xe2"[1:], "\\x80", "\\x94b")


def test_every_cut_gives_the_text_back() -> None:
    data = TEXT.encode()
    for start in range(len(data) + 1):
        for end in range(start, len(data) + 1):
            parts = (data[:start], data[start:end], data[end:])
            assert around(TEXT, start, end, 100) == tuple(part.decode(errors="backslashreplace") for part in parts)


def test_names() -> None:
    tokens = TokenTable([b"a", None, None], ["a", "<s>", ""], ["text", "begin", "none"])
    assert [token_name(tokens, i) for i in (0, 1, 2, 3, -1)] == ["a", "<s>", "#2", "#3", "#-1"]
    assert token_name(None, 7) == "#7"
