"""Why a document is in quarantine: the fixed words of the records, what each means, and what to do (docs/operations.md)."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "malformed_json": "the record is not valid JSON, or is not a JSON object",
    "missing_column": "the record lacks a column that the run file names",
    "not_text": "the text column holds something that is not a string",
    "empty_text": "the text is empty",
    "duplicate_id": "another record of the same unit has the same id",
    "invalid_utf8": "the bytes of the record are not valid UTF-8, or the text holds a lone surrogate",
    "not_reversible": "a tokenizer or its normaliser changes the text, so token boundaries have no place in it",
    "unknown_token": "a tokenizer can only write this text with its unknown token",
    "nonfinite_logprob": "the teacher gave NaN or infinity for this document",
    "identity": "a probability identity does not hold for this document (sums, signs)",
    "oom": "the document does not fit into memory even alone in its batch",
    "worker_died": "the process died each time it came to this document",
    "too_long": "one pre-token (a word, a run of characters) is thousands of characters long",
    "too_short": "the document has too few tokens to predict any",
    "not_messages": "the messages column is no list of objects with a role and a content that is text, and nothing else",
    "no_scored_message": "no message of the conversation has a role of [corpus] roles",
    "template_error": "a chat template refuses the conversation",
    "template_alters_content": "a chat template changes, drops, repeats or reorders what the messages say",
    "template_rewrites_history": "a chat template writes what stands before a scored message by what comes after it",
    "prompt_too_long": "what stands before a scored part leaves no room in the teacher's context",
    "special_without_partner": "the text holds a special token of the teacher whose role a student has no token for",
}
"""The fixed words of `reason` in quarantine records, each with its one-line explanation."""

_RECORD = "mend the record at the place that is named"
_TEMPLATE = "name a template that keeps it by chat_template"
REMEDIES: dict[str, str] = {
    "malformed_json": _RECORD,
    "missing_column": f"{_RECORD}, or correct [corpus] text, template, messages or id",
    "not_text": _RECORD,
    "empty_text": _RECORD,
    "duplicate_id": _RECORD,
    "invalid_utf8": f"{_RECORD}: convert the file to UTF-8",
    "not_reversible": "normalise the corpus (NFC, white space), or give that student a run of its own",
    "unknown_token": "normalise the corpus, or give that student a run of its own",
    "nonfinite_logprob": 'try [teacher] dtype = "float32" (overflow in half precision); else the teacher is broken',
    "identity": "a bug, or a broken teacher: report it with the detail",
    "oom": "a larger machine or a smaller max_length, then --retry-quarantined",
    "worker_died": "look at memory first, then --retry-quarantined",
    "too_long": "break the run of characters in the corpus, or do without the document",
    "too_short": "nothing to do: it has no token to predict",
    "not_messages": "bring the column into the form [{role, content}, ...]; take other keys out",
    "no_scored_message": "name the roles that the conversations have in [corpus] roles",
    "template_error": f"mend the conversation as the template's message says (order of roles, system), or {_TEMPLATE}",
    "template_alters_content": f"take out of the contents what the template drops (thinking, marks), or {_TEMPLATE}",
    "template_rewrites_history": f"end each conversation with its last scored turn, one record a turn, or {_TEMPLATE}",
    "prompt_too_long": "shorten what stands before, or raise [teacher] max_length",
    "special_without_partner": 'take the special out of the text, or set [corpus] specials = "text"',
}
"""Reason -> what to do about it, in one line."""
