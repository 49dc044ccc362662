"""The engine. A corpus, a teacher and students' tokenizers go in; an output comes out: for each position of each document the
teacher's distribution over the student's tokens, with what is left open. No Ray, no command line. Each package's own
`__init__` says what goes in, what comes out, and lists its files. In the order of the data:

  corpus      files -> documents
  kernels     one tokenizer as arrays, and compiled functions that ask them
  bpe         one tokenizer as bytes, and what it can write (docs/design.md, section 2)
  chat        a conversation as every tokenizer's tokens
  contexts    a document -> the tree of the teacher's contexts that it needs (section 3)
  alignment   how each student sees the document (sections 4 and 6)
  compiled    a pair of tokenizers as arrays and compiled functions
  dataset     the output, a folder or a bucket (docs/format.md)
  plan        run file, tokenizers, teacher -> the plan and its fingerprint
  teacher     contexts -> hidden states -> chunks of probabilities
  targets     probabilities -> what is stored at each position
  push        the same by compiled functions, for large vocabularies
  beam        where more teacher evaluations are spent, and what they give (section 5)
  scoring     a unit of documents -> its tables: all of the above, loaded once
  verify      an output beside its plan, its corpus and the live teacher
  figures     an output in numbers, and two outputs beside each other
  card        an output described, and published on the Hugging Face Hub
  exchange    an output as other programs' files, and theirs as an output (docs/exchange.md)
  reader      for trainers: files -> batches; stands alone
  losses      for trainers: losses on these targets; stands alone
"""
