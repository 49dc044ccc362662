"""Hybrid and recurrent teachers over kept states: what each context quite alone gives, in one go and in rounds."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import engine.teacher.kept_states
from engine.teacher.decoder import Decoder
from engine.teacher.gauge import Gauge
from engine.teacher.incremental import RescoredTrees
from engine.teacher.kept_states import Leading, StateTrees, spine
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from engine.teacher.state_check import LEADINGS, find_leading
from schemas.errors import TeacherError
from tests.support.architectures import build
from tests.support.decoders import TREES, VOCAB, alone, chain, load, loaded, logps, reference, save
from tests.support.hybrids import HYBRIDS
from tests.support.runs import ASSETS, TEXTS, score_here, write_run
from tests.support.tiers import one_of
from tests.support.vocabularies import EFFORT

TOLERANCE = 1e-3  # nats, fp32: the limit of the start-up check
WAYS = {  # that transformers' code takes rightly; the others go on from a state in pieces, level by level, in mixed rows
    "mamba": (False, True, True), "jamba": (False, True, True), "recurrent_gemma": (False, True, True),
    "rwkv": (True, False, True), "zamba2": (True, False, True), "nemotron_h": (True, False, True),
    "deepseek_v4": (True, True, False),
}  # fmt: skip
ALWAYS = ("qwen3_next", "mamba", "rwkv", "deepseek_v4")  # one of each way

pytestmark = pytest.mark.filterwarnings("ignore")  # of kernels that are not installed


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("hybrids"), HYBRIDS)


def tree(seed: int, trunk: int, branches: int) -> Window:
    """A trunk and short branches off random nodes; one in forty is as long as the trunk."""
    rng = random.Random(seed)
    parent, depth = list(range(-1, trunk - 1)), list(range(trunk))
    for k in range(branches):
        above = rng.randrange(len(parent))
        for _ in range(trunk if k % 40 == 7 else rng.randrange(1, 4)):
            parent.append(above)
            depth.append(depth[above] + 1)
            above = len(parent) - 1
    return Window([rng.randrange(3, VOCAB) for _ in parent], parent, depth)


FOREST = [tree(0, 60, 20), tree(1, 33, 9), tree(2, 16, 3), chain(3, 20), tree(4, 1, 2), chain(5, 1)]


def gap(ours: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in truth]
    return max(float((a - b).abs().max()) for a, b in zip(ours, truth, strict=True) if len(a))


def in_rounds(teacher: Teacher, windows: list[Window], seed: int) -> list[torch.Tensor]:
    """Log-probabilities of all nodes; the windows come in four rounds, cut at random."""
    rng = random.Random(seed)
    cuts = [sorted([0, *(rng.randrange(len(w.token) + 1) for _ in range(3)), len(w.token)]) for w in windows]

    def part(number: int) -> list[Window]:
        pairs = zip(windows, cuts, strict=True)
        return [Window(*(a[c[number] : c[number + 1]] for a in (w.token, w.parent, w.depth))) for w, c in pairs]

    open_trees = teacher.open_trees(part(0))
    assert isinstance(open_trees, StateTrees)
    states = [open_trees.hidden, *(open_trees.add(part(number)) for number in (1, 2, 3))]
    assert open_trees.sizes == [len(w.token) for w in windows]
    return [torch.log_softmax(teacher.logits(torch.cat(parts)), -1) for parts in zip(*states, strict=True)]


# ==== the numbers


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.thorough) for name in HYBRIDS]
)
def test_kept_states_and_rounds_give_what_each_context_alone_gives(saved: Path, name: str) -> None:
    teacher, model = loaded(saved / name), reference(saved / name)
    assert (teacher.attention, teacher.reuse) == ("states", True) and teacher.why and 0 < teacher.gap <= TOLERANCE
    leading = teacher._leading
    assert leading is not None and (leading.pieces, leading.levels, leading.mixed) == WAYS.get(name, (True, True, True))
    truth = [alone(model, w) for w in FOREST]
    assert min(float(t.std()) for t in truth) > 0.15  # the test can fail: distributions are not flat
    assert gap(logps(teacher, FOREST), truth) <= TOLERANCE
    assert gap(in_rounds(teacher, FOREST, 0), truth) <= TOLERANCE
    assert gap(in_rounds(teacher, FOREST, 1), truth) <= TOLERANCE


@pytest.mark.parametrize("name", one_of(2, ["deepseek_v4", "mamba", "qwen3_next", "rwkv"]))
def test_states_and_paths_agree(saved: Path, name: str) -> None:
    paths = load(saved / name, attention="paths")
    assert (paths.attention, paths.reuse, paths.gap) == ("paths", False, 0.0)
    windows = [tree(6, 50, 12), tree(7, 35, 12)]
    assert gap(logps(loaded(saved / name), windows), logps(paths, windows)) <= TOLERANCE
    assert isinstance(paths.open_trees(windows), RescoredTrees)


@pytest.mark.parametrize("ways", LEADINGS, ids=lambda w: f"{w.pieces:d}{w.levels:d}{w.mixed:d}")
def test_every_way_on_random_trees_with_little_room(saved: Path, ways: Leading) -> None:
    """Of a model that takes all of them: few rows to a pass, states at other distances, one node at a time."""
    teacher = loaded(saved / "lfm2")
    rng, decoder = random.Random(0), replace(teacher._decoder, path_tokens=60)
    with torch.inference_mode():
        for number in range(2 * EFFORT):
            windows = [
                tree(100 * number + k, rng.randrange(1, 50), rng.randrange(20)) for k in range(rng.randrange(1, 5))
            ]
            truth = decoder.paths(windows)
            for spacing, room in ((rng.randrange(2, 9), 1), (0, 1 << 14), (rng.randrange(9, 60), 1 << 30)):
                leading = replace(ways, spacing=spacing, room_bytes=room, state_bytes=1152, token_bytes=128)
                assert gap(StateTrees(decoder, leading, windows).hidden, truth) <= 1e-4


def test_a_window_that_is_not_finite_spoils_no_other(saved: Path) -> None:
    teacher = load(saved / "qwen3_next")
    good = [replace(w, token=[t % 90 for t in w.token]) for w in FOREST]
    truth = logps(teacher, good)
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight[95] = float("nan")
    for at in (0, 2):
        mixed = [replace(w, token=[95, *w.token[1:]]) if i == at else w for i, w in enumerate(good)]
        ours = logps(teacher, mixed)
        assert ours[at].isnan().all()
        assert gap([*ours[:at], *ours[at + 1 :]], [*truth[:at], *truth[at + 1 :]]) <= TOLERANCE


# ==== what is read


def tokens_read(teacher: Teacher, windows: list[Window]) -> int:
    """Padding included, counted at the model."""
    counted: list[int] = []
    body = teacher._decoder.body
    hook = body.register_forward_pre_hook(
        lambda part, args, given: counted.append(given["input_ids"].numel()), with_kwargs=True
    )
    teacher.hidden(windows)
    hook.remove()
    return sum(counted)


@pytest.mark.parametrize("name", one_of(3, ["qwen3_next", "mamba", "deepseek_v4"]))
def test_the_trunk_is_read_twice_at_most_and_a_branch_once(saved: Path, name: str) -> None:
    window = tree(0, 150, 0)
    near = [n for n in range(150) for _ in range(3)]  # three branches of one token behind every token
    parent, depth = [*window.parent, *near], [*window.depth, *(n + 1 for n in near)]
    bushy = Window([k % VOCAB for k in range(len(parent))], parent, depth)
    read = tokens_read(loaded(saved / name), [bushy])
    assert len(near) + 150 <= read <= len(near) + 2 * 150 + 16
    sparse = Window(bushy.token[:160], [*window.parent, *range(0, 150, 15)], [*window.depth, *range(1, 151, 15)])
    assert tokens_read(loaded(saved / name), [sparse]) <= 2 * 150 + 10 + 16


def test_a_long_side_chain_is_read_in_pieces_too(saved: Path) -> None:
    """As parts of a conversation are, which share their beginning."""
    teacher, passes = loaded(saved / "mamba2"), list[int]()
    parent, depth = [*range(-1, 99), 19, *range(100, 179)], [*range(100), *range(20, 100)]
    window = Window([n % VOCAB for n in range(180)], parent, depth)
    hook = teacher._decoder.body.register_forward_pre_hook(
        lambda part, args, given: passes.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    ours = teacher.hidden([window])
    hook.remove()
    assert len(passes) <= 2 * 100 // 16 + 2 and min(passes) > 1
    assert (
        gap([torch.log_softmax(teacher.logits(ours[0]), -1)], [alone(reference(saved / "mamba2"), window)]) <= TOLERANCE
    )


def test_spines_are_the_long_chains() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        size, first, least = rng.randrange(1, 40), rng.randrange(3), rng.randrange(1, 8)
        parent = [rng.randrange(-1 if rng.random() < 0.1 else max(0, n - 4), n) if n else -1 for n in range(size)]
        found = spine(parent, first, least)
        below = [[c for c in range(max(n + 1, first), size) if parent[c] == n] for n in range(size)]

        def height(n: int, below: list[list[int]] = below) -> int:
            return 1 + max((height(c, below) for c in below[n]), default=0)

        for n in range(first, size):
            above = parent[n]
            deepest = [c for c in below[above] if height(c) == max(map(height, below[above]))] if above >= 0 else []
            if above < 0 or height(n) >= least:
                assert n in found
            elif above in found:
                assert (n in found) == (n == deepest[-1])
            else:
                assert n not in found
            assert n not in found or above < first or above in found  # nothing hangs in the air


def test_spacing_is_bounded_by_the_room() -> None:
    leading = Leading(True, True, True, state_bytes=1000, token_bytes=10, room_bytes=100_000)
    assert leading.spacing_for(100, 100) == 16 and leading.spacing_for(1600, 1600) == 40
    assert leading.spacing_for(16_000, 1600) == 160  # ten documents: as many states as there is room for
    assert leading.rows_at_once(900) == 9 and leading.rows_at_once(10**6) == 1
    assert replace(leading, levels=False).spacing_for(100, 100) == 4


# ==== the start-up check


def log_probs(teacher: Teacher) -> Any:
    return lambda hidden: torch.log_softmax(teacher.logits(hidden), -1)


def test_a_state_that_is_carried_over_wrongly_is_noticed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.teacher.kept_states.joined

    def wrong(rows: list[Any]) -> Any:
        for row in rows:
            row.tensors = [t * 1.01 for t in row.tensors]
        return real(rows)

    monkeypatch.setattr("engine.teacher.kept_states.joined", wrong)
    teacher = load(saved / "qwen3_next")
    assert teacher.attention == "paths" and teacher.why and not teacher.reuse and teacher.gap > TOLERANCE
    assert gap(logps(teacher, FOREST[2:]), [alone(reference(saved / "qwen3_next"), w) for w in FOREST[2:]]) <= TOLERANCE


def test_a_way_within_a_wide_limit_that_differs_more_than_others_is_not_taken(saved: Path) -> None:
    """Mamba's code forgets part of its state when several tokens follow."""
    teacher = loaded(saved / "mamba")
    with torch.inference_mode():
        for limit in (1e-3, 100.0):
            taken, found = find_leading(teacher._decoder, Gauge(log_probs(teacher), limit), VOCAB, 256)
            pieces = limit > 1  # right to a tenth of such a limit
            assert taken is not None and taken.pieces is pieces and found <= limit
        taken, found = find_leading(teacher._decoder, Gauge(log_probs(teacher), 9.0), VOCAB, 256)
        assert taken is not None and not taken.pieces and found <= TOLERANCE


