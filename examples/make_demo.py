"""Build everything that `targetsmith demo` runs on: python examples/make_demo.py [--out FOLDER] [--steps N]

    corpus.jsonl   held-out word problems, one {"id", "text"} a line                    (never seen in training)
    teacher/       byte-level BPE with a Llama-3-like regex + a causal LM really trained on the training split
    student_sp/    SentencePiece-style BPE: no pre-tokenizer, byte fallback, Llama-2's normaliser and decoder
    student_bl/    byte-level BPE with the GPT-2 regex and a smaller vocabulary
    run.toml       the run file over these four;  README.md  how they came about, with the measured figures

What is reproducible, and how far:
  * The corpus and the training split are bit-identical: they depend on Python's `random` alone (demo_corpus.py).
  * The three tokenizers are bit-identical for one release of `tokenizers`: the trainer breaks ties by token id.
  * The weights are bit-identical only for the same torch build, kind of CPU and thread count (set here), because the
    order of float32 sums depends on those; elsewhere rounding differs, and so does, slightly, the held-out loss.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from demo_corpus import SEED, document
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

HELD_OUT_DOCUMENTS = 600
TOKENIZER_DOCUMENTS = 8_000
THREADS = 1  # two threads wait for each other on a busy machine, and the order of sums would depend on them
STEPS = 2_400
BATCH_DOCUMENTS = 16  # per step: about 1,000 tokens; small batches, because steps are what a small model needs
CONTEXT = 512  # tokens, of the teacher
PEAK_LEARNING_RATE = 4e-3

# ---- 1. Three tokenizers ----

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_byte_level(texts: Sequence[str], vocab_size: int, pre_tokenizer, specials: Sequence[str]) -> Tokenizer:
    """Byte-level BPE; the specials get the last ids and are never part of the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(specials), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in specials])
    return tokenizer


