"""targetsmith show OUT: one document for human eyes.

One line of the table is one student token (or one byte, with --view bytes): its bytes in the text, the teacher tokens that
cover them, and both top-k, side by side where a teacher token begins at the same byte. Probabilities, not logarithms. A
space is shown as ␣.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.dataset.layout import REMAKE, load_plan, load_seals, own_seal, read_quarantine, seal_name
from engine.dataset.store import Out, PosixStore, Store, open_store
from jobs.products import View, choose
from schemas.errors import OutputError, RunFileError, TokenizerError
from schemas.manifest import Plan, ProductFacts, Seal
from schemas.products import BYTES_END
from schemas.target import (
    FLAG_BOUNDED,
    FLAG_BUDGET,
    FLAG_CONTEXT,
    FLAG_END,
    FLAG_EXACT,
    FLAG_GIVEN,
    FLAG_NO_MASS,
    PAD_ID,
)

FLAG_WORDS = {
    FLAG_EXACT: "exact",
    FLAG_BOUNDED: "bounded",
    FLAG_BUDGET: "budget",
    FLAG_GIVEN: "given",
    FLAG_NO_MASS: "no mass",
    FLAG_END: "end",
    FLAG_CONTEXT: "context",
}
# A text must not be able to move the cursor or colour the terminal: control characters are spelled out.
_CONTROLS = {i: f"\\x{i:02x}" for i in (*range(32), *range(127, 160))}
_VISIBLE = _CONTROLS | str.maketrans({" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"})
_PIPE_WIDTH = 130  # columns where the output is not a terminal


@dataclass(frozen=True, slots=True)
class _View:
    """One document of one product, with its vocabulary if that could be found. Shapes as in docs/format.md."""

    facts: ProductFacts
    row: dict[str, Any]
    vocabulary: Vocabulary | None
    ids_TK: np.ndarray
    probs_TK: np.ndarray
    starts_T: list[int]  # bytes; a token reaches from here to byte_end

    @property
    def is_bytes(self) -> bool:
        """Ids are bytes, and need no vocabulary."""
        return self.facts.regime == "bytes"

    def token(self, token_id: int) -> str:
        """A token in visible characters; `<name>` for specials, `#id` without the vocabulary."""
        if self.is_bytes:
            return visible(bytes([token_id])) if token_id < BYTES_END else "<end>"
        if self.vocabulary is None:
            return f"#{token_id}"
        piece = self.vocabulary.token_bytes[token_id]
        if piece is None:
            return self.vocabulary.tokenizer.id_to_token(token_id) or f"#{token_id}"
        return visible(piece)

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


def show(
    out: Out,
    *,
    doc: str | None,
    rows: str,
    top: int,
    student: str | None,
    view: View | None,
    stream: TextIO,
    near: Sequence[Path] = (),
) -> None:
    """Print one document. `near`: more folders in which the tokenizers' relative paths may start."""
    window, store = _window(rows), open_store(out)
    plan = load_plan(store)
    product = choose(store, list(plan.products), student, view, first=True)
    if plan.products[product].codec == "hidden":
        raise OutputError(
            f"{store}: hidden states are no distributions to look at; `targetsmith cat --view hidden` prints them"
        )
    row = _find(store, plan, product, doc)
    places = [*near, Path.cwd()]
    if isinstance(store, PosixStore):
        places += [store.root.resolve(), *store.root.resolve().parents]
    ours = _view(row, plan.products[product], places)
    theirs = None
    if "teacher" in plan.products and product != "teacher":
        theirs = _view(_find(store, plan, "teacher", str(row["doc_row"])), plan.products["teacher"], places)
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(
        f"[bold]{escape(row['doc_id'].translate(_CONTROLS))}[/]  document {row['doc_row']} of the corpus, {_title(product, ours)}"
    )
    console.print(_table(ours, theirs, window, top))
    console.print(_legend(ours, window), markup=False)


