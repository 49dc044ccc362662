"""How each student's product is made, and what its tokenizer does not allow; asked once before any work, and by every actor.

run file + vocabularies -> product -> regime; or RunFileError, with what to write instead
"""

from __future__ import annotations

from engine.alignment.expansion import subset_gap
from engine.bpe.compare import refuse_where_different
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import RunFileError
from schemas.manifest import Regime
from schemas.runfile import RunConfig
from schemas.settings_targets import TargetsConfig


def bos_of(run: RunConfig, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The tokens given before every text. "auto": what the tokenizer's own template puts there."""
    if run.teacher.bos == "auto":
        return vocabulary.bos_ids
    if not run.teacher.bos:
        return ()
    if vocabulary.bos_id is None:
        raise RunFileError('[teacher] bos = true, but the tokenizer names no bos_token; use "auto" or false')
    return vocabulary.bos_ids or (vocabulary.bos_id,)


def regimes_of(run: RunConfig, teacher: Vocabulary, students: dict[str, Vocabulary]) -> dict[str, Regime]:
    """How each student's product is made: "same" (the teacher's own distributions), "subset" (exact, lemma 12), "beam" or
    "fast".

    "auto" takes what is exact where that is proven for the pair, else "beam". Raises RunFileError for a regime that a pair
    cannot have.
    """
    asked = run.targets.regime
    out: dict[str, Regime] = {}
    for product, student in students.items():
        if student.content_hash == teacher.content_hash:
            out[product] = "same"
            continue
        gap = "not asked" if asked in ("fast", "beam") else subset_gap(teacher, student)
        if asked == "exact" and gap is not None:
            raise RunFileError(
                f'[targets] regime: got "exact", but {product} is no subset of the teacher\'s tokenizer: {gap}. Want the same '
                'tokenizer, or the beginning of the teacher\'s merge list under the same pre-tokenizer; or use "auto"'
            )
        out[product] = "subset" if gap is None else "fast" if asked == "fast" else "beam"
    return out


COMPILED_VERSION = 1
"""Raised when what compiled functions store may change; part of the fingerprint of runs that use them."""
COMPILED_FROM = 65_536
"""Teacher and student ids together from which a pair is compiled: below, its rules are made in no time."""


def is_compiled(targets: TargetsConfig, regime: str, teacher: Vocabulary, student: Vocabulary) -> bool:
    """Whether a student's boundaries are pushed forward by compiled functions (push/compiled_rows.py): in the regime fast, and
    in beam where evaluations are spent by expected error, not for a certified width."""
    spent = regime == "fast" or (regime == "beam" and not targets.certified)
    return spent and teacher.size + student.size >= COMPILED_FROM


def check_tokenizers(run: RunConfig, teacher: Vocabulary, students: dict[str, Vocabulary]) -> dict[str, Regime]:
    """All that can be refused without the teacher's weights: regime, BOS, pre-tokenizers, and tokenizers that the library reads
    in another way. Raises RunFileError, TokenizerError.

    Returns how each student's product is made, as `regimes_of`.
    """
    regimes = regimes_of(run, teacher, students)
    bos_of(run, teacher)
    for vocabulary in (teacher, *students.values()):
        refuse_where_different(vocabulary, build_splitter(vocabulary), f"tokenizer {vocabulary.name}")
    return regimes


def why_of(targets: TargetsConfig, regime: str, teacher: Vocabulary, student: Vocabulary) -> str:
    """Why a student's product has this regime, in words for a person."""
    if regime == "same":
        return "the teacher's own tokenizer"
    if regime == "subset":
        return "its merges are the beginning of the teacher's, under the same pre-tokenizer: exact (lemma 12)"
    asked = f'[targets] regime = "{targets.regime}"'
    if targets.regime in ("fast", "beam"):
        return f"{asked} asks for it"
    gap = subset_gap(teacher, student)  # none where the corpus decided (engine/plan/added_in_corpus.py)
    return f"not exact: {gap or 'the corpus holds added texts of the teacher that it spells'}"