def train_sentencepiece_style(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Ids: <unk> <s> </s>, 256 bytes, merged pieces in merge order, single characters. Digits stand alone.

    The pieces are learnt on words (SentencePiece's own rule: a piece never spans a space or two kinds of character),
    but the tokenizer itself has no pre-tokenizer: merges alone decide. Characters too rare for 99.95 % coverage, and
    the newline, have no piece and fall back to bytes.
    """
    marked = ["▁" + text.replace(" ", "▁") for text in texts]
    frequency = Counter(c for text in marked for c in text if c != "\n")
    characters, covered = [], 0
    for c, n in sorted(frequency.items(), key=lambda item: (-item[1], item[0])):
        if covered >= 0.9995 * frequency.total():
            break
        characters.append(c)
        covered += n
    kept = set(characters)
    words = [w for text in marked for w in re.findall(r"▁?[^\W\d]+|\d|▁?[^\w▁\n]+|▁", text) if kept.issuperset(w)]
    learner = Tokenizer(models.BPE())
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(fixed), initial_alphabet=sorted(kept), show_progress=False
    )
    learner.train_from_iterator(words, trainer)
    merges = [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*fixed, *dict.fromkeys(a + b for a, b in merges), *characters]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in fixed[:3]])
    return tokenizer


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, bos: str, eos: str, **more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, **more}
    config |= {"clean_up_tokenization_spaces": False, "model_max_length": CONTEXT}
    write_json(folder / "tokenizer_config.json", config)


def make_tokenizers(texts: Sequence[str]) -> dict[str, Tokenizer]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    llama3 = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated"), byte_level])
    teacher = with_bos(train_byte_level(texts, 2048, llama3, ["<|bos|>", "<|eos|>"]), "<|bos|>")
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    student_bl = train_byte_level(texts, 800, gpt2, ["<|endoftext|>"])  # as GPT-2: one special, and no BOS added
    student_bl.post_processor = processors.ByteLevel(trim_offsets=False)
    student_sp = with_bos(train_sentencepiece_style(texts, 1000), "<s>")
    return {"teacher": teacher, "student_sp": student_sp, "student_bl": student_bl}


# ---- 2. The teacher ----


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-> ids and labels, int64 [B, L], labels -100 on padding. Right padding needs no mask: attention is causal."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
    labels = torch.tensor([[*row, *[-100] * (length - len(row))] for row in rows])
    return ids, labels


def nats(model: LlamaForCausalLM, rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, int]:
    """Sum of -ln p over every token after the first one (the end token included), and how many those are."""
    ids, labels = padded(rows, pad)
    logits = cast(torch.Tensor, model(input_ids=ids, use_cache=False).logits)
    total = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total, sum(len(row) - 1 for row in rows)


def held_out_loss(model: LlamaForCausalLM, rows: Sequence[Sequence[int]], pad: int) -> tuple[float, int]:
    with torch.inference_mode():
        parts = [nats(model, rows[i : i + 32], pad) for i in range(0, len(rows), 32)]
    return sum(float(total) for total, _ in parts), sum(n for _, n in parts)


def train(model: LlamaForCausalLM, rows: list[list[int]], pad: int, steps: int) -> None:
    """One pass, no index twice: AdamW, 5 % warm-up, cosine to zero. Batches of like length, in random order."""
    rng = random.Random(SEED)
    pool = 50 * BATCH_DOCUMENTS  # sort by length only within pools: little padding, yet no order over the whole run
    batches: list[list[list[int]]] = []
    for start in range(0, len(rows), pool):
        near = sorted(rows[start : start + pool], key=len)
        group = [near[i : i + BATCH_DOCUMENTS] for i in range(0, len(near), BATCH_DOCUMENTS)]
        rng.shuffle(group)
        batches += group
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, steps // 20)
    began, seen = time.monotonic(), 0
    for step, batch in enumerate(batches[:steps]):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))
        optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * min((step + 1) / warm, cosine)
        total, n = nats(model, batch, pad)
        (total / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += n
        if step % 100 == 0 or step == steps - 1:
            rate = seen / (time.monotonic() - began)
            print(f"step {step:5d}/{steps}  {total.item() / n:.3f} nats/token  {rate:,.0f} tokens/s", flush=True)


# ---- 3. Everything to disk ----


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_corpus(path: Path, texts: Iterable[str]) -> None:
    lines = (json.dumps({"id": f"demo-{i:04d}", "text": text}, ensure_ascii=False) for i, text in enumerate(texts))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


RUN_FILE = """\
# The run behind `targetsmith demo`. Paths are relative to this file; the demo writes to a folder of its own choice.
output = "demo_out"

[teacher]
model = "teacher"
dtype = "float32"  # stored as float16, computed in float32

[corpus]
paths = ["corpus.jsonl"]
text = "text"
id = "id"
unit_documents = 32
limit = 200  # of 600: what two cores score in a quarter of a minute

[[student]]
name = "sp"  # SentencePiece-style, byte fallback
tokenizer = "student_sp"

[[student]]
name = "bl"  # byte-level, GPT-2 regex
tokenizer = "student_bl"

[targets]
regime = "auto"
top_k = 32
calibration_documents = 16
"""

README = """\
# Demo assets

Made by `python examples/make_demo.py` (seed {seed}); nothing here comes from elsewhere.
Licence: Apache-2.0, as the project.

| file | what | bytes |
|---|---|---:|
| `corpus.jsonl` | {documents} generated word problems ({text_bytes:,} bytes of text), \
held out from all training | {size_corpus:,} |
| `teacher/` | Llama architecture, {parameters:,} parameters: {layers} layers, hidden {hidden}, tied embeddings, \
context {context}, float16 on disk; byte-level BPE, Llama-3-like regex, {vocab_teacher} ids | {size_teacher:,} |
| `student_sp/` | SentencePiece-style BPE with byte fallback, \
Llama-2's normaliser, {vocab_student_sp} ids | {size_student_sp:,} |
| `student_bl/` | byte-level BPE with the GPT-2 regex, {vocab_student_bl} ids | {size_student_bl:,} |
| `run.toml` | the run file over these | {size_run:,} |

**Training.** {steps} steps of {batch} documents, one pass ({train_tokens:,} tokens), AdamW with a cosine schedule,
float32 on {threads} CPU thread, {minutes:.1f} minutes. Documents are `<|bos|>` text `<|eos|>`, right-padded.
The longest one has {longest} tokens: positions beyond that were never trained.
The three tokenizers were trained on the first {tokenizer_documents:,} training documents.

**Held-out loss** (all of `corpus.jsonl`, end token included, weights as stored, computed in float32):
**{loss:.4f} nats/token, {bits:.4f} bits/byte** over {tokens:,} tokens.
Before rounding to float16 {loss_before:.4f} nats/token; untrained {loss_untrained:.4f} nats/token
(ln {vocab_teacher} = {uniform:.4f}).

**Reproducible:** corpus bit for bit; tokenizers bit for bit with one release of `tokenizers` (here {tokenizers});
weights only with the same torch build (here {torch}), kind of CPU and thread count.
"""


def folder_bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the demo assets: corpus, teacher, two student tokenizers.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "jobs" / "demo_assets")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (fewer only to try the script)")
    args = parser.parse_args()
    out: Path = args.out
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)

    held_out = [document("held-out", i) for i in range(HELD_OUT_DOCUMENTS)]
    unwanted = set(held_out)
    texts = [t for t in (document("train", i) for i in range(args.steps * BATCH_DOCUMENTS)) if t not in unwanted]
    tokenizers = make_tokenizers(texts[:TOKENIZER_DOCUMENTS])
    out.mkdir(parents=True, exist_ok=True)
    write_corpus(out / "corpus.jsonl", held_out)
    (out / "run.toml").write_text(RUN_FILE, encoding="utf-8")
    save_tokenizer(tokenizers["teacher"], out / "teacher", "<|bos|>", "<|eos|>")
    save_tokenizer(tokenizers["student_sp"], out / "student_sp", "<s>", "</s>", unk_token="<unk>")
    save_tokenizer(tokenizers["student_bl"], out / "student_bl", "<|endoftext|>", "<|endoftext|>")

    tokenizer = tokenizers["teacher"]
    vocab = tokenizer.get_vocab()
    bos, eos = vocab["<|bos|>"], vocab["<|eos|>"]
    train_rows, held_rows = ([[*e.ids, eos] for e in tokenizer.encode_batch(part)] for part in (texts, held_out))
    longest = max(map(len, train_rows + held_rows))
    if longest > CONTEXT:
        raise SystemExit(f"a document has {longest} tokens, more than the context of {CONTEXT}: shorten the worksheets")
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    model = LlamaForCausalLM(config)
    text_bytes = sum(len(t.encode()) for t in held_out)
    untrained, tokens = held_out_loss(model, held_rows, eos)
    began = time.monotonic()
    train(model, train_rows, eos, args.steps)
    minutes = (time.monotonic() - began) / 60
    before, _ = held_out_loss(model, held_rows, eos)
    model.half().save_pretrained(out / "teacher")
    # safetensors writes files of mode 0600: another user than the one who installed the package could not read them
    (out / "teacher" / "model.safetensors").chmod(0o644)
    stored, _ = held_out_loss(model.float(), held_rows, eos)
    print(f"held-out: {stored / tokens:.4f} nats/token, {stored / math.log(2) / text_bytes:.4f} bits/byte", end=" ")
    print(f"({tokens} tokens; before float16 {before / tokens:.4f}, untrained {untrained / tokens:.4f})")
    sizes = {f"size_{n}": folder_bytes(out / n) for n in tokenizers}
    vocabs = {f"vocab_{n}": t.get_vocab_size() for n, t in tokenizers.items()}
    facts = {
        "seed": SEED,
        "documents": len(held_out),
        "text_bytes": text_bytes,
        "size_corpus": folder_bytes(out / "corpus.jsonl"),
        "size_run": folder_bytes(out / "run.toml"),
        "parameters": model.num_parameters(),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "context": CONTEXT,
        "steps": args.steps,
        "batch": BATCH_DOCUMENTS,
        "train_tokens": sum(map(len, train_rows)),
        "threads": THREADS,
        "minutes": minutes,
        "longest": longest,
        "tokenizer_documents": TOKENIZER_DOCUMENTS,
        "loss": stored / tokens,
        "bits": stored / math.log(2) / text_bytes,
        "tokens": tokens,
        "loss_before": before / tokens,
        "loss_untrained": untrained / tokens,
        "uniform": math.log(len(vocab)),
        "tokenizers": version("tokenizers"),
        "torch": version("torch"),
    }
    (out / "README.md").write_text(README.format(**facts, **sizes, **vocabs), encoding="utf-8")


if __name__ == "__main__":
    main()
