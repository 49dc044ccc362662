"""One HTML file out of figures and documents. It needs no network, and its own rule (Content-Security-Policy) says that nothing
but its three scripts, named by their hashes, may run, and that nothing may be loaded or sent.

All data goes in as one JSON block with `<` escaped, so that no text of a document can end it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

import vl_convert

_DRAW = "window.draw = (place, spec, options) => vegaEmbed(place, spec, options);"


def page_of(data: dict[str, Any]) -> str:
    """The page. data: JSON values, as assets/browser.js and assets/charts.js read them (jobs/report.py)."""
    scripts = {
        "VEGA": vl_convert.javascript_bundle(_DRAW),
        "CHARTS": _asset("charts.js"),
        "BROWSER": _asset("browser.js"),
    }
    for name, script in scripts.items():
        if "</script" in script.lower() or "<!--" in script:  # it would end its own tag
            raise AssertionError(f"script {name} of the page cannot stand in a page")
    policy = (
        f"default-src 'none'; script-src {' '.join(_hash(script) for script in scripts.values())}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": _asset("page.css"), "DATA": json_block(data), **scripts}
    frame = _asset("page.html")
    pieces = []
    for name in (
        "POLICY",
        "STYLE",
        "DATA",
        "VEGA",
        "CHARTS",
        "BROWSER",
    ):  # in the order of the frame: nothing is replaced twice
        before, frame = frame.split(f"@{name}@", 1)
        pieces += [before, parts[name]]
    return "".join([*pieces, frame])


def json_block(data: Any) -> str:
    """JSON that can stand in a script tag: no `<`, so neither `</script` nor `<!--`."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("jobs.page").joinpath("assets", name).read_text(encoding="utf-8")
