"""The beam beside brute force: documents through the real rounds, and the truth by writing all texts out.

`score` runs the engine's own path (windows, rounds, splitting, emitting) over a table teacher. `Truth` enumerates every
text that the teacher can write behind the leaves of definition 6 and encodes each with the tokenizers library; for that
the teacher is a `FiniteTeacher`, which ends surely a few tokens after it has left the document.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from engine.alignment.passage import Passage
from engine.beam.frontier import Spending
from engine.beam.leaves import LeafFinder
from engine.beam.search import BeamSearch
from engine.beam.sketch import Sketcher
from engine.bpe.vocabulary import Vocabulary
from engine.scoring.emit import Emitter
from engine.targets.positions import TopK
from engine.teacher.evaluate import hidden_states
from engine.teacher.incremental import OpenBatch
from schemas.settings import TeacherConfig
from tests.support.oracle import encode_closed, is_text
from tests.support.pairs import STUDENT, Pair, path_of
from tests.support.table_model import TableModel
from tests.support.toys import TableTeacher, completions

Tokens = tuple[int, ...]
UNLIMITED = 1e6
CONFIG = TeacherConfig(model="table", overlap=4)


def beam_search_of(
    pairs: dict[str, Pair], *, budget: float, tolerance: float, top: int | None = None, least: float = 0.0, length: int
) -> BeamSearch:
    """As scoring/stages.py, for the students of some pairs with one teacher (product -> pair)."""
    first = next(iter(pairs.values()))
    size, device = first.teacher.size, torch.device("cpu")
    kept = size if top is None else top
    strings = {p: pair.strings for p, pair in pairs.items()}
    return BeamSearch(
        {p: LeafFinder(pair.aligner.book, size, device, top=kept, least=least) for p, pair in pairs.items()},
        strings,
        dict.fromkeys(pairs, Spending(tolerance, budget, least)),
        Sketcher(
            {p: (o.heads.of_token, o.heads.count) for p, o in strings.items()},
            sorted(first.teacher.specials),
            kept,
            size,
            device,
        ),
        torch.ones(size, dtype=torch.bool),
        first.canonical,
        masked=first.masked,
        max_length=length,
    )


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rows by product, evaluations by document, and the contexts that were scored for them, in order."""

    rows: dict[str, TopK]
    spent: np.ndarray
    asked: list[Tokens]


def score(
    pair: Pair,
    docs: list[Passage],
    table: TableTeacher,
    *,
    budget: float = UNLIMITED,
    tolerance: float = 0.0,
    top: int | None = None,
    least: float = 0.0,
    others: dict[str, Pair] | None = None,
    max_length: int = 1 << 20,
    broken: frozenset[Tokens] = frozenset(),
) -> Scored:
    """What Scorer._score_group does, with all tokens kept. What an earlier call split is forgotten first.

    others: more students of the same documents, whose sides are there already.
    """
    pairs = {STUDENT: pair, **(others or {})}
    for doc in docs:
        doc.bad = None
        for product in pairs:
            for boundary in doc.views[product].boundaries or ():
                boundary.skip, boundary.extra = {}, None
    model = TableModel(pair.teacher, table, max_length=max_length, broken=broken)
    batches: list[OpenBatch] = []
    hidden = hidden_states(cast(Any, model), docs, CONFIG, open_batches=batches)
    beam_search = beam_search_of(pairs, budget=budget, tolerance=tolerance, top=top, least=least, length=max_length)
    spent = beam_search.search(docs, hidden, batches, model.logits)
    rows = emitter_of(pairs).emit(docs, hidden, model.logits)
    return Scored(cast(dict[str, TopK], rows), spent, model.asked)


def emitter_of(pairs: dict[str, Pair]) -> Emitter:
    first = next(iter(pairs.values())).emitter
    fast = {p: pair.emitter.fast[STUDENT] for p, pair in pairs.items()}
    sizes = {"teacher": first.top_k["teacher"]} | {p: pair.emitter.top_k[STUDENT] for p, pair in pairs.items()}
    return dataclasses.replace(first, top_k=sizes, fast=fast)


