"""The search of compiled students: random toy pairs beside brute force, and the demo's teacher beside a deep beam.

TARGETSMITH_EFFORT=n multiplies the number of random cases by n.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import engine.beam.compiled_search
import engine.compiled.walk
import engine.plan.regimes
import engine.push.passage_arrays
import engine.scoring.stages as stages_module
from engine.alignment.passage import HungContexts
from engine.alignment.student_view import NO_STATE, StudentView
from engine.beam.compiled_search import CompiledSearch, Spending, Students, may_grow
from engine.compiled.walk import StudentWalk
from engine.contexts.tree import ContextTree
from engine.scoring.scorer import Scorer
from engine.targets.positions import TopK
from engine.teacher.evaluate import hidden_states
from engine.teacher.incremental import OpenBatch
from schemas.runfile import parse_run
from tests.beam.test_search import MODES, BeamCase, finite_cases, targets_of
from tests.push.test_compiled_rows import ASSETS, ROOT, TEXTS, flat
from tests.push.test_compiled_truth import Compiled
from tests.scoring.test_scorer import documents
from tests.support.beams import CONFIG
from tests.support.pairs import STUDENT, stored
from tests.support.table_model import TableModel
from tests.support.tiers import one_of
from tests.support.vocabularies import EFFORT, needs_shared, vocabulary

EVERYTHING = Spending(target_error=0.0, per_token=1e6, rounds=12)


@needs_shared
def test_what_often_follows_may_change_the_last_token() -> None:
    """Qwen has `.\\n` as one token and digits one by one, Llama-3 digits by three, GPT-2 cuts before a line break."""
    asked = (b".", b"5", b"the", b"\xc3", b" a", b"?")
    found = {name: [may_grow(vocabulary(name), text) for text in asked] for name in ("qwen2.5", "llama-3", "gpt2")}
    assert found["qwen2.5"] == [True, False, False, False, False, True]
    assert found["llama-3"] == [True, True, False, False, False, True]
    assert found["gpt2"] == [False, True, False, False, False, False]


def searched(made: Compiled, case: BeamCase, spending: Spending) -> tuple[TopK, int]:
    """(the student's rows, evaluations) of one document."""
    pair, doc = case.pair, case.doc
    doc.bad = None
    model, batches = TableModel(pair.teacher, case.table, max_length=1 << 20), list[OpenBatch]()
    hidden = hidden_states(cast(Any, model), [doc], CONFIG, open_batches=batches)
    search = CompiledSearch(
        Students({STUDENT: made.walk}, {STUDENT: made.push}, pair.teacher.token_bytes),
        spending,
        torch.ones(pair.teacher.size, dtype=torch.bool),
        pair.canonical,
        masked=pair.masked,
        max_length=1 << 20,
    )
    longer, states, spent, _ = search.search([doc], hidden, batches, model.logits)
    return cast(TopK, made.emitter.emit(longer, states, model.logits)[STUDENT]), spent


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(EFFORT))
def test_intervals_hold_the_truth(seed: int, mode: str, tmp_path: Path) -> None:
    """Whatever is evaluated, each token's probability is within err of the truth; the more, the narrower; and where nothing stays
    open it is the truth."""
    rng = random.Random(f"hung {seed} {mode}")
    made, rows_seen, exact, bought, spent_all = None, 0, 0, 0.0, 0
    for case in finite_cases(rng, tmp_path, 20, mode):
        found = targets_of(case)
        if found is None:
            continue
        if made is None or made.pair is not case.pair:
            made = Compiled(case.pair, least=0.0)
        slow = made.view(case.doc, case.text)
        widths = []
        for spending in (Spending(1.0, 0.0), Spending(0.05, 1.0), EVERYTHING):
            rows, spent = searched(made, case, spending)
            widths.append(rows.err.copy())
            spent_all += spent
            for k, (mass, _) in enumerate(found):
                where, total = f"{case} k {k} slow {slow[k]} {spending}", float(mass.sum())
                if total == 0 or not rows.scored[k]:
                    assert not rows.scored[k] or rows.err[k] == pytest.approx(1), where
                    continue
                q = stored(rows, k, case.pair.student.size)
                assert np.abs(q - mass / total).max() <= rows.err[k] + 1e-9, where
                rows_seen += 1
                exact += bool(rows.err[k] <= 1e-12)
        assert (widths[2] <= widths[1] + 1e-9).all() and (widths[1] <= widths[0] + 1e-9).all(), str(case)
        bought += float((widths[0] - widths[2]).sum())
    print(f"{rows_seen} rows, {exact} exact, {spent_all} evaluations, width bought {bought:.1f}")
    assert rows_seen > 90 and exact > 20 and spent_all > 20 and bought > 0.5


