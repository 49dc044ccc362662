"""The figures of an output are what its reader reads, added up one position at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.dataset.layout import MANIFEST, load_manifest, seal_name
from engine.dataset.token_tables import read_tokens
from engine.figures import collect, open_published
from engine.figures.models import Figures, Spread
from engine.reader import Targets
from engine.reader.targets import Document
from jobs.look.figure_tables import width_words
from schemas.target import FLAG_END
from tests.support.runs import TEXTS, score_here, write_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_here(
        write_run(
            tmp_path_factory.mktemp("run"),
            lines='{"id": "bad", "text": ""}\n{"id": "worse", "text": 3}\n',
            targets="top_k = 16\nbytes = true\nbytes_top_k = 6\nhidden = true\neps = 1e-3\nmax_nodes_per_token = 1",
        )
    )


@pytest.fixture(scope="module")
def figures(out: Path) -> Figures:
    return collect(open_published(out))


def read(out: Path, product: str) -> list[Document]:
    return list(Targets(out, product.removeprefix("student/")).documents())


def shown(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


def starts(document: Document) -> list[int]:
    return [0, *document.byte_end.tolist()[:-1]]


@pytest.mark.parametrize("product", ["student/sp", "student/bl", "teacher", "bytes"])
def test_distributions_are_those_of_the_rows(out: Path, figures: Figures, product: str) -> None:
    """The twin goes position by position through the reader's documents."""
    widths, tails, entropies, bits, costs, sizes, agreed = [], [], [], [], [], [], 0
    mass_K = np.zeros(figures.products[product].facts.top_k)
    for document in read(out, product):
        for i, start in enumerate(starts(document)):
            if not document.scored[i]:
                continue
            probs = np.exp(document.logps[i].astype(np.float64))
            tail = math.exp(document.tail_logp[i])
            widths.append(float(document.err[i]))
            tails.append(tail)
            entropies.append(-sum(p * math.log2(p) for p in [*probs, tail] if p > 0))
            bits.append(-float(document.gold_logp[i]) / math.log(2))
            share = 1 - float(
                document.excluded_mass[i]
            )  # stored as 1 where it is nearly that: then nobody knows the cost
            if figures.products[product].facts.regime == "beam":
                share = 1.0  # there it is mass without a boundary: the row before gave it to other tokens
            costs += [bits[-1] - math.log2(share)] if share > 0 else []
            if not document.flags[i] & FLAG_END:
                sizes.append(int(document.byte_end[i]) - start)
            agreed += int(document.ids[i][0] == document.token_ids[i])
            mass_K += probs
    made = figures.products[product]
    for spread, values in (
        (made.width, widths),
        (made.tail_mass, tails),
        (made.entropy, entropies),
        (made.surprise, bits),
        (made.token_bytes, sizes),
    ):
        assert isinstance(spread, Spread) and spread.count == len(values) == sum(spread.counts)
        assert spread.mean == pytest.approx(np.mean(values), rel=1e-5, abs=1e-9)
        assert (spread.least, spread.largest) == pytest.approx((min(values), max(values)), rel=1e-5, abs=1e-6)
        for name, at in (("p05", 0.05), ("p50", 0.5), ("p99", 0.99)):
            below = np.mean(np.array(values) < spread.quantiles[name] - 1e-6)
            assert (
                below
                <= at + 1 / len(values)
                <= np.mean(np.array(values) <= spread.quantiles[name] + 1e-6) + 2 / len(values)
            )
    assert made.mass_by_rank == pytest.approx((mass_K / len(widths)).tolist())
    assert made.agreement == agreed / len(widths)
    assert made.cost is not None and made.cost.bits == pytest.approx(sum(costs), rel=1e-5)
    assert made.cost.impossible == len(widths) - len(costs)
    assert made.cost.text_bytes == sum(len(text.encode()) for text in TEXTS) and made.cost.tokens == len(sizes)
    assert made.mean_width == pytest.approx(np.mean(widths), rel=1e-2, abs=1e-9)  # of the seals, before rounding


