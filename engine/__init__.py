"""The stages, in the order that the data takes; each file starts with what goes in and what comes out.

What there is to do:
  corpus       files -> work units -> documents
  records      the records of one file: jsonl, json, parquet, text, compressed or not
  columns      one record -> text or conversation, and name, or a problem
  hub          a Hugging Face dataset as a corpus file
  plan         everything that changes the answer -> fingerprint
  regime       what the run file asks for against what the tokenizers allow

Tokenizers, and what they allow (docs/design.md, section 2):
  vocab_file   tokenizer.json, checked; what is not exact BPE is refused
  vocab        a tokenizer as bytes
  chat_files   which chat template a side has
  chat_template  a conversation -> what one side sees, and where each content lies in it
  lines        a document scored in parts: one side's tokens from end to end
  chat         a conversation as every side's line of tokens
  specials     special tokens inside a text as borders of parts
  bpe          derivations, canonical pairs, encodings of all prefixes
  pattern      the pre-tokenizer's pattern, with note of whether a match looked past the end
  remembered   a dict that forgets when it is full, for answers about text
  split        where a text is cut, and which cuts no continuation can move
  cuts         every way in which a text may be cut, over all continuations

The teacher (section 3):
  pending      what is pending at a byte, and how a continuation can cut it
  chunks       the contexts of one small chunk of text, remembered
  contexts     the canonical teacher contexts that a document needs, as a tree
  kinds        what each token does behind a context: never, always, or by the pair rule
  canonical    which next tokens keep a context canonical, and the mass of all others
  teacher      a model, loaded and checked: context trees -> hidden states -> logits
  forest       trees side by side in the rows of a batch
  masks        what each node attends to, as each architecture takes it
  forward      the three ways to run a decoder: chains, trees, paths
  growth       trees scored in rounds, with keys and values kept
  selfcheck    which way a loaded model may be run, found by trying
  windows      trees that fit the teacher's context, batched and packed
  prune        contexts of small weight left out: the trunk first, branches in rounds
  evaluate     a group of documents -> hidden states of all their contexts

From teacher to student (sections 4 to 6); "exact" for students that refine the teacher and for bytes, "beam" for all others (the
regimes beam and fast):
  softmax      hidden states -> probability rows, chunk by chunk, and the weights of all contexts
  expansion    exact: what each teacher token is in student tokens, and the proof that this suffices
  trie         exact: all expansions as one trie
  exact        exact: one document as pairs of contexts and states of the trie
  exact_rows   exact: probability rows -> rows of the student, or of bytes
  ranges       beam: what a range of teacher tokens brings after a boundary, cut by the student
  openness     beam: whether anything that follows can still change that token
  rules        beam: which student token each teacher token begins at a boundary
  outcomes     beam: the same for single strings, and the first units of tokens that settle what is before them
  boundaries   beam: one document seen by one student
  sketch       beam: a probability row as its heaviest tokens and sums by first units
  leaves       beam: the open leaves of every boundary
  calibrate    beam: how each teacher token is usually continued, from a sample of the corpus
  beam         beam: which open leaves are split, and what comes of them
  widen        beam: rounds of teacher evaluations for a group of documents
  pushforward  beam: teacher distributions -> student distributions, with the mass that is open, excluded, pruned
  fast_rows    beam: probability rows -> rows of a student
  positions    masses of a position -> top-k, tail, gold, shares
  emit         hidden states -> rows of every product, chunk by chunk
  tables       rows of a group -> tables, parts put back into their documents
  score        a unit of documents -> tables: the whole engine as one function

On disk (docs/format.md):
  rows         tables -> checked, rounded rows -> bytes of a Parquet file
  publish      a file appears whole under its name, or not at all
  shards       begin or resume an output, publish a unit
  finish       all units sealed -> manifest
  card         README.md of an output, a Hugging Face dataset card
  outfolder    where things lie in an output, read back as typed values
  stream       the reader for trainers; stands alone
"""
