"""How each product sees a document, without torch: the context tree and a student's tokens go in; out comes, for every row of the
student, which teacher contexts and which of their next tokens make it, and what is certain about that. Students whose tokens
refine the teacher's, and bytes, have exact sums; for all others each teacher token is asked what it begins at a boundary.
docs/design.md, sections 4 and 6, has the lemmas.

Files, in the order of the data:
  expansion    exact: each teacher token as student tokens, and the proof that this holds in every text
  token_trie   exact: all expansions as a trie, in which a range of teacher tokens is an interval
  refinement   exact: one document as pairs of contexts and states of the trie
  token_range  others: what a range of teacher tokens brings behind a boundary, cut by the student
  openness     others: whether what follows can still change the first student token
  rules        others: which student token each teacher token begins at a boundary
  strings      others: the same for single strings, and the beginnings of tokens that settle what is before them
  boundaries   others: one document's boundaries, each with its contexts and rules
  student_view  others: the same as plain arrays, where the pair is compiled
  passage      a text ready to be scored: its tree, and what each product's rows are made from
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.alignment.boundaries import Aligner, Boundary
    from engine.alignment.expansion import Expansion, byte_expansion, subset_expansion, subset_gap
    from engine.alignment.passage import Passage, ProductView
    from engine.alignment.refinement import ExactPairs, exact_pairs
    from engine.alignment.rules import Rule, RuleBook, TeacherTokens
    from engine.alignment.strings import StringRules
    from engine.alignment.token_trie import Trie, build_trie

__all__ = [
    "Aligner",
    "Boundary",
    "ExactPairs",
    "Expansion",
    "Passage",
    "ProductView",
    "Rule",
    "RuleBook",
    "StringRules",
    "TeacherTokens",
    "Trie",
    "build_trie",
    "byte_expansion",
    "exact_pairs",
    "subset_expansion",
    "subset_gap",
]

_FILE_OF = {
    "Aligner": "boundaries",
    "Boundary": "boundaries",
    "ExactPairs": "refinement",
    "Expansion": "expansion",
    "Passage": "passage",
    "ProductView": "passage",
    "Rule": "rules",
    "RuleBook": "rules",
    "StringRules": "strings",
    "TeacherTokens": "rules",
    "Trie": "token_trie",
    "build_trie": "token_trie",
    "byte_expansion": "expansion",
    "exact_pairs": "refinement",
    "subset_expansion": "expansion",
    "subset_gap": "expansion",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: plan needs `expansion` only."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
