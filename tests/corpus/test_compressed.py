"""Compressed corpus files: what was written comes back; a file that is cut off anywhere is an error, not a shorter corpus."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus.compressed import CODECS, DAMAGE, ZST_BYTES, open_bytes, open_seekable
from tests.support.corpora import corpus, jsonl, read, refused

SKIPPED = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"notes"  # a frame that holds no data


def frame(data: bytes, *, size: bool = True, checksum: bool = False, **parameters: int) -> bytes:
    """One zstd frame. size: its header says how much data it has."""
    options = zstandard.ZstdCompressionParameters(write_checksum=checksum, write_content_size=size, **parameters)
    compressor = zstandard.ZstdCompressor(compression_params=options)
    if size:
        return compressor.compress(data)
    stream = compressor.compressobj()
    return stream.compress(data) + stream.flush()


def read_all(path: Path, codec: str, step: int = -1) -> bytes:
    with open_bytes(path.open("rb"), codec) as stream:
        return b"".join(iter(lambda: stream.read(step), b""))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_cut_of_a_zst_file_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whole frames come back as they were; a file that ends within a frame raises, wherever that is and however it is read."""
    path = tmp_path_factory.mktemp("zst") / "a.zst"
    sizes = data.draw(st.lists(st.integers(0, 3 * max(ZST_BYTES)), min_size=1, max_size=3))
    texts = [random.Random(size).randbytes(size // 2) + bytes(size - size // 2) for size in sizes]  # equal in a replay
    frames = [frame(text, size=data.draw(st.booleans()), checksum=data.draw(st.booleans())) for text in texts]
    if data.draw(st.booleans()):
        frames, texts = [SKIPPED, *frames, SKIPPED], [b"", *texts, b""]
    ends = [sum(map(len, frames[: n + 1])) for n in range(len(frames))]
    kept = data.draw(st.one_of(st.integers(0, ends[-1]), st.sampled_from([*ends, *(end - 1 for end in ends)])))
    path.write_bytes(b"".join(frames)[:kept])
    step = data.draw(st.sampled_from([-1, 1000, 1 << 20]))
    if kept in (0, *ends):
        whole = 0 if kept == 0 else ends.index(kept) + 1
        assert read_all(path, ".zst", step) == b"".join(texts[:whole])
    else:
        with pytest.raises(EOFError, match=f"ends after {kept:,} bytes, in the middle of a zstd frame"):
            read_all(path, ".zst", step)


PACKED = {"": bytes, ".gz": gzip.compress, ".zst": frame, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("lost", [1, 3, 4, 8, 2000])
@pytest.mark.parametrize("codec", CODECS)
def test_a_corpus_that_is_cut_off_names_its_file(tmp_path: Path, codec: str, lost: int) -> None:
    """Also where all documents are there and only the last bytes of the format are not."""
    data = jsonl([os.urandom(2000).hex() for _ in range(50)])
    packed = PACKED[codec](data) if codec != ".zst" else frame(data, checksum=True)
    (tmp_path / f"a.jsonl{codec}").write_bytes(packed[:-lost])
    message = refused(corpus(), tmp_path)
    place = "damaged before" if codec == ".bz2" and lost == 2000 else "damaged after line"  # its blocks are large
    assert f"a.jsonl{codec}: {place}" in message and f"Wanted a complete {codec} jsonl file" in message


def test_a_long_window_is_read(tmp_path: Path) -> None:
    """`zstd --long=31`, as large public corpora are packed; others refuse windows of more than 128 MiB."""
    texts = ["one", "two"]
    (tmp_path / "a.jsonl.zst").write_bytes(frame(jsonl(texts), size=False, window_log=28))
    assert [document.text for document in read(corpus(), tmp_path)] == texts


@pytest.mark.parametrize("behind", [b"garbage", bytes(8)])
def test_what_stands_behind_the_last_frame_is_not_passed_over(tmp_path: Path, behind: bytes) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(frame(jsonl(["x"])) + behind)
    assert "a.jsonl.zst: damaged" in refused(corpus(), tmp_path)


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path) -> None:
    data = bytearray(frame(os.urandom(5000), checksum=True))
    data[2500] ^= 1
    (tmp_path / "a.zst").write_bytes(data)
    with pytest.raises(DAMAGE):
        read_all(tmp_path / "a.zst", ".zst")


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    text = b" ".join(b"%d" % number for number in range(3_000_000))
    (tmp_path / "a.zst").write_bytes(frame(text))
    tracemalloc.start()
    with open_bytes((tmp_path / "a.zst").open("rb"), ".zst") as stream:
        size = sum(map(len, iter(lambda: stream.read(1 << 16), b"")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == len(text) > 20_000_000 and peak < 4_000_000


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_a_seekable_stream_has_the_same_bytes(tmp_path: Path, codec: str) -> None:
    text = os.urandom(100_000)
    packed = PACKED[codec](text)
    (tmp_path / "a").write_bytes(packed)
    with open_seekable((tmp_path / "a").open("rb"), codec) as stream:
        stream.seek(-1000, os.SEEK_END)
        assert stream.read() == text[-1000:]
        stream.seek(0)
        assert stream.read() == text
