"""A finished output for the tests of this folder: two units, teacher, one student and bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from engine.card.describe import describe
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from schemas.runfile import RunConfig, load_run
from tests.support.runs import write_run
from tests.support.tables import publish_all, small_plan

HOSTILE = r"""

[card]
title = 'A "title": --- # 1 | `code` <script>alert(1)</script> [x](http://y) \ {a: b} ü 漢'
description = '''
First line.
---
license: stolen
---
'''
authors = ["Ada: | *Example*", "- Lab & <b>Söhne</b>"]
license = "cc-by-4.0"
language = ["en", "zh-Hant"]
teacher_license = "Apache-2.0 | see `LICENSE`"
corpus_license = "ODC-By: 1.0 #"
"""


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run file with a [card] of letters that mean something to YAML, Markdown and HTML."""
    return load_run(write_run(tmp_path_factory.mktemp("hostile"), extra=HOSTILE))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, hostile: RunConfig) -> Path:
    out = tmp_path_factory.mktemp("card") / "out"
    plan = small_plan(units=2, with_bytes=True)
    open_output(out, plan)
    publish_all(out, plan)
    finish(out, plan, engine_version="test", describe=partial(describe, run=hostile))
    return out
