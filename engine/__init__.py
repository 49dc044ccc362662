"""The stages, in the order that the data takes; each file starts with what goes in and what comes out.

What there is to do:
  corpus       files -> work units -> documents
  records      the records of one file: jsonl, json, parquet, text, compressed or not
  columns      one record -> text and name, or a problem
  hub          a Hugging Face dataset as a corpus file
  plan         everything that changes the answer -> fingerprint
  regime       what the run file asks for against what the tokenizers allow

Tokenizers, and what they allow (docs/design.md, section 2):
  vocab_file   tokenizer.json, checked; what is not exact BPE is refused
  vocab        a tokenizer as bytes
  bpe          derivations, canonical pairs, encodings of all prefixes
  pattern      the pre-tokenizer's pattern, with note of whether a match looked past the end
  split        where a text is cut, and which cuts no continuation can move

The teacher (section 3):
  contexts     the canonical teacher contexts that a document needs, as a tree
  teacher      a model, loaded and checked: context trees -> hidden states -> logits
  forest       trees side by side in the rows of a batch
  masks        what each node attends to, as each architecture takes it
  forward      the three ways to run a decoder: chains, trees, paths
  growth       trees scored in rounds, with keys and values kept
  selfcheck    which way a loaded model may be run, found by trying
  windows      trees that fit the teacher's context, batched and packed

From teacher to student (section 4):
  ranges       what a range of teacher tokens brings after a boundary, cut by the student's pre-tokenizer
  rules        which student token each teacher token begins at a boundary
  boundaries   one document seen by one student
  pushforward  teacher distributions -> student distributions, with what is open, excluded, pruned
  emit         hidden states -> rows of every product, chunk by chunk
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
