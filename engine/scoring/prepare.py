"""A document -> what is to be scored of it: its tokens for every product, the teacher's contexts, and how rows come of them.

Document + Stages -> Work: one passage where a document is scored whole; in a conversation, or in a text with special tokens
that are boundaries, one for each scored part. A document that cannot be scored leaves here, as BadDocument with its reason.
"""

from __future__ import annotations

import numpy as np

from engine.alignment.passage import Passage, ProductView
from engine.alignment.refinement import exact_pairs
from engine.chat.lead import with_lead
from engine.chat.segmenting import ChatSettings, segment_conversation, without_long_prompts
from engine.chat.segments import SegmentedDocument
from engine.corpus.document import Document
from engine.scoring.stages import Stages
from engine.targets.tables import Work
from engine.teacher.evaluate import BEAM_DEPTH
from engine.teacher.windows import windows_of
from schemas.errors import BadDocument, IdentityError, TokenizerError
from schemas.products import BYTES, HIDDEN, TEACHER

_BRANCH = 32
"""Tokens of room behind a shortened prompt for what hangs off the text, beside the overlap of windows."""


def prepare(stages: Stages, document: Document) -> Work:
    """A document as what is to be scored of it. Raises BadDocument, and IdentityError where two stages disagree about it."""
    try:
        return _prepare(stages, document)
    except TokenizerError as error:  # a rule that fails on this text: of this document only
        raise BadDocument("tokenizer_fault", str(error)) from error


def _prepare(stages: Stages, document: Document) -> Work:
    if document.problem is not None:
        raise BadDocument(*document.problem)
    if stages.chat:
        corpus = stages.run.corpus
        settings = ChatSettings.of(stages.run)
        if settings.plain:
            document = with_lead(stages.chat, document, corpus.roles)
        try:
            return _in_parts(stages, document, segment_conversation(stages.chat, document, settings))
        except BadDocument as error:
            if error.reason != "prompt_too_long" or corpus.too_long_prompt == "quarantine":
                raise
            room = max(_room(stages) - stages.run.teacher.overlap - len(stages.bos) - _BRANCH, 0)
            if corpus.too_long_prompt == "truncate":
                return _in_parts(stages, document, segment_conversation(stages.chat, document, settings, room))
            shorter = without_long_prompts(stages.chat, document, settings, room)
            if not any(message.learned for message in shorter.messages if message.role in corpus.roles):
                raise
            return _in_parts(stages, document, segment_conversation(stages.chat, shorter, settings))
    segmented = stages.special_splitter and stages.special_splitter.split(document.text)
    if segmented is not None:
        return _in_parts(stages, document, segmented)
    return Work(document, [whole_passage(stages, document)])


def whole_passage(stages: Stages, document: Document) -> Passage:
    """A document as one passage: nothing is given before its text but the teacher's BOS. Raises BadDocument."""
    closed = {product: stages.end_id(product) is not None for product in stages.products}
    return _passage(stages, document.text, stages.bos, closed, place=(document.doc_row, 0))


def _in_parts(stages: Stages, document: Document, segmented: SegmentedDocument) -> Work:
    """Each part behind all that the teacher has read before it: template, other roles, earlier parts."""
    passages, sequences = [], {**segmented.sequences, HIDDEN: segmented.sequences[TEACHER]}
    beyond = sequences[TEACHER].ids[sequences[TEACHER].ids >= stages.vocabulary.size]
    if len(beyond):
        raise BadDocument(
            "added_token", f"the teacher's template writes token {beyond[0]}, which the model has no output for"
        )
    for i, text in enumerate(segmented.texts):
        before = sequences[TEACHER].given(sequences[TEACHER].segments[i])
        closed = {product: sequences[product].segments[i].closed for product in stages.products}
        given = (*stages.bos, *before.tolist())
        passage = _passage(stages, text, given, closed, place=(document.doc_row, i))
        _refuse_without_room(stages, passage)
        for product, view in passage.views.items():
            segment = sequences[product].segments[i]
            if not np.array_equal(view.ids, sequences[product].ids[segment.begin : segment.begin + segment.positions]):
                raise IdentityError(f"{product}: part {i} has other tokens alone than within its document")
        passages.append(passage)
    own = {product: sequences[product] for product in stages.products}
    return Work(document, passages, own, segmented.text, segmented.cut)


