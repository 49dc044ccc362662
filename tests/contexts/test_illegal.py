"""Lists of tokens that may not follow: equal to the slow twin, whatever is kept or forgotten; sums and masks of rows."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.bpe.vocabulary import Vocabulary
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext, State
from engine.contexts.illegal import NOTHING, IllegalLists, IllegalTokens
from schemas.errors import IdentityError
from tests.contexts.test_builder import documents, given_token
from tests.contexts.test_canonical import chooser, toy_side, tree_of
from tests.support.tiers import usual
from tests.support.toys import random_text
from tests.support.vocabularies import ALL, EFFORT, builder, needs_shared, vocabulary

TEXTS = [
    "Max's 12 dogs\n  ran \u2014 \u00e9!",
    "\u65e5\u672c x = 3;\n\n\treturn  1",
    "Thee e\u0301 \U0001f600 zz 1234567",
]


def states_of(vocab: Vocabulary, choose: CanonicalNext, make: ContextBuilder, text: str) -> list[State]:
    """Of all contexts that end at any byte of the text."""
    data = vocab.prefix_bytes + text.encode()
    wanted = list(range(len(vocab.prefix_bytes), len(data) + 1))
    tree = make.build(data, vocab.encode(text)[0], wanted, given_token(vocab))
    return [state for state in choose.states(tree, data) if state is not None]


def check(choose: CanonicalNext, states: list[State], rng: random.Random) -> None:
    """Ids, sums and masks, in float32 (compiled) and float64 (torch), against a slow loop."""
    ((tokens, number_R),) = choose.lists(states).parts
    for state, number in zip(states, number_R.tolist(), strict=True):
        assert tokens.ids(number).tolist() == choose.illegal(state).tolist(), state
    size, lists = choose.vocabulary.size, choose.lists(states)
    seed = torch.Generator().manual_seed(rng.randrange(1 << 30))
    whole = torch.rand(len(states), size + 9, generator=seed) + 0.5
    for prob in (whole.clone()[:, : size + 3], whole.double()):
        before = prob.clone()
        want = torch.stack([before[r, choose.illegal(state)].double().sum() for r, state in enumerate(states)])
        torch.testing.assert_close(lists.mass(prob), want, rtol=1e-9, atol=1e-9)
        assert torch.equal(prob, before)
        torch.testing.assert_close(lists.clear_(prob), want, rtol=1e-9, atol=1e-9)
        for row, state in enumerate(states):
            assert torch.nonzero(prob[row] != before[row]).flatten().tolist() == choose.illegal(state).tolist()
        assert torch.equal(lists.mass(prob), torch.zeros(len(states), dtype=torch.float64))


@needs_shared
@pytest.mark.parametrize("name", usual(ALL))
def test_real_tokenizers(name: str) -> None:
    vocab, choose, rng = vocabulary(name), chooser(name), random.Random(name)
    found: list[State] = []
    for _, ids, data in documents(name, 1 * EFFORT):
        shift = len(vocab.prefix_bytes)
        places = sorted(rng.sample(range(shift, len(data) + 1), min(20, len(data) + 1 - shift)))
        tree = builder(name).build(data, ids, places, given_token(vocab))
        found += [state for state in choose.states(tree, data) if state is not None]
    check(choose, rng.sample(found, min(len(found), 20 * EFFORT)), rng)


@pytest.mark.parametrize("seed", range(6 * EFFORT))
def test_toys(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    vocab, chars, choose, make = toy_side(rng, tmp_path / "toy")
    for _ in range(3):
        tree, data = tree_of(vocab, make, random_text(rng, chars))
        check(choose, [state for state in choose.states(tree, data) if state is not None], rng)


@needs_shared
def test_what_is_forgotten_is_made_again() -> None:
    """With room for a few lists only, in many small batches and one that alone needs more than there is room for."""
    vocab, choose, rng = vocabulary("gpt2"), chooser("gpt2"), random.Random(1)
    states = [state for text in TEXTS for state in states_of(vocab, choose, builder("gpt2"), text)]
    small = IllegalTokens(choose.segmenter, most=20_000)
    numbers = np.array([small.number(choose.book.next_tokens(s), s.last, s.ends, s.closed) for s in states], np.int32)
    prob = torch.rand(len(states), vocab.size)
    want = choose.lists(states).mass(prob)
    forgotten = 0
    for batch in [*(rng.sample(range(len(states)), 5) for _ in range(30)), list(range(len(states)))]:
        before = small._used
        got = small.mass(prob[batch], numbers[batch])
        torch.testing.assert_close(got, want[batch], rtol=1e-12, atol=0)
        torch.testing.assert_close(small.mass(prob[batch].double(), numbers[batch]), want[batch], rtol=1e-12, atol=0)
        forgotten += small._used < before
    assert forgotten > 3 and small._used > 20_000


@needs_shared
def test_passages_of_two_objects_are_joined() -> None:
    vocab, choose = vocabulary("gpt2"), chooser("gpt2")
    states = states_of(vocab, choose, builder("gpt2"), TEXTS[0])
    other = CanonicalNext(choose.segmenter)
    whole = choose.lists([None, *states])
    both = IllegalLists.join([choose.lists([None, *states[:7]]), other.lists(states[7:])])
    assert len(whole.parts) == 1 and len(both.parts) == 2 and whole.parts[0][1][0] == NOTHING
    prob = torch.rand(len(states) + 1, vocab.size)
    order = np.random.default_rng(0).permutation(len(prob))
    torch.testing.assert_close(both.take(order).mass(prob), whole.take(order).mass(prob), rtol=1e-12, atol=1e-12)
    assert whole.mass(prob)[0] == 0


@needs_shared
def test_rows_of_another_shape_are_refused() -> None:
    vocab, choose = vocabulary("gpt2"), chooser("gpt2")
    lists = choose.lists(states_of(vocab, choose, builder("gpt2"), "ab"))
    with pytest.raises(IdentityError, match="want one row per context"):
        lists.clear_(torch.rand(1, vocab.size))
    with pytest.raises(IdentityError, match="want one row per context"):
        lists.mass(torch.rand(len(lists.parts[0][1]), vocab.size - 1))
