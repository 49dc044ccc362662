"""Where outputs and corpus files lie: a path, or the URL of a store. What a URL may look like."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

STORES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
"""Kinds of URL that can be written, with the fsspec library of each: the ones whose put can be told to create only."""

SOURCES = {**STORES, "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec"}
"""Kinds of URL that a corpus is read from, with the fsspec library of each."""

WEB = ("http", "https")
_LOCAL = ("file:///", "file://localhost/")


def is_url(text: str) -> bool:
    """Whether it is meant as a URL, not as a path; file:///path is a path."""
    return "://" in text and not text.startswith(_LOCAL)


def path_of(text: str) -> Path:
    """A text that is no URL as a path."""
    prefix = next((prefix for prefix in _LOCAL if text.startswith(prefix)), "/")
    return Path(text[len(prefix) - 1 :] if prefix != "/" else text)


def url_fault(url: str) -> tuple[str, str] | None:
    """What is wrong with the URL of an output: (what is wanted, what to do); None when it can be used."""
    kind, _, rest = url.partition("://")
    if kind not in STORES:
        known = ", ".join(f"{name}://" for name in STORES)
        return f"a path, or a URL of {known}", "these stores can be told to create and never to overwrite; use one"
    parts = urlsplit(url)
    credentials = "@" in parts.netloc or re.search(":.*@", rest) or (":" in parts.netloc and "arn:" not in parts.netloc)
    if credentials or parts.query or parts.fragment or "::" in rest:
        return (
            f"{kind}://bucket/prefix and nothing else",
            "credentials belong into the environment or the store's own configuration (docs/operations.md)",
        )
    if not parts.netloc or not parts.path.strip("/"):
        return f"{kind}://bucket/prefix", "add a prefix of its own: its files are managed"
    return None


def source_fault(url: str) -> tuple[str, str] | None:
    """What is wrong with the URL of a corpus file, or a glob of such: (what is wanted, what to do); None when it can be used."""
    kind, _, rest = url.partition("://")
    if kind not in SOURCES or "::" in rest:
        known = ", ".join(f"{name}://" for name in SOURCES)
        return f"a path, or one URL of {known}", "use one of these, or copy the files to a disk"
    netloc = rest.partition("/")[0]
    if kind != "hf" and ("@" in netloc or re.search(":.*@", rest.partition("?")[0])):
        return (
            f"{kind}://place/path without user and password",
            "credentials belong into the environment or the store's own configuration (docs/operations.md)",
        )
    if kind not in WEB and ("#" in rest or not rest.strip("/")):
        return f"{kind}://place/path", "correct it"
    return None


def gguf_parts(place: str) -> tuple[str, str | None]:
    """(folder or Hub id, file in it) of a model that is one GGUF file, such as "/models/x.gguf" or "owner/name/x.gguf"; (place,
    None) of any other."""
    if not place.lower().endswith(".gguf"):
        return place, None
    parts = place.split("/")
    at = -1 if len(parts) < 3 or os.path.isabs(place) else 2  # an id of the Hub is two names
    folder = "/".join(parts[:at]) or (os.sep if os.path.isabs(place) else ".")
    return folder, "/".join(parts[at:])


def without_query(url: str) -> str:
    """A URL of the web without what follows the path, which may hold a signature; others as they are."""
    kind, _, rest = url.partition("://")
    return f"{kind}://{re.split('[?#]', rest, maxsplit=1)[0]}" if kind in WEB else url
