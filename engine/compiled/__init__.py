"""One (teacher tokenizer, student tokenizer) pair compiled to arrays. In: two tokenizers. Out: for each pending part of the
student at a boundary, what every teacher token does there, as one number a token, so that a whole row of the teacher's
probabilities is added up without a Python object. The rules of engine/alignment say the same one boundary at a time: they are
the slow twin, and serve the boundaries that arrays do not cover (of SentencePiece inside a character; NFC with bytes as units).

  suffixes      every distinct end of a teacher token: what a token can bring behind a boundary
  answers       what the student makes of each of these strings, before any state is known; the expensive part
  classes       how one state of the student's pre-tokenizer cuts them, by class string
  probe_kernels  compiled: in what all ways agree in which a pending part and such a string may turn out to be cut
  inside        the same where a boundary lies inside a character
  state         one state as arrays
  pair          states: a cell for every string and every token
  pair_kernels  the compiled functions of all these
  odd_cells     which strings of a state sums must keep apart
  words         states behind the beginning of a word that only `ignore_merges` makes
  byte_kernels  the same for SentencePiece, whose units are bytes
  automaton     the student's pending part at every place of a text, in one pass
  pending_states  the compiled state of each of these
  walk          one passage's boundaries as arrays, each with its state
  walk_kernels  compiled: that pass, and which boundaries lie inside the next token of which context
  cache         a pair in files, made once on a machine
"""

from engine.compiled.cache import open_pair
from engine.compiled.pair import CompiledPair, compile_pair
from engine.compiled.state import State

__all__ = ["CompiledPair", "State", "compile_pair", "open_pair"]
