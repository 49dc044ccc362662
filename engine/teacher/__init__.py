"""The teacher model: passages with their context trees in; out come the hidden state and the next-token distribution of every
context, chunk by chunk, and the weight of every context. A context is a sequence of teacher tokens; contexts that share a
beginning are nodes of one tree, which a decoder scores in one pass where its architecture allows it.

Files, in the order of the data:
  packing          token trees side by side in the rows of a batch, and who is whose ancestor there
  attention_masks  what each token of a packed tree may attend to, as the mask that an architecture takes
  decoder          token trees -> last hidden states: as chains, as trees, or as one sequence for each branch
  long_trees       a long window read trunk first, then branches block by block: no square in memory
  cache_rows       the states of single sequences, cut out of a model's cache and put together into another
  incremental      trees scored in rounds over kept keys and values
  kept_states      trees of models that take no mask: the trunk once, branches behind states that were kept
  gauge            how far apart two ways of running a teacher are, and may be; the noise of its kernels
  self_check       whether a loaded model takes trees, and under which mask, found by trying
  state_check      whether it may be led over kept states, found by trying; and the way that is taken
  adapter          a LoRA adapter merged into the weights
  gguf_weights     whether all of a GGUF file is in the model made of it
  quantised        whether quantised weights are unpacked or stay packed; a refusal where they would be other numbers
  loading          files -> a model of transformers on its devices
  model            load a teacher and check it: hidden states and logits
  rank             one of several processes that share a teacher, and how they find each other
  ranks            a teacher that several processes share: rank 0 works, the others follow its passes
  windows          context trees cut into windows that fit the teacher, and put into batches
  sharing          windows of one document that begin alike, read as one
  pruning          contexts of small weight left out
  evaluate         a group of passages -> hidden states of all contexts
  group            the contexts of a group under one numbering: order, edges, weights, bounds of what was pruned
  kept_logits      logits that are asked for more than once, made once
  weight_kernels   log-weights along the edges of a tree, compiled
  softmax          hidden states -> chunks of next-token probabilities
  lm_head          the teacher's lm_head and embedding as a file of the output
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.teacher.evaluate import hidden_states
    from engine.teacher.group import Group, group_of
    from engine.teacher.model import Teacher, load_teacher
    from engine.teacher.softmax import Chunk, Softmax

__all__ = ["Chunk", "Group", "Softmax", "Teacher", "group_of", "hidden_states", "load_teacher"]

_FILE_OF = {
    "Chunk": "softmax",
    "Group": "group",
    "Softmax": "softmax",
    "Teacher": "model",
    "group_of": "group",
    "hidden_states": "evaluate",
    "load_teacher": "model",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: torch and transformers take seconds."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
