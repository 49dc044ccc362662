"""Stage 5: the teacher. Context trees in, hidden states and fp32 logits of every node out.

A decoder scores a whole tree in one pass: one token per node, position id = depth, attention to ancestors only
(docs/design.md, section 3). Trees without branches take the plain causal path. A wrong mask gives plausible numbers and
no error, so `load_teacher` scores a small tree and the same contexts one by one, and falls back to `paths` (each branch
as its own sequence, same results) when they differ.

Letters: B sequences, N nodes of one window (padded), D hidden size, C rows of one chunk, V ids of the lm_head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from schemas.errors import TeacherError
from schemas.settings import TeacherConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOLERANCE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
_DEFAULT_CONTEXT = 2048


@dataclass(frozen=True, eq=False)
class Teacher:
    """A loaded causal LM. `attention` is "tree" or "paths"; `max_length` in tokens; `end_ids` are its ends of text."""

    model: Any
    device: torch.device
    max_length: int
    attention: str
    end_ids: tuple[int, ...]
    vocab_rows: int
    _logits: Callable[[torch.Tensor], torch.Tensor]

    @torch.inference_mode()
    def logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        """fp32 logits [C, V] of hidden rows (after the final norm). C x V x 4 bytes: the caller chunks."""
        return self._logits(hidden_CD)

    @torch.inference_mode()
    def hidden(self, windows: list[Window]) -> list[torch.Tensor]:
        """Last hidden states [n, D] of every window's nodes, one padded pass for all of them."""
        if self.attention == "paths":
            return self._hidden_by_paths(windows)
        return self._forward(windows)

    def _forward(self, windows: list[Window]) -> list[torch.Tensor]:
        longest = max(len(w.token) for w in windows)
        shape = (len(windows), longest)
        tokens = torch.zeros(shape, dtype=torch.long)
        depth = torch.zeros(shape, dtype=torch.long)
        for row, w in enumerate(windows):
            tokens[row, : len(w.token)] = torch.tensor(w.token)
            depth[row, : len(w.token)] = torch.tensor(w.depth)
        mask = None
        if any(
            w.branched for w in windows
        ):  # otherwise plain causal attention; padding on the right is never attended to
            mask = torch.eye(longest, dtype=torch.bool).repeat(len(windows), 1, 1)
            for row, w in enumerate(windows):
                _fill_ancestors(mask[row], w)
            mask = mask[:, None].to(self.device)
            if self.model.config._attn_implementation == "eager":  # adds the mask, where SDPA selects by it
                allowed, dtype = mask, self.model.dtype
                mask = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
                mask.masked_fill_(~allowed, torch.finfo(dtype).min)
        out = self.model.base_model(
            input_ids=tokens.to(self.device), position_ids=depth.to(self.device), attention_mask=mask, use_cache=False
        ).last_hidden_state
        return [out[row, : len(w.token)] for row, w in enumerate(windows)]

    def _hidden_by_paths(self, windows: list[Window]) -> list[torch.Tensor]:
        out = []
        for w in windows:
            rows: list[torch.Tensor | None] = [None] * len(w.token)
            has_child = set(w.parent)
            for leaf in (n for n in range(len(w.token)) if n not in has_child):
                path = [leaf]
                while w.parent[path[-1]] >= 0:
                    path.append(w.parent[path[-1]])
                path.reverse()
                alone = Window([w.token[n] for n in path], list(range(-1, len(path) - 1)), list(range(len(path))))
                hidden = self._forward([alone])[0]
                for at, node in enumerate(path):
                    if rows[node] is None:
                        rows[node] = hidden[at]
            out.append(torch.stack([r for r in rows if r is not None]))
        return out


@dataclass(frozen=True, slots=True)
class Window:
    """Nodes that one pass scores together: parents before children, -1 for the first; depth is the position id."""

    token: Sequence[int] | np.ndarray
    parent: Sequence[int] | np.ndarray
    depth: Sequence[int] | np.ndarray

    @property
    def branched(self) -> bool:
        """Whether some node's parent is not simply the node before it."""
        return not np.array_equal(self.parent, np.arange(-1, len(self.parent) - 1))


def _fill_ancestors(mask_NN: torch.Tensor, window: Window) -> None:
    """mask[i, j] = j is i or an ancestor of i. A run of nodes that follow each other copies its parent's row."""
    for node, parent in enumerate(np.asarray(window.parent).tolist()):
        if parent >= 0:
            mask_NN[node] |= mask_NN[parent]


