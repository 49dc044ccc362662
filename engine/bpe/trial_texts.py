"""Short texts on which tokenizers differ: words, signs, digits, blanks, scripts, each alone and beside others. A tokenizer is
tried on them when it is loaded (compare.py, tokenizer_files.py)."""

from __future__ import annotations

from collections.abc import Iterator

_WORDS = [
    "a",
    "the",
    "don't",
    "I'LL",
    "x's",
    "camelCase",
    "ÉCOLE",
    "naïve",
    "straße",
    "Привет",
    "שלום",
    "مرحبا",
    "नमस्ते",
    "ไทย",
]
_SIGNS = [
    ".",
    "...",
    "?!",
    "=",
    "====",
    "--",
    "''",
    '"',
    "`",
    "```",
    "<",
    "</",
    "<|",
    "|>",
    "//",
    "#",
    "$1",
    "%",
    "€",
    "…",
    "—",
    "_",
]
_DIGITS = ["1" * n for n in (1, 2, 3, 4, 7, 19, 30)] + ["a1", "1a", "a²b", "x½y", "٣٤٥٦", "Ⅷ", "3.14", "1,000", "-7"]
_BLANKS = [
    " ",
    "  ",
    "   ",
    " " * 9,
    " " * 31,
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\n" * 9,
    "\r\n",
    " \n",
    "\n ",
    "\u00a0",
    "\u3000",
    "\u2028",
]
_OTHERS = [
    "猫",
    "日本語です",
    "中文，标点。",
    "한국어",
    "😀",
    "👩\u200d👩\u200d👧",
    "❤\ufe0f",
    "\u200b",
    "\ufeff",
    "\x01",
    "\x7f",
    "𝟘",
    "ǅ",
    "\U000e0041",
]


def _texts() -> Iterator[str]:
    every = [*_WORDS, *_SIGNS, *_DIGITS, *_BLANKS, *_OTHERS]
    yield from every
    for other in (" ", "\n", "a", "1", ".", "  "):
        for text in every:
            yield other + text
            yield text + other
    for i in range(0, len(every), 5):
        yield "".join(every[i : i + 8])
        yield " ".join(every[i : i + 8])


TRIAL_TEXTS = tuple(_texts())
