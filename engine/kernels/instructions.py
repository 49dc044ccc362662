"""What a pre-tokenizer's pattern is to compiled code: instructions, three numbers each.

One instruction is (what, a, b); jumps count from the instruction itself. bpe/pattern.py writes them, kernels/cut_kernels.py obeys
them:

  UNIT bit        one unit, of a class that has this bit
  SPLIT a, b      jump by a; where nothing that follows matches, by b
  JUMP a          jump by a
  LINE_END bit    nothing, at the end of the text or before a unit that has this bit
  AHEAD a, b      what follows up to MATCH has to match (a = 1) or must not (a = 0) and takes no unit; then jump by b
  ATOMIC 0, b     what follows up to MATCH, the first way that it matches and no other; then jump by b
  MATCH           done
"""

from __future__ import annotations

Code = tuple[tuple[int, int, int], ...]
MATCH, UNIT, SPLIT, JUMP, LINE_END, AHEAD, ATOMIC = range(7)
