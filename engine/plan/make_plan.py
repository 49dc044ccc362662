"""What a run is: everything that changes the answer, hashed into one fingerprint.

run file + corpus scan + the files of the teacher + both vocabularies  ->  schemas.manifest.Plan

Inside the fingerprint: teacher files (sha256 of weights, configuration, tokenizer, remote code), the content hash of
every tokenizer, all semantic settings of the run file, the corpus files (sha256) and how they are cut into units, the
schema and engine versions. Outside: where things lie and run, and how fast (paths, device, batch size, [ray]).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig

from engine.chat import ChatSide, chat_sides
from engine.chat_files import template_text
from engine.corpus import CorpusScan
from engine.expansion import BYTES_END
from engine.regime import check_tokenizers
from engine.specials import check_borders
from engine.vocab import Vocabulary, load_vocabulary
from engine.vocab_file import TOKENIZER_PATTERNS
from schemas.errors import TeacherError
from schemas.manifest import Plan, PlanUnit, ProductFacts, Regime
from schemas.redact import redacted
from schemas.runfile import RunConfig

ENGINE_VERSION = "0.6.0"
"""Raised whenever the numbers that the engine writes may change; the same as the version in pyproject.toml."""

BYTES_HASH = "bytes 0..255, end 256"
"""Stands where other products have the content hash of their tokenizer."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SLOW_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the order in which transformers looks for them
_PLACES = {
    "teacher": ("model", "tokenizer", "revision", "chat_template"),
    "student": ("tokenizer", "revision", "chat_template"),
    "corpus": ("paths", "dataset", "name", "split", "revision"),
}
_HUB_FILES = [*TOKENIZER_PATTERNS, "*.safetensors", "*.py", "pytorch_model*.bin"]


def teacher_folder(run: RunConfig) -> Path:
    """The local folder of the teacher; fetched from the Hub when `model` is an id. Raises TeacherError."""
    name, revision = run.teacher.model, run.teacher.revision
    folder = Path(run.locate(name))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise TeacherError(
            f"[teacher] model = {name!r} is a file; want the folder that holds config.json and the weights"
        )
    if folder.is_absolute():
        raise TeacherError(
            f"[teacher] model = {name!r}: there is no folder {folder}. Want one with config.json, weights, tokenizer; "
            f"correct the path (relative ones start at the folder of the run file)."
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(
            f"[teacher] model = {name!r} (revision {revision or 'main'}): there is no such folder, and the Hugging "
            f"Face Hub did not give it ({type(error).__name__}). Want a folder with config.json, weights and "
            f"tokenizer, or a Hub id: check the spelling, the network, and HF_TOKEN if the model is gated."
        ) from error


def teacher_files(run: RunConfig) -> list[Path]:
    """All files that decide what the teacher answers, sorted. Raises TeacherError naming the first that is missing."""
    folder = teacher_folder(run)
    config = folder / "config.json"
    if not config.is_file():
        raise TeacherError(
            f"[teacher] model = {run.teacher.model!r}: {config} is missing; want the folder that `save_pretrained` "
            f"writes (config.json, model.safetensors, tokenizer.json). Copy the missing file there or correct the path."
        )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TeacherError(f"[teacher] model: {config} is not valid JSON ({error}); fetch the file again") from error
    files = [config, *_weights(folder)]
    tokenizer = Path(run.locate(run.teacher.tokenizer)) if run.teacher.tokenizer else folder
    if tokenizer.is_dir():
        have = [tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
        if not (tokenizer / "tokenizer.json").is_file():
            slow = [tokenizer / name for name in SLOW_TOKENIZER_FILES if (tokenizer / name).is_file()]
            if not slow:
                raise TeacherError(
                    f"[teacher]: {tokenizer / 'tokenizer.json'} is missing, and so are "
                    f"{', '.join(SLOW_TOKENIZER_FILES)}. Copy the teacher's tokenizer there, or name "
                    f"its folder with [teacher] tokenizer = ..."
                )
            have += slow
        files += have
    if run.teacher.trust_remote_code:
        files += folder.glob("*.py")
    return sorted(set(files))


def _weights(folder: Path) -> Iterator[Path]:
    for name in _WEIGHTS:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            yield single
            return
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError) as error:
                raise TeacherError(
                    f"[teacher] model: {index} is not a weight index ({error}); fetch it again"
                ) from error
            for shard in shards:
                if Path(shard).name != shard:
                    raise TeacherError(
                        f"[teacher] model: {index} names {shard!r}; want plain file names beside it, or weights would be read "
                        "from anywhere on this machine. Do not use this model, or mend its index."
                    )
                if not (folder / shard).is_file():
                    raise TeacherError(
                        f"[teacher] model: {folder / shard} is missing, one of the {len(shards)} weight files that "
                        f"{index.name} names. Fetch it again; an interrupted download leaves such a folder."
                    )
            yield index
            yield from (folder / shard for shard in shards)
            return
    raise TeacherError(
        f"[teacher] model: {folder} has no weights; want {' or '.join(_WEIGHTS)}, or their .index.json with all parts. "
        f"Fetch them, or correct the path."
    )


def _sha256(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:  # the Hub cache names large files by their sha256
        return blob.name
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def pin(run: RunConfig) -> RunConfig:
    """The run as actors should see it: local paths absolute, Hub names with the commit that the plan was made from.

    Actors start hours apart and on other machines; a branch of the Hub may have moved by then. Call after `make_plan`,
    which has fetched everything and has reported what cannot be had.
    """
    model, revision = _pin_one(run, run.teacher.model, run.teacher.revision, _HUB_FILES)
    given = template_text(run, run.teacher.chat_template, "[teacher]")
    teacher = {"model": model, "revision": revision, "chat_template": given}
    if run.teacher.tokenizer is not None:
        teacher["tokenizer"] = run.locate(run.teacher.tokenizer)
    students = []
    for student in run.student:
        tokenizer, revision = _pin_one(run, student.tokenizer, student.revision, TOKENIZER_PATTERNS)
        given = template_text(run, student.chat_template, f"[[student]] {student.name}")
        pinned = {"tokenizer": tokenizer, "revision": revision, "chat_template": given}
        students.append(student.model_copy(update=pinned))
    return run.model_copy(update={"teacher": run.teacher.model_copy(update=teacher), "student": tuple(students)})


def _pin_one(run: RunConfig, name: str, revision: str | None, patterns: list[str]) -> tuple[str, str | None]:
    place = run.locate(name)
    if Path(place).exists():
        return place, revision
    return name, Path(snapshot_download(name, revision=revision, allow_patterns=patterns)).name
