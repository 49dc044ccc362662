"""The table [targets] of the run file: what is stored, and how far the teacher is asked for it."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from schemas.runfile_errors import Fault, Faults, show
from schemas.settings import SettingsTable, key


class TargetsConfig(SettingsTable):
    """[targets]: what is stored."""

    regime: Literal["auto", "exact", "fast", "beam"] = key(
        "auto",
        semantic=True,
        about="How a student's distribution is computed. `exact`: the definition, without open or pruned mass; `fast`: "
        "one step, no evaluations beside the contexts; `beam`: open mass is split by more evaluations, until "
        "`target_error` or `tolerance` is reached or `max_nodes_per_token` are spent. `auto`: exact where that is proven for "
        "the pair of tokenizers, else beam.",
    )
    semantics: Literal["canonical-context", "canonical-masked"] = key(
        "canonical-context",
        semantic=True,
        about="Which probability is meant. `canonical-context`: contexts are canonical, the next token is as the model "
        "gives it. `canonical-masked`: every step renormalised over the tokens that keep the text canonical, a proper "
        "distribution over texts.",
    )
    tolerance: float = key(
        0.02,
        semantic=True,
        ge=0,
        lt=1,
        wanted="a number, 0 or more and below 1",
        about="Beam: certified width (`err`) at which a position is good enough and no more is spent on it, for those who "
        "want the certificate; for small vocabularies always. 0: until nothing is open (with a large `max_nodes_per_token` "
        "that is the lossless value).",
    )
    target_error: float = key(
        0.002,
        semantic=True,
        ge=0,
        lt=1,
        wanted="a number, 0 or more and below 1",
        about="Beam, vocabularies of real models: expected error of a document's positions (total variation, in the mean) at "
        "which no more is spent on it. Not where the run file names a `tolerance`.",
    )
    max_nodes_per_token: float = key(
        6.0,
        semantic=True,
        ge=0,
        about="Beam: teacher evaluations that a document may cost for each of its student tokens, beside those of its contexts. "
        "Spent over the document where they buy the most.",
    )
    calibration_documents: int = key(
        64,
        semantic=True,
        ge=0,
        about="Fast and beam: the first so many documents are read by the teacher beforehand, to learn how each of its tokens is "
        "usually continued. Mass left open is placed by that. 0: as if every open token ended there.",
    )
    eps: float = key(
        0.0,
        semantic=True,
        ge=0,
        lt=1,
        wanted="a number, 0 or more and below 1",
        about="Contexts whose weight relative to the text's own probability is below this are not evaluated; the mass given "
        "up is bounded in `pruned_mass` and `err` of every position. 0: all are evaluated.",
    )
    codec: Literal["topk", "sample"] = key(
        "topk",
        semantic=True,
        about="What is kept of a student's distribution. `topk`: the `top_k` likeliest tokens, and the rest as one tail mass; "
        "`sample`: `draws` tokens drawn from it, with their counts, an unbiased and much smaller target. The teacher's own rows "
        "and bytes are always `topk`.",
    )
    top_k: int = key(64, semantic=True, ge=1, le=1024, about="Tokens stored per position; the rest is one tail mass.")
    draws: int = key(
        50,
        semantic=True,
        ge=1,
        le=255,
        about="Codec `sample`: tokens drawn per position, with replacement. 50 give about 12 different ones where the teacher "
        "is as unsure as a language model of general text.",
    )
    seed: int = key(
        0,
        semantic=True,
        ge=0,
        le=2**63 - 1,
        about="Codec `sample`: another seed gives other draws. A position's draws hang on nothing but this, the student, the "
        "document and the row.",
    )
    bytes: bool = key(
        False,
        semantic=True,
        about="Also store the distribution of the next byte (256 values and the end) at every byte.",
    )
    bytes_top_k: int = key(8, semantic=True, ge=1, le=257, about="Values stored per byte; the rest is one tail mass.")
    teacher: bool = key(True, semantic=True, about="Also store the teacher's own top-k over its own vocabulary.")
    teacher_stats: bool = key(
        False,
        semantic=True,
        about="With `teacher`: beside each of its rows also logz, entropy, spread of the logits, mass on white space and "
        "on ends, and the role of each token. What ALM, MultiLevelOT, CDM and GOLD need.",
    )
    hidden: bool = key(
        False,
        semantic=True,
        about="Also store the teacher's last hidden state (bfloat16) behind each of its tokens, for DSKD. Large: two bytes for "
        "each of its dimensions at each token; the command says beforehand how much that will be.",
    )
    store_text: bool = key(True, semantic=True, about="Store the text of each document in its row.")
    end: bool = key(True, semantic=True, about="Append the end token to each document and score it.")

    @property
    def certified(self) -> bool:
        """Whether the beam spends for the certified width: a run file that names a `tolerance` wants it."""
        return "tolerance" in self.model_fields_set

    @model_validator(mode="after")
    def _belong_together(self) -> TargetsConfig:
        given, faults = self.model_fields_set, []
        if self.codec != "sample":
            faults = [
                Fault(name, show(getattr(self, name)), 'this key only together with codec = "sample"', f"remove {name}")
                for name in ("draws", "seed")
                if name in given
            ]
        elif "top_k" in given and not self.teacher:
            wanted = "this key only where a product is stored as top-k"
            faults.append(Fault("top_k", show(self.top_k), wanted, "remove top_k"))
        if self.teacher_stats and not self.teacher:
            wanted = "statistics only beside the teacher's own rows"
            faults.append(Fault("teacher_stats", "true with teacher = false", wanted, "set teacher = true"))
        if faults:
            raise Faults(*faults)
        return self
