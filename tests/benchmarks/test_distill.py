"""The pieces of benchmarks/distill.py: its measures against slow twins, its data, and every loss on a small real run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.distill import RUNS, Protocol, Results, make_student, table, train
from benchmarks.distill_data import Problem, Setting, arithmetic, stored_bytes
from benchmarks.distill_measure import answered, begin_id, bits_per_byte, continuations, encode, end_id, exact_answers
from benchmarks.distill_methods import METHODS, View, make_context
from engine.reader.collate import student_inputs
from engine.reader.targets import Targets
from tests.support.runs import ASSETS, TEXTS, score_here, write_run

SMALL = Protocol(documents=len(TEXTS), steps=3, hidden=32, layers=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ASSETS / "student_bl")


def student(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    return make_student(SMALL, len(tokenizer), begin_id(tokenizer), end_id(tokenizer), seed).eval()


def test_bits_per_byte_is_a_sum_token_by_token(tokenizer: PreTrainedTokenizerBase) -> None:
    model, bits = student(tokenizer, 1), 0.0
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        ids = [begin_id(tokenizer), *ids, end_id(tokenizer)]
        for i in range(1, len(ids)):
            logits = model(input_ids=torch.tensor([ids[:i]])).logits[0, -1].double()
            bits -= (logits[ids[i]] - logits.logsumexp(0)).item() / math.log(2)
    assert bits_per_byte(model, tokenizer, TEXTS) == pytest.approx(bits / len("".join(TEXTS).encode()), rel=1e-5)


def test_continuations_do_not_depend_on_what_is_beside_them(tokenizer: PreTrainedTokenizerBase) -> None:
    model = student(tokenizer, 2)
    prompts = ["Question: 3 + 4 =", "A", "Anna has 3 apples and buys 4 more. How many? Answer:"]
    together = list(continuations(model, tokenizer, prompts, 12))
    assert together == [next(continuations(model, tokenizer, [prompt], 12)) for prompt in prompts]
    ids = encode(tokenizer, prompts[:1])[0][:-1]
    for _ in range(12):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids[-12:], skip_special_tokens=True) == together[0]


@pytest.mark.parametrize(
    ("mark", "text", "right"),
    [
        ("#### ", " 3 + 4 = 7. Anna has 7 apples.\n#### 7", True),
        ("#### ", " 3 + 4 = 7.\n#### 70", False),
        ("#### ", " #### 8\n#### 7", False),
        ("#### ", " 7", False),
        ("#### ", " #### 7, for all.", True),
        ("#### ", " #### 7,000", False),
        ("", " 7. Anna", True),
        ("", "7", True),
        ("", " 70", False),
        ("", " -7", False),
        ("", " is 7", False),
        ("", "", False),
    ],
)
def test_an_answer_is_right_where_the_whole_number_is(mark: str, text: str, right: bool) -> None:
    assert answered(Problem("", mark, 7), text) == right


def test_a_student_that_knows_the_answers_has_them_all_right(tokenizer: PreTrainedTokenizerBase) -> None:
    """Learnt by heart; then other answers are asked of it."""
    problems = [Problem("A has 3 and 4.\nAnswer:", "#### ", 7), Problem("B loses 2 of 14.\nAnswer:", "#### ", 12)]
    texts = [f"{problem.prompt} it is\n#### {problem.answer}" for problem in problems]
    model = student(tokenizer, 3).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rows = [torch.tensor([row]) for row in encode(tokenizer, texts)]
    for _ in range(60):
        for row in rows:
            loss = cross_entropy(model(input_ids=row).logits[0, :-1], row[0, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    assert exact_answers(model, tokenizer, problems) == 1
    assert exact_answers(model, tokenizer, [Problem(p.prompt, p.mark, p.answer + 1) for p in problems]) == 0
    half = [problems[0], Problem(problems[1].prompt, "#### ", 13)]
    assert exact_answers(model, tokenizer, half) == 0.5


def test_the_problems_are_right_and_held_out_texts_are_not_trained_on(tmp_path: Path) -> None:
    setting = arithmetic(200, tmp_path, held=50, problems=40)
    assert not set(setting.train) & {*setting.held, *setting.longer}
    for kind, problems in setting.problems.items():
        assert len(problems) == 40
        for problem in problems if kind != "solve" else ():
            left, sign, right = problem.prompt.removesuffix(" =").rsplit(" ", 3)[1:]
            value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[sign](
                int(left), int(right)
            )
            assert value == problem.answer
    assert all(problem.prompt.count(",") >= 5 for problem in setting.problems["long"])
    assert all(
        problem.prompt.endswith("Answer:") and "=" not in problem.prompt for problem in setting.problems["solve"]
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setting, Path]:
    folder = tmp_path_factory.mktemp("distill")
    for name, targets in RUNS.items():
        place = folder / f"{name}-run"
        place.mkdir()
        out = score_here(write_run(place, students={"small": ASSETS / "student_bl"}, targets=targets))
        out.rename(folder / name)
    return Setting("small", ASSETS / "teacher", ASSETS / "student_bl", TEXTS, TEXTS[:2], batch=3), folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_gives_the_same_twice(method: str, scored: tuple[Setting, Path]) -> None:
    """Three steps; equal seeds give equal figures, and the loss did change the student."""
    first, second = (train(scored[0], method, 0, 0.01, SMALL, scored[1]) for _ in range(2))
    assert first | {"seconds": 0} == second | {"seconds": 0}
    assert first["held"] != train(scored[0], method, 0, 0.0, SMALL, scored[1])["held"]
    assert (first["bytes"] > 0) == bool(METHODS[method].needs)


@pytest.mark.parametrize("method", ["ce", "forward_kl", "partial_kl", "sampled_ce"])
def test_a_loss_of_rows_asks_the_head_about_no_other(method: str, scored: tuple[Setting, Path]) -> None:
    """As if the texts' beginnings were prompts; twin: logits of all positions first."""
    setting, folder = scored
    out, small = folder / METHODS[method].run, AutoTokenizer.from_pretrained(setting.tokenizer)
    targets = Targets(out, "small")
    batch = next(iter(targets.batches(4)))
    batch["loss_mask"][:, :5] = False
    batch["mask"] &= batch["loss_mask"]
    model, ids_BL = student(small, 4), student_inputs(batch, begin_id(small))
    hidden_BLD = model.model(input_ids=ids_BL).last_hidden_state
    context, asked, losses = make_context(out, setting.teacher, setting.tokenizer, targets, model), [], []
    for first in (False, True):

        def head(hidden: torch.Tensor) -> torch.Tensor:
            asked.append(hidden[..., 0].numel())
            return model.lm_head(hidden)

        view = View(batch, ids_BL, hidden_BLD, head)
        if first:
            assert view.logits_BLV.shape[:2] == ids_BL.shape
        losses.append(METHODS[method].loss(view, context).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert asked == [int(batch["loss_mask"].sum()), ids_BL.numel()]


def test_bytes_are_of_the_columns_that_a_method_needs(scored: tuple[Setting, Path]) -> None:
    out = scored[1] / "topk"
    few, all_of_it = (stored_bytes(out, {"small": c}, "small") for c in (("tail_logp",), ("tail_logp", "topk_ids")))
    assert 0 < few < all_of_it < sum(path.stat().st_size for path in Targets(out, "small").files)


def test_finished_trainings_are_not_run_again(scored: tuple[Setting, Path], tmp_path: Path) -> None:
    setting, folder = scored
    file = tmp_path / "results.jsonl"
    first = Results(file).get(setting, "ce", 0, 0.01, SMALL, folder)
    again = Results(file).get(setting, "ce", 0, 0.01, SMALL, tmp_path / "no such run")
    assert again == json.loads(file.read_text()) and again["held"] == first["held"]
    assert f"{first['held']:.4f}" in table({"ce": [first]})
