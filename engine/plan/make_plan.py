"""What a run is: everything that changes the answer, hashed into one fingerprint.

run file + corpus scan + the files of the teacher + both vocabularies  ->  schemas.manifest.Plan

Inside the fingerprint: teacher files (sha256 of weights, configuration, tokenizer, remote code), the content hash of
every tokenizer, all semantic settings of the run file, the corpus files (sha256) and how they are cut into units, the
schema and engine versions. Outside: where things lie and run, and how fast (paths, device, batch size, [ray]).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.alignment.expansion import apart, near_subset_gap
from engine.bpe.vocabulary import Vocabulary
from engine.chat.conversation import ChatEncoder
from engine.chat.special_tokens import check_specials
from engine.corpus.scan import CorpusScan
from engine.dataset.layout import load_plan
from engine.plan.adapter_files import adapter_files
from engine.plan.added_in_corpus import added_in_corpus
from engine.plan.begin_end import check_ends, notes_of
from engine.plan.regimes import COMPILED_VERSION, check_tokenizers, is_compiled
from engine.plan.teacher_config import teacher_config
from engine.plan.teacher_files import name_of, sha256_of, teacher_files
from engine.plan.vocabularies import Vocabularies, load_vocabularies
from schemas.address import is_url
from schemas.errors import OutputError
from schemas.manifest import Plan, PlanUnit, ProductFacts, Regime, canonical_json
from schemas.plan_inputs import PlannedFile, setting
from schemas.products import BYTES, BYTES_END, HIDDEN, TEACHER
from schemas.redact import redacted
from schemas.runfile import RunConfig, TokenizerSource

ENGINE_VERSION = "0.7.0"
"""Raised whenever the numbers that the engine writes may change; the same as the version in pyproject.toml."""

BYTES_HASH = "bytes 0..255, end 256"
"""Stands where other products have the content hash of their tokenizer."""

# Keys of the run file that only say where a thing is found, by table: its content is hashed instead.
_PLACES = {
    "teacher": (
        "model",
        "tokenizer",
        "revision",
        "tokenizer_revision",
        "adapter",
        "adapter_revision",
        "chat_template",
    ),
    "student": ("tokenizer", "revision", "chat_template"),
    "corpus": ("paths", "dataset", "name", "split", "revision", "streaming"),
}


def make_plan(
    run: RunConfig,
    scan: CorpusScan,
    regimes: Mapping[str, Regime] | None = None,
    *,
    known: Vocabularies | None = None,
    sha256: Callable[[Path], str] = sha256_of,
) -> Plan:
    """The plan of a run: hashes the teacher's files (in parallel; about 1 GB/s and core), loads every vocabulary.

    regimes: those of the students in an output of this run, where the corpus may not be there to be looked at any more. known:
    the vocabularies of the run, where they are loaded already. sha256: of a file; another function where nobody will compare the
    fingerprint.

    Raises TeacherError (a missing file, named, with the fix), TokenizerError, and RunFileError for a regime or BOS that
    these tokenizers do not allow: before anything is written.
    """
    files = teacher_files(run)
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        hashes = dict(zip((name_of(file) for file in files), pool.map(sha256, files), strict=True))
    known = known or load_vocabularies(run)
    if run.corpus.specials == "boundary":
        check_specials(known.by_product)
    products = _products(run, known, scan, regimes)
    semantic = {
        "engine_version": ENGINE_VERSION,
        "settings": _settings(run),
        "teacher_files": hashes,
        "vocabularies": known.hashes,
        "corpus": scan.semantic(),
    }
    if run.teacher.adapter is not None:
        semantic["adapter_files"] = {file.name: sha256_of(file) for file in adapter_files(run)}
    regimes = {product: facts.regime for product, facts in products.items() if product in known.students}
    compiled = [
        p for p, regime in regimes.items() if is_compiled(run.targets, regime, known.teacher, known.students[p])
    ]
    if compiled:  # other numbers within the same widths: a run begun without is not gone on with
        semantic["compiled"] = {"version": COMPILED_VERSION, "products": compiled}
        if any(regimes[product] == "beam" for product in compiled):
            semantic["compiled"]["target_error"] = run.targets.target_error
    if known.chat:
        semantic["chat_templates"] = {product: _seen(encoder) for product, encoder in known.chat.items()}
    units = [PlanUnit(**asdict(unit)) for unit in scan.units()]
    return Plan.make(semantic, units, products)


def _settings(run: RunConfig) -> dict[str, Any]:
    """The semantic settings without _PLACES."""
    settings = run.semantic()
    corpus = settings["corpus"] if isinstance(settings["corpus"], list) else [settings["corpus"]]
    tables = {"teacher": [settings["teacher"]], "corpus": corpus, "student": settings["student"]}
    for table, names in _PLACES.items():
        for part in tables[table]:
            for name in names:
                part.pop(name, None)  # newer keys are only there where they are used
    del settings["targets"]["target_error"]  # where it counts, it is beside the compiled products
    for table in corpus:
        del table["unit_documents"], table["unit_bytes"]  # the units themselves are in the plan
    return settings


def known_files(run: RunConfig) -> tuple[PlannedFile, ...]:
    """The corpus files as the output's plan has them, where it was made with the same [corpus] and they lie on stores: they need
    not be read again while their stores say that they are the same. () where there is no such plan."""
    parts = run.corpus.parts or (run.corpus,)
    if not any(part.streaming or any(is_url(path) for path in part.paths) for part in parts):
        return ()
    try:
        plan = load_plan(run.output)
        is_same = setting(plan.semantic, "settings", "corpus") == json.loads(canonical_json(_settings(run)["corpus"]))
        return plan.corpus_files if is_same and plan.engine_version == ENGINE_VERSION else ()
    except OutputError:  # none yet, or a damaged one: whoever opens the output says so
        return ()


def _seen(encoder: ChatEncoder) -> dict[str, Any]:
    """What of a chat template changes the answer: its text, the strings that are put in, and the end that it writes."""
    text = hashlib.sha256(encoder.template.text.encode()).hexdigest()
    return {"sha256": text, "variables": encoder.template.variables, "end_id": encoder.vocabulary.eos_id}


def _products(
    run: RunConfig, known: Vocabularies, scan: CorpusScan, held: Mapping[str, Regime] | None
) -> dict[str, ProductFacts]:
    """What is stored of each product. Raises RunFileError for what these tokenizers do not allow."""
    targets, first = run.targets, run.tokenizers[0]
    regimes = check_tokenizers(run, known.teacher, known.students)
    spelt: dict[str, str] = {}
    if targets.regime == "auto":
        subsets = [product for product, regime in regimes.items() if regime == "subset"]
        if held is None:
            spelt = added_in_corpus(run, scan, known, subsets)
        regimes |= {product: "beam" for product in subsets if product in spelt or (held or {}).get(product) == "beam"}
    check_ends(run, known)
    own = _facts(run, known, first, known.teacher, "own")
    products = {}
    if targets.teacher:
        products[TEACHER] = own.model_copy(update={"statistics": targets.teacher_stats})
    for source in run.tokenizers[1:]:
        facts = _facts(run, known, source, known.students[source.product], regimes[source.product])
        if targets.codec == "sample":
            facts = facts.model_copy(update={"codec": "sample", "top_k": 0, "draws": targets.draws})
        products[source.product] = facts
    if targets.bytes:
        products[BYTES] = _byte_facts(run)
    if targets.hidden:
        stored = {"codec": "hidden", "top_k": 0, "hidden_size": _hidden_size(run)}
        products[HIDDEN] = own.model_copy(update=stored)
    notes = notes_of(run, known)
    told = {product: (*notes[TEACHER], *(notes.get(product, ()) if product != TEACHER else ())) for product in products}
    for product, regime in regimes.items():
        told[product] += _left_out(product, known) if regime == "subset" else ()
        if product in spelt:
            told[product] += (_why_beam(product, spelt[product], known),)
        elif regime == "beam" and (gap := near_subset_gap(known.teacher, known.students[product])) is not None:
            told[product] += (f"{product}: beam, though its merges are the teacher's: {gap}",)
    more = {"sources": bool(run.corpus.parts)}
    return {product: facts.model_copy(update={"notes": told[product], **more}) for product, facts in products.items()}


def _left_out(product: str, known: Vocabularies) -> tuple[str, ...]:
    """What a person is told where a subset student lacks added texts of the teacher."""
    texts = sorted(apart(known.teacher, known.students[product]).values())
    if not texts:
        return ()
    shown = ", ".join(repr(text) for text in texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")
    return (
        f"{product}: exact for texts without {shown}, which {known.teacher.name} takes whole and the student spells: documents "
        'whose scored text holds one go to quarantine (added_token). [targets] regime = "beam" scores them, too',
    )


def _why_beam(product: str, text: str, known: Vocabularies) -> str:
    """What a person is told where the corpus holds added texts that a subset student lacks."""
    return (
        f"{product}: beam, though its merges are the teacher's: scored texts of this corpus hold {text!r}, which "
        f"{known.teacher.name} takes whole and the student spells. With that text as an added token of the student's tokenizer "
        '(add_tokens) it is exact; [targets] regime = "exact" is exact for all other documents and leaves these to quarantine'
    )


def _facts(
    run: RunConfig, known: Vocabularies, source: TokenizerSource, vocabulary: Vocabulary, regime: Regime
) -> ProductFacts:
    return ProductFacts(
        tokenizer=redacted(source.name),
        tokenizer_hash=known.hashes[source.product],
        vocab_size=vocabulary.size,
        top_k=run.targets.top_k,
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id if run.targets.end else None,
        regime=regime,
        semantics=run.targets.semantics,
    )


def _hidden_size(run: RunConfig) -> int:
    """Numbers in a hidden state, from the model's configuration: the weights are not loaded here."""
    config = teacher_config(run).get_text_config()  # OPT-350m projects its states before the lm_head
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def _byte_facts(run: RunConfig) -> ProductFacts:
    return ProductFacts(
        tokenizer="bytes",
        tokenizer_hash=BYTES_HASH,
        vocab_size=BYTES_END + 1,
        top_k=run.targets.bytes_top_k,
        eos_id=BYTES_END if run.targets.end else None,
        regime="bytes",
        semantics=run.targets.semantics,
    )
