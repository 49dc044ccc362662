"""The context tree holds every context that a real tokenization passes through, and nothing that none does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import pytest

from engine.bpe.vocabulary import Vocabulary
from engine.contexts.tree import NO_NODE, ContextTree
from schemas.errors import BadDocument
from tests.support.tiers import USUAL, usual
from tests.support.vocabularies import (
    ALL,
    BYTE_LEVEL,
    EFFORT,
    QWEN_SUBSETS,
    at_byte,
    builder,
    fringe_at,
    needs_shared,
    texts,
    vocabulary,
)

FRAGMENTS = [
    "the", "The", " quick", "don't", "I'll", " 'S", "it's", "''", "'", "12", "3456789", " 7", "x1y", " ", "  ", "   ", "\n",
    "\n\n", "\r\n", "\n  ", "\t", " \n ", ".", "...", ", ", "?!", " (", "<", "<tool_call>", "</", "//", "#", "猫", "日本語",
    "한국", "é", "naïve", "ß", " Привет", "שלום", "👩\u200d👩\u200d👧", "😀", " ❤\ufe0f", "\u00a0", "\u2009", "\u3000", "½",
    " — ", "…", "ability", " internationalization", "AAAA", "helloWorld", "HTTPServer",
]  # fmt: skip
CONTINUATIONS = [
    "", "a", "s", "ing", "A", "1", "23", " ", "  ", " a", " A", "   b", " 1", "\n", "\n\n", "\r\n", "\n a", " \n", "\t", ".", ",",
    "!!", "'", "'s", "'t", "'ll", "'LL", "-", "/", "<", ">", "(", "é", "Ж", "ж", "猫", "語", "한", "😀", "\u0301", "\u200d",
    "\u3000", "\u00a0", "½", "٣", "ŋ", "ƍ", "ɤ", "ꙮ", "Ꙩ", "ǅ", "꙰", "ლ", "ჟ", "\x00", "tool_call>", "tool_call> x", "€", "𐐀",
    "𝟘", "𓀀", "\U000e0041", "\x7f", "\x01", "ഋ", "྾", "ʘ", " ꙮ", "\nꙮ", ".ꙮ", "ꙮꙮ", "\u2009a", " ½", "\u2028",
]  # fmt: skip


def mixed(rng: random.Random) -> str:
    return "".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 9)))


def real(rng: random.Random) -> str:
    text = rng.choice(texts())
    at = rng.randrange(len(text))
    return text[at : at + rng.randrange(4, 40)]


def given_token(vocab: Vocabulary) -> tuple[int, ...]:
    """A token to stand before every text, so that no first token is special (not all tokenizers have a BOS)."""
    return (vocab.bos_id or vocab.eos_id or 0,)


def encodable(vocab: Vocabulary, text: str) -> list[int] | None:
    try:
        return vocab.encode(text)[0] if text else None
    except BadDocument:
        return None


def documents(name: str, count: int) -> Iterator[tuple[str, list[int], bytes]]:
    """(text, ids, prefix + text) of texts that the tokenizer keeps."""
    vocab, rng = vocabulary(name), random.Random(name)
    first: list[str] = ["x \n  y   1\n\nz"]  # whitespace of every kind, in every sample
    while count:
        text = first.pop() if first else mixed(rng) if rng.random() < 0.6 else real(rng)
        if name == "babyllama-tok105":
            text = "".join(c for c in text if c.encode() in vocab.id_of_bytes)
        ids = encodable(vocab, text)
        if ids is not None:
            count -= 1
            yield text, ids, vocab.prefix_bytes + text.encode()


@cache
def characters_like(head: bytes) -> tuple[str, ...]:
    """Some characters whose UTF-8 begins with these bytes: the lowest, the highest and a few between."""
    found, size = [], 2 if head[0] < 0xE0 else 3 if head[0] < 0xF0 else 4
    rng = random.Random(head)
    fixed = [bytes([0x80] * 3), bytes([0xBF] * 3), bytes([0xA0] * 3), bytes([0x80, 0xA8, 0x80])]
    for tail in fixed + [bytes(rng.randrange(0x80, 0xC0) for _ in range(3)) for _ in range(12)]:
        try:
            found.append((head + tail[: size - len(head)]).decode())
        except UnicodeDecodeError:
            continue  # no character has these bytes
    return tuple(dict.fromkeys(found))


def continued(text: str, place: int, more: list[str]) -> Iterator[str]:
    """Texts whose UTF-8 begins with the first `place` bytes of `text`'s: the text itself, and other ends."""
    raw = text.encode()
    whole = len(raw[:place].decode("utf-8", "ignore").encode())
    yield text
    heads = [raw[:place].decode()] if whole == place else []
    if whole < place:
        heads = [raw[:whole].decode() + c for c in characters_like(raw[whole:place])]
    for head in heads:
        for tail in more:
            yield head + tail


