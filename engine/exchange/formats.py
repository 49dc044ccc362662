"""The forms by name: what each keeps and loses, how its program loads it, and the functions that write and open it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.exchange import axolotl, distillkit, megatron, trl
from engine.exchange.destination import destination, write_text
from engine.exchange.outgoing import Outgoing, Tally
from engine.exchange.source import Source
from schemas.errors import RunFileError

_WIDTHS = "certified widths, shares of open, excluded, pruned and non-canonical mass, flags"
_TEXT = "the text and where tokens lie in it (byte_end)"
_TAIL = "the tail (a reader can only take 1 - the sum of the row)"
_GOLD = "the true token's log-probability where it is not in the row"


@dataclass(frozen=True, slots=True)
class Form:
    """What another program trains from. loads: lines that show how, with DEST for the folder."""

    program: str
    keeps: str
    loses: tuple[str, ...]
    loads: str
    write: Callable[[Path, Outgoing, Mapping[str, str], int | None], Tally]
    open_source: Callable[[str], Source]
    fixed_length: bool = False


FORMS: dict[str, Form] = {
    "axolotl": Form(
        "Axolotl (plugin axolotl.integrations.kd)",
        "token ids, labels, the rows of the top-k as they are stored, which positions are scored; names of "
        "documents in the metadata of the files",
        (_TAIL, _GOLD, _WIDTHS, _TEXT),
        "datasets:\n"
        "  - path: DEST\n"
        "    type:              # empty: the columns are tokens already\n"
        "plugins: [axolotl.integrations.kd.KDPlugin]\n"
        "kd_trainer: true\n"
        "kd_temperature: 1.0    # the columns are taken as they are: another temperature would be the student's alone\n"
        "kd_normalize_topk: false   # the rows do not sum to 1, and are not to be made to\n",
        axolotl.write,
        axolotl.open_source,
    ),
    "distillkit": Form(
        "DistillKit (Arcee)",
        "token ids, the rows of the top-k as they are stored (exact_k = k, float32); names of documents in the metadata",
        (
            _TAIL,
            _GOLD,
            _WIDTHS,
            _TEXT,
            "hard labels in front of positions without a distribution (its labels choose rows and tokens at once), and that such "
            "a position was to be learned from",
        ),
        "sequence_length: ROWS\n"
        "dataset:\n"
        "  train_dataset: {repo_id: DEST, split: train}\n"
        "  prepacked: true\n"
        "teacher:\n"
        "  kind: dataset\n"
        "  logprob_compressor:  # the content of DEST/compression_config.yaml\n"
        "loss_functions:\n"
        "  - {function: kl, weight: 1.0, temperature: 1.0, missing_probability_handling: symmetric_uniform}\n",
        distillkit.write,
        distillkit.open_source,
        fixed_length=True,
    ),
    "megatron": Form(
        "Megatron-LM (megatron.training.distillation, format version 2)",
        "the rows of the top-k as they are stored (fp32); token ids, loss mask and names of documents in samples.parquet",
        (
            _TAIL,
            _GOLD,
            _WIDTHS,
            _TEXT,
            "the hash of Megatron's own data, which only its run can make: give it the samples of samples.parquet in their order",
        ),
        "--logits-load-dir DEST --logits-load-ignore-hash --seq-length ROWS\n"
        "# the samples of DEST/samples.parquet, in their order; a sample is one token longer than its rows\n",
        megatron.write,
        megatron.open_source,
        fixed_length=True,
    ),
    "trl": Form(
        "TRL (names and shapes of its server distillation; no trainer of TRL 1.16 reads stored rows by itself)",
        "token ids, labels, the rows of the top-k as they are stored, the true token's log-probability, the tail, names of "
        "documents",
        (_WIDTHS, _TEXT),
        "from datasets import load_dataset\n"
        'rows = load_dataset("DEST", split="train")\n'
        "# topk_logprobs, topk_token_ids, actual_logprobs: what ServerDistillationTrainer's losses take\n",
        trl.write,
        trl.open_source,
    ),
}


def form_of(name: str) -> Form:
    """Raises RunFileError that lists the known ones."""
    if name not in FORMS:
        raise RunFileError(f"{name!r}: no form that is known; wanted one of {', '.join(sorted(FORMS))}")
    return FORMS[name]


def export(outgoing: Outgoing, name: str, dest: str, length: int | None, version: str) -> Tally:
    """Write a product in a form into a new folder, which appears whole or not at all. length: of forms of fixed length.

    Raises OutputError, RunFileError.
    """
    form, facts = form_of(name), outgoing.facts
    if length is not None and not form.fixed_length:
        fixed = ", ".join(sorted(known for known, one in FORMS.items() if one.fixed_length))
        raise RunFileError(f"--length {length}: {name} takes rows of any length; leave it out ({fixed} have it)")
    metadata = {
        "exported_as": name,
        "engine_version": version,
        "fingerprint": outgoing.plan.fingerprint,
        "product": outgoing.product,
        "top_k": str(facts.top_k),
        "vocab_size": str(facts.vocab_size),
        "tokenizer": facts.tokenizer,
        "tokenizer_hash": facts.tokenizer_hash,
        "regime": facts.regime,
        "semantics": facts.semantics,
    }
    with destination(dest) as folder:
        tally = form.write(folder, outgoing, metadata, length)
        write_text(folder, "README.md", _card(name, form, outgoing, tally, Path(dest).name))
    return tally


def loads(form: Form, tally: Tally, dest: str) -> str:
    """How its program loads what was written."""
    return form.loads.replace("DEST", dest).replace("ROWS", str(tally.rows))


def losses(form: Form, tally: Tally) -> list[str]:
    """What a form has lost of this product, one line each."""
    counted = []
    if tally.first_rows:
        counted.append(
            f"{tally.first_rows:,} distributions of first tokens: the vocabulary has no begin token to ask them behind"
        )
    if tally.cut:
        counted.append(f"{tally.cut_positions:,} positions of {tally.cut:,} sequences that are longer than the rows")
    return [*form.loses, *counted]


def _card(name: str, form: Form, outgoing: Outgoing, tally: Tally, folder: str) -> str:
    """README.md: what this is, also for `datasets`, which finds the files by it."""
    facts = outgoing.facts
    pattern = "samples.parquet" if name == "megatron" else "train-*.parquet"
    lost = "".join(f"* {line}\n" for line in losses(form, tally))
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: "{pattern}"
tags:
- knowledge-distillation
- targetsmith
---

# Teacher targets for {form.program}

{tally.readings:,} sequences, {tally.scored:,} positions with a distribution: the {facts.top_k} likeliest tokens of
{facts.vocab_size:,}, tokenizer {facts.tokenizer}, hash `{facts.tokenizer_hash}`. Made from the product {outgoing.product} (regime
{facts.regime}) of the run `{outgoing.plan.fingerprint}`. Log-probabilities are in nats at temperature 1 and are not renormalised.

Kept: {form.keeps}.

Lost:

{lost}
```text
{loads(form, tally, folder)}```
"""
