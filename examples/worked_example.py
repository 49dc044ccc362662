"""One boundary of one text, from contexts to the stored row, as the engine computes it: python -m examples.worked_example

Two small tokenizers, and a teacher whose next token depends on the last one only (`NEXT`; a Llama model whose layer adds
nothing). The output stands in docs/design.md, section 5, which explains it; test_worked_example.py compares the two.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from engine.beam.frontier import Frontier, OpenLeaf
from engine.corpus.document import Document
from engine.scoring.prepare import whole_passage
from engine.scoring.scorer import Scorer
from engine.teacher.evaluate import hidden_states
from schemas.runfile import parse_run

TEXT, ROW, PRODUCT = "so to", 1, "student/s"  # row 1: what follows the student's token "so"
TEACHER, STUDENT = "o n|h e|Ġ t", "s o|Ġ t|h e|Ġt he|so n|Ġt o|r e|Ġthe n|Ġthe re"
NEXT = {  # teacher: last token -> next tokens
    "<s>": {"s": 1.0},
    "s": {"o": 0.7, "on": 0.3},
    "o": {"Ġt": 0.8, "Ġ": 0.15, "</s>": 0.05},
    "Ġt": {"he": 0.6, "o": 0.4},
    "he": {"Ġt": 0.4, "n": 0.3, "r": 0.2, "</s>": 0.1},
    **{"r": {"e": 0.9, "Ġt": 0.1}, "Ġ": {"s": 1.0}},
}


def save_tokenizer(folder: Path, merges: str) -> dict[str, int]:
    """A byte-level BPE tokenizer with the GPT-2 regex. Returns its ids."""
    folder.mkdir()
    pairs = [(pair.split()[0], pair.split()[1]) for pair in merges.split("|")]
    ids = {t: i for i, t in enumerate(["<s>", "</s>", *"ehnorstĠ", *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return ids


def scorer_in(folder: Path) -> Scorer:
    """Teacher and student in `folder`, loaded as a run loads them."""
    save_tokenizer(folder / "student", STUDENT)
    ids = save_tokenizer(folder / "teacher", TEACHER)
    shape: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size"), 16)
    config = LlamaConfig(vocab_size=len(ids), num_hidden_layers=1, num_attention_heads=2, eos_token_id=1, **shape)
    model = LlamaForCausalLM(config)
    prob = torch.full((len(ids), 16), 1e-13)
    for last, row in NEXT.items():
        for token, p in row.items():
            prob[ids[token], ids[last]] = p
    with torch.no_grad():  # the last state of a token is 4 in its own place and 0 elsewhere
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(100 * torch.eye(len(ids), 16))
        model.lm_head.weight.copy_(prob.log() / 4)
    model.save_pretrained(folder / "teacher")
    run = {"output": "unused", "corpus": {"paths": ["unused"]}, "student": [{"name": "s", "tokenizer": "student"}]}
    teacher = {"model": "teacher", "dtype": "float32", "device": "cpu", "bos": True}
    return Scorer(parse_run(run | {"teacher": teacher}, base_dir=folder))


def show(data: bytes | None) -> str:
    return "end" if data is None else repr(data.decode())


def does(v: int, open_: bool, student: list[bytes | None]) -> str:
    return "excluded" if v < 0 else f"{'open, closed to' if open_ else 'decided'} {show(student[v])}"


def leaves(scorer: Scorer, document: Document) -> None:
    """Definitions 4 to 7: every context that is live at the boundary, and its leaves."""
    part = whole_passage(scorer.stages, document)
    tree, pieces, student = part.tree, scorer.stages.vocabulary.token_bytes, scorer.stages.students[PRODUCT].token_bytes
    hidden = hidden_states(scorer.stages.teacher, [part], scorer.stages.run.teacher)
    prob = torch.softmax(scorer.stages.teacher.logits(hidden)[:, : len(pieces)].double(), 1).numpy()
    boundary = (part.views[PRODUCT].boundaries or [])[ROW]
    print(f"{TEXT!r}, row {ROW}, byte {boundary.place}. Leaves: mass, string behind the boundary, what it does")
    for node, rule in boundary.leaves:
        path, weight = [node], 1.0
        while (above := int(tree.parent[path[-1]])) >= tree.given:
            weight *= prob[above, tree.token[path[-1]]]
            path.append(above)
        print(f"  context {' '.join(show(pieces[tree.token[n]]) for n in path[-2::-1])}, w = {weight:.3f}")
        for token, v, open_, _ in zip(*scorer.stages.aligners[PRODUCT].book.resolved(rule, boundary.last), strict=True):
            string = (pieces[token] or b"")[boundary.place - tree.end[node] :]
            if (mass := weight * prob[node, token]) > 1e-6:
                print(f"    {mass:.3f}  {show(string)}: {does(v, open_, student)}")


def row(scorer: Scorer, document: Document, budget: float) -> None:
    """Definition 13: each split of the boundary's leaves, and the row that is stored. budget: nodes for each token."""
    pieces, student = scorer.stages.vocabulary.token_bytes, scorer.stages.students[PRODUCT].token_bytes
    assert scorer.stages.beam_search is not None
    scorer.stages.beam_search.spending[PRODUCT] = replace(scorer.stages.beam_search.spending[PRODUCT], per_token=budget)
    split = Frontier.split

    def traced(frontier: Frontier, leaf: OpenLeaf, *rest: Any, **more: Any) -> list[OpenLeaf]:
        begin = len(frontier.splits[leaf.k].mass) if leaf.k in frontier.splits else 0
        made, out = split(frontier, leaf, *rest, **more), frontier.splits[leaf.k]
        if leaf.k == ROW:
            print(f"  split {show(leaf.s)}, share {leaf.mass:.3f}, by the row behind {show(pieces[leaf.token])}")
            for v, mass, open_ in list(zip(out.first, out.mass, out.open, strict=True))[begin:]:
                if mass > 1e-6:
                    print(f"    {mass * leaf.mass / leaf.prob:.3f}  {does(v, open_, student)}")
            for new in made:
                print(f"    {new.mass:.3f}  open, a new leaf {show(new.s)}")
        return made

    print(f"budget {budget:g}")
    with patch.object(Frontier, "split", traced):
        table = scorer.score_unit([document]).products[PRODUCT]
    k, get = scorer.stages.run.targets.top_k, {name: table[name][0].as_py() for name in table.column_names[6:]}
    found = zip(get["topk_ids"][ROW * k :], get["topk_logps"][ROW * k : (ROW + 1) * k], strict=False)
    q = ", ".join(f"{show(student[t])} {math.exp(p):.3f}" for t, p in found if p > -9)
    print(f"  q: {q}; err {get['err'][ROW]:.3f}, excluded {get['excluded_mass'][ROW]:.3f}")


def main() -> None:
    document = Document(doc_id="worked", doc_row=0, text=TEXT, source="examples", place="1")
    with tempfile.TemporaryDirectory() as folder:
        leaves(scorer := scorer_in(Path(folder)), document)
        row(scorer, document, 0.0)
        row(scorer, document, 6.0)


if __name__ == "__main__":
    main()
