"""A trial of a run: a few of its documents scored as the run would score them, into a folder that is thrown away.

run file -> corpus scan, plan -> Ray on this machine -> output of some units -> Trial (engine/plan/estimate.py)
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from engine.card.describe import describe
from engine.corpus.scan import CorpusScan
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.dataset.layout import sealed_quarantine
from engine.dataset.parquet import table_to_parquet_bytes
from engine.dataset.store import Store, open_store
from engine.plan.estimate import Trial, trial_rows
from engine.plan.make_plan import ENGINE_VERSION
from engine.plan.other_files import measured
from engine.plan.retry import read_retried, retry_plan
from engine.plan.token_files import publish_tokens
from engine.scoring.room import actors_here
from jobs.run.job import Job, work
from jobs.run.progress import Counts, Display
from jobs.run.summary import quarantined_by_reason
from schemas.counts import counted
from schemas.manifest import Manifest, Plan
from schemas.runfile import RunConfig


def try_run(
    run: RunConfig, scan: CorpusScan, plan: Plan, documents: int, counts: Counts, display: Display
) -> tuple[Trial, dict[str, str]]:
    """The trial, and an example of each reason for which documents went to quarantine. counts: begun with the command."""
    units = [(unit.doc_row, unit.n_rows) for unit in scan.units()]
    rows = trial_rows(units, documents, actors_here(run))
    with tempfile.TemporaryDirectory(prefix="targetsmith-plan-") as folder:
        run = run.model_copy(update={"output": Path(folder) / "out"})
        trial_plan, store = retry_plan(plan, plan.fingerprint, scan, rows), open_store(run.output)
        job = Job(run, scan, trial_plan, store, rows)
        open_output(store, trial_plan)
        publish_tokens(store, run, trial_plan)
        counts.units_total, counts.documents_left = len(trial_plan.units), len(rows)
        display.say(
            f"trial: {counted(len(rows), 'document')} of {counted(len(trial_plan.units), 'unit')}, as the run would score them"
        )
        work(job, {unit.index for unit in trial_plan.units}, job.budget(), counts, display, "local")
        with display.stepping("reading what came out"):
            manifest = finish(store, trial_plan, engine_version=ENGINE_VERSION, describe=describe)
            sizes = {product: _sizes(Path(folder) / "out", manifest, product) for product in manifest.totals}
            other = measured(store.files(), len(trial_plan.units))
            refused = quarantined_by_reason(store, manifest)
            examples = _examples(store, manifest)
    read = read_retried(run.corpus, scan, rows, range(len(trial_plan.units)))
    trial = Trial(
        documents=manifest.documents,
        refused=dict(refused.most_common()),
        text_bytes=sum(len(one.text.encode()) for _, documents in read for one in documents),
        stats=manifest.stats,
        data_bytes={product: size.data for product, size in sizes.items()},
        group_bytes={product: size.group for product, size in sizes.items()},
        file_bytes={product: size.file for product, size in sizes.items()},
        other=other,
        start_s=(counts.ready or counts.started) - counts.started,
        cold_s=counts.cold_s,
        cold_tokens=counts.cold_tokens,
        warm_s=counts.warm_s,
        warm_tokens=counts.warm_tokens,
        actors=counts.actors,
        device=_device(run),
    )
    return trial, examples


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of one product: bytes of its columns in one row group, what each further group adds, and of a file beside its columns."""

    data: int
    group: int
    file: int


def _sizes(out: Path, manifest: Manifest, product: str) -> _Sizes:
    """From its files as they are, and from all their rows written once more as one group."""
    files = [file for shard in manifest.shards if (file := shard.files[product]) is not None]
    if not files:
        return _Sizes(0, 0, 0)
    groups, columns, tables = 0, 0, []
    for file in files:
        more, size = _columns_of(pq.read_metadata(out / file.name))
        groups, columns = groups + more, columns + size
        tables.append(pq.ParquetFile(out / file.name).read())
    table = pa.concat_tables(tables)
    joined = pa.BufferReader(table_to_parquet_bytes(table, {}, [(0, table.num_rows)]))
    data = _columns_of(pq.read_metadata(joined))[1]
    each = max(0, columns - data) // (groups - 1) if groups > 1 else 0
    return _Sizes(data, each, (manifest.totals[product].bytes - columns) // len(files))


def _columns_of(file: pq.FileMetaData) -> tuple[int, int]:
    """(row groups, bytes of their columns)."""
    groups = [file.row_group(i) for i in range(file.num_row_groups)]
    return len(groups), sum(group.column(j).total_compressed_size for group in groups for j in range(group.num_columns))


def _examples(store: Store, manifest: Manifest) -> dict[str, str]:
    """Reason -> detail of the first document that is in quarantine for it."""
    found: dict[str, str] = {}
    for shard in manifest.shards:
        for record in sealed_quarantine(store, shard):
            found.setdefault(record["reason"], record["detail"])
    return found


def _device(run: RunConfig) -> str:
    if run.teacher.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{run.ray.num_cpus:g} processor cores an actor"
