"""The page as a file: data cannot end its block, every chart is a specification that Vega-Lite takes, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
import vl_convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.card.describe import describe
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.figures import collect, open_published
from jobs.page.charts import charts_of
from jobs.page.html import json_block, page_of
from jobs.page.write import page_data, write_page
from schemas.errors import OutputError
from tests.support.runs import score_here, write_run
from tests.support.tables import publish_all, small_plan


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_here(write_run(tmp_path_factory.mktemp("run"), targets="top_k = 16\nhidden = true"))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_data_is_json_without_markup(data: object) -> None:
    block = json_block(data)
    assert "<" not in block and json.loads(block) == data


def test_the_policy_names_the_scripts_and_nothing_else(out: Path) -> None:
    text = page_of(page_data(open_published(out), most_positions=10**6, seed=0)[1])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts}
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert len(scripts) == 3 and set(rules["script-src"].split()) == hashes
    assert rules["default-src"] == "'none'" and "connect-src" not in rules and "unsafe-eval" not in policy[1]
    assert not re.search(r'(?:src|href)="https?:', text)


def test_every_chart_is_one_that_vega_lite_takes(out: Path) -> None:
    charts = charts_of(collect(open_published(out)))
    assert len(charts) == 10 and all(chart["title"] and chart["words"] for chart in charts)
    for chart in charts:
        vl_convert.vegalite_to_vega({"width": 300, **chart["spec"]})


def test_ten_thousand_documents_are_below_5_mb(tmp_path: Path) -> None:
    plan, out = small_plan(units=10, rows=1000), tmp_path / "out"
    open_output(out, plan)
    publish_all(out, plan)
    finish(out, plan, engine_version="test", describe=describe)
    write_page(out, tmp_path / "page.html", most_positions=10**7, seed=0)
    size = (tmp_path / "page.html").stat().st_size
    assert 1_000_000 < size < 5_000_000


def test_a_page_that_cannot_be_written_says_so(out: Path, tmp_path: Path) -> None:
    for page in (tmp_path, tmp_path / "no" / "report.html"):
        with pytest.raises(OutputError, match="name one by -o report.html"):
            write_page(out, page, most_positions=1, seed=0)
    page = tmp_path / "report.html"
    page.write_text("old")
    write_page(out, page, most_positions=1, seed=0)
    assert page.read_text().startswith("<!doctype html>") and [path.name for path in tmp_path.iterdir()] == [
        "report.html"
    ]
