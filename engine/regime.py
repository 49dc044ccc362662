"""What the run file asks for against what these tokenizers allow. Asked once before any work, and by every actor."""

from __future__ import annotations

from engine.split import build_splitter
from engine.vocab import Vocabulary
from schemas.errors import RunFileError
from schemas.runfile import RunConfig


def bos_of(run: RunConfig, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The tokens given before every text. "auto": what the tokenizer's own template puts there."""
    if run.teacher.bos == "auto":
        return vocabulary.bos_ids
    if not run.teacher.bos:
        return ()
    if vocabulary.bos_id is None:
        raise RunFileError('[teacher] bos = true, but the tokenizer names no bos_token; use "auto" or false')
    return vocabulary.bos_ids or (vocabulary.bos_id,)


def check_regime(run: RunConfig, teacher: Vocabulary, students: dict[str, Vocabulary]) -> None:
    """Refuse regimes that this version cannot give, before any work. Raises RunFileError."""
    regime = run.targets.regime
    for product, student in students.items():
        if regime in ("exact", "beam") and student.content_hash != teacher.content_hash:
            raise RunFileError(
                f'[targets] regime: got "{regime}", but {product} has another tokenizer than the teacher and this version gives '
                'it the fast regime only; use "auto" or "fast" ("exact" works where both tokenizers are the same)'
            )


def check_tokenizers(run: RunConfig, teacher: Vocabulary, students: dict[str, Vocabulary]) -> None:
    """All that can be refused without the teacher's weights: regime, BOS, pre-tokenizers. Raises RunFileError."""
    check_regime(run, teacher, students)
    bos_of(run, teacher)
    for vocabulary in (teacher, *students.values()):
        build_splitter(vocabulary)
