"""Documents that are scored in parts: a conversation, or a text with special tokens in it, goes in; out comes, for every product,
one sequence of tokens from end to end, and which segments of it are scored. Each scored part is a text behind all that the
model has read before it.

Files, in the order of the data:
  segments        token sequences with their scored segments, and how one is put together
  marks           marks in place of contents, and what is left between them
  template        a chat template: a conversation -> text, and where each message's content lies in it
  readings        what a model has read when it writes each scored message
  template_files  which chat template each product has
  special_tokens  special tokens inside a text as boundaries of parts
  conversation    how one product's tokenizer reads conversations
  lead            the first token of a text without a template, where a tokenizer puts a space before it
  shortened       what is left out of a prompt that the teacher has no room for
  segmenting      messages -> the sequence of every product
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.chat.conversation import ChatEncoder, chat_encoders
    from engine.chat.segmenting import ChatSettings, segment_conversation
    from engine.chat.segments import Segment, SegmentedDocument, TokenSequence
    from engine.chat.special_tokens import SpecialSplitter
    from engine.chat.template import ChatTemplate
    from engine.chat.template_files import chat_templates

__all__ = [
    "ChatEncoder",
    "ChatSettings",
    "ChatTemplate",
    "Segment",
    "SegmentedDocument",
    "SpecialSplitter",
    "TokenSequence",
    "chat_encoders",
    "chat_templates",
    "segment_conversation",
]

_FILE_OF = {
    "ChatEncoder": "conversation",
    "ChatSettings": "segmenting",
    "ChatTemplate": "template",
    "Segment": "segments",
    "SegmentedDocument": "segments",
    "SpecialSplitter": "special_tokens",
    "TokenSequence": "segments",
    "chat_encoders": "conversation",
    "chat_templates": "template_files",
    "segment_conversation": "segmenting",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: transformers takes seconds."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
