"""Random toy tokenizers and table-driven teachers.

A toy tokenizer is a real `tokenizers` BPE over a handful of characters, saved and read back by the real loader. A table
teacher is p(next token | last one or two tokens) from a seeded hash, float64, so that every probability is known.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from engine.bpe.vocabulary import SPACE_MARK, Vocabulary, byte_alphabet, load_vocabulary

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_LEVEL = ("none", "gpt2", "llama3", "digits", "number")
SENTENCEPIECE = ("prepend", "never", "bare")
POOL = ("a", "b", "s", " ", "1", "'", "\n", "é", "×", "\u00a0")
Merges = int | Sequence[tuple[str, str]]
SPELL = {byte: char for char, byte in byte_alphabet().items()}


def alphabet(rng: random.Random) -> tuple[str, ...]:
    """Three to five characters, a letter and the space among them (a SentencePiece side always has the space)."""
    weights = (6, 3, 2, 5, 3, 2, 2, 3, 2, 1)
    size = rng.choice((3, 4, 4, 5))
    chosen = {"a", " "}
    while len(chosen) < size:
        chosen.add(rng.choices(POOL, weights)[0])
    return tuple(sorted(chosen))


def toy(
    rng: random.Random,
    folder: Path,
    style: str,
    chars: Sequence[str],
    *,
    whole: bool,
    merges: Merges,
    added: Sequence[str] = (),
) -> Vocabulary:
    """One random tokenizer through the real loader. `whole`: ignore_merges, and words that only it can make
    (byte-level only). merges: how many random ones, or the list itself, as pairs of symbols. added: added tokens that are
    text."""
    tokenizer = (
        _byte_level(rng, style, chars, whole, merges)
        if style in BYTE_LEVEL
        else _sentencepiece(rng, style, chars, merges)
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return load_vocabulary(str(folder))


def _byte_level(rng: random.Random, style: str, chars: Sequence[str], whole: bool, merges: Merges) -> Tokenizer:
    symbols = sorted(SPELL[b] for b in bytes_in_use(chars))
    vocab, made = _random_merges(rng, symbols, merges)
    if whole:
        vocab += sorted({"".join(rng.choices(symbols, k=rng.choice((2, 3)))) for _ in range(3)} - set(vocab))
    rng.shuffle(vocab)
    ids = {token: i for i, token in enumerate(["<s>", "</s>", "<x>", *vocab])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=made, ignore_merges=whole))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    patterned = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = {
        "none": bytes_only,
        "gpt2": patterned,
        "llama3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), bytes_only]),
        "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), patterned]),
        "number": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), bytes_only]),
    }[style]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>", "<x>")])
    return tokenizer


def _sentencepiece(rng: random.Random, style: str, chars: Sequence[str], merges: Merges) -> Tokenizer:
    symbols = [SPACE_MARK, *(c for c in chars if c != " " and (c.isascii() or rng.random() < 0.5))]
    vocab, made = _random_merges(rng, symbols, merges)
    rng.shuffle(vocab)
    own = {ord(c) for c in vocab if len(c) == 1 and c.isascii()} if len(made) % 3 == 0 else set()  # as Gemma 1 has "\t"
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256) if b not in own), *vocab]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(names)},
            merges=made,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    marks = normalizers.Replace(" ", SPACE_MARK)
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), marks])
    elif style == "bare":
        tokenizer.normalizer = marks
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=rng.random() < 0.5)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def _random_merges(rng: random.Random, symbols: list[str], count: Merges) -> tuple[list[str], list[tuple[str, str]]]:
    """Random merges of random tokens; some tokens have two merges, some lists have wholes before their parts."""
    if not isinstance(count, int):
        return [*symbols, *dict.fromkeys(a + b for a, b in count)], list(count)
    vocab, made = list(symbols), []
    for _ in range(count):
        left, right = rng.choice(vocab), rng.choice(vocab)
        if len(left + right) <= 4 and (left, right) not in made:
            made.append((left, right))
            if left + right not in vocab:
                vocab.append(left + right)
    if rng.random() < 0.2:
        rng.shuffle(made)
    return vocab, made


def added_texts(rng: random.Random, chars: Sequence[str]) -> list[str]:
    """One to four texts of one to three characters, such that one may begin, end or lie in another."""
    return sorted({"".join(rng.choices(chars, k=rng.choice((1, 2, 2, 3, 3)))) for _ in range(rng.randint(1, 4))})


def bytes_in_use(chars: Sequence[str]) -> set[int]:
    """The bytes of an alphabet; beside two-byte characters also the tails of ², µ, ÷ and ÿ, so that after a lead byte
    the character can still become a number, a sign or a letter."""
    own = {b for c in chars for b in c.encode()}
    return own | {0xB2, 0xB5, 0xB7, 0xBF} if max(own) >= 0x80 else own


def strings(chars: Sequence[str], longest: int) -> list[str]:
    """All strings of at most `longest` characters, the empty one first; closed under suffixes."""
    return ["".join(s) for n in range(longest + 1) for s in itertools.product(chars, repeat=n)]


class TableTeacher:
    """p(t | context) from a hash of the context's last `order` tokens. Masked: only what keeps the text canonical.

    Raw: any token may follow, the end with 0.2 to 0.5, other specials with a little, byte tokens outside the alphabet
    never. Masked: the end only where the tokens are the encoding of their own bytes, a token only where some
    continuation of up to two characters is encoded with it; renormalised. So every text that it generates is canonical.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        chars: Sequence[str],
        seed: int,
        *,
        masked: bool,
        order: int = 1,
        sharp: float = 1.5,
    ) -> None:
        self.vocabulary, self.chars, self.seed, self.masked = vocabulary, chars, seed, masked
        self.order, self.sharp = order, sharp
        self.probes = strings(chars, 2)
        own = bytes_in_use(chars)
        self.two_bytes = two_byte_characters(own, own)
        fallback = set(vocabulary.fallback_ids)
        self.usable = [
            i
            for i, piece in enumerate(vocabulary.token_bytes)
            if piece is not None and not (i in fallback and piece[0] not in own)
        ]
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        self._followers: dict[tuple[int, ...], list[int]] = {}

    def logp(self, context: tuple[int, ...]) -> np.ndarray:
        """float64 [size] log-probabilities after `context`, the text's tokens so far (BOS not among them)."""
        known = self._known.get(context)
        if known is None:
            known = self._known[context] = self._compute(context)
        return known

    def _compute(self, context: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([self.seed, len(context[-self.order :]), *context[-self.order :]])
        weight = np.exp(self.sharp * rng.standard_normal(self.vocabulary.size))
        keep = np.zeros(self.vocabulary.size)
        keep[self.followers(context) if self.masked else self.usable] = 1
        end = rng.uniform(0.2, 0.5)
        weight *= keep
        if weight.sum() > 0:
            weight *= (1 - end) / weight.sum()
        if not self.masked:
            for token, role in self.vocabulary.specials.items():
                weight[token] = end if role == "eos" else 0.01
        elif self._encode(self.bytes_of(context)) == list(context):
            assert self.vocabulary.eos_id is not None
            weight[self.vocabulary.eos_id] = end
        elif (
            weight.sum() == 0
        ):  # a context that no text of this alphabet has: it has no weight, any distribution will do
            weight[self.usable] = 1
        with np.errstate(divide="ignore"):
            return np.log(weight / weight.sum())

    def bytes_of(self, context: Iterable[int]) -> bytes:
        return b"".join(self.vocabulary.token_bytes[t] or b"" for t in context)

    def _encode(self, data: bytes) -> list[int] | None:
        """Real encoding of prefix + text; None when the bytes are no text or do not begin with the prefix."""
        prefix = self.vocabulary.prefix_bytes
        try:
            text = data[len(prefix) :].decode()
        except UnicodeDecodeError:
            return None
        if data and not data.startswith(prefix):
            return None
        return self.vocabulary.tokenizer.encode(text, add_special_tokens=False).ids

    def followers(self, context: tuple[int, ...]) -> list[int]:
        """Tokens t such that some text is encoded as context, t, ...; sorted."""
        if context not in self._followers:
            self._followers[context] = self._find_followers(context)
        return self._followers[context]

    def _find_followers(self, context: tuple[int, ...]) -> list[int]:
        head, n = self.bytes_of(context), len(context)
        found: set[int] = set()
        for token in self.usable:
            grown = head + (self.vocabulary.token_bytes[token] or b"")
            for completed in completions(grown, self.two_bytes):
                for probe in self.probes:
                    if token in found:
                        break
                    ids = self._encode(completed + probe.encode())
                    if ids is not None and tuple(ids[:n]) == context and len(ids) > n:
                        found.add(ids[n])
        return sorted(found)

    def sample(self, rng: random.Random, longest: int) -> str | None:
        """One generated text of at most `longest` tokens, or None when it did not end by then."""
        context: tuple[int, ...] = ()
        for _ in range(longest + 1):
            weight = np.exp(self.logp(context))
            token = rng.choices(range(len(weight)), weight.tolist())[0]
            if token == self.vocabulary.eos_id:
                return self.bytes_of(context)[len(self.vocabulary.prefix_bytes) :].decode()
            context = (*context, token)
        return None


def two_byte_characters(leads: Iterable[int], tails: Iterable[int]) -> list[str]:
    """All characters of two bytes with these leads and tails (the alphabet's bytes also spell characters outside it)."""
    tails = sorted(b for b in tails if 0x80 <= b < 0xC0)
    return [bytes([lead, tail]).decode() for lead in sorted(leads) if 0xC2 <= lead < 0xE0 for tail in tails]


def completions(data: bytes, chars: Sequence[str]) -> list[bytes]:
    """`data` itself when it is whole characters; else with its last character completed to one of `chars`."""
    for cut in range(min(4, len(data)) + 1):
        try:
            data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        tail = data[len(data) - cut :]
        if not tail:
            return [data]
        return [data + c.encode()[cut:] for c in chars if len(c.encode()) > cut and c.encode().startswith(tail)]
    return []


def random_text(rng: random.Random, chars: Sequence[str], longest: int = 8) -> str:
    return "".join(rng.choices(chars, k=rng.randint(2, longest)))