def _title(product: str, view: _View) -> str:
    """'student small (fast)', 'bytes', 'teacher (own)'; with the semantics where it is not the usual one."""
    name = product.replace("/", " ", 1)
    words = [view.facts.regime] if view.facts.regime != product else []
    words += [view.facts.semantics] if view.facts.semantics != "canonical-context" else []
    words += [f"{view.facts.draws} draws"] if view.facts.codec == "sample" else []
    return f"{name} ({', '.join(words)})" if words else name


def _table(ours: _View, theirs: _View | None, window: slice, top: int) -> Table:
    table = Table(show_lines=True, title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("text", overflow="fold")
    if theirs:
        table.add_column("teacher tokens", overflow="fold")
        table.add_column("teacher's top-k", no_wrap=True)
    kinds = {"own": "teacher's top-k", "bytes": "next byte's top-k"}
    usual = "student's top-k" if ours.facts.codec == "topk" else "drawn (share)"
    table.add_column(kinds.get(ours.facts.regime, usual), no_wrap=True)
    known = {"gold p": "gold_logp", "tail": "tail_logp"} if ours.facts.codec == "topk" else {"gold p": "gold_logp"}
    for heading in (*known, "width"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("flags")
    row = ours.row
    for i in range(*window.indices(len(row["token_ids"]))):
        start, end = ours.starts_T[i], row["byte_end"][i]
        piece = ours.token(row["token_ids"][i])
        if ours.vocabulary is None and row["text"] and end > start:
            piece = visible(row["text"].encode()[start:end]) or piece
        cells = [str(i), f"{start}-{end}", escape(piece)]
        if theirs:
            is_end = bool(row["flags"][i] & FLAG_END)
            cover = _covering(theirs, start, end, is_end)
            beside = next((j for j in cover if theirs.starts_T[j] == start), None)
            cells.append(escape(" | ".join(theirs.token(theirs.row["token_ids"][j]) for j in cover)))
            inside = "[dim]inside a teacher token[/]" if cover else ""  # a template's own tokens cover no text
            cells.append(inside if beside is None else theirs.best(beside, top))
        cells.append(ours.best(i, top))
        if row["scored"][i]:
            cells += [f"{np.exp(row[name][i]):.4f}" for name in known.values()]
            cells.append(f"{row['err'][i]:.1e}")
        else:
            cells += [""] * (len(known) + 1)
        cells.append("\n".join(word for bit, word in FLAG_WORDS.items() if row["flags"][i] & bit))
        table.add_row(*cells)
    return table


def _legend(view: _View, window: slice) -> str:
    row = view.row
    scored = np.array(row["scored"], bool)
    total = len(scored)
    shown = len(range(*window.indices(total)))
    lines = [f"{shown} of {total} positions shown (--rows from:to), {scored.sum()} scored"]
    if scored.any():
        width = np.array(row["err"])[scored].mean()
        if view.facts.codec == "topk":
            stored = 1 - np.exp(np.array(row["tail_logp"])[scored])
            lines[0] += f"; mean stored mass {stored.mean():.6f}"
        lines[0] += f", mean certified width {width:.2e}"
        shares = {name: np.array(row[f"{name}_mass"])[scored].mean() for name in ("noncanonical", "pruned")}
        lines.append(
            f"mean non-canonical mass {shares['noncanonical']:.2e} (the teacher's, on tokens that no text has there)"
        )
        if shares["pruned"]:
            lines[-1] += f"; mean pruned mass at most {shares['pruned']:.2e}"
    if view.vocabulary is None and not view.is_bytes:
        lines.append("The tokenizer was not found, so tokens are shown as #id: run this in the folder of the run file.")
    return "\n".join(lines)


def _covering(view: _View, start: int, end: int, is_end: bool) -> list[int]:
    """Positions of the teacher's tokens that share a byte with start..end; for the end token, the teacher's own."""
    flags, ends = view.row["flags"], view.row["byte_end"]
    if is_end:
        return [j for j, flag in enumerate(flags) if flag & FLAG_END and ends[j] == end]
    return [j for j, first in enumerate(view.starts_T) if first < end and ends[j] > start and not flags[j] & FLAG_END]


def _view(row: dict[str, Any], facts: ProductFacts, places: Sequence[Path]) -> _View:
    ids, probs = _drawn(row, facts) if facts.codec == "sample" else _likeliest(row, facts)
    vocabulary = None if facts.regime == "bytes" else _vocabulary(facts, places)
    return _View(facts, row, vocabulary, ids, probs, [0, *row["byte_end"][:-1]])


def _likeliest(row: dict[str, Any], facts: ProductFacts) -> tuple[np.ndarray, np.ndarray]:
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


def _find(store: Store, plan: Plan, product: str, doc: str | None) -> dict[str, Any]:
    """The row of a document. OutputError says why it is not there: quarantine, not scored yet, unknown."""
    seals = load_seals(store, plan)
    if doc is None:
        for seal in seals:
            if found := _read(store, plan, product, seal, None):
                return found
        raise OutputError(f"{store}: no document is ready yet (or all are in quarantine); run targetsmith score")
    if not doc.isdecimal():
        doc_id = doc.removeprefix("id:")
        for seal in seals:
            if found := _read(store, plan, product, seal, ("doc_id", "==", doc_id)):
                return found
        units = plan.units
        what = f"doc_id {doc_id!r}"
    else:
        number = int(doc)
        units = [unit for unit in plan.units if unit.doc_row <= number < unit.doc_row + unit.n_rows]
        if not units:
            last = plan.units[-1].doc_row + plan.units[-1].n_rows - 1
            raise OutputError(f"{store}: no document {number}; the corpus has documents 0 to {last}")
        seal = own_seal(store, plan, units[0].index) if store.exists(seal_name(units[0].index)) else None
        if seal is not None and (found := _read(store, plan, product, seal, ("doc_row", "==", number))):
            return found
        what = f"document {number}"
    for unit in units:
        for record in read_quarantine(store, unit.index):
            if doc in (str(record["doc_row"]), record.get("doc_id"), f"id:{record.get('doc_id')}"):
                raise OutputError(f"{store}: {what} is in quarantine: {record['reason']}, {record.get('detail')}")
    raise OutputError(
        f"{store}: {what} is not here; the unit may not be scored yet (run targetsmith score), or the name is wrong "
        f"(a doc_id made of digits is written id:{doc})"
    )


def _read(
    store: Store, plan: Plan, product: str, seal: Seal, wanted: tuple[str, str, Any] | None
) -> dict[str, Any] | None:
    """The row that is wanted (None: the first) of a unit's file; None: it is not there. OutputError for a damaged file."""
    record = seal.files[product]
    if record is None:
        return None
    place, size = store.place(record.name), store.size(record.name)
    if size != record.bytes:
        got = "missing" if size is None else f"{size:,} bytes"
        raise OutputError(f"{place}: {got}, sealed with {record.bytes:,} bytes; {REMAKE}")
    try:
        with store.open(record.name) as data:
            footer = pq.read_metadata(data).metadata or {}
            if footer.get(b"targetsmith.fingerprint", b"").decode() != plan.fingerprint:
                raise OutputError(f"{place}: a file of another run; {REMAKE}")
            data.seek(0)
            filters = None if wanted is None else [wanted]
            table = pq.read_table(data, filters=filters, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OutputError(f"{place}: damaged ({error}); {REMAKE}") from error
    return table.slice(0, 1).to_pylist()[0] if table.num_rows else None


def _window(rows: str) -> slice:
    first, colon, last = rows.partition(":")
    try:
        window = slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        colon = ""
        window = slice(None)
    if not colon:
        raise RunFileError(f"--rows {rows!r}: wanted from:to, two numbers as in 0:12, either may be left out")
    return window


if __name__ == "__main__":
    from jobs.cli import main

    main(["show", *sys.argv[1:]])
