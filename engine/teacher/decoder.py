"""Token trees in, last hidden states out, by the ways in which a decoder can be run.

chains   sequences without branches: the model's own causal attention, padded on the right. No mask: faster than packing.
trees    one token per node, position id = depth, attention to ancestors; several windows packed into a row.
paths    every branch as a sequence of its own, for architectures that take nothing else. Same results, more tokens.

`onward` is what trees over kept states are made of (engine/teacher/kept_states.py): sequences behind a state that the model gave.

Letters: B rows, N places of a row, n nodes of one window, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from engine.teacher.attention_masks import Masking, Reach, masks_for, reach_of
from engine.teacher.packing import Window, lay_out, pack
from schemas.errors import TeacherError

MASK_CELLS = 1 << 26  # a boolean mask [B, M, N] stays below 64 MiB
_CACHES = ("past_key_values", "cache_params", "state")  # names of it in transformers
_FLEX_BLOCK = 128  # places; rows of a multiple of it keep the number of shapes that FlexAttention compiles for small


@dataclass(frozen=True, eq=False)
class Decoder:
    """A causal LM and how it is to be run. path_tokens: padded tokens of one pass over paths. masking: which masks trees take;
    kernel: the attention implementation of transformers that is used for trees. blocks: whether long windows may be read block by
    block (engine/teacher/long_trees.py). numbers: what it computes in; None: what the model says. _found: what was
    asked of the model by passes through it, shared with all decoders that are made of this one by `replace`: among ranks no
    one may run a pass that the others do not."""

    model: Any
    device: torch.device
    path_tokens: int
    masking: Masking = Masking()
    kernel: str = "sdpa"
    blocks: bool = False
    numbers: torch.dtype | None = None
    _found: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def body(self) -> Any:
        """The part of the model that ends in the last hidden state, before the lm_head. Raises TeacherError: there is none.

        Most classes call it `base_model`; where that is the whole model (Llama-4, Mllama), `get_decoder` or `model` has it.
        """
        for found in (self.model.base_model, self.model.get_decoder(), getattr(self.model, "model", None)):
            if isinstance(found, torch.nn.Module) and found is not self.model:
                return found
        raise TeacherError(
            f"{type(self.model).__name__} has no part that gives its last hidden states: looked at base_model, get_decoder() "
            "and model. Take a teacher of another architecture, or report this with its config.json"
        )

    def chains(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """Hidden states [n, D] of windows that are not branched, in one pass."""
        rows = lay_out(windows, [[i] for i in range(len(windows))])
        out = self.causal(self._put(rows.token))
        return [out[i, : len(w.token)] for i, w in enumerate(windows)]

    def trees(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """Hidden states [n, D] of any windows, in one pass, and again apart for rows in which some are not finite.

        Under a dense mask one NaN spoils its whole row, so that otherwise the wrong documents would be blamed for it.
        """
        packed = pack([len(w.token) for w in windows])
        rows = lay_out(windows, packed)
        token, parent, depth = rows.token, rows.parent, rows.depth
        if self.kernel == "flex_attention":
            missing = -token.shape[1] % _FLEX_BLOCK
            token, depth = (np.pad(a, ((0, 0), (0, missing))) for a in (token, depth))
            parent = np.pad(parent, ((0, 0), (0, missing)), constant_values=-1)
        out = self.masked(self._put(token), reach_of(parent, depth, self.device), 0, self.kernel)
        states = [out[row, at : at + len(w.token)] for w, (row, at) in zip(windows, rows.start, strict=True)]
        if len(packed) < len(windows):
            finite = torch.isfinite(out).flatten(1).all(1).tolist()
            for index in (i for at, row in enumerate(packed) if len(row) > 1 and not finite[at] for i in row):
                states[index] = self.trees([windows[index]])[0]
        return states

    def paths(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """The same by one sequence for each leaf, in passes of at most `path_tokens` padded tokens (or one sequence)."""
        jobs = [(index, path, first) for index, w in enumerate(windows) for path, first in paths_of(w)]
        jobs.sort(key=lambda job: len(job[1]))
        out: list[torch.Tensor | None] = [None] * len(windows)
        for batch in _by_length(jobs, self.path_tokens):
            alone = [_chain([windows[index].token[n] for n in path]) for index, path, _ in batch]
            for (index, path, first), hidden in zip(batch, self.chains(alone), strict=True):
                rows = out[index]
                if rows is None:
                    rows = out[index] = hidden.new_empty((len(windows[index].token), hidden.shape[1]))
                rows[torch.tensor(path[first:], device=rows.device)] = hidden[first:]
        return [rows for rows in out if rows is not None]

    def causal(self, token_BN: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Hidden states [B, N, D] of plain sequences. Nothing but tokens is passed: recurrent models take no more."""
        extra = {} if cache is None else {"past_key_values": cache}
        return self.body(input_ids=token_BN, use_cache=cache is not None, **extra).last_hidden_state.to(self.device)

    def onward(self, token_BN: torch.Tensor, state: Any, start: torch.Tensor, **extra: Any) -> tuple[torch.Tensor, Any]:
        """(Hidden states [B, N, D] of plain sequences behind a state, the state behind them). state: what an earlier call gave,
        which is changed, or None; start: int64 [B, 1], tokens before each sequence; extra: what else the model is given."""
        name, takes_places, made_here, inside = self._memory
        cache, within = (None, [None] * len(inside)) if state is None else state
        if cache is None and made_here:
            cache = DynamicCache(config=self.model.config)
        if cache is not None:
            extra[name] = cache
        if takes_places:
            extra["position_ids"] = start + torch.arange(token_BN.shape[1], device=start.device)
        for (module, attribute), tensor in zip(inside, within, strict=True):
            setattr(module, attribute, tensor)
        out = self.body(input_ids=token_BN, use_cache=True, **extra)
        cache = cache if made_here else getattr(out, name)
        return out.last_hidden_state.to(self.device), (
            cache,
            [getattr(module, attribute) for module, attribute in inside],
        )

    @property
    def _memory(self) -> tuple[str, bool, bool, list[tuple[torch.nn.Module, str]]]:
        """As `_remembers` finds it, once for a model."""
        if "memory" not in self._found:
            self._found["memory"] = self._remembers()
        return self._found["memory"]

    def _remembers(self) -> tuple[str, bool, bool, list[tuple[torch.nn.Module, str]]]:
        """How the model remembers: the name of its cache, whether it takes position ids, whether the cache must be made for it
        because it returns none, and the attributes of its parts that hold states too (RecurrentGemma)."""
        takes = inspect.signature(self.body.forward).parameters
        name = next((n for n in _CACHES if n in takes), _CACHES[0])
        made_here, seen = False, list[tuple[torch.nn.Module, str]]()
        for count in (2, 3):  # a state has as many rows as the batch
            out = self.body(input_ids=torch.ones((count, 2), dtype=torch.long, device=self.device), use_cache=True)
            made_here = getattr(out, name, None) is None
            plain = [(part, key, value) for part in self.body.modules() for key, value in vars(part).items()]
            found = [(p, key) for p, key, v in plain if isinstance(v, torch.Tensor) and v.ndim and len(v) == count]
            seen = [one for one in found if count == 2 or one in seen]
        return name, "position_ids" in takes, made_here, seen

    def masked(self, token_BM: torch.Tensor, reach: Reach, start: int, kernel: str, cache: Any = None) -> torch.Tensor:
        """Hidden states [B, M, D] of the places from `start` on; the cache holds those before it."""
        own = self.model.config._attn_implementation
        mask = masks_for(self.masking, kernel, reach, start, self.numbers or self.model.dtype)
        if kernel != own:
            self.model.set_attn_implementation(kernel)
        try:
            return self.body(
                input_ids=token_BM,
                position_ids=reach.depth[:, start:].long(),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state.to(self.device)  # where layers lie on several GPUs, it comes from the last one
        finally:
            if kernel != own:
                self.model.set_attn_implementation(own)

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _chain(token: list[int]) -> Window:
    return Window(token, list(range(-1, len(token) - 1)), list(range(len(token))))


def paths_of(window: Window) -> Iterator[tuple[list[int], int]]:
    """For every leaf the nodes from its root to it, and how many of them an earlier leaf's path has brought."""
    parent = np.asarray(window.parent).tolist()
    done = [False] * len(parent)
    above = set(parent)
    for leaf in (n for n in range(len(parent)) if n not in above):
        path, fresh, node = [], 0, leaf
        while node >= 0:
            path.append(node)
            fresh += not done[node]
            done[node] = True
            node = parent[node]
        yield path[::-1], len(path) - fresh


def _by_length(jobs: list[tuple[int, list[int], int]], limit: int) -> Iterator[list[tuple[int, list[int], int]]]:
    batch: list[tuple[int, list[int], int]] = []
    for job in jobs:
        if batch and (len(batch) + 1) * len(job[1]) > limit:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch
