"""What is computed of an output: plain frozen values, JSON as they are. Made by `collect`, shown by stats and report.

Every number says what it is in: `_bits`, `_nats`, `_bytes`, `_s`; shares and widths are probabilities.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from schemas.manifest import ProductFacts


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Frozen):
    """How a quantity is distributed over the scored positions that were read. `counts[i]` of them lie in
    [edges[i], edges[i + 1]), the last bin with its upper edge; all lie in some bin."""

    count: int
    mean: float
    least: float
    largest: float
    quantiles: dict[str, float] = Field(description="p01, p05, p25, p50, p75, p95, p99")
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Place(_Frozen):
    """A position that is worth a look, with its text."""

    doc_row: int
    doc_id: str
    position: int
    start_bytes: int
    end_bytes: int
    token: str
    before: str = Field(description="text in front of it; empty where the run stores no text")
    after: str
    width: float
    surprise_bits: float | None = Field(description="-log2 of the true token's probability; None where it has none")
    likeliest: str = Field(description="the token that was thought likeliest; empty with codec sample")


class Cost(_Frozen):
    """What the text of the documents costs: minus log2 of the true tokens' probabilities, and, where a regime tells it apart, of
    the share that is text."""

    bits: float = Field(description="over positions with a finite cost")
    text_bytes: int = Field(description="bytes of text that scored positions cover")
    tokens: int = Field(description="scored positions with bytes, so without end tokens")
    bits_per_byte: float | None
    tokens_per_byte: float | None
    impossible: int = Field(
        description="scored positions of no finite cost: a token without probability, an excluded mass stored as 1"
    )


class Difference(_Frozen):
    """The same text by two products: documents whose scored bytes and end tokens are the same in both."""

    product: str
    against: str
    documents: int
    left_out: int = Field(description="documents whose scored bytes differ, or with a position that has no finite cost")
    text_bytes: int
    bits_per_byte: float | None = Field(description="of `product`")
    against_bits_per_byte: float | None
    difference_bits_per_byte: float | None = Field(
        description="product minus against; 0 where the same text costs the same"
    )
    finding: bool = Field(description="the difference is larger than what rounding and usual open mass make")
    largest: tuple[tuple[int, str, float], ...] = Field(
        description="documents that differ most: doc_row, doc_id, difference in bits per byte"
    )


class ProductFigures(_Frozen):
    """One product: totals of all that is published, and distributions of what was read."""

    facts: ProductFacts
    files: int
    documents: int
    positions: int
    scored: int
    disk_bytes: int
    mean_width: float | None
    mean_stored_mass: float | None
    mean_open_mass: float | None
    mean_excluded_mass: float | None
    mean_pruned_mass: float | None
    mean_noncanonical_mass: float | None
    impossible: int
    read_documents: int = Field(description="documents that all below is of")
    read_positions: int
    width: Spread | None = None
    tail_mass: Spread | None = Field(default=None, description="mass that is not stored: 1 - stored mass; codec topk")
    entropy: Spread | None = Field(
        default=None, description="bits, of the stored tokens and the rest as one; codec topk"
    )
    surprise: Spread | None = Field(default=None, description="bits of the true token, where it has a probability")
    token_bytes: Spread | None = Field(default=None, description="bytes of text of a scored token, end tokens left out")
    mass_by_rank: tuple[float, ...] = Field(
        default=(), description="mean probability of the likeliest, second ... token"
    )
    agreement: float | None = Field(
        default=None, description="share of scored positions whose likeliest token is the true one"
    )
    cost: Cost | None = None
    widest: tuple[Place, ...] = ()
    most_surprising: tuple[Place, ...] = ()
    disk_bytes_per_position: tuple[float, ...] = Field(default=(), description="of each file, in unit order")


class Refusal(_Frozen):
    """A document in quarantine, without its text."""

    doc_id: str
    source: str
    place: str
    detail: str


class Refused(_Frozen):
    """The documents in quarantine for one reason."""

    reason: str
    meaning: str
    remedy: str
    count: int
    samples: tuple[Refusal, ...]


class Published(_Frozen):
    """When units were published, by the times of their seals on the disk."""

    first: str = Field(description="the first seal's time, UTC")
    seconds: tuple[float, ...] = Field(description="of each seal, counted from the first, rising")
    teacher_tokens: tuple[float, ...] = Field(description="of each unit, in that order")


class Figures(_Frozen):
    """An output in numbers."""

    out: str
    fingerprint: str
    engine_version: str
    finished: bool
    units: int
    sealed: int
    documents: int = Field(description="of the sealed units, quarantine included")
    quarantined: int
    sources: dict[str, int] = Field(description="of a mixture: documents of each source, quarantine included")
    text_bytes: int
    teacher_tokens: int
    teacher_evaluations: int
    evaluations_per_token: float | None
    expected_tv: float | None = Field(
        description="total variation that the search expects to have left, a boundary, over all its students; where evaluations "
        "are spent by expected error"
    )
    target_error: float | None = Field(
        description="[targets] target_error: what the expected total variation was brought below"
    )
    seed: int
    read_units: int = Field(description="units that distributions, costs and places are of")
    sampled: bool = Field(description="whether those are fewer than all")
    products: dict[str, ProductFigures]
    differences: tuple[Difference, ...]
    quarantine: tuple[Refused, ...]
    published: Published | None = Field(description="None where the store does not tell, or with fewer than two seals")