def test_states_take_what_they_take(saved: Path) -> None:
    """Measured at the start: keys and values grow with the tokens, states of recurrences do not."""
    found = {name: loaded(saved / name)._leading for name in ("mamba2", "qwen3_next", "gpt_neo")}
    sizes = {name: (led.state_bytes, led.token_bytes) for name, led in found.items() if led is not None}
    conv, recurrent = (64 + 2 * 2 * 8) * 4, 8 * 8 * 8  # numbers of a layer
    assert sizes["mamba2"] == (2 * 4 * (conv + recurrent), 0)
    assert sizes["qwen3_next"][1] == 2 * 2 * 2 * 8 * 4  # two layers with keys and values of two heads
    assert sizes["gpt_neo"] == (0, 2 * 2 * 32 * 4)


def test_less_memory_is_fewer_rows_and_states(saved: Path) -> None:
    teacher = loaded(saved / "qwen3_next")
    less = teacher.with_less_memory(256, keep=False)
    assert less._leading is not None and teacher._leading is not None
    assert less._leading.room_bytes == teacher._leading.room_bytes // 32 and not less.reuse
    assert teacher.with_less_memory(8192, keep=True)._leading == teacher._leading
    assert gap(logps(less, FOREST), logps(teacher, FOREST)) <= TOLERANCE
    assert isinstance(less.open_trees(FOREST), RescoredTrees)


