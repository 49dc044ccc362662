"""Secrets out of texts: what is written to files, logs and messages passes through here.

redacted(text)          credentials in URLs, and strings that look like access tokens; hangs on the text alone
without_secrets(text)   that, and the values of environment variables whose names say that they are secret
"""

from __future__ import annotations

import os
import re

MASK = "***"
_PAIR = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*:/{1,3})[^\s'\"]*:[^\s'\"]*@")  # a secret may have / and @ in it
_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*:/{1,3})[^/\s@'\"]+@")  # scheme://user:password@
_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:token|secret|password|passwd|signature|credential|api_?key|access_?key|sig)[\w.-]*=)[^&\s#'\"]+"
)
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|A[KS]IA[A-Z0-9]{16}|glpat-[\w-]{20,})")
_NAMES = re.compile(r"(?i)token|secret|passw|credential|api_?key|access_?key|private_?key")
SHORTEST = 8
"""Characters of an environment variable that is looked for: shorter values stand in too many texts by chance."""


def redacted(text: str) -> str:
    """`text` without user and password of URLs, secret query parameters, and access tokens of well-known forms."""
    text = _USER.sub(rf"\1{MASK}@", _PAIR.sub(rf"\1{MASK}@", text))
    text = _QUERY.sub(rf"\1{MASK}", text)
    return _TOKEN.sub(MASK, text)


def without_secrets(text: str) -> str:
    """`redacted`, and without the values of secret environment variables. For messages; never for what is hashed."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= SHORTEST and not os.path.exists(value):  # ..._TOKEN_PATH is no secret
            text = text.replace(value, MASK)
    return redacted(text)
