"""For all tests: torch takes one thread, as its models here are too small for more, and test files run side by side."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.support.faults import Call, caller
from tests.support.objectstores import bucket, endpoint  # noqa: F401 - fixtures of all tests

torch.set_num_threads(1)
gc.set_threshold(
    50_000, 20, 50
)  # vocabularies are millions of objects that stay: looking through them often costs a tenth


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A command in this process."""
    return caller(capsys)