def test_states_behind_hung_contexts_are_those_of_their_text(tmp_path: Path) -> None:
    """What is pending behind a context that leaves the text is what a walk of its whole string finds."""
    rng, made, same, told = random.Random("states"), None, 0, 0
    for case in finite_cases(rng, tmp_path, 30 * EFFORT, MODES[0]):
        if made is None or made.pair is not case.pair:
            made = Compiled(case.pair, least=0.0)
        made.view(case.doc, case.text)
        doc, walk = case.doc, made.walk
        model, batches = TableModel(case.pair.teacher, case.table, max_length=1 << 20), list[OpenBatch]()
        hidden = hidden_states(cast(Any, model), [doc], CONFIG, open_batches=batches)
        search = CompiledSearch(
            Students({STUDENT: walk}, {STUDENT: made.push}, case.pair.teacher.token_bytes),
            EVERYTHING,
            torch.ones(case.pair.teacher.size, dtype=torch.bool),
            case.pair.canonical,
            masked=False,
            max_length=1 << 20,
        )
        long = search.search([doc], hidden, batches, model.logits)[0][0]
        if long.hung is None:
            continue
        view, count = long.views[STUDENT].student, len(doc.tree.token)
        assert view is not None
        prefix, lead = walk.aligner.prefix, walk.aligner.student.prefix_bytes
        for x in range(len(long.hung.shift)):
            node, end = count + x, int(long.tree.end[count + x])
            root = node
            while root >= count:
                root = int(long.tree.parent[root])
            begin, leaves = int(long.hung.begin[x]), int(doc.tree.end[root])
            own = long.hung.text[long.hung.shift[x] + begin : long.hung.shift[x] + end].tobytes()
            assert own[: leaves - begin] == doc.data[begin:leaves]
            told += 1
            if view.node_state_N[node] == NO_STATE:
                continue
            whole = lead + doc.data[len(prefix) : leaves] + own[leaves - begin :]
            found = walk.pending_states.at(whole, np.array([0]), np.array([end + len(lead) - len(prefix)]))
            assert found.state_I[1] == view.node_state_N[node], str(case)
            assert found.begin_I[1] - (len(lead) - len(prefix)) == view.node_begin_N[node], str(case)
            same += 1
    print(f"{told} hung contexts, {same} with a state")
    assert same > 90 * EFFORT and same > 0.3 * told


# ==== the demo's teacher


def scorer(monkeypatch: pytest.MonkeyPatch, *, compiled: bool, **targets: Any) -> Scorer:
    """The demo's teacher and both its students, compiled however small their vocabularies are."""
    monkeypatch.setattr(stages_module, "is_compiled", lambda *given: compiled)
    run = {
        "output": "out",
        "teacher": {"model": str(ASSETS / "teacher"), "device": "cpu", "dtype": "float32"},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": name, "tokenizer": str(ASSETS / f"student_{name}")} for name in ("sp", "bl")],
        "targets": {"top_k": 1000, "regime": "beam", "calibration_documents": 0, **targets},
    }
    return Scorer(parse_run(run, base_dir=ROOT))


def distances(a: Any, b: Any) -> np.ndarray:
    """Total variation of each scored position of two tables that keep nearly everything."""
    use = flat(a, "scored")
    rows = [
        [np.asarray(x).reshape(-1, 1000)[use] for x in (flat(t, "topk_ids"), np.exp(flat(t, "topk_logps")))]
        for t in (a, b)
    ]
    out = []
    for ids_a, p_a, ids_b, p_b in zip(*rows[0], *rows[1], strict=True):
        dense = np.zeros(2000)
        np.add.at(dense, ids_a.astype(int), p_a)
        np.subtract.at(dense, ids_b.astype(int), p_b)
        out.append(0.5 * np.abs(dense).sum())
    return np.array(out)


@pytest.mark.parametrize("targets", one_of(3, [{}, {"semantics": "canonical-masked"}, {"eps": 1e-3}]))
def test_evaluations_bring_rows_nearer_to_a_deep_beam(monkeypatch: pytest.MonkeyPatch, targets: dict[str, Any]) -> None:
    texts = TEXTS if EFFORT > 1 else TEXTS[:2]
    deep = {"tolerance": 0.001, "max_nodes_per_token": 40.0}
    truth = scorer(monkeypatch, compiled=False, **deep, **targets).score_unit(documents(texts))
    made, spent, error = scorer(monkeypatch, compiled=True, **targets), [], []
    search = made.stages.compiled_search
    assert search is not None
    for spending in (Spending(1.0, 0.0), Spending(0.0, 0.5), Spending(0.0, 4.0, rounds=3)):
        search.spending = spending
        found = made.score_unit(documents(texts))
        assert not found.quarantine
        spent.append(found.stats["teacher_evaluations"])
        tables = [(found.products[p], truth.products[p]) for p in ("student/sp", "student/bl")]
        error.append(np.concatenate([distances(*pair) for pair in tables]).mean())
        for a, b in tables:
            width = (flat(a, "err") + flat(b, "err"))[flat(a, "scored")]
            assert (distances(a, b) <= width + 1e-5).all()
    print(spent, error)
    assert spent[0] < spent[1] < spent[2] and error[0] > error[1] > error[2]


