"""The tokens of every product put into the output, so that it explains itself: run file and plan go in, small files come out."""

from __future__ import annotations

from engine.bpe.vocabulary import Vocabulary
from engine.dataset.layout import MANIFEST, load_manifest
from engine.dataset.store import Store
from engine.dataset.token_tables import TokenTable, facts_by_owner, readable, token_file
from engine.plan.vocabularies import load_tokenizer
from schemas.manifest import Plan, ProductFacts
from schemas.products import BYTES
from schemas.runfile import RunConfig


def publish_tokens(store: Store, run: RunConfig, plan: Plan) -> None:
    """Write the vocabularies that are not there; of a finished run only those that its manifest lists. Raises TokenizerError, and
    OutputError where it cannot be written."""
    listed = load_manifest(store).vocabularies or {} if store.exists(MANIFEST) else None
    sources = {source.product: source for source in run.tokenizers}
    for product, facts in facts_by_owner(plan.products).items():
        name = token_file(product)
        if store.exists(name) or (listed is not None and product not in listed):
            continue
        table = TokenTable.of_bytes() if product == BYTES else token_table(load_tokenizer(sources[product]), facts)
        store.put_if_absent(name, table.to_bytes(facts.tokenizer_hash))


def token_table(vocabulary: Vocabulary, facts: ProductFacts) -> TokenTable:
    """The tokens of a vocabulary, with the roles that they have in a run."""
    pieces = vocabulary.token_bytes[: facts.vocab_size]
    pieces = [*pieces, *[None] * (facts.vocab_size - len(pieces))]
    ends = {facts.bos_id: "begin", facts.eos_id: "end"}
    names, roles = [], []
    for token_id, piece in enumerate(pieces):
        if piece is not None:
            names.append(readable(piece))
            roles.append("text")
            continue
        names.append(vocabulary.tokenizer.id_to_token(token_id) or "")
        roles.append(ends.get(token_id, "special" if token_id in vocabulary.specials else "none"))
    return TokenTable(pieces, names, roles)
