"""A Hugging Face dataset as a corpus file: opened by the `datasets` library, read in slices from its memory map; or, where it is
not to be downloaded, as the files that it consists of."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from engine.corpus.columns import Columns, Record
from engine.corpus.tables import BATCH_ROWS, Span
from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig, locate

if TYPE_CHECKING:
    from datasets import Dataset


def open_dataset(config: CorpusConfig, base_dir: Path, columns: Columns) -> Dataset:
    """[corpus] dataset, name, split and revision as a table on disk (in the cache of `datasets`), only `columns` of it.

    CorpusError when it cannot be had, or lacks a column.
    """
    # The import takes a second, and only corpora of this kind need it.
    import datasets
    from datasets.exceptions import DatasetsError

    assert config.dataset is not None
    where = f"[corpus] dataset {config.dataset!r}, split {config.split!r}"
    place = locate(config.dataset, base_dir)
    if os.path.isfile(place):
        raise CorpusError(f"{where}: got the file {place}; wanted a folder or a hub id. Give files by paths = [...].")
    if os.path.isabs(place) and not os.path.isdir(place):
        raise CorpusError(f"{where}: got no folder {place}. Correct the path, or give a hub id.")
    saved = _saved(place, config, where) if os.path.isabs(place) else None
    try:
        data = (
            saved
            if saved is not None
            else datasets.load_dataset(
                place, config.name, split=config.split, revision=config.revision, streaming=False
            )
        )
    except (OSError, ValueError, DatasetsError) as error:
        # `datasets` wraps the cause of a damaged file; the innermost message is the one that says what is wrong.
        cause = error.__cause__ or error
        raise CorpusError(
            f"{where}: cannot be loaded: {cause}. Correct [corpus] dataset, name, split or revision; a hub id needs "
            f"the network or a filled cache, and files with bad records are read by paths = [...]."
        ) from error
    if not isinstance(data, datasets.Dataset):
        raise CorpusError(f"{where}: got {type(data).__name__}; wanted one table. Give [corpus] split one split.")
    columns.check(data.column_names, where)
    return data.select_columns(columns.there(data.column_names)).with_format("arrow")


def data_files(config: CorpusConfig, base_dir: Path) -> list[str]:
    """Paths or URLs of the files of [corpus] dataset, name, split and revision, in the library's order; on the Hub those of the
    commit that the revision is now. CorpusError when they cannot be had."""
    import datasets
    from datasets.exceptions import DatasetsError

    assert config.dataset is not None
    where, place = f"[corpus] dataset {config.dataset!r}, split {config.split!r}", locate(config.dataset, base_dir)
    if os.path.isabs(place) and any(Path(place, name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise CorpusError(
            f"{where}: a folder of save_to_disk is not downloaded in any case. Remove [corpus] streaming."
        )
    try:
        builder = datasets.load_dataset_builder(place, config.name, revision=config.revision)
    except (OSError, ValueError, DatasetsError) as error:
        told = textwrap.shorten(str(error.__cause__ or error), 300)
        raise CorpusError(
            f"{where}: its files cannot be listed: {told}. Correct [corpus] dataset, name or revision; a hub id needs the "
            "network."
        ) from error
    splits = builder.config.data_files or {}
    found = next((files for split, files in splits.items() if str(split) == config.split), None)
    if not found:
        told = ", ".join(map(str, splits)) or "no files"
        raise CorpusError(
            f"{where}: got the splits {told}; wanted one of these as [corpus] split, whole: limit takes less."
        )
    return [str(path) if "://" in str(path) else os.path.abspath(str(path)) for path in found]


def _saved(place: str, config: CorpusConfig, where: str) -> Dataset | None:
    """What `save_to_disk` has written into a folder; None for a folder with other files. CorpusError where it cannot be read."""
    import datasets

    folder = Path(place)
    is_several = (folder / "dataset_dict.json").is_file()
    if not is_several and not (folder / "state.json").is_file():
        return None
    try:
        data = datasets.load_from_disk(place)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise CorpusError(f"{where}: cannot be read ({error}). Save the folder again by save_to_disk.") from error
    if isinstance(data, datasets.DatasetDict):
        if config.split not in data:
            raise CorpusError(
                f"{where}: got the splits {', '.join(map(str, data))}; wanted one of these as [corpus] split."
            )
        return data[config.split]
    if "split" in config.model_fields_set and config.split != str(data.split):
        raise CorpusError(
            f"{where}: the folder holds one table, saved without splits (or as {data.split}). Remove [corpus] split; "
            "limit takes the first records only."
        )
    return data


def read_dataset(data: Dataset, columns: Columns, spans: Sequence[Span]) -> Generator[Record, None, None]:
    """The records in the rows of `spans` (rising, disjoint), in order; fewer when the dataset ends before."""
    for start, stop in spans:
        end = min(stop, data.num_rows)
        for low in range(start, end, BATCH_ROWS):
            row = low
            table = cast(pa.Table, data[low : min(low + BATCH_ROWS, end)])  # by the format of `open_dataset`
            for batch in table.to_batches():
                yield from columns.of_arrow(row, batch)
                row += batch.num_rows