def test_what_a_search_would_leave_at_other_budgets_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected error falls with the budget from what nothing spent leaves; what was spent left no more than was asked for; and
    a search that may spend just a budget leaves what was foretold for it."""
    made = scorer(monkeypatch, compiled=True, target_error=1e-3, max_nodes_per_token=4)
    stats = made.score_unit(documents(TEXTS)).stats
    at = [stats[f"beam.expected_tv_at_{budget}_sum"] for budget in (0, 1, 2)]
    open_ = [stats[f"beam.open_at_{budget}_sum"] for budget in (0, 1, 2)]
    boundaries = stats["beam.boundaries"]
    positions = sum(stats[f"student/{name}.scored"] for name in ("sp", "bl"))
    print(at, open_, boundaries, positions, stats["beam.expected_tv_sum"])
    assert 0.9 * positions <= boundaries <= positions
    assert at[0] > at[1] > at[2] >= 0 and boundaries > open_[0] > open_[1] > open_[2] >= 0
    assert stats["beam.expected_tv_sum"] <= 1e-3 * boundaries < at[0]
    search = made.stages.compiled_search
    assert search is not None
    for budget, wanted in zip((0.0, 1.0), at, strict=False):
        search.spending = Spending(0.0, budget)
        left = made.score_unit(documents(TEXTS)).stats["beam.expected_tv_sum"]
        assert left == pytest.approx(wanted, rel=0.05), budget


def test_a_document_has_the_same_rows_alone_and_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scorer(monkeypatch, compiled=True, target_error=0.001)
    together = made.score_unit(documents(TEXTS)).products["student/bl"]
    for i, document in enumerate(documents(TEXTS)):
        alone = made.score_unit([document]).products["student/bl"]
        for name in ("err", "gold_logp", "topk_logps"):
            np.testing.assert_allclose(flat(alone, name), flat(together.slice(i, 1), name), atol=2e-3, err_msg=name)


def test_contexts_behind_much_that_is_pending_split_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a context that leaves the text behind more pending bytes than are looked back nobody tells where that part begins: it
    has no state, what hangs behind it stays open, and rows stay within their widths of those of the slow search."""
    texts, far, near, hang = ["x" + "ab" * 20 + " end"], list[int](), list[int](), StudentWalk.hang

    def noted(
        walk: StudentWalk, view: StudentView, tree: ContextTree, data: bytes, contexts: HungContexts
    ) -> StudentView:
        found, count = hang(walk, view, tree, data, contexts), len(view.node_state_N)
        for node in range(count, len(tree.end)):
            root = node
            while root >= count:
                root = int(tree.parent[root])
            is_far = tree.end[root] - view.node_begin_N[root] > 12
            (far if is_far else near).append(int(found.node_state_N[node]))
        return found

    slow = scorer(monkeypatch, compiled=False).score_unit(documents(texts))
    monkeypatch.setattr(StudentWalk, "hang", noted)
    for module in (engine.push.passage_arrays, engine.beam.compiled_search):
        monkeypatch.setattr(module, "HORIZON_BYTES", 12)  # 256, as the bound below 512
    monkeypatch.setattr(engine.compiled.walk, "LONGEST_HUNG", 16)
    made = scorer(monkeypatch, compiled=True)
    assert made.stages.compiled_search is not None
    made.stages.compiled_search.spending = Spending(0.0, 4.0, rounds=3)
    fast = made.score_unit(documents(texts))
    assert not slow.quarantine and not fast.quarantine
    assert len(far) > 20 and set(far) == {NO_STATE} and max(near) > NO_STATE
    for product in ("student/sp", "student/bl"):
        a, b = fast.products[product], slow.products[product]
        use = flat(a, "scored")
        assert use.sum() > 20
        assert (distances(a, b) <= (flat(a, "err") + flat(b, "err"))[use] + 1e-5).all()


def test_a_named_tolerance_is_not_compiled() -> None:
    named = parse_run({**_RUN, "targets": {"tolerance": 0.02}}, base_dir=ROOT).targets
    plain = parse_run(_RUN, base_dir=ROOT).targets
    big = cast(Any, type("V", (), {"size": 10**6}))
    assert not engine.plan.regimes.is_compiled(named, "beam", big, big)
    assert engine.plan.regimes.is_compiled(plain, "beam", big, big)
    assert engine.plan.regimes.is_compiled(named, "fast", big, big)


_RUN = {
    "output": "out",
    "teacher": {"model": str(ASSETS / "teacher")},
    "corpus": {"paths": ["unused.jsonl"]},
    "student": [{"name": "sp", "tokenizer": str(ASSETS / "student_sp")}],
}
