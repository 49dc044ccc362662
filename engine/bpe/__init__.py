"""One tokenizer and all that it can write: a `tokenizer.json` goes in; out come the bytes of its tokens, which tokens may
stand side by side, where a text is cut into pre-tokens, which of these cuts stay whatever follows, and the tokens of bytes
that are cut in a given way. Teacher and student are each one of these. docs/design.md, section 2, has the lemmas.

Files, in the order of the data:
  trial_texts      short texts on which tokenizers differ
  rank_lists       a tokenizer that is a list of tokens by rank (tekken.json), as a tokenizer.json
  gguf_tokenizer   the tokenizer in a GGUF file as a folder with tokenizer.json
  tokenizer_files  a folder or Hub id -> the object of its tokenizer.json, made of other files where there is none
  tokenizer_json   that object checked and taken apart; what is not exact BPE is refused
  roles            which special token begins a text, ends it, stands for what is not known
  vocabulary       the tokens as bytes, and an exact encoder
  derivations      how BPE makes each token: merge trees with times
  merges           which tokens may stand side by side; the encodings of all beginnings of a pre-token
  pattern_parts    the parts of a pattern: how each is matched
  pattern          the pre-tokenizer's pattern, matched so that it is known whether the match looked past the end
  added_texts      strings that are one token before anything else is done; where one may be coming
  unit_classes     characters as classes: those with the same answers to all that a pre-tokenizer asks
  stages           the steps of a pre-tokenizer, each cutting the pieces of the one before
  blanks           which white space of a long stretch makes no difference to how a text is cut
  signs            which signs of a stretch make none
  pretokenizer     where a text is cut, and which cuts stay whatever follows
  folding          where the cuts of a part whose long runs were cut short lie in the text
  continuations    all ways in which a text that is not finished may turn out to be cut
  pending          the part of a text behind the last cut that is certain, and its ways to be cut
  spelling         whether tokens along a tree are what their bytes are encoded to, however many they are
  segmenter        vocabulary, merges and pre-tokenizer as one object: tokens of bytes that are cut in a given way
  compare          a tokenizer held against the tokenizers library on strings that tokenizers differ on
  flatten          vocabulary and merges -> the arrays that engine/kernels asks
  successors       which tokens may not stand behind a token, remembered within a bound of bytes
  utf8             incomplete characters: what may complete them, how many do
  nfc              what the normal form NFC may change
  bounded_cache    the one cache for answers about text: it forgets all when it is full
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.bpe.bounded_cache import BoundedCache
    from engine.bpe.merges import MergeTable, build_merge_table
    from engine.bpe.pretokenizer import Splitter, build_splitter
    from engine.bpe.segmenter import Segmenter, build_segmenter
    from engine.bpe.vocabulary import Vocabulary, load_vocabulary

__all__ = [
    "BoundedCache",
    "MergeTable",
    "Segmenter",
    "Splitter",
    "Vocabulary",
    "build_merge_table",
    "build_segmenter",
    "build_splitter",
    "load_vocabulary",
]

_FILE_OF = {
    "BoundedCache": "bounded_cache",
    "MergeTable": "merges",
    "Segmenter": "segmenter",
    "Splitter": "pretokenizer",
    "Vocabulary": "vocabulary",
    "build_merge_table": "merges",
    "build_segmenter": "segmenter",
    "build_splitter": "pretokenizer",
    "load_vocabulary": "vocabulary",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: numpy and tokenizers take their time."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
