"""One tokenizer as arrays, and compiled functions that ask them: a `FlatTokenizer` or a `CutProgram` and bytes, tokens or class
strings go in, numbers come out, a hundred times as fast as the objects of engine/bpe, which make these arrays and are the slow
twins in tests. Also how compiled functions are declared and kept on disk, here and in the packages that have a `*_kernels.py` of
their own. Each is imported from its file: `from engine.kernels.jit import kernel`. numba takes a moment to load.

Files, each needs those above it:
  jit            how functions are compiled and kept; `python -m engine.kernels.jit` compiles all
  hash_kernels   compiled hash tables and tries
  flat           a tokenizer as arrays
  merge_kernels  compiled twins of what bpe/merges.py answers
  instructions   a pre-tokenizer's pattern as numbers
  cut_kernels    compiled: instructions and class strings -> cuts
  cut_program    a pre-tokenizer as instructions and tables for them
"""
