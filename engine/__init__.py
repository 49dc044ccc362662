"""The stages, in the order that the data takes; each file is one stage and starts with what goes in and what comes out.

corpus -> vocab, bpe, split -> teacher -> contexts, pushforward -> score -> rows, publish, shards -> stream
"""
