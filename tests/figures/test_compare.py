"""Two outputs beside each other: the same, another regime, another top-k, another vocabulary, other documents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.dataset.token_tables import read_tokens
from engine.figures.compare import Comparison, Side, compare
from engine.figures.sample import open_published
from schemas.errors import OutputError
from tests.support.runs import STUDENTS, TEXTS, score_here, write_run

ONE = {"sp": STUDENTS["sp"]}


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, targets, texts in (
        ("plain", "top_k = 16\nbytes = true", TEXTS),
        ("again", "top_k = 16\nbytes = true", TEXTS),
        ("fast", 'top_k = 16\nregime = "fast"', TEXTS),
        ("few", "top_k = 4\nbytes = true", TEXTS),
        ("draws", 'top_k = 16\nbytes = true\ncodec = "sample"', TEXTS),
        ("other", "top_k = 16", (TEXTS[0] + " And more.", TEXTS[1])),
    ):
        targets += "\ncalibration_documents = 2"
        made[name] = score_here(write_run(tmp_path_factory.mktemp(name), texts=texts, students=ONE, targets=targets))
    return made


def side(out: Path, product: str = "student/sp") -> Side:
    output = open_published(out)
    return Side(output, product, read_tokens(output.store, product, output.plan.products[product]))


def apart(one: Path, other: Path, *products: str, **options: int) -> Comparison:
    a, b = (*products, *products) if len(products) == 1 else products or ("student/sp", "student/sp")
    return compare(side(one, a), side(other, b), **options)


def test_the_same_run_twice(outs: dict[str, Path]) -> None:
    for product in ("student/sp", "teacher", "bytes"):
        made = apart(outs["plain"], outs["again"], product)
        assert made.by == "tokens" and made.same_bytes and made.same_top == 1 and made.found == made.drawn == 5
        assert made.least_tv is not None and made.least_tv.largest == 0 and made.kl is not None and made.kl.largest == 0
        assert made.beyond_width == made.only_one == made.only_other == made.other_text == 0
        assert made.cost is not None and made.cost.difference_bits_per_byte == 0


def test_another_regime_is_within_the_widths(outs: dict[str, Path]) -> None:
    made = apart(outs["plain"], outs["fast"])
    assert not made.same_bytes and made.beyond_width == 0 and made.only_one == made.only_other == 0
    assert made.least_tv is not None and made.most_tv is not None
    assert 0 < made.least_tv.mean <= made.most_tv.mean
    assert made.worst[0].mean_tv == max(document.mean_tv for document in made.worst) > 0


def test_what_only_one_stores_is_no_difference(outs: dict[str, Path]) -> None:
    made = apart(outs["plain"], outs["few"])
    assert (
        made.least_tv is not None and made.most_tv is not None and made.least_tv.largest < 2e-3 < made.most_tv.largest
    )
    assert made.same_top == 1 and made.beyond_width == 0


def test_other_vocabularies_go_by_the_next_byte(outs: dict[str, Path]) -> None:
    one, back = (
        apart(outs["plain"], outs["plain"], *pair) for pair in (("student/sp", "bytes"), ("bytes", "student/sp"))
    )
    assert one.by == back.by == "first bytes" and one.positions == back.positions > 0
    assert (one.only_one, one.only_other) == (back.only_other, back.only_one) and one.only_other > 0
    assert (
        one.least_tv is not None
        and back.least_tv is not None
        and one.least_tv.mean == pytest.approx(back.least_tv.mean)
    )
    assert one.kl is not None and back.kl_back is not None and one.kl.mean == pytest.approx(back.kl_back.mean)
    assert one.same_top is not None and one.same_top > 0.8
    assert one.cost is not None and back.cost is not None and one.cost.difference_bits_per_byte is not None
    assert one.cost.difference_bits_per_byte == pytest.approx(-(back.cost.difference_bits_per_byte or 0))


def test_draws_are_compared_by_their_cost(outs: dict[str, Path]) -> None:
    made = apart(outs["plain"], outs["draws"])
    assert made.by == "nothing" and made.least_tv is None and made.same_top is None
    assert made.cost is not None and made.cost.difference_bits_per_byte == pytest.approx(0, abs=1e-6)


def test_other_texts_are_left_out(outs: dict[str, Path]) -> None:
    made = apart(outs["plain"], outs["other"])
    assert (made.drawn, made.found, made.other_text) == (5, 1, 1)


def test_documents_are_drawn_by_the_seed(outs: dict[str, Path]) -> None:
    made = [apart(outs["plain"], outs["fast"], documents=2, seed=seed) for seed in (3, 3, 4, 5)]
    assert all(one.drawn == one.found == 2 for one in made) and made[0] == made[1]
    assert len({tuple(document.doc_id for document in one.worst) for one in made}) > 1


def test_no_document_in_common_says_so(outs: dict[str, Path], tmp_path: Path) -> None:
    other = score_here(write_run(tmp_path, texts=("x y z", "z y x"), students=ONE, targets="top_k = 16"))
    with pytest.raises(
        OutputError, match="none of 5 documents .* 2 have the same doc_id and another text; name two outputs of one"
    ):
        apart(outs["plain"], other)


def test_tokens_that_are_not_known(outs: dict[str, Path], tmp_path: Path) -> None:
    out = shutil.copytree(outs["plain"], tmp_path / "out")
    shutil.rmtree(out / "_engine/vocabulary")
    with pytest.raises(OutputError, match="before 0.7.0.*run this in the folder of the run file"):
        apart(out, outs["plain"], "student/sp", "bytes")
    assert apart(out, outs["plain"]).same_bytes  # the same vocabulary needs no names
