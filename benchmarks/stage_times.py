"""Where the seconds go: functions of the engine, by stage, wrapped with clocks for the length of a block.

with StageTimes() as times: ... -> times.seconds: stage -> seconds of its own (without those of stages called inside it), and
times.rest(total): what no stage has. Every thread has its own stack, so stages that run beside each other add up to more
than the clock's seconds. A name in STAGES that the engine does not have any more raises: a stage must not vanish silently.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any

STAGES: dict[str, tuple[str, ...]] = {
    "tokenize": ("engine.bpe.vocabulary:Vocabulary.encode",),
    "contexts": ("engine.contexts.builder:ContextBuilder.build",),
    "canonical": ("engine.contexts.canonical:CanonicalNext.states", "engine.contexts.canonical:CanonicalNext.lists"),
    "align": (
        "engine.compiled.walk:StudentWalk.view",
        "engine.alignment.boundaries:Aligner.boundaries",
        "engine.scoring.prepare:exact_pairs",
    ),
    "forward": ("engine.teacher.decoder:Decoder.causal", "engine.teacher.decoder:Decoder.masked"),
    "lm_head": ("engine.teacher.model:Teacher.logits",),
    "beam": ("engine.beam.search:BeamSearch.search",),
    "softmax": ("engine.teacher.softmax:Softmax._probabilities",),
    "non-canonical": ("engine.contexts.illegal:IllegalTokens.mass",),
    "push": ("engine.push.compiled_rows:CompiledRows.__init__", "engine.push.compiled_rows:CompiledRows.take"),
    "push slow": ("engine.targets.beam_rows:BeamRows.__init__", "engine.targets.beam_rows:BeamRows.take"),
    "exact rows": ("engine.targets.exact_rows:ExactRows.take",),
    "own rows": ("engine.targets.teacher_rows:TeacherRows.take",),
    "tables": ("engine.scoring.scorer:table_of", "engine.scoring.scorer:add_sums"),
    "encode": ("benchmarks.encoded:encoded",),
}
"""Stage -> functions and methods, as module:name, in the order of the data."""


class StageTimes:
    """Use as a context. seconds: of the clock; cpu: of the thread that called (helper threads of torch not counted)."""

    def __init__(self, stages: dict[str, tuple[str, ...]] = STAGES) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self._stages, self._undo = stages, list[tuple[Any, str, Any]]()
        self._stacks = threading.local()

    def __enter__(self) -> StageTimes:
        for stage, places in self._stages.items():
            for place in places:
                owner, name = find(place)
                old = getattr(owner, name)
                self._undo.append((owner, name, old))
                setattr(owner, name, self._timed(stage, old))
        return self

    def __exit__(self, *exc: object) -> None:
        while self._undo:
            owner, name, old = self._undo.pop()
            setattr(owner, name, old)

    def reset(self) -> None:
        """Begin to count anew."""
        self.seconds.clear()
        self.cpu.clear()

    def _timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            stack = self._stacks.__dict__.setdefault(
                "inner", []
            )  # seconds of the stages inside, one pair for each level
            stack.append([0.0, 0.0])
            begin = (time.perf_counter(), time.thread_time())
            try:
                return work(*args, **kwargs)
            finally:
                wall, cpu = time.perf_counter() - begin[0], time.thread_time() - begin[1]
                inner = stack.pop()
                self.seconds[stage] += wall - inner[0]
                self.cpu[stage] += cpu - inner[1]
                if stack:
                    stack[-1][0] += wall
                    stack[-1][1] += cpu

        return timed


def find(place: str) -> tuple[Any, str]:
    """module:Class.name -> (what holds the name, name). Raises SystemExit: the engine has no such name."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for step in outer:
        owner = getattr(owner, step)
    if not hasattr(owner, name):
        raise SystemExit(f"benchmarks/stage_times.py: the engine has no {place} any more; name what does its work now")
    return owner, name
