"""A stored document ready to be looked at: its top-k as arrays, and its tokens in characters that a terminal can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.dataset.store import PosixStore, Store
from engine.dataset.token_tables import TokenTable, read_tokens
from engine.plan.token_files import token_table
from schemas.errors import TokenizerError
from schemas.manifest import ProductFacts
from schemas.target import PAD_ID

# A text must not be able to move the cursor or colour the terminal: control characters are spelled out.
CONTROLS = {i: f"\\x{i:02x}" for i in (*range(32), *range(127, 160))}
_VISIBLE = CONTROLS | str.maketrans({" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"})


@dataclass(frozen=True, slots=True)
class DocumentView:
    """One document of one product, with its tokens where they are known. Shapes as in docs/format.md."""

    facts: ProductFacts
    row: dict[str, Any]
    tokens: TokenTable | None
    ids_TK: np.ndarray
    probs_TK: np.ndarray
    starts_T: list[int]  # bytes; a token reaches from here to byte_end

    def token(self, token_id: int) -> str:
        """A token in visible characters; `<name>` for specials, `#id` where tokens are not known."""
        if self.tokens is None:
            return f"#{token_id}"
        piece = self.tokens.pieces[token_id]
        if piece is None:
            return self.tokens.names[token_id] or f"#{token_id}"
        return visible(piece)

    def bytes_of(self, token_id: int) -> bytes | None:
        """What a token stands for in a text; None for specials, and where tokens are not known."""
        return None if self.tokens is None else self.tokens.pieces[token_id]

    def best(self, position: int, top: int) -> str:
        """The first `top` tokens with their probabilities, one per line, the true one marked."""
        if not self.row["scored"][position]:
            return "[dim]not scored[/]"
        lines = []
        for token_id, prob in zip(self.ids_TK[position, :top], self.probs_TK[position, :top], strict=True):
            if token_id != PAD_ID:
                line = f"{prob:.4f} {escape(self.token(int(token_id)))}"
                lines.append(f"[bold green]{line}[/]" if token_id == self.row["token_ids"][position] else line)
        return "\n".join(lines)


def visible(piece: bytes) -> str:
    """Bytes as printable characters: white space as symbols, what is not UTF-8 as \\xNN."""
    return piece.decode("utf-8", errors="backslashreplace").translate(_VISIBLE)


def document_view(row: dict[str, Any], facts: ProductFacts, tokens: TokenTable | None) -> DocumentView:
    """A row as it was read from a shard."""
    ids, probs = _drawn(row, facts) if facts.codec == "sample" else _likeliest(row, facts)
    return DocumentView(facts, row, tokens, ids, probs, [0, *row["byte_end"][:-1]])


def tokens_of(store: Store, product: str, facts: ProductFacts, near: Sequence[Path] = ()) -> TokenTable | None:
    """The tokens of a product: those in the output, else (made before 0.7.0) those of its tokenizer, where that can be found.
    near: more folders in which the tokenizer's relative path may start. Raises OutputError for a damaged file."""
    if (tokens := read_tokens(store, product, facts)) is not None:
        return tokens
    places = [*near, Path.cwd()]
    if isinstance(store, PosixStore):
        places += [store.root.resolve(), *store.root.resolve().parents]
    vocabulary = _vocabulary(facts, places)
    return None if vocabulary is None else token_table(vocabulary, facts)


def _likeliest(row: dict[str, Any], facts: ProductFacts) -> tuple[np.ndarray, np.ndarray]:
    """Stored tokens [T, K], padded with PAD_ID, and their probabilities [T, K]."""
    ids = np.array(row["topk_ids"], np.int64).reshape(-1, facts.top_k)
    return ids, np.exp(np.array(row["topk_logps"], np.float64)).reshape(-1, facts.top_k)


def _drawn(row: dict[str, Any], facts: ProductFacts) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that were drawn, with the share of the draws that each has."""
    sizes = np.array(row["sample_sizes"], np.int64)
    ids = np.full((len(sizes), int(sizes.max(initial=1))), PAD_ID, np.int64)
    shares = np.zeros(ids.shape)
    here = np.arange(ids.shape[1]) < sizes[:, None]
    ids[here], shares[here] = row["sample_ids"], np.array(row["sample_counts"]) / facts.draws
    return ids, shares


def _vocabulary(facts: ProductFacts, places: Sequence[Path]) -> Vocabulary | None:
    """The tokenizer by its name in the run file, tried from several folders; only the very one that was used counts."""
    candidates = [str(path) for place in places if (path := place / facts.tokenizer).exists()]
    for name in candidates or [facts.tokenizer]:
        try:
            vocabulary = load_vocabulary(name)
        except TokenizerError:
            continue  # another folder of that name, or a Hub that cannot be reached: ids are shown instead
        if vocabulary.content_hash == facts.tokenizer_hash:
            return vocabulary
    return None
