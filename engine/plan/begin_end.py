"""Begin and end tokens, compared with what transformers makes of the same tokenizer before any work: the files of a tokenizer
may disagree, and a teacher without its BOS, or with an end that is not its own, gives other probabilities in silence.

run file + vocabularies -> product -> what a person is told (the start, plan.json and the card have it)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.bpe.roles import auto_tokenizer
from engine.bpe.tokenizer_files import tokenizer_folder
from engine.bpe.tokenizer_json import find_within, read_json
from engine.bpe.vocabulary import Vocabulary
from engine.plan.regimes import bos_of
from engine.plan.vocabularies import Vocabularies
from schemas.address import gguf_parts
from schemas.errors import RunFileError
from schemas.products import TEACHER
from schemas.runfile import RunConfig, TokenizerSource


def check_ends(run: RunConfig, known: Vocabularies) -> None:
    """Raises RunFileError for a student without an end token where ends are scored: its end rows would be missing."""
    if not run.targets.end:
        return
    for source in run.tokenizers[1:]:
        if known.students[source.product].eos_id is None:
            raise RunFileError(
                f"{source.where} tokenizer = {source.name!r}: it names no end token (looked in tokenizer_config.json, "
                "special_tokens_map.json, the class's defaults, config.json, generation_config.json), but [targets] end = true "
                "wants a row for the end of each document. Add eos_token to its tokenizer_config.json, or set end = false"
            )


def notes_of(run: RunConfig, known: Vocabularies) -> dict[str, tuple[str, ...]]:
    """Product of the run file -> what its tokenizer's files, or transformers, say otherwise than what is done."""
    found: dict[str, list[str]] = {}
    for source in run.tokenizers:
        vocabulary = known.chat[source.product].full if known.chat else known.by_product[source.product]
        folder = tokenizer_folder(source.place, source.revision, source.where)
        theirs = auto_tokenizer(folder, trust_remote_code=source.trust_remote_code)
        notes = found.setdefault(source.product, [])
        if theirs is not None and (theirs.eos_token_id != vocabulary.eos_id):
            notes.append(
                f"{source.where}: the end token is {_shown(vocabulary, vocabulary.eos_id)}; transformers' tokenizer has "
                f"{_shown(vocabulary, theirs.eos_token_id)}. eos_token in tokenizer_config.json decides"
            )
        if gguf_parts(source.place)[1] is not None:
            notes.append(
                f"{source.where}: the tokenizer is made of a GGUF file, which does not say whether texts are normalised (NFC) "
                "nor the flags of added tokens; tokenizer = ... names the model's own"
            )
        if source.product == TEACHER and not run.corpus.messages:
            notes += _begins(run, source, vocabulary, folder, theirs)
    return {product: tuple(notes) for product, notes in found.items()}


def _begins(run: RunConfig, source: TokenizerSource, vocabulary: Vocabulary, folder: Path, theirs: Any) -> list[str]:
    """What differs about the tokens before a text. `bos` true or false in the run file is somebody's wish: nothing is said."""
    if run.teacher.bos != "auto":
        return []
    given = bos_of(run, vocabulary)
    done = (
        f"each text is scored behind {', '.join(_shown(vocabulary, i) for i in given)}"
        if given
        else ("texts are scored without a BOS token")
    )
    file = folder / "tokenizer_config.json"
    flag = read_json(file, source.where).get("add_bos_token") if file.is_file() else None
    others = []
    if flag is not None and bool(flag) != bool(given):
        others.append(f"tokenizer_config.json has add_bos_token = {str(bool(flag)).lower()}")
    framed = _before(theirs)
    if framed is not None and framed != list(given):
        put = ", ".join(_shown(vocabulary, i) for i in framed) or "nothing"
        others.append(f"transformers' tokenizer puts {put} before a text")
    if not others:
        return []
    return [
        f"{source.where}: {done}, as the post-processor of tokenizer.json says, but {' and '.join(others)}; "
        "[teacher] bos = true or false decides"
    ]


def _before(theirs: Any) -> list[int] | None:
    """What transformers' tokenizer puts before a text; None where that cannot be seen."""
    if theirs is None:
        return None
    plain, framed = (theirs("a", add_special_tokens=special).input_ids for special in (False, True))
    try:
        return framed[: find_within(framed, plain)] if plain else None
    except StopIteration:
        return None


def _shown(vocabulary: Vocabulary, token_id: int | None) -> str:
    if token_id is None:
        return "none"
    return f"{vocabulary.tokenizer.id_to_token(token_id)!r} ({token_id})"