# ==== a teacher whose texts can all be written out


class FiniteTeacher(TableTeacher):
    """A table teacher that ends surely `off` tokens after it has left the document, with few next tokens everywhere.

    ids: the document's own tokens; along them nothing is taken out. Where the end would be no encoding of its own text, a
    teacher that shall write canonical text (`canonical`: masked here, or by the engine) goes on.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        chars: Sequence[str],
        seed: int,
        *,
        masked: bool,
        data: bytes,
        ids: Sequence[int],
        off: int = 2,
        canonical: bool = False,
        specials: bool = True,
        few: int = 4,
        order: int = 1,
    ) -> None:
        super().__init__(vocabulary, chars, seed, masked=masked, order=order)
        self.data, self.ids, self.off, self.few = data, tuple(ids), off, few
        self.canonical, self.other_specials = canonical or masked, specials

    def steps_off(self, context: Tokens) -> int:
        """Tokens since the context is no beginning of the document."""
        here = b""
        for n, token in enumerate(context):
            here += self.vocabulary.token_bytes[token] or b""
            if not self.data.startswith(here):
                return len(context) - n
        return 0

    def _compute(self, context: Tokens) -> np.ndarray:
        weight = np.exp(super()._compute(context))
        eos = self.vocabulary.eos_id
        assert eos is not None
        specials = list(self.vocabulary.specials)
        over = self.steps_off(context) >= self.off
        if over and (not self.canonical or self._is_encoding(context)):
            weight[:] = 0
            weight[eos] = 1
        else:
            near = len(context) < len(self.ids) and context == self.ids[: len(context)]
            own = weight.copy()
            own[specials] = 0
            kept = np.argsort(-own, kind="stable")[: self.few].tolist()
            if over:
                able = self.followers(context) if self.masked else self.usable
                kept = [t for t in able if self._is_encoding((*context, t))][: self.few] or able
            kept += [*([self.ids[len(context)]] if near else []), *([] if over else specials)]
            weight[np.setdiff1d(np.arange(len(weight)), kept)] = 0
            if not self.other_specials:
                weight[[s for s in specials if s != eos]] = 0
        with np.errstate(divide="ignore"):
            return np.log(weight / weight.sum())

    def _is_encoding(self, context: Tokens) -> bool:
        """Whether a text can end here and be written so."""
        return self._encode(self.bytes_of(context)) == list(context)


class Rules:
    """Next-token probabilities as the run's semantics see them. For `canonical-masked` of a raw teacher each row is masked
    by what the engine says of the context as a trunk node of a real text (tests/test_canonical*.py hold that to brute
    force): another way than `state_behind`, which the split leaves take.

    lost: why the document proves nothing: a context that no text of the alphabet shows; one behind which the few tokens
    of a raw teacher are all masked (its mass then ends in no text, which no real model does); or one where no end is near.
    """

    def __init__(self, pair: Pair, table: TableTeacher) -> None:
        self.pair, self.table, self.lost = pair, table, ""
        self._known: dict[Tokens, np.ndarray] = {}

    def prob(self, context: Tokens) -> np.ndarray:
        known = self._known.get(context)
        if known is None:
            known = np.exp(self.table.logp(context))
            if self.pair.masked and not self.table.masked:
                known = self._masked(known, context)
            self._known[context] = known
        return known

    def _masked(self, prob: np.ndarray, context: Tokens) -> np.ndarray:
        pair, table, n = self.pair, self.table, len(context)
        prefix = len(pair.teacher.prefix_bytes)
        assert pair.teacher.bos_id is not None
        for head in completions(table.bytes_of(context), table.two_bytes) if context else [pair.teacher.prefix_bytes]:
            for probe in table.probes[1:] if len(head) <= prefix else table.probes:
                data = head + probe.encode()
                ids = table._encode(data)
                if ids is not None and tuple(ids[:n]) == context:
                    tree = pair.builder.build(data, ids, [prefix], (pair.teacher.bos_id,))
                    node = ([int(tree.given), *tree.trunk.tolist()])[n]
                    row = torch.from_numpy(prob[None].copy())
                    pair.canonical.lists([pair.canonical.states(tree, data)[node]]).clear_(row)
                    left = float(row.sum())
                    self.lost = self.lost or ("" if left > 0 else "dead")
                    return row[0].numpy() / (left or 1.0)
        self.lost = "alien"
        return prob


class Truth:
    """All texts behind the leaves of one document. Contexts: those of the tree (tests/targets/test_pushforward.py holds the tree
    to brute force)."""

    def __init__(self, pair: Pair, doc: Passage, table: TableTeacher, text: str) -> None:
        self.pair, self.doc, self.text, self.rules = pair, doc, text, Rules(pair, table)
        tree = doc.tree
        self.given = path_of(tree, tree.given, pair.teacher)
        self.contexts = sorted({path_of(tree, n, pair.teacher) for n in range(tree.given, len(tree.token))})
        self.table = table
        self._texts: dict[Tokens, dict[bytes, float]] = {}
        self._answers: dict[bytes, list[int]] = {}
        self.count = 0

    def texts(self, context: Tokens) -> dict[bytes, float]:
        """Every text that the teacher writes from here, with its probability. A special ends the text, whichever."""
        known = self._texts.get(context)
        if known is None:
            if len(context) > len(self.doc.tree.trunk) + 12:
                self.rules.lost = "endless"
            if self.rules.lost:
                return {}
            known, ended = {}, 0.0
            for token, p in enumerate(self.rules.prob(context).tolist()):
                if p == 0:
                    continue
                if self.pair.teacher.token_bytes[token] is None:
                    ended += p
                    continue
                for text, q in self.texts((*context, token)).items():
                    known[text] = known.get(text, 0.0) + p * q
            if ended:
                here = self.table.bytes_of(context)
                known[here] = known.get(here, 0.0) + ended
            self._texts[context] = known
        return known

    def weight(self, context: Tokens) -> float:
        return float(np.prod([self.rules.prob(context[:i])[context[i]] for i in range(len(self.given), len(context))]))

    def answer(self, text: bytes) -> list[int]:
        if text not in self._answers:
            self._answers[text] = encode_closed(self.pair.student, text)
            self.count += 1
        return self._answers[text]

    def boundary(self, k: int) -> tuple[np.ndarray, float]:
        """(mass of each student token, excluded mass) at boundary k, absolute."""
        teacher, student = self.pair.teacher, self.pair.student
        prefix, s_ids = len(teacher.prefix_bytes), student.encode(self.text)[0]
        boundaries = self.doc.views[STUDENT].boundaries
        assert boundaries is not None and student.eos_id is not None
        place = boundaries[k].place
        before, mass, excluded = self.doc.data[:place], np.zeros(student.size), 0.0
        for context in self.contexts:
            here = self.table.bytes_of(context)
            if len(here) > place or not self._reaches(context, place):
                continue
            weight = self.weight(context)
            for token in np.flatnonzero(self.rules.prob(context)).tolist():
                p, piece = weight * float(self.rules.prob(context)[token]), teacher.token_bytes[token]
                if piece is None:
                    if here == before or (k == 0 and not context):
                        role, text = teacher.specials[token], before[prefix:]
                        if role == "eos" and is_text(text) and encode_closed(student, text) == s_ids[:k]:
                            mass[student.eos_id] += p
                        else:
                            excluded += p
                elif len(here + piece) > place and (here + piece).startswith(before):
                    for text, q in self.texts((*context, token)).items():
                        answer = self.answer(text[prefix:])
                        if answer[:k] == s_ids[:k] and len(answer) > k:
                            mass[answer[k]] += p * q
                        else:
                            excluded += p * q
        return mass, excluded

    def _reaches(self, context: Tokens, place: int) -> bool:
        """Nothing is asked of the teacher before its given token."""
        return len(self.table.bytes_of(self.given)) <= place