def _refuse_without_room(stages: Stages, passage: Passage) -> None:
    """What is given stands before every window; without room for a text behind it nothing can be scored."""
    room = _room(stages)
    if int(passage.tree.depth.max()) < room:
        return
    try:
        windows_of(passage.tree, max_length=room, overlap=stages.run.teacher.overlap)
    except ValueError as error:
        given = passage.tree.given + 1
        raise BadDocument("prompt_too_long", f"{given} teacher tokens stand before a scored part: {error}") from error


def _room(stages: Stages) -> int:
    """Tokens that the teacher reads at once, less what a search may add."""
    return stages.teacher.max_length - (BEAM_DEPTH if stages.searches else 0)


def _passage(
    stages: Stages, text: str, given: tuple[int, ...], closed: dict[str, bool], *, place: tuple[int, int]
) -> Passage:
    """One text behind the teacher's given tokens. closed: products that have a row for the end behind it."""
    data = text.encode("utf-8")
    tokens = _tokens(stages, text, data)
    prefix = stages.vocabulary.prefix_bytes if text else b""  # an empty text has no tokens, hence no prefix
    wanted = _wanted(stages, tokens, len(data), len(prefix))
    tree = stages.builder.build(prefix + data, tokens[TEACHER][0], wanted, given, fringe=bool(stages.aligners))
    views = {}
    for product in stages.products:
        ids, ends = tokens[product]
        closing = ([stages.end_id(product)], [len(data)]) if closed[product] else ([], [])
        view = ProductView(
            np.array([*ids, *closing[0]], np.int64), np.array([*ends, *closing[1]], np.int64), closed=closed[product]
        )
        if product in stages.walks:
            view.student = stages.walks[product].view(tree, data, ids, ends)
        elif product in stages.aligners:
            view.boundaries = stages.aligners[product].boundaries(tree, data, ids, ends)
        elif product in stages.expansions:
            expansion, trie = stages.expansions[product]
            if product == BYTES:  # the prefix is bytes, too, but none of the text: it has no rows
                units, places = np.frombuffer(prefix + data, np.uint8), np.arange(1, len(prefix + data) + 1)
                view.exact = exact_pairs(tree, trie, expansion, units, places, skip=len(prefix))
            else:
                places = np.array(ends, np.int64) + len(prefix)
                view.exact = exact_pairs(tree, trie, expansion, np.array(ids, np.int64), places)
        views[product] = view
    illegal = stages.canonical.lists(stages.canonical.states(tree, prefix + data))
    return Passage(tree, prefix + data, views, illegal, place=place, lead=len(prefix))


def _tokens(stages: Stages, text: str, data: bytes) -> dict[str, tuple[list[int], list[int]]]:
    """Product -> (ids, bytes of the text where they end), also of the teacher where its own view is not stored."""
    tokens = {TEACHER: stages.vocabulary.encode(text) if text else ([], [])}
    for product, student in stages.students.items():
        tokens[product] = student.encode(text) if text else ([], [])
    tokens[HIDDEN] = tokens[TEACHER]
    if BYTES in stages.products:
        tokens[BYTES] = (list(data), list(range(1, len(data) + 1)))
    return tokens


def _wanted(stages: Stages, tokens: dict[str, tuple[list[int], list[int]]], size: int, shift: int) -> np.ndarray:
    """Bytes of prefix + text at which contexts are needed: all for bytes, else the boundaries of all students but those with
    the teacher's tokenizer. size, shift: bytes of text and prefix."""
    if BYTES in tokens:
        return np.arange(shift, shift + size + 1)
    asked = [np.array(tokens[p][1], np.int64) + shift for p in (*stages.aligners, *stages.expansions)]
    return np.unique(np.concatenate([[shift], *asked])) if asked else np.empty(0, np.int64)