def test_a_round_that_does_not_fit_is_refused(saved: Path) -> None:
    open_trees = loaded(saved / "mamba2").open_trees([chain(0, 4), chain(1, 3)])
    with pytest.raises(ValueError, match="a round of 1 windows for 2"):
        open_trees.add([chain(0, 2)])
    with pytest.raises(ValueError, match="window 1: new node 0 has parent 3, but it is number 3"):
        open_trees.add([Window([], [], []), Window([1], [3], [3])])
    assert [len(s) for s in open_trees.add([Window([], [], [])] * 2)] == [0, 0]


def test_states_inside_the_model_s_parts_are_carried_along(saved: Path) -> None:
    """RecurrentGemma keeps them in its modules, whatever cache it is given."""
    decoder = loaded(saved / "recurrent_gemma")._decoder
    assert {name for _, name in decoder._memory[3]} == {"conv1d_state", "recurrent_states"}
    plain = Decoder(build(HYBRIDS["mamba2"]), torch.device("cpu"), 100)
    assert plain._memory == ("cache_params", False, False, [])


# ==== by the run file


def test_states_may_be_asked_for_where_trees_would_do(saved: Path, tmp_path: Path) -> None:
    teacher = load(save(tmp_path, {"llama": TREES["llama"]}) / "llama", attention="states")
    assert (teacher.attention, teacher.why) == ("states", 'the run file says attention = "states"')
    windows = [replace(w, token=[t % 90 for t in w.token]) for w in (tree(0, 30, 8), tree(1, 9, 3))]
    assert gap(logps(teacher, windows), [alone(teacher.model, w) for w in windows]) <= TOLERANCE


