"""A cache taken apart and put together: rows stay what they are, shorter ones end where longer ones end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from engine.teacher.cache_rows import chosen, joined, rows_of
from tests.support.architectures import build
from tests.support.hybrids import HYBRIDS


def cache(name: str, rows: int, length: int, seed: int = 0) -> Any:
    """Of a real hybrid model behind random tokens."""
    model = build(HYBRIDS[name])
    token = torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model.base_model(input_ids=token, use_cache=True).past_key_values


def tensors(made: Any) -> list[torch.Tensor]:
    return [t for row in rows_of(made, 0) for t in row.tensors]


@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "deepseek_v4"])
def test_apart_and_together_again_nothing_has_changed(name: str) -> None:
    made = cache(name, 3, 9)
    whole, filled = joined(rows_of(made, 9))
    assert not filled and whole is not made and type(whole) is type(made)
    assert [type(layer) for layer in whole.layers] == [type(layer) for layer in made.layers]
    ours, theirs = tensors(whole), tensors(made)
    assert len(ours) == len(theirs) > 6
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(ours, theirs, strict=True))


def test_rows_may_be_chosen_several_times_and_all_of_them_cost_nothing() -> None:
    made = cache("qwen3_next", 3, 9)
    assert chosen(made, [0, 1, 2], 3) is made
    twice = rows_of(chosen(made, [2, 0, 2], 3), 9)
    rows = rows_of(made, 9)
    for ours, theirs in zip(twice, (rows[2], rows[0], rows[2]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.tensors, theirs.tensors, strict=True))


def test_shorter_rows_are_filled_up_on_the_left() -> None:
    short, long = (rows_of(cache("qwen3_next", 1, length, length), length)[0] for length in (5, 9))
    whole, filled = joined([short, long])
    assert filled and whole.get_seq_length() == 9
    keys = next(layer.keys for layer in whole.layers if hasattr(layer, "keys"))
    assert keys.shape[::2] == (2, 9) and not keys[0, :, :4].any() and keys[0, :, 4:].any() and keys[1].any()


def test_states_of_other_forms_do_not_go_together() -> None:
    one, other = (rows_of(cache(name, 1, 6), 6)[0] for name in ("qwen3_next", "falcon_h1"))
    with pytest.raises(ValueError, match="different tensors|do not go together"):
        joined([one, other])
    wide = rows_of(cache("qwen3_next", 1, 6), 6)[0]
    wide.tensors[0] = torch.zeros(1, 7, 7)
    with pytest.raises(ValueError, match="do not go together"):
        joined([one, wide])


def test_a_state_gives_up_what_a_later_one_begins_with() -> None:
    model = build(HYBRIDS["qwen3_next"])
    token = torch.randint(3, 90, (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        state = model.base_model(input_ids=token, use_cache=True).past_key_values
        early = rows_of(joined(rows_of(state, 8))[0], 8)[1]
        before = [t.clone() for t in early.tensors]
        model.base_model(input_ids=token, past_key_values=state, use_cache=True)
    late = rows_of(state, 16)[1]
    early.lean_on(late)
    assert all(torch.equal(a, b) for a, b in zip(early.tensors, before, strict=True))
    shared = [
        a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        for a, b in zip(early.tensors, late.tensors, strict=True)
    ]
    assert sum(shared) == 4  # keys and values of two layers; states of recurrences have changed
    other = rows_of(cache("qwen3_next", 2, 16, 5), 16)[1]
    early.lean_on(other)  # of another text: nothing is taken
    assert all(torch.equal(a, b) for a, b in zip(early.tensors, before, strict=True))


def test_an_empty_cache_has_no_rows() -> None:
    assert rows_of(DynamicCache(), 0) == []
