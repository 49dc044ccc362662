"""Losses of a student on stored targets: functions of tensors, unreduced, that know nothing of files. In reading order:

    chunks.py      any loss of rows, applied to hidden states chunk by chunk, so that no [R, V] exists as a whole
    sparse.py      forward KL, reverse KL and Jensen-Shannon divergence on the K stored tokens and their tail
    partial.py     partial KL: the first few stored tokens, the rest as one outcome, and the gold token
    sampled.py     cross-entropy with tokens drawn from the teacher (RS-KD)
    bytes_head.py  a byte head beside the student's own, taught by the next-byte distributions (BLD)
    dskd.py        both models' hidden states in each other's space, by attention across the models (DSKD)
    alm.py         likelihoods of chunks of text that both tokenizations share (ALM)
    uld.py         sorted probabilities, whatever their tokens are (ULD)
    multilevel.py  optimal transport of whole answers and of ranks (MultiLevelOT)
    cdm.py         tokens aligned by text and entropy, vocabularies mapped row by row (CDM)
    gold.py        common tokens by id, all others by rank, groups of tokens by the chain rule (GOLD)

Losses of rows take positions that count, and no others: select them with the batch's mask first (`logits[mask]`,
`ids[mask]`, ...). Losses of documents take one document at a time.
"""