def children(tree: ContextTree) -> dict[tuple[int, int], int]:
    """(parent, token) -> node."""
    pairs = zip(tree.parent.tolist(), tree.token.tolist(), strict=True)
    out = {pair: node for node, pair in enumerate(pairs)}
    assert len(out) == len(tree.token)  # no context twice
    return out


def walk(tree: ContextTree, below: dict[tuple[int, int], int], path: list[int]) -> tuple[int, int]:
    """(node reached, number of tokens of `path` that the tree holds) from the given token on."""
    node = tree.given
    for k, token in enumerate(path):
        child = below.get((node, token))
        if child is None:
            return node, k
        node = child
    return node, len(path)


def path_to(tree: ContextTree, node: int) -> list[int]:
    out = []
    while node > tree.given:
        out.append(int(tree.token[node]))
        node = int(tree.parent[node])
    return out[::-1]


def boundaries(vocab: Vocabulary, ids: list[int]) -> dict[int, int]:
    """byte of prefix + text -> number of tokens before it."""
    end, out = 0, {0: 0}
    for k, token in enumerate(ids):
        end += len(vocab.token_bytes[token] or b"")
        out[end] = k + 1
    return out


# ==== completeness


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_every_context_that_a_real_text_passes_through_is_in_the_tree(name: str) -> None:
    """For the document, each of its bytes, and continuations of all kinds from there: where the real tokenization of
    text[:byte] + continuation has a boundary, the tokens before it are a node of that byte."""
    vocab, make, rng = vocabulary(name), builder(name), random.Random(name)
    seen = missing = several = 0
    examples = []
    for text, ids, data in documents(name, (2 if name in QWEN_SUBSETS else 8) * EFFORT):
        shift = len(vocab.prefix_bytes)
        places = range(len(data) - shift + 1)
        places = sorted(rng.sample(places, min(16, len(places))))
        tree = make.build(data, ids, [place + shift for place in places], given_token(vocab))
        below = children(tree)
        several += sum(len(at_byte(tree, place)) > 1 for place in tree.places.tolist())
        for place in places:
            for other in set(continued(text, place, rng.sample(CONTINUATIONS, 8))):
                tokens = encodable(vocab, other)
                count = boundaries(vocab, tokens).get(place + shift) if tokens is not None else None
                if tokens is None or count is None or (place == 0 and count):
                    continue
                seen += 1
                node, held = walk(tree, below, tokens[:count])
                if held < count or node not in at_byte(tree, place + shift):
                    missing += 1
                    examples.append((text, place, other, tokens[:count]))
    assert seen > 80
    assert not missing, f"{missing} of {seen}: {examples[:4]}"
    if vocab.kind == "sentencepiece" or not vocab.merges:
        assert not several  # no look-ahead, or every token a byte: nothing to choose
    elif name not in QWEN_SUBSETS:
        assert several  # look-ahead over whitespace makes second contexts


# ==== soundness


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_every_node_is_a_context_of_some_text(name: str) -> None:
    """Each node of each byte is witnessed: some text that begins with these bytes has these tokens in front."""
    vocab, make = vocabulary(name), builder(name)
    unseen: dict[bool, list] = {False: [], True: []}  # by whether the byte lies inside a character
    count = {False: 0, True: 0}
    shift = len(vocab.prefix_bytes)
    for text, ids, data in documents(name, (3 if name in QWEN_SUBSETS else 5) * EFFORT):
        tree = make.build(data, ids, list(range(shift, len(data) + 1)), given_token(vocab))
        for place in tree.places.tolist():
            nodes = at_byte(tree, place)
            wanted = {tuple(path_to(tree, node)) for node in nodes}
            assert all(tree.end[node] == place for node in nodes) and len(wanted) == len(nodes)
            inside = place < len(data) and data[place] & 0xC0 == 0x80
            count[inside] += len(nodes)
            for other in continued(text, place - shift, CONTINUATIONS):
                if not wanted:
                    break
                tokens = encodable(vocab, other) or []
                wanted = {path for path in wanted if tuple(tokens[: len(path)]) != path}
            unseen[inside] += [(text, place, path) for path in wanted]
    assert count[False] > 20
    assert not unseen[False], f"{len(unseen[False])} of {count}: {unseen[False][:4]}"
    # Half a character is a context where BPE spells it so; that all its completions merge is not asked.
    assert len(unseen[True]) <= 0.5 * count[True] + 2, f"{len(unseen[True])} of {count}: {unseen[True][:4]}"


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_the_trunk_is_the_document_and_parents_come_first(name: str) -> None:
    vocab, make, rng = vocabulary(name), builder(name), random.Random(name)
    for _, ids, data in documents(name, 10):
        wanted = sorted(rng.sample(range(len(data) + 1), min(6, len(data))))
        tree = make.build(data, ids, wanted, given_token(vocab))
        below = children(tree)
        assert tree.token[tree.trunk].tolist() == ids and tree.token[tree.given] == given_token(vocab)[-1]
        assert tree.end[tree.trunk[-1]] == len(data)
        for node, parent in enumerate(tree.parent.tolist()):
            assert parent < node and tree.depth[node] == (0 if parent == NO_NODE else tree.depth[parent] + 1)
            if parent != NO_NODE:
                assert tree.end[node] == tree.end[parent] + len(vocab.token_bytes[tree.token[node]] or b"")
                assert data[tree.end[parent] : tree.end[node]] == vocab.token_bytes[tree.token[node]]
        assert tree.places.tolist() == wanted and len(below) == len(tree.token)
        assert at_byte(tree, -1) == at_byte(tree, len(data) + 1) == fringe_at(tree, len(data) + 1) == []
        for place in wanted:
            nodes = at_byte(tree, place)
            on_trunk = [n for n in tree.trunk.tolist() if tree.end[n] == place]
            assert set(on_trunk[-1:]) <= set(nodes) and len(set(nodes)) == len(nodes)


