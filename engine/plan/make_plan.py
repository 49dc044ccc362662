"""What a run is: everything that changes the answer, hashed into one fingerprint.

run file + corpus scan + the files of the teacher + both vocabularies  ->  schemas.manifest.Plan

Inside the fingerprint: teacher files (sha256 of weights, configuration, tokenizer, remote code), the content hash of
every tokenizer, all semantic settings of the run file, the corpus files (sha256) and how they are cut into units, the
schema and engine versions. Outside: where things lie and run, and how fast (paths, device, batch size, [ray]).
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig

from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.chat.conversation import ChatSide, chat_sides
from engine.chat.special_tokens import check_borders
from engine.corpus.scan import CorpusScan
from engine.plan.regimes import check_tokenizers
from engine.plan.teacher_files import _sha256, teacher_files, teacher_folder
from schemas.manifest import Plan, PlanUnit, ProductFacts, Regime
from schemas.products import BYTES_END
from schemas.redact import redacted
from schemas.runfile import RunConfig

ENGINE_VERSION = "0.6.0"
"""Raised whenever the numbers that the engine writes may change; the same as the version in pyproject.toml."""

BYTES_HASH = "bytes 0..255, end 256"
"""Stands where other products have the content hash of their tokenizer."""

_PLACES = {
    "teacher": ("model", "tokenizer", "revision", "chat_template"),
    "student": ("tokenizer", "revision", "chat_template"),
    "corpus": ("paths", "dataset", "name", "split", "revision"),
}


def make_plan(run: RunConfig, scan: CorpusScan) -> Plan:
    """The plan of a run: hashes the teacher's files (in parallel; about 1 GB/s and core), loads every vocabulary.

    Raises TeacherError (a missing file, named, with the fix), TokenizerError, and RunFileError for a regime or BOS that
    these tokenizers do not allow: before anything is written.
    """
    files = teacher_files(run)
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        hashes = dict(zip((file.name for file in files), pool.map(_sha256, files), strict=True))
    teacher = load_vocabulary(
        run.locate(run.teacher.tokenizer or run.teacher.model),
        revision=run.teacher.revision if run.teacher.tokenizer is None else None,
        trust_remote_code=run.teacher.trust_remote_code,
        where="[teacher]",
    )
    hashes_of = {"teacher": teacher.content_hash}
    students = {}
    for student in run.student:
        product = f"student/{student.name}"
        students[product] = load_vocabulary(
            run.locate(student.tokenizer),
            revision=student.revision,
            trust_remote_code=student.trust_remote_code,
            where=f"[[student]] {student.name}",
        )
        hashes_of[product] = students[product].content_hash
    chat = chat_sides(run, {"teacher": teacher, **students})
    if chat:  # a content is read without the tokenizer's prefix where template text stands before it
        teacher = chat["teacher"].vocabulary
        students = {product: chat[product].vocabulary for product in students}
    if run.corpus.specials == "boundary":
        check_borders({"teacher": teacher, **students})
    regimes = check_tokenizers(run, teacher, students)
    products = {}
    if run.targets.teacher:
        own = _facts(run.teacher.tokenizer or run.teacher.model, teacher, hashes_of["teacher"], "own", run)
        products["teacher"] = own.model_copy(update={"statistics": run.targets.teacher_stats})
    for student, (product, vocabulary) in zip(run.student, students.items(), strict=True):
        facts = _facts(student.tokenizer, vocabulary, hashes_of[product], regimes[product], run)
        if run.targets.codec == "sample":
            facts = facts.model_copy(update={"codec": "sample", "top_k": 0, "draws": run.targets.draws})
        products[product] = facts
    if run.targets.bytes:
        products["bytes"] = _byte_facts(run)
    if run.targets.hidden:
        own = _facts(run.teacher.tokenizer or run.teacher.model, teacher, hashes_of["teacher"], "own", run)
        stored = {"codec": "hidden", "top_k": 0, "hidden_size": _hidden_size(run)}
        products["hidden"] = own.model_copy(update=stored)
    semantic = {
        "engine_version": ENGINE_VERSION,
        "settings": _settings(run),
        "teacher_files": hashes,
        "vocabularies": hashes_of,
        "corpus": scan.semantic(),
    }
    if chat:
        semantic["chat_templates"] = {product: _seen(side) for product, side in chat.items()}
    units = [PlanUnit(**asdict(unit)) for unit in scan.units()]
    return Plan.make(semantic, units, products)


def _settings(run: RunConfig) -> dict[str, Any]:
    """The semantic settings without those that only say where a thing is found: its content is hashed instead."""
    settings = run.semantic()
    tables = {"teacher": [settings["teacher"]], "corpus": [settings["corpus"]], "student": settings["student"]}
    for table, names in _PLACES.items():
        for part in tables[table]:
            for name in names:
                del part[name]
    del settings["corpus"]["unit_documents"], settings["corpus"]["unit_bytes"]  # the units themselves are in the plan
    return settings


def _seen(side: ChatSide) -> dict[str, Any]:
    """What of a chat template changes the answer: its text, the strings that are put in, and the end that it writes."""
    text = hashlib.sha256(side.template.text.encode()).hexdigest()
    return {"sha256": text, "variables": side.template.variables, "end_id": side.vocabulary.eos_id}


def _facts(name: str, vocabulary: Vocabulary, known: str, regime: Regime, run: RunConfig) -> ProductFacts:
    return ProductFacts(
        tokenizer=redacted(name),
        tokenizer_hash=known,
        vocab_size=vocabulary.size,
        top_k=run.targets.top_k,
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id if run.targets.end else None,
        regime=regime,
        semantics=run.targets.semantics,
    )


def _hidden_size(run: RunConfig) -> int:
    """Numbers in a hidden state, from the model's configuration: the weights are not loaded here."""
    config = AutoConfig.from_pretrained(teacher_folder(run), trust_remote_code=run.teacher.trust_remote_code)
    config = config.get_text_config()  # OPT-350m projects its states before the lm_head
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
