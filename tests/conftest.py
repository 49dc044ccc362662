"""For all tests: torch takes one thread, as its models here are too small for more, and test files run side by side."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
