"""What a student learns from stored targets: a student's logits or hidden states and rows of a run go in, a loss per row,
chunk or document comes out, unreduced. Functions of tensors that know no files and keep no state (only the learned parts of
BLD and DSKD are modules), each with its formula, its source and its limits in the docstring.

Losses of rows take the rows that count, and no others: select them with the batch's mask first (`logits[mask]`,
`ids[mask]`, ...). Losses of documents take one document at a time. Each is imported from its file:
`from engine.losses.sparse import forward_kl`.

This package stands alone: it needs numpy and torch, and imports nothing else of the project. `targetsmith vendor losses DEST`
copies it into a trainer, under any name.

  chunked_head     any loss of rows, applied to hidden states chunk by chunk, so that no [R, V] exists as a whole
  full_vocabulary  forward KL over the whole vocabulary, from hidden states of student and teacher
  sparse           forward KL, reverse KL and Jensen-Shannon divergence on the K stored tokens and their tail
  partial          partial KL: the first few stored tokens, the rest as one outcome, and the gold token
  sampled          cross-entropy with tokens drawn from the teacher (RS-KD)
  bytes_head       a byte head beside the student's own, taught by the next-byte distributions (BLD)
  logmath          log-probabilities that stay exact near 0 and near 1; means over groups of rows
  dskd             both models' hidden states in each other's space, by attention across the models (DSKD)
  align            the chunks of text that two tokenizations share, found by byte ends
  alm              likelihoods of these chunks (ALM)
  uld              sorted probabilities, whatever their tokens are (ULD)
  multilevel       optimal transport of whole answers and of ranks (MultiLevelOT)
  strings          tokens as byte strings: edit distances, dynamic time warping
  cdm              tokens aligned by text and entropy, vocabularies mapped row by row (CDM)
  gold             common tokens by id, all others by rank, groups of tokens by the chain rule (GOLD)
  trainer_loss     the losses of top-k rows in any subclass of Hugging Face's Trainer
"""