def test_totals_are_those_of_the_manifest(out: Path, figures: Figures) -> None:
    manifest = load_manifest(out)
    assert (figures.documents, figures.quarantined, figures.finished) == (7, 2, True)
    assert (
        figures.teacher_tokens == manifest.stats["teacher_tokens"]
        and figures.text_bytes == manifest.stats["text_bytes"]
    )
    for product, total in manifest.totals.items():
        made = figures.products[product]
        assert (made.files, made.documents, made.positions, made.disk_bytes) == (
            total.files, total.rows, total.positions, total.bytes,
        )  # fmt: skip
        assert len(made.disk_bytes_per_position) == total.files
    assert figures.products["hidden"].width is None and figures.products["hidden"].cost is None


def test_places_are_the_worst_with_their_text(out: Path, figures: Figures) -> None:
    made = figures.products["student/bl"]
    documents = {document.doc_id: document for document in read(out, "student/bl")}
    tokens = read_tokens(open_published(out).store, "student/bl", made.facts)
    assert tokens is not None
    widths = sorted((float(w) for d in documents.values() for w in d.err[d.scored]), reverse=True)
    assert [place.width for place in made.widest] == widths[: len(made.widest)] and len(made.widest) == 20
    costs = [place.surprise_bits for place in made.most_surprising]
    assert costs == sorted((c for c in costs if c is not None), reverse=True)
    for place in (*made.widest, *made.most_surprising):
        document = documents[place.doc_id]
        data = document.text.encode()
        assert place.width == document.err[place.position]
        assert place.surprise_bits == pytest.approx(-float(document.gold_logp[place.position]) / math.log(2))
        assert place.token == tokens.names[int(document.token_ids[place.position])]
        assert place.end_bytes == document.byte_end[place.position]
        assert shown(data[: place.start_bytes]).endswith(place.before)
        assert shown(data[place.end_bytes :]).startswith(place.after)


def test_the_quarantine_by_reason(figures: Figures) -> None:
    assert {one.reason: one.count for one in figures.quarantine} == {"empty_text": 1, "not_text": 1}
    assert [sample.doc_id for one in figures.quarantine for sample in one.samples] == [
        "corpus.jsonl#5",
        "corpus.jsonl#6",
    ]
    assert all(one.meaning and one.remedy for one in figures.quarantine)


def test_when_units_were_published(out: Path, figures: Figures) -> None:
    published = figures.published
    assert published is not None and published.seconds[0] == 0 and len(published.seconds) == figures.sealed
    times = sorted((out / seal_name(unit)).stat().st_mtime for unit in range(figures.units))
    assert list(published.seconds) == pytest.approx([time - times[0] for time in times])
    assert sum(published.teacher_tokens) == figures.teacher_tokens


def test_a_sample_is_whole_units_by_the_seed(out: Path) -> None:
    output = open_published(out)
    few = [collect(output, most_positions=1, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert all(one.sampled and one.read_units == 1 for one in few) and few[0] == few[1]
    assert len({one.products["teacher"].read_positions for one in few}) > 1
    whole = collect(output)
    assert not whole.sampled and whole.products["teacher"].read_documents == 5
    for name in ("files", "documents", "scored", "mean_width"):  # totals are of all, sample or not
        assert all(
            getattr(one.products["student/sp"], name) == getattr(whole.products["student/sp"], name) for one in few
        )


def test_an_unfinished_output_has_figures_of_what_is_ready(out: Path, figures: Figures, tmp_path: Path) -> None:
    import shutil

    part = shutil.copytree(out, tmp_path / "out")
    (part / MANIFEST).unlink()
    (part / seal_name(0)).unlink()
    made = collect(open_published(part))
    assert not made.finished and (made.sealed, made.units) == (figures.sealed - 1, figures.units)
    assert made.products["teacher"].documents == figures.products["teacher"].documents - 2
    assert made.teacher_tokens < figures.teacher_tokens


def test_figures_are_json(figures: Figures) -> None:
    assert Figures.model_validate_json(figures.model_dump_json()) == figures


def test_what_the_search_expects_to_have_left(out: Path, figures: Figures) -> None:
    """Beside widths, where evaluations are spent by expected error; these sums are in the seals (docs/format.md, section 5)."""
    output = open_published(out)
    assert figures.expected_tv is None and figures.target_error is None
    counted = replace(output, stats={**output.stats, "beam.boundaries": 400.0, "beam.expected_tv_sum": 0.6})
    made = collect(counted)
    assert made.expected_tv == pytest.approx(0.0015)
    assert "a total variation of 0.0015 in the mean" in width_words(made) and "expected" not in width_words(figures)
