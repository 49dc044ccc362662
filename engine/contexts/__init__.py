"""The teacher's contexts of one document: its bytes, its teacher tokens and the bytes that matter to its students go in; out
comes the tree of all sequences of teacher tokens that end there and that some text can have, and, for each of them, which next
tokens no text can have behind it. docs/design.md, section 3, has the lemmas.

Files, in the order of the data:
  tree         the tree as arrays, which all later steps read
  chunks       the part of the tree that one chunk of text gives, made once for each distinct chunk
  builder      a document -> its tree, chunk after chunk
  next_tokens  what each token does behind a context: always, never, or by its pair with the last token
  canonical    which next tokens no text can have behind a context
  illegal      these tokens as lists, and the mass that rows of many contexts give them
  illegal_kernels  the same, compiled
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.contexts.builder import ContextBuilder
    from engine.contexts.canonical import CanonicalNext
    from engine.contexts.tree import ContextTree

__all__ = [
    "CanonicalNext",
    "ContextBuilder",
    "ContextTree",
]

_FILE_OF = {
    "CanonicalNext": "canonical",
    "ContextBuilder": "builder",
    "ContextTree": "tree",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: `canonical` needs torch, the tree does not."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
