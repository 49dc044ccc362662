"""Each form as its own program reads it: with that program's code where it is installed (TRL, datasets; Axolotl where
somebody has installed it), else by a reading of the layout that its code documents, written apart from ours, bit by bit. And
files that were made by that layout are read by ours."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
import zstandard

from engine.losses.sparse import forward_kl
from engine.reader import Targets
from engine.reader.targets import Document
from engine.verify import verify
from tests.support.exchanged import TOKENIZER, exported, imported, random_output, vocabulary

K = 5


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "out"
    random_output(folder, top_k=K, seed=5)
    return folder


@pytest.fixture(scope="module")
def stored(out: Path) -> list[Document]:
    return list(Targets(out).documents())


def load(folder: Path, cache: Path) -> list[Any]:
    """As users load it: by the card, with the library `datasets`."""
    return list(datasets.load_dataset(str(folder), split="train", cache_dir=str(cache)))


# ---- TRL: its own loss


def test_trl_s_own_loss_of_the_rows_is_ours(
    out: Path, stored: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_compute_server_forward_kl_loss` takes what the server would have sent; its tail is 1 - the sum, so is ours here."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.server_distillation import ServerDistillationTrainer as Trainer

    exported(out, "trl", tmp_path / "trl")
    trainer = SimpleNamespace(loss_add_tail=True, _reduce_divergence_loss=Trainer._reduce_divergence_loss)
    rng = torch.Generator().manual_seed(0)
    for row, document in zip(load(tmp_path / "trl", tmp_path / "cache"), stored, strict=True):
        size = len(row["input_ids"])
        logps = torch.randn(1, size, vocabulary().size, generator=rng).log_softmax(
            -1
        )  # of the student, behind each input
        sent = {
            "topk_logprobs": torch.tensor(row["topk_logprobs"])[None, 1:],
            "topk_token_ids": torch.tensor(row["topk_token_ids"])[None, 1:],
        }
        labels = torch.tensor(row["labels"])[None, 1:]
        theirs = Trainer._compute_server_forward_kl_loss(cast(Any, trainer), sent, logps[:, :-1], labels)
        rows = torch.from_numpy(document.logps.copy())
        rest = torch.log1p(-rows.double().exp().sum(1).clamp(max=1)).float()
        scored = torch.from_numpy(document.scored.copy())
        each = forward_kl(logps[0, :-1], torch.from_numpy(document.ids.astype(np.int64)), rows, rest)[scored]
        assert (labels[0] != -100).sum() == len(document.token_ids)
        assert float(theirs) * len(document.token_ids) == pytest.approx(float(each.sum()), rel=1e-4)
        assert np.array_equal(np.float32(row["actual_logprobs"][1:]), document.gold_logp)


def test_a_trl_dataset_without_our_columns_is_read(tmp_path: Path) -> None:
    """Rows of other lengths, unsorted, padded as TRL's client does, by id 0 and minus infinity."""
    table = pa.table(
        {
            "input_ids": [[1, 40, 50, 2]],
            "topk_token_ids": [[[0, 0], [41, 40], [50], [7, 2, 9]]],
            "topk_logprobs": [[[-np.inf, -np.inf], [-3.0, -0.1], [-0.5], [-0.5, -1.5, -2.5]]],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    imported("trl", tmp_path, tmp_path / "back")
    document = next(Targets(tmp_path / "back").documents())
    assert document.token_ids.tolist() == [40, 50, 2] and document.scored.all()
    assert document.ids.tolist() == [[40, 41, -1], [50, -1, -1], [7, 2, 9]]
    assert document.gold_logp == pytest.approx([-0.1, -0.5, -1.5], rel=1e-3)
    rest = [1 - np.exp(-0.1) - np.exp(-3), 1 - np.exp(-0.5), 1 - np.exp([-0.5, -1.5, -2.5]).sum()]
    assert np.exp(document.tail_logp) == pytest.approx(rest, abs=1e-3)


# ---- Axolotl


def test_axolotl_s_columns_are_what_its_readme_says(out: Path, stored: list[Document], tmp_path: Path) -> None:
    """Target alignment: row j is of input_ids[j + 1], mask 0 where labels[j + 1] is -100 or an entry is padding."""
    exported(out, "axolotl", tmp_path / "axolotl")
    for row, document in zip(load(tmp_path / "axolotl", tmp_path / "cache"), stored, strict=True):
        size = len(row["input_ids"])
        assert {len(row[name]) for name in row} == {size} and row["attention_mask"] == [1] * size
        assert row["labels"] == [-100, *row["input_ids"][1:]] and row["input_ids"][0] == vocabulary().bos_id
        assert row["target_mask"][-1] == [0] * K
        for j in range(size - 1):
            assert row["input_ids"][j + 1] == document.token_ids[j]
            kept = [k for k in range(K) if row["target_mask"][j][k]]
            assert [row["target_token_ids"][j][k] for k in kept] == [i for i in document.ids[j].tolist() if i >= 0]
            assert [row["target_logprobs"][j][k] for k in kept] == document.logps[j][kept].tolist()
            assert bool(kept) == document.scored[j]
            assert all(row["target_logprobs"][j][k] == -1e9 for k in range(K) if k not in kept)


@pytest.mark.filterwarnings("ignore")
def test_axolotl_s_own_collator(out: Path, stored: list[Document], tmp_path: Path) -> None:
    """pip install --no-deps axolotl addict: its other requirements pin versions of half of this environment."""
    kd = pytest.importorskip(
        "axolotl.integrations.kd.collator", reason="axolotl is not installed", exc_type=ImportError
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    exported(out, "axolotl", tmp_path / "axolotl")
    batch = kd.DataCollatorForKD(tokenizer)(load(tmp_path / "axolotl", tmp_path / "cache"))
    for b, document in enumerate(stored):
        n = len(document.token_ids)
        there = batch["target_mask"][b].bool().numpy()
        assert np.array_equal(there[:n], document.ids >= 0) and not there[n:].any()
        assert np.array_equal(batch["target_token_ids"][b, :n].numpy()[there[:n]], document.ids[there[:n]])
        assert np.array_equal(batch["target_logprobs"][b, :n].numpy()[there[:n]], document.logps[there[:n]])


# ---- DistillKit


def bits_of(data: list[int]) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def ids_in(data: list[int], bits: int, count: int) -> list[int]:
    text = bits_of(data)
    return [int(text[i * bits : (i + 1) * bits], 2) for i in range(count)]


def packed(numbers: list[int], bits: int) -> list[int]:
    text = "".join(f"{number:0{bits}b}" for number in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def test_distillkit_s_rows_bit_by_bit(out: Path, stored: list[Document], tmp_path: Path) -> None:
    exported(out, "distillkit", tmp_path / "kit")
    how = yaml.safe_load((tmp_path / "kit" / "compression_config.yaml").read_text())
    assert how["k"] == how["exact_k"] == K and how["exact_dtype"] == "float32" and not how["delta_encoding"]
    bits = int(np.ceil(np.log2(how["d"])))
    rows = load(tmp_path / "kit", tmp_path / "cache")
    assert len({len(row["input_ids"]) for row in rows}) == 1  # DistillKit stacks them
    for row, document in zip(rows, stored, strict=True):
        n = len(document.token_ids)
        assert row["input_ids"][1 : n + 1] == document.token_ids.tolist()
        assert row["attention_mask"] == [1] * (n + 1) + [0] * (len(row["input_ids"]) - n - 1)
        assert [label >= 0 for label in row["labels"]][:n] == document.scored.tolist()
        assert all(label == -100 for label in row["labels"][n:])
        for j, (logps, ids) in enumerate(zip(row["compressed_logprobs"], row["bytepacked_indices"], strict=True)):
            values = np.array(struct.unpack(f"<{K}f", bytes(logps)), np.float32)
            assert np.isfinite(values).all()  # times a mask of 0 it must not be NaN
            if row["labels"][j] >= 0:
                there = document.ids[j] >= 0
                assert np.array_equal(values[there], document.logps[j][there])
                assert np.array_equal(np.array(ids_in(ids, bits, K))[there], document.ids[j][there])
                assert all(value == -1e4 for value in values[~there])


def bfloat16(value: float) -> bytes:
    """The upper half of a float32 that has no lower half."""
    data = struct.pack("<f", value)
    assert data[:2] == b"\0\0"
    return data[2:]


def test_a_capture_by_distillkit_is_read(tmp_path: Path) -> None:
    """vLLM gives no row for the first token: one row less than tokens. A curve, two bins of residuals, deltas."""
    how = {
        "d": 1000, "k": 6, "exact_k": 2, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"], "term_dtype": "float32",
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 3, "num_elements": 2},
            {"scale_dtype": "float32", "element_bits": 1, "num_elements": 1},
        ],
        "delta_encoding": True, "error_diffusion": False, "normalize_t": False,
    }  # fmt: skip
    exact, curve = (-1.0, -0.5), (-0.25, -0.125, -0.0625)
    steps, scale, sign, step = (5, 0), 0.03125, 0, 0.015625  # 3 bits: 5 is +1, 0 is -4; 1 bit: 0 is -1
    data = b"".join(map(bfloat16, exact)) + struct.pack("<3f", *curve)
    data += (
        struct.pack("<e", scale) + bytes(packed(list(steps), 3)) + struct.pack("<f", step) + bytes(packed([sign], 1))
    )
    deltas = [*exact]
    for t, residual in enumerate((1 * scale, -4 * scale, -1 * step, 0.0)):
        deltas.append(curve[0] + curve[1] * t + curve[2] * np.sqrt(t) + residual)
    wanted = np.cumsum(deltas)
    ids = [999, 0, 512, 3, 4, 700]
    table = pa.table(
        {
            "input_ids": pa.array([[1, 30, 999]], pa.list_(pa.uint64())),
            "compressed_logprobs": pa.array([[list(data)] * 2], pa.list_(pa.list_(pa.uint8()))),
            "bytepacked_indices": pa.array([[packed(ids, 10)] * 2], pa.list_(pa.list_(pa.uint8()))),
        }
    )
    pq.write_table(table, tmp_path / "data_0.parquet")
    (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump(how))
    imported("distillkit", tmp_path, tmp_path / "back")
    document = next(Targets(tmp_path / "back").documents())
    order = np.argsort(-wanted)
    assert document.token_ids.tolist() == [30, 999] and document.scored.all()
    assert document.ids.tolist() == [[ids[i] for i in order]] * 2
    assert document.logps == pytest.approx(np.tile(wanted[order], (2, 1)), rel=2**-10)
    assert document.gold_logp.tolist() == [-np.inf, document.logps[1, 0]]  # 30 is in no row: not known
    assert verify(tmp_path / "back").findings == []


def test_distillkit_s_packed_rows_are_parts_of_a_document(tmp_path: Path) -> None:
    """attention_mask numbers the sequences of a row; each one's last row is of a token that was cut off."""
    row = struct.pack("<2f", -0.5, -1.5)
    table = pa.table(
        {
            "input_ids": pa.array([[1, 30, 31, 1, 40, 41, 42, 0]], pa.list_(pa.uint64())),
            "attention_mask": [[1, 1, 1, 2, 2, 2, 2, 0]],
            "compressed_logprobs": pa.array([[list(row)] * 8], pa.list_(pa.list_(pa.uint8()))),
            "bytepacked_indices": pa.array(
                [[packed([j + 100, j + 200], 10) for j in range(8)]], pa.list_(pa.list_(pa.uint8()))
            ),
        }
    )
    pq.write_table(table, tmp_path / "packed.parquet")
    how = {"d": 1000, "k": 2, "exact_k": 2, "residual_bins": [], "delta_encoding": False}
    (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump(how))
    imported("distillkit", tmp_path, tmp_path / "back")
    document = next(Targets(tmp_path / "back").documents())
    assert document.token_ids.tolist() == [30, 31, 40, 41, 42]
    assert document.ids[:, 0].tolist() == [100, 101, 103, 104, 105]
    assert (document.flags & 128 != 0).tolist() == [True, False, True, False, False]
    batch = next(Targets(tmp_path / "back").batches(4))
    assert batch["lengths"].tolist() == [2, 3]  # each a sequence of its own
    assert verify(tmp_path / "back").findings == []


# ---- Megatron


def opened(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore[reportOptionalMemberAccess]


def payload(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return zstandard.ZstdCompressor(level=3).compress(buffer.getvalue())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_megatron_s_tars(out: Path, stored: list[Document], tmp_path: Path) -> None:
    exported(out, "megatron", tmp_path / "tars")
    samples = load(tmp_path / "tars", tmp_path / "cache")
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    assert [path.name for path in tars] == ["dp0__2.tar", "dp0__4.tar"]  # the last iteration of each
    members: dict[str, bytes] = {}
    for path in tars:
        found = opened(path)
        assert next(iter(found)) == "_meta.json"
        saver = json.loads(found.pop("_meta.json"))["saver"]
        assert (saver["format_version"], saver["mbs_save"], saver["dp_size_save"], saver["gbs_save"]) == (2, 1, 1, 1)
        members |= found
    assert list(members) == [f"{i}.pt.zst" for i in range(len(stored))]
    for data, document, sample in zip(members.values(), stored, samples, strict=True):
        content = torch.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(data)), weights_only=True)
        ids = (content["bit_17"].long() << 16) | content["indices_low"].long()
        values, n = content["values"], len(document.token_ids)
        assert values.dtype == torch.float32 and values.shape == ids.shape == (len(values), 1, K)
        assert sample["input_ids"][1:] == document.token_ids.tolist() and sample["loss_mask"][1:] == [True] * n
        there = document.ids >= 0
        assert np.array_equal(values[:n, 0].numpy()[there], document.logps[there])
        assert np.array_equal(ids[:n, 0].numpy()[there], document.ids[there])
        assert (values[:n, 0].numpy()[~there] == -1e3).all() and (values[n:] == -1e3).all()


@pytest.mark.parametrize("version", [1, 2])
def test_tars_of_several_ranks_are_read_in_megatron_s_order(version: int, tmp_path: Path) -> None:
    """Two ranks, microbatches of 2, batches of 8, bfloat16, from iteration 3 on: sample x of an iteration lies at rank
    (x // 2) % 2, in its microbatch x // 4. Version 1 has a list of microbatches, of other widths after a top-P."""
    ranks, micro, batch, rows, top, begin = 2, 2, 8, 4, 3, 3
    rng = np.random.default_rng(0)
    count = 2 * batch
    tokens = rng.integers(10, 900, (count, rows + 1))
    ids = np.stack([rng.permutation(990)[: rows * top].reshape(rows, top) for _ in range(count)])
    logps = -np.sort(rng.uniform(2, 6, (count, rows, top)), axis=2)
    for rank in range(ranks):
        name = f"dp{rank}__{begin + 1}.tar" if version == 2 else f"cp0_dp{rank}__{begin + 1}.tar"
        with tarfile.open(tmp_path / name, "w") as tar:
            saver = {"k": top, "save_dtype": "bf16"}
            if version == 2:
                saver |= {"format_version": 2, "mbs_save": micro, "dp_size_save": ranks, "gbs_save": batch}
            add(tar, "_meta.json", json.dumps({"hash": "x", "saver": saver}).encode())
            for iteration in range(2):
                parts: list[dict[str, torch.Tensor]] = []
                for step in range(batch // (micro * ranks)):
                    first = iteration * batch + (step * ranks + rank) * micro
                    values = torch.tensor(logps[first : first + micro]).transpose(0, 1).bfloat16()
                    index = torch.tensor(ids[first : first + micro]).transpose(0, 1)
                    if version == 1 and step == 1:  # nothing of the last column was kept here
                        values, index = values[..., :2], index[..., :2]
                    parts.append(
                        {
                            "values": values.contiguous(),
                            "indices_low": (index & 0xFFFF).to(torch.uint16),
                            "bit_17": (index >> 16).bool(),
                        }
                    )
                content: dict = {key: [part[key] for part in parts] for key in parts[0]}
                if version == 2:
                    content = {key: torch.cat(values, 1) for key, values in content.items()} | {"format_version": 2}
                add(tar, f"{begin + iteration}.pt.zst", payload(content))
    pq.write_table(pa.table({"input_ids": tokens.tolist()}), tmp_path / "samples.parquet")
    imported("megatron", tmp_path, tmp_path / "back")
    for x, document in enumerate(Targets(tmp_path / "back").documents()):
        assert document.token_ids.tolist() == tokens[x].tolist() and document.scored.tolist() == [False] + [True] * rows
        kept = 2 if version == 1 and x % batch >= micro * ranks else top
        assert np.array_equal(document.ids[1:, :kept], ids[x][:, :kept]) and (document.ids[1:, kept:] == -1).all()
        assert document.logps[1:, :kept] == pytest.approx(logps[x][:, :kept], rel=2**-8)
    assert verify(tmp_path / "back").findings == []
