"""What benchmarks/distill.py measures of a student: bits per byte of held-out texts, and exact answers to problems.

Bits per byte: -log2 of the probability that the student gives to its own tokens of each text and to the end behind them,
summed over all texts, divided by the bytes of the texts in UTF-8. Tokenizers can be compared by it. Exact answers: the
continuation of each prompt by greedy decoding has the right number behind '#### '.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.distill_data import Problem


def begin_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before the first token: the begin token, or the end token where there is none."""
    begin = tokenizer.bos_token_id
    return begin if isinstance(begin, int) else end_id(tokenizer)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise ValueError(f"{tokenizer.name_or_path}: no end token")
    return tokenizer.eos_token_id


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Begin, the tokens of each text, end."""
    begin, end = begin_id(tokenizer), end_id(tokenizer)
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return [[begin, *row, end] for row in rows]


def total_nats(model: PreTrainedModel, rows: Sequence[Sequence[int]], batch: int = 32) -> float:
    """-log of the probability of every token but the first of each row, summed."""
    total = 0.0
    by_length = sorted(rows, key=len)
    with torch.inference_mode():
        for chunk in (by_length[i : i + batch] for i in range(0, len(by_length), batch)):
            longest = max(map(len, chunk))  # right padding needs no attention mask: attention is causal
            ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in chunk], device=model.device)
            labels = torch.tensor(
                [[*row[1:], *[-100] * (longest - len(row) + 1)] for row in chunk], device=model.device
            )
            logits = model(input_ids=ids, use_cache=False).logits
            total += cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
    return total


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    size = sum(len(text.encode()) for text in texts)
    return total_nats(model, encode(tokenizer, texts)) / math.log(2) / size


def continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], longest: int, batch: int = 64
) -> Iterator[str]:
    """Each prompt's greedy continuation by at most `longest` tokens, without the end token, in the order of the prompts."""
    rows = [row[:-1] for row in encode(tokenizer, prompts)]
    end = end_id(tokenizer)
    for chunk in (rows[i : i + batch] for i in range(0, len(rows), batch)):
        widest = max(map(len, chunk))
        ids = torch.tensor([[*[end] * (widest - len(row)), *row] for row in chunk], device=model.device)
        mask = torch.tensor([[0] * (widest - len(row)) + [1] * len(row) for row in chunk], device=model.device)
        with torch.inference_mode():
            grown = model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=longest,
                do_sample=False,
                pad_token_id=end,
                eos_token_id=end,
            )
        yield from tokenizer.batch_decode(grown[:, widest:], skip_special_tokens=True)


def answered(problem: Problem, continuation: str) -> bool:
    """Whether the whole number behind the first mark is the answer."""
    _, mark, rest = continuation.partition(problem.mark) if problem.mark else ("", "-", continuation)
    found = re.match(r" ?(-?\d[\d,]*)", rest)
    return bool(mark) and found is not None and int(found[1].replace(",", "")) == problem.answer


def exact_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], longest: int = 96
) -> float:
    """The share of problems that the greedy continuation answers. Numbers alone need few tokens, worked answers all."""
    longest = longest if any(problem.mark for problem in problems) else 8
    written = continuations(model, tokenizer, [problem.prompt for problem in problems], longest)
    return sum(answered(problem, text) for problem, text in zip(problems, written, strict=True)) / len(problems)
