"""A group of passages in, the last hidden state of every context out.

Trees are cut into windows that fit the teacher, windows are batched, and each context's state is taken from the window that
owns it. Parts of one document share what stands before them (engine/teacher/sharing.py). With pruning, some contexts are left
out, and each passage is told which were kept (`Passage.kept`). For the beam the batches stay open, so that more nodes can be hung
off the contexts (engine/teacher/incremental.py).
"""

from __future__ import annotations

import numpy as np
import torch

from engine.alignment.passage import Passage
from engine.teacher.incremental import OpenBatch
from engine.teacher.kept_logits import KeptLogits, LogitsStore
from engine.teacher.model import Teacher
from engine.teacher.pruning import Pruner
from engine.teacher.sharing import SharedTrees, share
from engine.teacher.windows import OwnedWindow, batches, windows_of
from schemas.errors import TeacherError
from schemas.settings import TeacherConfig

BEAM_DEPTH = 8
"""Tokens at the end of a teacher's window that are left free for nodes hung off its contexts."""


def hidden_states(
    teacher: Teacher,
    docs: list[Passage],
    config: TeacherConfig,
    pruner: Pruner | None = None,
    *,
    open_batches: list[OpenBatch] | None = None,
    logits: KeptLogits | None = None,
) -> torch.Tensor:
    """Last hidden states [N, D] of all contexts of the group, passage after passage; those of pruned contexts are zeros.

    Sets `kept` of every passage when there is a pruner, whose logits go into `logits`. open_batches: takes the batches, kept open
    (they hold all keys and values). Raises TeacherError when `overlap` leaves no room in a window.
    """
    room = teacher.max_length - (0 if open_batches is None else BEAM_DEPTH)
    windows: list[tuple[int, int, OwnedWindow]] = []  # (passage, number of its first node, window)
    base = 0
    for i, doc in enumerate(docs):
        try:
            cut = windows_of(doc.tree, max_length=room, overlap=config.overlap)
        except ValueError as error:
            raise TeacherError(f"[teacher] {error}; lower [teacher] overlap or raise max_length") from error
        windows += [(i, base, w) for w in cut]
        base += len(doc.tree.token)
        doc.kept = np.zeros(len(doc.tree.token), bool) if pruner else None
    # Pruning looks at one passage's tree; all others may share what they have in common with the part before.
    whole = [len(w.nodes) == len(docs[i].tree.token) and pruner is None for i, _, w in windows]
    document = [docs[i].place[0] if alone else None for (i, _, _), alone in zip(windows, whole, strict=True)]
    shared = share([w.window for _, _, w in windows], document, config.batch_tokens)
    joined = [OwnedWindow(one.window, np.arange(one.size), np.ones(one.size, bool)) for one in shared]
    out: torch.Tensor | None = None
    for batch in batches(joined, config.batch_tokens):
        members = [shared[index].members for index in batch]
        chosen = [windows[k] for ones in members for k, _ in ones]
        open_trees, numbers = None, [np.arange(len(w.nodes)) for _, _, w in chosen]
        if pruner is not None:
            trees, data = [docs[i].tree for i, _, _ in chosen], [docs[i].data for i, _, _ in chosen]
            passages = [i for i, _, _ in chosen]
            logits = logits or KeptLogits(teacher.logits, LogitsStore(0), 0)
            hidden, kept, open_trees, numbers = pruner.hidden([w for _, _, w in chosen], trees, data, passages, logits)
        elif open_batches is not None:
            open_trees, kept = teacher.open_trees([joined[index].window for index in batch]), None
            if len(chosen) > len(batch):
                open_trees = SharedTrees(open_trees, members)
            hidden = open_trees.hidden
        else:
            states, kept = teacher.hidden([joined[index].window for index in batch]), None
            hidden = [
                of_window[torch.from_numpy(at).to(of_window.device)] if len(ones) > 1 else of_window
                for of_window, ones in zip(states, members, strict=True)
                for _, at in ones
            ]
        if open_batches is not None and open_trees is not None:
            own = [
                (i, w.nodes[w.owned], number[w.owned], np.asarray(w.window.depth)[w.owned])
                for (i, _, w), number in zip(chosen, numbers, strict=True)
            ]
            open_batches.append(OpenBatch(open_trees, own))
        for at, ((i, start, owned), states) in enumerate(zip(chosen, hidden, strict=True)):
            if out is None:
                out = torch.zeros((base, states.shape[1]), dtype=states.dtype, device=states.device)
            mine = np.flatnonzero(owned.owned)
            to, rows = torch.from_numpy(start + owned.nodes[mine]), torch.from_numpy(mine)
            out[to.to(out.device)] = states[rows.to(out.device)]
            known = docs[i].kept
            if kept is not None and known is not None:
                known[owned.nodes[mine]] = kept[at][mine]
    assert out is not None
    return out