def test_what_is_not_possible_says_what_was_tried(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError) as caught:
        load(saved / "qwen3_next", attention="tree")
    message = str(caught.value)
    assert message.startswith(
        '[teacher] qwen3_next (Qwen3NextForCausalLM): attention = "tree" is not possible: layers of the kind'
    )
    assert '"states" works here (within ' in message and message.endswith('use "auto".')
    monkeypatch.setattr("engine.teacher.kept_states.rows_of", lambda cache, length: [])
    with pytest.raises(
        TeacherError, match=r'attention = "states" is not possible: .*"states" fails \(inf nats\); use "auto"'
    ):
        load(saved / "qwen3_next", attention="states")


TARGETS = "top_k = 16\nbytes = true"


@pytest.mark.thorough
def test_a_whole_run_gives_what_one_sequence_for_each_context_gives(tmp_path: Path) -> None:
    """Beam and bytes, windows of a long document: a hybrid teacher over kept states beside the same by paths."""
    tables = {}
    teacher = tmp_path / "hybrid"
    shutil.copytree(ASSETS / "teacher", teacher, ignore=shutil.ignore_patterns("model*", "config.json", "gen*"))
    config = HYBRIDS["qwen3_next"].to_dict() | {"vocab_size": 2048}
    build(type(HYBRIDS["qwen3_next"]).from_dict(config)).save_pretrained(teacher)
    for way in ("auto", "paths"):
        (tmp_path / way).mkdir()
        run_file = write_run(tmp_path / way, texts=(*TEXTS[:3], " ".join(TEXTS[:4] * 2)), targets=TARGETS)
        text = run_file.read_text(encoding="utf-8").replace(str(ASSETS / "teacher"), str(teacher))
        text = text.replace("[corpus]", f'attention = "{way}"\nmax_length = 96\noverlap = 16\n[corpus]')
        run_file.write_text(text, encoding="utf-8")
        out = score_here(run_file)
        for product in ("teacher", "bytes", "student/sp"):
            shards = sorted((out / "data" / product).glob("*.parquet"))
            tables[way, product] = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    for product, name in (("teacher", "gold_logp"), ("bytes", "gold_logp"), ("student/sp", "gold_logp")):
        ours, theirs = tables["auto", product], tables["paths", product]
        assert len(ours) == len(theirs) == 4
        for a, b in zip(ours, theirs, strict=True):
            pairs = [(x, y) for x, y in zip(a[name], b[name], strict=True) if math.isfinite(y)]
            assert len(pairs) > 10 and max(abs(x - y) for x, y in pairs) <= 0.01
