"""A small teacher that knows something, trained from the shared texts: python benchmarks/train_lm.py --out teacher

A byte-level BPE tokenizer and a causal language model (Llama-shaped, tied embeddings) on the GSM8K training split and 95 %
of the TinyStories sample, for the benchmarks that need a teacher worth distilling and cannot download one. AdamW, cosine,
fp32, packed sequences, one seed. It runs for --minutes of training, or for --steps, which alone is repeatable: with
--minutes the schedule follows the clock. Prints at the end, for GSM8K test and the last 5 % of the stories apart, nats per
token, bits per byte and the mean entropy of the model's own distribution, each over the tokens of the text and its end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHARED = Path(os.environ.get("TARGETSMITH_SHARED", "../shared"))
BOS, EOS = "<|bos|>", "<|endoftext|>"
# Qwen2's: words with the space before them, digits one by one, marks, runs of spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_texts(text: Path) -> tuple[list[str], dict[str, list[str]]]:
    """(texts to train on, held-out texts by name)."""
    maths: dict[str, list[str]] = {}
    for split in ("train", "test"):
        lines = (text / f"gsm8k/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        maths[split] = [f"{row['question']}\n{row['answer']}" for row in map(json.loads, lines)]
    parts = (text / "tinystories_sample_2MB.txt").read_text(encoding="utf-8").split(EOS)
    stories = [part.strip() for part in parts if part.strip()]
    kept = len(stories) * 95 // 100
    return maths["train"] + stories[:kept], {"gsm8k test": maths["test"], "stories": stories[kept:]}


def train_tokenizer(texts: list[str], vocab: int, out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts BOS before a text; saved, and read back as others will read it."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    specials = [AddedToken(BOS, special=True, normalized=False), AddedToken(EOS, special=True, normalized=False)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=specials, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS).save_pretrained(out)
    read = AutoTokenizer.from_pretrained(out)
    if any(read(text).input_ids != bpe.encode(text).ids for text in texts[:100]):
        raise SystemExit(f"AutoTokenizer does not give the ids back that {out} was trained for")
    return read


def pack(documents: list[list[int]], length: int, generator: torch.Generator) -> torch.Tensor:
    """The documents in a new order, one after the other, cut into rows of length + 1 that share one token."""
    order = torch.randperm(len(documents), generator=generator).tolist()
    flat = torch.tensor([token for i in order for token in documents[i]])
    begins = torch.arange(0, len(flat) - length, length)
    return flat[begins[:, None] + torch.arange(length + 1)]


def train(model: LlamaForCausalLM, documents: list[list[int]], args: argparse.Namespace) -> None:
    """AdamW with a short warm-up and a cosine to a fiftieth, over steps or over the time."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    # With betas (0.9, 0.95), 512 tokens a step and rate 4e-3, it was worse on stories than counts of pairs.
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    generator = torch.Generator().manual_seed(args.seed)
    begin = shown = time.perf_counter()
    step, epoch, losses = 0, 0, []
    rows = pack(documents, args.length, generator)
    place = 0
    while True:
        now = time.perf_counter()
        done = step / args.steps if args.steps else (now - begin) / (60 * args.minutes)
        if now - shown > 30 or done >= 1:
            speed = step * args.batch * args.length / (now - begin)
            loss = sum(losses) / max(1, len(losses))
            print(f"step {step}  {done:4.0%}  epoch {epoch}  loss {loss:.3f}  {speed:,.0f} tokens/s", flush=True)
            shown, losses = now, []
        if done >= 1:
            return
        if place + args.batch > len(rows):
            rows, place, epoch = pack(documents, args.length, generator), 0, epoch + 1
        batch = rows[place : place + args.batch]
        place += args.batch
        rate = args.rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1


@torch.inference_mode()
def measure(model: LlamaForCausalLM, documents: list[list[int]], size: int, length: int) -> dict[str, float]:
    """Held-out figures; a document longer than the context is read in windows that overlap by half."""
    nats = entropy = 0.0
    count = 0
    for ids in documents:
        for start in range(0, max(1, len(ids) - 1 - length // 2), length // 2):
            window = torch.tensor(ids[start : start + length + 1])
            fresh = 0 if start == 0 else length - length // 2  # predicted by the window before
            log_probs = torch.log_softmax(model(input_ids=window[None, :-1], use_cache=False).logits[0, fresh:], -1)
            nats -= log_probs.gather(1, window[fresh + 1 :, None]).sum().item()
            entropy -= (log_probs.exp() * log_probs).sum().item()
            count += len(log_probs)
    return {
        "nats_per_token": nats / count,
        "bits_per_byte": nats / math.log(2) / size,
        "entropy_nats": entropy / count,
        "tokens": count,
        "bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--text", type=Path, default=SHARED / "text", help="folder with gsm8k/ and the TinyStories file"
    )
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training; the rest takes about one more")
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes: this many steps")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence, and the context of the model")
    parser.add_argument("--batch", type=int, default=4, help="sequences per step")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts, held_out = read_texts(args.text)
    tokenizer = train_tokenizer(texts, args.vocab, args.out)
    bos, eos = (tokenizer.get_vocab()[name] for name in (BOS, EOS))
    documents = [[*tokenizer(text).input_ids, eos] for text in texts]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        max_position_embeddings=args.length,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    model = LlamaForCausalLM(config)
    tokens, size = sum(map(len, documents)), sum(len(text.encode()) for text in texts)
    print(f"{model.num_parameters():,} parameters, {tokens:,} tokens of {size / tokens:.2f} bytes", flush=True)
    train(model.train(), documents, args)
    model.eval().save_pretrained(args.out)
    for name, held in held_out.items():
        ids = [[*tokenizer(text).input_ids, eos] for text in held]
        figures = measure(model, ids, sum(len(text.encode()) for text in held), args.length)
        print(f"{name:12}" + "".join(f"{key} {value:.4g}  " for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