# ==== the fringe


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_contexts_outside_the_tree_hang_off_the_fringe(name: str) -> None:
    """A boundary before a wanted byte, with a token over it: its context is in the tree, or leaves it by a fringe entry
    of that byte. And every entry is a canonical context that ends before the byte and is not in the tree."""
    vocab, make, rng = vocabulary(name), builder(name), random.Random(name)
    shift = len(vocab.prefix_bytes)
    crossing = outside = hanging = 0
    lost, unseen = [], []
    for text, ids, data in documents(name, (3 if name in QWEN_SUBSETS else 8) * EFFORT):
        wanted = sorted(rng.sample(range(shift, len(data) + 1), min(len(data) - shift, 1 + len(data) // 4)))
        tree = make.build(data, ids, wanted, given_token(vocab))
        below = children(tree)
        entries: dict[tuple[int, ...], int] = {}
        for place in wanted:
            fringe = set(fringe_at(tree, place))
            assert len(fringe) == len(fringe_at(tree, place))
            for node, token in fringe:
                end = tree.end[node] + len(vocab.token_bytes[token] or b"")
                assert (node, token) not in below and end < place
                entries[(*path_to(tree, node), token)] = end
            for other in continued(text, place - shift, CONTINUATIONS):
                tokens = encodable(vocab, other)
                if tokens is None:
                    continue
                at = max(byte for byte in boundaries(vocab, tokens) if byte <= place)
                if at == place or at < shift:
                    continue
                crossing += 1
                count = boundaries(vocab, tokens)[at]
                node, held = walk(tree, below, tokens[:count])
                if held < count:
                    outside += 1
                    if (node, tokens[held]) not in fringe:
                        lost.append((text, place - shift, other, tokens[:count], held))
        for path, end in entries.items():
            texts_there = (encodable(vocab, other) or [] for other in continued(text, end - shift, CONTINUATIONS))
            inside = data[end] & 0xC0 == 0x80
            if inside or any(added in text for added in vocab.added_text):
                continue  # within an added token the fringe may list more than there is: its mass is an upper bound
            if not any(tuple(tokens[: len(path)]) == path for tokens in texts_there):
                unseen.append((text, end - shift, path))
        hanging += len(entries)
    assert not lost, f"{len(lost)} of {outside} outside ({crossing}): {lost[:4]}"
    assert not unseen, f"{len(unseen)} of {hanging}: {unseen[:4]}"
    assert hanging > (0 if vocab.merges else -1) and crossing >= outside


@needs_shared
@pytest.mark.parametrize("name", usual(["gpt2", "smollm2", "llama-3", "qwen2.5", "llama-2"]))
def test_how_many_contexts_a_byte_has(name: str) -> None:
    """One almost everywhere: in prose at most a few per cent more nodes than bytes asked."""
    vocab, make = vocabulary(name), builder(name)
    text = "Once upon a time, there was a little dog named Max. He liked to run in the park with his friends."
    ids = vocab.encode(text)[0]
    data = vocab.prefix_bytes + text.encode()
    tree = make.build(data, ids, list(range(len(data) + 1)), given_token(vocab))
    contexts = len(tree.at_node)
    assert len(data) <= contexts <= 1.1 * len(data)
    assert vocab.kind == "bytelevel" or contexts == len(tree.token)


@needs_shared
def test_kinds_covered() -> None:
    always = [name for name in ALL if name in USUAL]
    assert {vocabulary(name).kind for name in always} == {"bytelevel", "sentencepiece"} and len(BYTE_LEVEL) == 15
