"""The tokenizers of a run, loaded in one way for everybody: the plan, the actors and the estimates see the same ones.

run file -> Vocabularies: the teacher's and each student's vocabulary as texts are read with it, and their chat templates
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.chat.conversation import ChatEncoder, chat_encoders
from schemas.products import TEACHER
from schemas.runfile import RunConfig, TokenizerSource


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """What a run reads texts with. In a run of conversations a text is the content of a message, and its end the end of a turn:
    `teacher` and `students` are then those of `chat`."""

    teacher: Vocabulary
    students: dict[str, Vocabulary]  # by product, in the order of the run file
    hashes: dict[str, str]  # product -> content hash of its tokenizer as it comes, before a chat template changes it
    chat: dict[str, ChatEncoder] = field(repr=False)  # by product; empty unless the corpus holds conversations

    @property
    def by_product(self) -> dict[str, Vocabulary]:
        """The teacher's first, then the students'."""
        return {TEACHER: self.teacher, **self.students}


def load_vocabularies(run: RunConfig) -> Vocabularies:
    """Every tokenizer that the run file names. Raises TokenizerError, and RunFileError for a chat template that is missing
    or that cannot be used."""
    loaded = {source.product: load_tokenizer(source) for source in run.tokenizers}
    hashes = {product: vocabulary.content_hash for product, vocabulary in loaded.items()}
    chat = chat_encoders(run, loaded)
    if chat:
        loaded = {product: chat[product].vocabulary for product in loaded}
    return Vocabularies(loaded.pop(TEACHER), loaded, hashes, chat)


def load_teacher_vocabulary(run: RunConfig) -> Vocabulary:
    """The teacher's tokenizer alone, as it comes. Raises TokenizerError."""
    return load_tokenizer(run.tokenizers[0])


def load_tokenizer(source: TokenizerSource) -> Vocabulary:
    """One of them, as it comes. Raises TokenizerError."""
    return load_vocabulary(
        source.place, revision=source.revision, trust_remote_code=source.trust_remote_code, where=source.where
    )
