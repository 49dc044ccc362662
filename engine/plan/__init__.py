"""What a run is: the run file, the scanned corpus, the teacher's files and all tokenizers go in; out comes a Plan with its
fingerprint (everything that changes the answer, and nothing else), and the run file as actors on other machines get it. What
these tokenizers do not allow is refused here, before anything is written.

Files, in the order of the data:
  teacher_place  where the teacher lies: a folder, a GGUF file, or the Hub, from which it is fetched
  teacher_config  its configuration as transformers reads it; what is no causal language model is refused
  teacher_files  the files that decide what the teacher answers, and their sha256
  adapter_files  the files of a LoRA adapter for it
  vocabularies   the tokenizers of a run, loaded in one way for everybody
  regimes        how each student's product is made: what is asked for against what its tokenizer allows
  added_in_corpus  added texts that a subset student spells, looked for in the corpus
  begin_end      begin and end tokens against what transformers makes of the same files
  make_plan      run file, corpus, files and tokenizers -> plan and fingerprint
  teacher_size   how large the teacher is, from its configuration and the heads of its files
  teacher_split  how the teacher is shared out among the GPUs of an actor
  host_memory    how much memory there is on this machine
  teacher_fit    what a teacher takes beside what there is: refused with the arithmetic where it cannot fit
  estimate       what a run will take and give, from a trial of a few documents
  untried        the same without a teacher: tokens, and sizes by rule of thumb
  other_files    what lies in an output beside the products' shards, by kind
  pin            the run file with absolute paths and commits, for actors
  token_files     the tokens of every product put into the output
  retry          the quarantined documents of a finished run as a run of their own

`make_plan` and `pin` bear the names of their files, so they are imported from there, not from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.plan.make_plan import ENGINE_VERSION
    from engine.plan.retry import find_retry, read_retried, retry_plan
    from engine.plan.vocabularies import Vocabularies, load_vocabularies

__all__ = [
    "ENGINE_VERSION",
    "Vocabularies",
    "find_retry",
    "load_vocabularies",
    "read_retried",
    "retry_plan",
]

_FILE_OF = {
    "ENGINE_VERSION": "make_plan",
    "Vocabularies": "vocabularies",
    "find_retry": "retry",
    "load_vocabularies": "vocabularies",
    "read_retried": "retry",
    "retry_plan": "retry",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: transformers takes seconds."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
