"""What can be said of a run without its teacher: tokens on both sides, and sizes by rule of thumb.

plan + vocabularies + some documents -> a Trial in which nothing was measured but tokens
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from engine.corpus.document import Document
from engine.dataset.sidecars import calibrated_products
from engine.plan.estimate import Trial
from engine.plan.other_files import foretold
from engine.plan.regimes import COMPILED_FROM
from engine.plan.vocabularies import Vocabularies
from schemas.errors import BadDocument
from schemas.manifest import Plan
from schemas.plan_inputs import setting
from schemas.products import BYTES, HIDDEN, TEACHER

BYTES_A_TOKEN = 2.2
"""Of a stored token with its log-probability (docs/log.md: 1.4 to 3.1, by how flat the teacher is)."""
BYTES_A_ROW = 14
"""Of the other columns at a position, the text among them."""
EVALUATIONS = {"bytes": 2.5, "subset": 1.3, "beam": 1.2}
"""Of the teacher for each of its tokens by regime (docs/log.md: bytes 1.9 to 2.6, subset 1.1 to 1.4, beam 1.01 to 1.8)."""
CERTIFIED_NODES = 2.5
"""Of the teacher for each token of a student of small vocabulary in beam, beside the contexts, where the run file allows so many
(docs/log.md: 1.6 on texts the teacher knows, 3.9 on others). Large vocabularies with a `tolerance` take all that is allowed."""


def untried(plan: Plan, known: Vocabularies, sample: Sequence[Document]) -> Trial:
    """Documents whose text the tokenizers cannot take are counted as refused; what only the run itself finds is not known."""
    counts, refused, good_bytes = Counter[str](), Counter[str](), 0
    for document in sample:
        if document.problem is not None:
            refused[document.problem[0]] += 1
            continue
        try:
            tokens = len(known.teacher.encode(document.text)[0])
            ends = {name: len(known.students[name].encode(document.text)[0]) for name in known.students}
        except BadDocument as error:
            refused[error.reason] += 1
            continue
        size = len(document.text.encode())
        good_bytes += size
        counts.update({TEACHER: tokens, HIDDEN: tokens, BYTES: size, **ends})
    stats = {f"{name}.positions": float(counts[name]) for name in plan.products} | {
        f"{name}.scored": float(counts[name]) for name in plan.products
    }
    stats |= {
        "text_bytes": float(good_bytes),
        "teacher_tokens": float(counts[TEACHER]),
        "teacher_evaluations": _evaluations(plan, known, counts),
    }
    data = {}
    for name, facts in plan.products.items():
        row = 2 * facts.hidden_size if name == HIDDEN else BYTES_A_TOKEN * (facts.top_k or 0.6 * facts.draws)
        data[name] = round(counts[name] * (row + BYTES_A_ROW))
    return Trial(
        documents=len(sample),
        refused=dict(refused),
        text_bytes=sum(len(document.text.encode()) for document in sample),
        stats=stats,
        data_bytes=data,
        group_bytes=dict.fromkeys(plan.products, 0),
        file_bytes=dict.fromkeys(plan.products, 20_000),
        other=foretold(plan, known, sample),
        start_s=0.0,
        cold_s=0.0,
        cold_tokens=0,
        warm_s=0.0,
        warm_tokens=0,
        actors=0,
        device="nothing",
    )


def _evaluations(plan: Plan, known: Vocabularies, counts: Mapping[str, int]) -> float:
    """Of the teacher in all: for its contexts, and for students that spend until their width is small."""
    contexts = max([1.0, *(EVALUATIONS.get(facts.regime, 1.0) for facts in plan.products.values())])
    most = setting(plan.semantic, "settings", "targets", "max_nodes_per_token")
    certified = [name for name in calibrated_products(plan) if plan.products[name].regime == "beam"]
    spent = 0.0
    for name in certified:
        large = known.teacher.size + known.students[name].size >= COMPILED_FROM
        spent += counts[name] * (most if large else min(CERTIFIED_NODES, most))
    return counts[TEACHER] * contexts + spent
