"""A tokenizer compared with the tokenizers library on strings that tokenizers differ on, when it is loaded.

In: a vocabulary and its splitter. Out: nothing, or TokenizerError: a difference is a refusal, never a result. All that is
computed later rests on two things: where a text is cut into pre-tokens (bpe/pretokenizer.py), and which tokens each of them
has. Both are put together here for each string and held against the ids that the library gives. Strings that the tokenizer
does not give back byte for byte are left out: a document that holds such a thing is refused by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.bpe.pretokenizer import Splitter
from engine.bpe.trial_texts import TRIAL_TEXTS
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import BadDocument, TokenizerError

_TOGETHER = 20  # added texts in one string, where there are many
_ALONE = 40


def refuse_where_different(vocabulary: Vocabulary, splitter: Splitter, where: str) -> None:
    """Raises TokenizerError where the library has other tokens than the rules here. A fraction of a second."""
    strings = list(_strings(vocabulary))
    encodings = vocabulary.tokenizer.encode_batch(strings, add_special_tokens=False)
    for text, encoding in zip(strings, encodings, strict=True):
        own = _encode(vocabulary, splitter, text)
        if own == encoding.ids or not _is_reversible(vocabulary, text):
            continue
        name = vocabulary.tokenizer.id_to_token
        at = next((i for i, (a, b) in enumerate(zip(own, encoding.ids, strict=False)) if a != b), len(encoding.ids))
        theirs, ours = ([name(i) for i in ids[at : at + 6]] for ids in (encoding.ids, own))
        raise TokenizerError(
            f"{where}: the tokenizers library encodes {text[:60]!a} in another way than the rules of this program: from "
            f"token {at} on {theirs} there, {ours} here. Exact boundaries need the same. Use another "
            "tokenizer, and report this one."
        )


def _strings(vocabulary: Vocabulary) -> Iterator[str]:
    yield from TRIAL_TEXTS
    added = sorted(vocabulary.added_text)
    for text in added[:_ALONE]:
        for beside in ("", " ", "  ", "\n", "a", "."):
            yield beside + text + beside
        yield f"a{text}{text}b"
    for i in range(0, len(added), _TOGETHER):
        some = added[i : i + _TOGETHER]
        yield "x" + "".join(text + text for text in some)
        for between in (" ", "\n", "a"):
            yield "x" + between.join(some)
        yield "x" + "".join(text[:-1] + " " + text[1:] for text in some)


def _is_reversible(vocabulary: Vocabulary, text: str) -> bool:
    try:
        vocabulary.encode(text)
    except BadDocument:
        return False
    return True


def _encode(vocabulary: Vocabulary, splitter: Splitter, text: str) -> list[int]:
    """Token ids of a text, piece by piece."""
    data = vocabulary.prefix_bytes + text.encode()
    units, added = data.decode("latin-1" if splitter.byte_units else "utf-8"), vocabulary.added_text
    out, begin = list[int](), 0
    for end in splitter.pieces(splitter.canonical(splitter.classes(data))):
        piece = units[begin:end].encode("latin-1" if splitter.byte_units else "utf-8")
        token = added.get(piece.decode("utf-8", "replace")) if added else None
        out += [token] if token is not None else vocabulary.bpe(piece)
        begin = end
    return out
