"""tekken.json, a list of tokens by rank, against the rule of tiktoken written out: join the two neighbours of the least rank."""

from __future__ import annotations

import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bpe.rank_lists import last_pair, rank_spec
from engine.bpe.segmenter import build_segmenter
from engine.bpe.tokenizer_json import compile_tokenizer
from engine.bpe.vocabulary import load_vocabulary
from schemas.errors import TokenizerError
from tests.support.vocabularies import save

PATTERN = r"\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+"


def joined_by_rank(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The slow twin: a pre-token's tokens as tiktoken makes them."""
    parts = [piece] if piece in ranks else [piece[i : i + 1] for i in range(len(piece))]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks]
        if not pairs:
            return parts
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def tekken(tokens: list[bytes], **changes: Any) -> dict[str, Any]:
    vocab = [{"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for i, t in enumerate(tokens)]
    sizes = {"default_num_special_tokens": 5, "default_vocab_size": len(tokens) + 5, "num_vocab_tokens": len(tokens)}
    return {"config": {"pattern": PATTERN, "version": "v3", **sizes}, "vocab": vocab, **changes}


BYTES = [bytes([b]) for b in range(256)]


@st.composite
def rank_lists(draw: st.DrawFn) -> dict[bytes, int]:
    """Random bytes in random order: tokens whose parts have higher ranks, or that no join makes, are among them."""
    more = draw(st.lists(st.text("ab=", min_size=2, max_size=5), min_size=1, max_size=14, unique=True))
    return {token: i for i, token in enumerate([*BYTES, *(t.encode() for t in more)])}


@given(rank_lists(), st.integers(0, 1000))
def test_one_pair_for_each_token_is_the_whole_list(ranks: dict[bytes, int], seed: int) -> None:
    rng, specials = random.Random(seed), ["<unk>", "<s>"]
    tokenizer = compile_tokenizer(rank_spec(ranks, PATTERN, specials), "toy")
    names = {rank + len(specials): token for token, rank in ranks.items()}
    for _ in range(20):
        text = "".join(rng.choices("ab=", k=rng.randint(1, 14)))
        pieces = re.findall("[ab]+|=+", text)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert [names[i] for i in ids] == [t for piece in pieces for t in joined_by_rank(piece.encode(), ranks)]


def test_a_token_is_the_merge_of_what_is_joined_last() -> None:
    ranks = {token: i for i, token in enumerate([*BYTES, b"ab", b"abab", b"ba", b"xyz"])}
    assert last_pair(b"abab", ranks) == (b"ab", b"ab") and last_pair(b"ab", ranks) == (b"a", b"b")
    assert last_pair(b"xyz", ranks) is None  # stands as a whole pre-token only


def test_a_folder_with_tekken_json_alone(tmp_path: Path) -> None:
    tokens = [*BYTES, b"th", b"the", b" x", b"==", b"===="]
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(tokens)), encoding="utf-8")
    vocab = load_vocabulary(str(tmp_path), where="[teacher]")
    assert (vocab.size, vocab.bos_ids, vocab.eos_id, vocab.unk_id) == (len(tokens) + 5, (1,), 2, None)
    assert vocab.specials == {0: "unk", 1: "bos", 2: "eos", 3: "other", 4: "other"} and vocab.ignore_merges
    ids, ends = vocab.encode("the=== é <s>")
    assert b"".join(vocab.token_bytes[i] or b"" for i in ids) == "the=== é <s>".encode() and ends[:3] == [3, 5, 6]
    assert build_segmenter(vocab).encode_whole(b"=====") == tuple(vocab.id_of_bytes[t] for t in (b"====", b"="))
    named = [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(["<unk>", "<s>", "</s>", "[INST]"])]
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(tokens, special_tokens=named)), encoding="utf-8")
    assert load_vocabulary(str(tmp_path / "tekken.json")).tokenizer.id_to_token(3) == "[INST]"


def test_other_files_of_that_name_are_refused(tmp_path: Path) -> None:
    fine, file = tekken([*BYTES, b"ab"]), tmp_path / "tekken.json"
    wrong: list[tuple[Any, str]] = [
        ({"vocab": fine["vocab"]}, "is not a tekken.json as Mistral writes it .KeyError: 'config'"),
        ({**fine, "vocab": fine["vocab"][1:]}, "do not have the ranks 0 to 256 once each, all 256 bytes among them"),
        ({**fine, "vocab": [*fine["vocab"][:-1], {"rank": 256, "token_bytes": "AA=="}]}, "do not have the ranks"),
        ({**fine, "config": {**fine["config"], "pattern": r"\p{N}{1,3}+|."}}, "a count with a .* behind it"),
    ]
    for content, reason in wrong:
        file.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(TokenizerError, match=reason) as caught:
            load_vocabulary(str(tmp_path), where="[teacher]")
        assert str(caught.value).startswith("[teacher]: ") and str(file) in str(caught.value)


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    spec = rank_spec({token: i for i, token in enumerate([*BYTES, b"ab"])}, PATTERN, ["<unk>", "<s>", "</s>"])
    save(spec, tmp_path)
    (tmp_path / "tekken.json").write_text("{}", encoding="utf-8")
    assert load_vocabulary(str(tmp_path)).size == 260
