"""Records that hold tokens instead of text: ids, maybe with labels -> the text, and which of it is to be scored.

The text must be exact: the tokenizer, given the text of the ids, must give these ids again. Special tokens that begin and end a
record (BOS, EOS) are left out, since the run puts its own; inside a record they have no text, and the record is refused. A label
of -100 says, as for trainers of transformers, that a token is not learned from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from engine.corpus.document import Message
from engine.corpus.values import Problem, described, listed
from schemas.errors import CorpusError

IGNORED = -100
"""The label of a token that is not learned from."""


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """Columns of ids and of labels (None: everything is learned from), and where their tokenizer is: a folder, a tokenizer.json
    or a Hub id, and its revision."""

    ids: str
    labels: str | None
    place: str
    revision: str | None

    def read(self, item: Mapping[str, object]) -> str | tuple[Message, ...] | Problem:
        """The text of a record; with labels, its stretches as messages: an assistant's is learned from, a user's is not."""
        ids = _whole_numbers(item, self.ids)
        if isinstance(ids, Problem):
            return ids
        labels = ids if self.labels is None else _whole_numbers(item, self.labels)
        if isinstance(labels, Problem):
            return labels
        if len(labels) != len(ids):
            told = f"{len(labels)} labels for {len(ids)} tokens; wanted one each"
            return Problem("tokens_not_text", f"column {json.dumps(self.labels)}: {told}")
        tokenizer, specials = _loaded(self.place, self.revision)
        first, stop = 0, len(ids)
        while first < stop and ids[first] in specials:
            first += 1
        while stop > first and ids[stop - 1] in specials:
            stop -= 1
        ids, learned = ids[first:stop], [label != IGNORED for label in labels[first:stop]]
        if problem := self._inexact(tokenizer, specials, ids):
            return problem
        texts = self._stretches(tokenizer, ids, learned)
        if self.labels is None or isinstance(texts, Problem):
            return "".join(text for _, text in texts) if not isinstance(texts, Problem) else texts
        return tuple(Message("assistant" if asked else "user", text) for asked, text in texts)

    def _inexact(self, tokenizer: Tokenizer, specials: frozenset[int], ids: Sequence[int]) -> Problem | None:
        size, where = tokenizer.get_vocab_size(with_added_tokens=True), f"column {json.dumps(self.ids)}"
        if (wrong := next((i for i in ids if not 0 <= i < size), None)) is not None:
            return Problem("tokens_not_text", f"{where}: token {wrong}, wanted ids below {size} (input_ids_of)")
        if (inside := next((i for i in ids if i in specials), None)) is not None:
            name = tokenizer.id_to_token(inside)
            return Problem("tokens_not_text", f"{where}: the special token {name!a} stands inside the text")
        again = tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=False), add_special_tokens=False).ids
        if again != list(ids):
            at = next(
                (k for k, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), min(len(ids), len(again))
            )
            return Problem(
                "tokens_not_text", f"{where}: the tokenizer writes their text in other tokens, from token {at} on"
            )
        return None

    def _stretches(
        self, tokenizer: Tokenizer, ids: Sequence[int], learned: Sequence[bool]
    ) -> list[tuple[bool, str]] | Problem:
        """Runs of tokens with one label, as (learned from, text)."""
        whole, out, done, at = tokenizer.decode(ids, skip_special_tokens=False), [], 0, 0
        for asked, run in groupby(learned):
            done += len(list(run))
            upto = whole if done == len(ids) else tokenizer.decode(ids[:done], skip_special_tokens=False)
            if not whole.startswith(upto) or len(upto) < at:
                return Problem(
                    "tokens_not_text", f"column {json.dumps(self.labels)}: the labels change inside a character"
                )
            out.append((asked, whole[at : len(upto)]))
            at = len(upto)
        return out


@cache
def _loaded(place: str, revision: str | None) -> tuple[Tokenizer, frozenset[int]]:
    """(the tokenizer, the ids of its special tokens). Raises CorpusError."""
    file = Path(place, "tokenizer.json") if Path(place).is_dir() else Path(place)
    try:
        local = file.is_file()
        tokenizer = Tokenizer.from_file(str(file)) if local else Tokenizer.from_pretrained(place, revision or "main")
    except Exception as error:  # the library raises plain Exception for everything
        raise CorpusError(
            f"[corpus] input_ids: the tokenizer of the ids, {place}, cannot be loaded ({error}); wanted one with a "
            "tokenizer.json. Name the side whose tokenizer it is by input_ids_of, or score the texts"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def _whole_numbers(item: Mapping[str, object], name: str) -> list[int] | Problem:
    if name not in item:
        return Problem("missing_column", f"no column {json.dumps(name)}; got {listed(list(item))}")
    values = item[name]
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        got = described(values) if not isinstance(values, list) else "a list of other things"
        return Problem("tokens_not_text", f"column {json.dumps(name)} is {got}, wanted a list of whole numbers")
    return values
