"""DistillKit's codec: log-probabilities as bytes (exact values, a fitted curve, quantised residuals), ids as bits.

Written after `distillkit.compression` (a61c2e7). A row of bytes holds, one behind the other: `exact_k` numbers, the coefficients
of the curve over the other k - exact_k, and of each bin of residuals its scale and its integers. Integers are packed first bit
first, with zeros up to a whole byte. N rows, K = k.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Number = Literal["float16", "bfloat16", "float32", "float64"]
_ROWS = 1024
"""Rows that are taken apart into bits at a time: a bit is a byte meanwhile, or eight."""
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(_Frozen):
    """Residuals that share a scale."""

    scale_dtype: Number
    element_bits: int = Field(ge=1, le=63)
    num_elements: int = Field(ge=1)


class Compression(_Frozen):
    """compression_config.yaml; the names are DistillKit's."""

    d: int = Field(ge=2, description="size of the vocabulary")
    k: int = Field(ge=1)
    exact_k: int = Field(ge=0)
    exact_dtype: Number = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: Number = "float32"
    residual_bins: list[Bin] = Field(default_factory=list)
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Compression:
        if self.exact_k > self.k or sum(b.num_elements for b in self.residual_bins) > self.k - self.exact_k:
            raise ValueError("exact_k and the elements of residual_bins are more than k")
        return self

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return (self.d - 1).bit_length()

    @property
    def is_exact(self) -> bool:
        """Whether every value is stored as it was."""
        return self.exact_k == self.k and self.exact_dtype in ("float32", "float64") and not self.delta_encoding

    @classmethod
    def exact(cls, vocab_size: int, top_k: int) -> Compression:
        """K float32 numbers as they are."""
        return cls(d=max(2, vocab_size), k=top_k, exact_k=top_k, delta_encoding=False)


def pack_ids(ids_NK: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """[N, bytes]. ids below 2**bits."""
    place, packed = np.arange(bits - 1, -1, -1), [np.empty((0, -(-ids_NK.shape[1] * bits // 8)), np.uint8)]
    for first in range(0, len(ids_NK), _ROWS):
        ids = ids_NK[first : first + _ROWS].astype(np.int64)
        bit = (ids[..., None] >> place) & 1
        packed.append(np.packbits(bit.astype(np.uint8).reshape(len(ids), -1), axis=1))
    return np.concatenate(packed)


def unpack_ids(packed_NB: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.int64]:
    """[N, count]. ValueError when there are too few bytes."""
    if packed_NB.shape[1] * 8 < count * bits:
        raise ValueError(
            f"{packed_NB.shape[1]} bytes of ids, wanted {-(-count * bits // 8)} for {count} of {bits} bits"
        )
    worth, ids = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64), [np.empty((0, count), np.int64)]
    for first in range(0, len(packed_NB), _ROWS):
        rows = packed_NB[first : first + _ROWS]
        bit = np.unpackbits(rows, axis=1, count=count * bits).reshape(len(rows), count, bits)
        ids.append(bit.astype(np.int64) @ worth)
    return np.concatenate(ids)


def pack_exact(logps_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """[N, 4 K]: float32 numbers as they are."""
    return np.ascontiguousarray(logps_NK, "<f4").view(np.uint8).reshape(len(logps_NK), -1)


def unpack_logps(packed_NB: npt.NDArray[np.uint8], how: Compression) -> npt.NDArray[np.float32]:
    """[N, K] nats. ValueError when a row has another number of bytes."""
    taken = 0

    def take(count: int) -> npt.NDArray[np.uint8]:
        nonlocal taken
        taken += count
        if packed_NB.shape[1] < taken:
            raise ValueError(f"{packed_NB.shape[1]} bytes of log-probabilities, and the configuration asks for more")
        return np.ascontiguousarray(packed_NB[:, taken - count : taken])

    fitted = how.k - how.exact_k
    exact_NE = _numbers(take(how.exact_k * _BYTES[how.exact_dtype]), how.exact_dtype)
    rest_NR = np.zeros((len(packed_NB), fitted))
    if how.polynomial_terms:
        coefficients = _numbers(take(len(how.polynomial_terms) * _BYTES[how.term_dtype]), how.term_dtype)
        rest_NR = coefficients.astype(np.float64) @ _curves(how, fitted).T
    first = 0
    for part in how.residual_bins:
        scale_N1 = _numbers(take(_BYTES[part.scale_dtype]), part.scale_dtype).astype(np.float64)
        packed = take(-(-part.element_bits * part.num_elements // 8))
        whole = unpack_ids(packed, part.element_bits, part.num_elements)
        steps = whole * 2 - 1 if part.element_bits == 1 else whole - (1 << (part.element_bits - 1))
        rest_NR[:, first : first + part.num_elements] += steps * scale_N1
        first += part.num_elements
    if taken != packed_NB.shape[1]:
        raise ValueError(f"{packed_NB.shape[1]} bytes of log-probabilities, the configuration asks for {taken}")
    logps = np.concatenate([exact_NE.astype(np.float64), rest_NR], axis=1)
    return (np.cumsum(logps, axis=1) if how.delta_encoding else logps).astype(np.float32)


def _curves(how: Compression, count: int) -> npt.NDArray[np.float64]:
    """[count, terms]: each term at each place."""
    at = np.linspace(0, 1, count) if how.normalize_t else np.arange(count, dtype=np.float64)
    special = {"sqrt": np.sqrt, "exp": np.exp}
    terms = how.polynomial_terms or []
    return np.stack([special[term](at) if isinstance(term, str) else at**term for term in terms], axis=1)


def _numbers(data_NB: npt.NDArray[np.uint8], kind: Number) -> np.ndarray:
    if kind == "bfloat16":
        return (data_NB.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return data_NB.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[kind])
