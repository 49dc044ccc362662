"""The physical schema of a targets shard: columns, types, units and the footer. Normative text: docs/format.md.

One row is one document. T = rows of the distribution (tokens of the document, the end token included), K = top_k,
U = different tokens drawn at a position, D = size of a hidden state.
Row i of a document predicts token i given tokens < i. Log-probabilities are natural logarithms (nats), temperature 1.

A product is stored by one codec: `topk` (the K likeliest tokens and the tail), `sample` (tokens drawn from the
distribution, with their counts), or `hidden` (the teacher's hidden states instead of a distribution).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import pyarrow as pa

SCHEMA_NAME = "targetsmith.targets"
SCHEMA_VERSION = 3

Codec = Literal["topk", "sample", "hidden"]

PAD_ID = -1
"""Fills `topk_ids` where fewer than K tokens have mass; the log-probability beside it is -inf."""

# Bits of `flags` (uint8, one per position).
FLAG_EXACT = (
    1  # the value is the definition itself: nothing was open or pruned by construction (same tokenizer, subset, bytes)
)
FLAG_BOUNDED = 2  # the value is an estimate; `err` is the certified width of the interval that holds the truth
FLAG_BUDGET = 4  # beam: `err` is above the tolerance; the budget was spent, or nothing was left to split
FLAG_GIVEN = 8  # unscored: the teacher has no BOS, this position lies in or before its first (given) token
FLAG_NO_MASS = 32  # unscored: the teacher gives no mass to any student token here
FLAG_END = 16  # the row of the end token that closes the document, or a turn of a conversation
FLAG_ANEW = (
    128  # a model reads anew from here on: it sees nothing of the rows before, or of what is left out before row 0
)
FLAG_CONTEXT = 64  # unscored: not asked for (chat template, other roles, specials that end nothing)

MANTISSA_BITS = 10
"""Stored float32 values are rounded to this many mantissa bits (to nearest, ties to even): relative error <= 2**-11."""

COARSER = {"err": 7, "open_mass": 5, "pruned_mass": 5, "noncanonical_mass": 5}
"""Mantissa bits of columns that are looked at, not trained on; bounds are rounded up. Five bytes a position saved."""


def _list(value: pa.DataType) -> pa.ListType:
    return pa.list_(pa.field("element", value, nullable=False))


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_NAMES = (
    _field("doc_id", pa.string()),
    _field("doc_row", pa.int64()),  # position of the document in the corpus, counted over all input files
)
_SOURCE = (_field("source", pa.string()),)  # of a mixture: the name of the document's [[corpus]] table
_HEAD = (
    _field("text", pa.string()),  # "" when the run file says store_text = false
    _field("token_ids", _list(pa.int32())),  # [T]
    _field("byte_end", _list(pa.int32())),  # [T] byte of the text's UTF-8 at which token i ends
    _field("scored", _list(pa.bool_())),  # [T] false: no distribution (all of it is tail)
)
_CODECS: dict[Codec, tuple[pa.Field, ...]] = {
    "topk": (
        _field("topk_ids", _list(pa.int32())),  # [T*K] row-major, falling log-probability
        _field("topk_logps", _list(pa.float32())),  # [T*K] nats
        _field("tail_logp", _list(pa.float32())),  # [T] nats, log of the mass outside the top-k
    ),
    "sample": (
        _field("sample_sizes", _list(pa.uint8())),  # [T] different tokens drawn; 0 where unscored
        _field("sample_ids", _list(pa.int32())),  # [sum of sizes] per position by falling count, then rising id
        _field("sample_counts", _list(pa.uint8())),  # [sum of sizes] how often; the draws of the run in all
    ),
    "hidden": (
        _field("hidden", _list(pa.uint16())),  # [T*D] row-major, bfloat16 bits of the state that predicts token i
    ),
}
_MEASURES = (
    _field("gold_logp", _list(pa.float32())),  # [T] nats, log-probability of token i itself; -inf where unscored
    _field("err", _list(pa.float32())),  # [T] width of the certified interval, probability, rounded up
    _field("open_mass", _list(pa.float32())),  # [T] share of live mass whose first token is not yet certain
    _field("excluded_mass", _list(pa.float32())),  # [T] share with no token boundary here, or not text (specials)
    _field("pruned_mass", _list(pa.float32())),  # [T] upper bound of the share in contexts not evaluated
    _field("noncanonical_mass", _list(pa.float32())),  # [T] share on tokens that no text has after its contexts
)
_FLAGS = (_field("flags", _list(pa.uint8())),)  # [T] bits above
_STATISTICS = (
    _field("logz", _list(pa.float32())),  # [T] logit of a token = its log-probability + logz
    _field("entropy", _list(pa.float32())),  # [T] nats
    _field("logit_std", _list(pa.float32())),  # [T] standard deviation of the logits over all tokens
    _field("logz_scaled", _list(pa.float32())),  # [T] log of the sum of exp(logit / logit_std) over all tokens
    _field("space_logp", _list(pa.float32())),  # [T] nats, tokens that begin with white space, and specials
    _field("end_logp", _list(pa.float32())),  # [T] nats, tokens that end a text or turn
    _field("roles", _list(pa.uint8())),  # [T] a number of ROLES
)

ROLES = {"text": 0, "begin": 1, "end": 2, "template": 3}
"""What a token of the teacher is: `roles`."""


@cache
def row_schema(codec: Codec, statistics: bool = False, sources: bool = False) -> pa.Schema:
    """The columns of a product. statistics: with those of the teacher's own rows (`[targets] teacher_stats`). sources: of a
    mixture."""
    middle = () if codec == "hidden" else _MEASURES
    head = (*_NAMES, *(_SOURCE if sources else ()), *_HEAD)
    return pa.schema([*head, *_CODECS[codec], *middle, *_FLAGS, *(_STATISTICS if statistics else ())])


ROW_SCHEMA = row_schema("topk")
"""The columns of most products."""

LOGP_COLUMNS = ("topk_logps", "tail_logp", "gold_logp", "space_logp", "end_logp")
"""Log-probabilities: never above 0 but for float sums, -inf allowed; stored to 0.01 nats or better."""
SHARE_COLUMNS = ("open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass")
"""Shares of a position's mass, [0, 1]; bounds on them, where they are not known."""
STATISTIC_COLUMNS = tuple(column.name for column in _STATISTICS if column.name != "roles")
"""Numbers of the teacher's own rows that are stored with `[targets] teacher_stats`."""
WHOLE_COLUMNS = ("logz", "logit_std", "logz_scaled")
"""Not rounded: exp((logp + logz) / logit_std - logz_scaled) would lose its last percent."""
BOUND_COLUMNS = ("err", "pruned_mass")
"""Upper bounds: rounded up."""
DICTIONARY_COLUMNS = ("topk_ids", "sample_ids", "hidden", "flags", "roles", "sample_sizes", "sample_counts")
"""Integers among which the same values come again and again; a row group with too many different ones is plain. Other integers
are DELTA_BINARY_PACKED."""
