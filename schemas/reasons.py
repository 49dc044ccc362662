"""Why a document is in quarantine: the fixed words of the records, what each means, and what to do (docs/operations.md)."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "malformed_json": "the record is not valid JSON, or is not a JSON object",
    "malformed_row": "a row of a .csv or .tsv file has more or fewer fields than the first one",
    "missing_column": "the record lacks a column that the run file names",
    "not_text": "the text column holds something that is not a string",
    "empty_text": "the text is empty",
    "duplicate_id": "another record of the same unit has the same id",
    "invalid_utf8": "the bytes of the record are not valid UTF-8, or the text holds a lone surrogate",
    "not_reversible": "a tokenizer or its normaliser changes the text, so token boundaries have no place in it",
    "unknown_token": "a tokenizer can only write this text with its unknown token",
    "added_token": "the text holds an added token that strips what is beside it, that the teacher has no output for, or that a "
    "subset student spells by itself",
    "tokenizer_fault": "a tokenizer's rules do not hold for this text, such as a byte that no token has",
    "nonfinite_logprob": "the teacher gave NaN or infinity for this document",
    "identity": "a probability identity does not hold for this document (sums, signs)",
    "oom": "the document does not fit into memory even alone in its batch",
    "worker_died": "the process died each time it came to this document",
    "too_long": "a long stretch of signs or accented letters of several kinds, in which no place is certain to be cut",
    "too_short": "the document has too few tokens to predict any",
    "not_messages": "the messages column holds no conversation in a form that is known: messages, each with a role and a content",
    "has_media": "a message holds an image, a sound or a video, which a model of texts does not read",
    "tokens_not_text": "input_ids are no tokens of a text: special tokens inside it, other tokens than its own, or bad labels",
    "no_scored_message": "no message of the conversation has a role of [corpus] roles and is to be learned from (weight, train)",
    "template_error": "a chat template refuses the conversation",
    "template_alters_content": "a chat template changes, drops, repeats or reorders what is said, or two write it differently",
    "template_rewrites_history": "what a chat template writes before a scored message is not what it asks for that message with",
    "prompt_too_long": "what stands before a scored part leaves no room in the teacher's context",
    "special_without_partner": "the text holds a special token of the teacher whose role a student has no token for",
}
"""The fixed words of `reason` in quarantine records, each with its one-line explanation."""

_RECORD = "mend the record at the place that is named"
_TEMPLATE = "name a template that keeps it by chat_template"
REMEDIES: dict[str, str] = {
    "malformed_json": _RECORD,
    "malformed_row": f"{_RECORD}: a field with line ends or commas stands in double quotes",
    "missing_column": f"{_RECORD}, or correct [corpus] text, template, messages or id",
    "not_text": _RECORD,
    "empty_text": _RECORD,
    "duplicate_id": _RECORD,
    "invalid_utf8": f"{_RECORD}: convert the file to UTF-8",
    "not_reversible": "normalise the corpus (NFC, white space), or give that student a run of its own",
    "unknown_token": "normalise the corpus, or give that student a run of its own",
    "added_token": "take the string out of the text, or do without the document; for a subset student add the string to its "
    'tokenizer (add_tokens), or set [targets] regime = "beam"',
    "tokenizer_fault": "do without the document, and report it with the detail",
    "nonfinite_logprob": 'try [teacher] dtype = "float32" (overflow in half precision); else the teacher is broken',
    "identity": "a bug, or a broken teacher: report it with the detail",
    "oom": "a larger machine or a smaller max_length, then --retry-quarantined",
    "worker_died": "look at memory first, then --retry-quarantined",
    "too_long": "raise [corpus] longest_run, break the stretch, or do without the document",
    "too_short": "nothing to do: it has no token to predict",
    "not_messages": "bring the column into one of the forms of docs/runfile.md, or name its keys by role_key and content_key",
    "has_media": "leave the record out, or put what is to be seen or heard into words",
    "tokens_not_text": "score the texts instead of their tokens, or say whose they are by [corpus] input_ids_of",
    "no_scored_message": "name the roles that the conversations have in [corpus] roles",
    "template_error": f"mend the conversation as the template's message says (order of roles, system), or {_TEMPLATE}",
    "template_alters_content": f'set [corpus] thinking = "keep" or "drop", take out what the template drops, or {_TEMPLATE}',
    "template_rewrites_history": f"look at the turns before it (order of roles, tools), or {_TEMPLATE}",
    "prompt_too_long": "shorten what stands before, set [corpus] too_long_prompt, or raise [teacher] max_length",
    "special_without_partner": 'take the special out of the text, or set [corpus] specials = "text"',
}
"""Reason -> what to do about it, in one line."""