def load_teacher(config: TeacherConfig, path: str, *, tokenizer_end: int | None) -> Teacher:
    """Load with transformers and prove the numbers. Raises TeacherError saying what is missing or what differs."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TeacherError(
            '[teacher] device: got "cuda", but torch sees no GPU here; use "auto" or "cpu", or a GPU actor'
        )
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    dtype: Any = "auto" if config.dtype == "auto" else _DTYPES[config.dtype]
    if config.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32  # half precision on a CPU is slower and less exact
    try:
        # transformers chooses the attention: SDPA where the architecture has it, else its own plain one (Gemma-2)
        made: Any = AutoModelForCausalLM.from_pretrained(
            path,
            revision=config.revision,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TeacherError(
            f"[teacher] model {path!r} cannot be loaded: {first}. Want a folder (or Hub id) with config.json and weights "
            "of a causal language model that transformers knows."
        ) from error
    model, report = made
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers and only warns
        raise TeacherError(
            f"[teacher] model {path!r}: the weights lack {len(missing)} tensor(s), such as {missing[0]}. Want the complete "
            "weights of a causal language model; fetch them again, or check that config.json belongs to them."
        )
    return _checked(model.eval().to(device), device, config, tokenizer_end, Path(path).name)


def _checked(model: Any, device: torch.device, config: TeacherConfig, tokenizer_end: int | None, name: str) -> Teacher:
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _DEFAULT_CONTEXT
    max_length = min(config.max_length or own, own)
    head = model.get_output_embeddings()
    if head is None:
        raise TeacherError(
            f"[teacher] {name}: the model has no output embeddings (lm_head); want a causal language model"
        )
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if tokenizer_end is not None:
        listed.append(tokenizer_end)
    end_ids = tuple(dict.fromkeys(listed))
    teacher = Teacher(model, device, max_length, "tree", end_ids, head.weight.shape[0], _logits_function(model))
    probe = _probe_window(min(teacher.vocab_rows, 1000), min(24, max_length))
    trunk = Window(probe.token[:12], probe.parent[:12], probe.depth[:12])
    with torch.inference_mode():
        ours = torch.log_softmax(teacher.logits(teacher.hidden([trunk])[0]), -1)
        theirs = torch.log_softmax(model(input_ids=torch.tensor([trunk.token], device=device)).logits[0].float(), -1)
    limit = _TOLERANCE_NATS[model.dtype]
    gap = float((ours - theirs).abs().max())
    if not gap <= limit:
        raise TeacherError(
            f"[teacher] {name}: log-probabilities made from the last hidden state differ from the model's own by {gap:.3g} nats "
            f"(want <= {limit}). This architecture changes its logits in a way that is not known; report it with its config.json."
        )
    if config.attention == "paths":
        return _replace(teacher, "paths")
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    uses = getattr(model.config.get_text_config(), "use_sliding_window", True)
    fits = not (window and uses) or window >= max_length
    gap = _tree_gap(teacher, probe) if fits else float("inf")
    if gap <= limit:
        return teacher
    if config.attention == "tree":
        why = f"differs by {gap:.3g} nats" if fits else f"has a sliding window of {window} < max_length {max_length}"
        raise TeacherError(f'[teacher] {name}: attention = "tree" {why}; use "auto" or "paths"')
    return _replace(teacher, "paths")


def _replace(teacher: Teacher, attention: str) -> Teacher:
    return Teacher(
        teacher.model,
        teacher.device,
        teacher.max_length,
        attention,
        teacher.end_ids,
        teacher.vocab_rows,
        teacher._logits,
    )


def _logits_function(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)

    def logits(hidden_CD: torch.Tensor) -> torch.Tensor:
        out = head(hidden_CD).float()
        if scale != 1.0:
            out = out * scale
        return torch.tanh(out / cap) * cap if cap else out

    return logits


def _probe_window(vocab: int, size: int) -> Window:
    """A fixed little tree: a trunk of 12 and branches of several lengths hanging off it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocab, (size,), generator=generator).tolist()
    parent = [*range(-1, 11), 3, 12, 3, 7, 15, 16, 0, 18, 10, 20, 5, 22][:size]
    depth: list[int] = []
    for p in parent:
        depth.append(0 if p < 0 else depth[p] + 1)
    return Window(tokens, parent, depth)


@torch.inference_mode()
def _tree_gap(teacher: Teacher, probe: Window) -> float:
    """Largest difference, in nats, between the tree pass and every context alone (plain causal)."""
    by_tree = torch.log_softmax(teacher.logits(teacher._forward([probe])[0]), -1)
    by_path = torch.log_softmax(teacher.logits(teacher._hidden_by_paths([probe])[0]), -1)
    gap = (by_tree - by_path).abs().max()
    return float(gap) if torch.isfinite(gap) else float("inf")
