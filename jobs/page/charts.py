"""The figures of an output as Vega-Lite specifications (plain JSON). Colours and fonts are the page's (assets/charts.js).

A chart is a dict with `title`, `words` (how to read it) and `spec`. Charts without anything to show are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from engine.figures import Figures
from engine.figures.models import ProductFigures, Spread
from schemas.products import BYTES

Chart = dict[str, Any]
Rows = list[dict[str, Any]]

_MOST_POINTS = 300
_HEIGHT = 190


def charts_of(figures: Figures) -> list[Chart]:
    """All charts of a page, in its order."""
    return [chart for chart in _all(figures) if chart["spec"]["data"]["values"]]


def _all(figures: Figures) -> Iterator[Chart]:
    products = {name: one for name, one in figures.products.items() if one.width is not None}
    wide = {name: one for name, one in products.items() if one.mean_width}
    color = _color(list(products))
    yield {
        "title": "Certified width",
        "words": "Share of positions whose width is at most x. A guarantee for the worst case, not the error. Exact products "
        "have width 0 everywhere and no curve.",
        "spec": _lines(
            _cumulative(wide, lambda one: one.width),
            _log("width, at most"),
            _share("share of positions"),
            _color(list(wide)),
        ),
    }
    yield {
        "title": "Mass outside the top-k",
        "words": "Share of positions that store all but x of the probability. Further to the left, more is stored.",
        "spec": _lines(
            _cumulative(products, lambda one: one.tail_mass),
            _log("mass not stored, at most"),
            _share("share of positions"),
            color,
        ),
    }
    yield {
        "title": "Mass by rank",
        "words": "Mean probability of the likeliest x tokens together.",
        "spec": _lines(_by_rank(products), _log("tokens, the likeliest first", 2), _share("mean mass"), color),
    }
    yield {
        "title": "Entropy",
        "words": "How uncertain rows are: share of positions with at most x bits, of the stored tokens and all others as one.",
        "spec": _lines(
            _cumulative(products, lambda one: one.entropy),
            _number("entropy, at most, bits"),
            _share("share of positions"),
            color,
        ),
    }
    yield {
        "title": "Surprise",
        "words": "What true tokens cost: share of positions with at most x bits. Longer tokens cost more each and are fewer.",
        "spec": _lines(
            _cumulative(products, lambda one: one.surprise),
            _number("surprise, at most, bits"),
            _share("share of positions"),
            color,
        ),
    }
    yield {
        "title": "Bytes of text a token",
        "words": "Share of tokens by their length in bytes, those without bytes left out.",
        "spec": _lines(_lengths(products), _number("bytes"), _share("share of tokens"), color),
    }
    yield {
        "title": "Tokens a byte",
        "words": "How finely each tokenizer cuts this corpus. Fewer tokens are fewer positions to store and to train on.",
        "spec": _bars(
            [
                {"product": name, "value": one.cost.tokens_per_byte}
                for name, one in products.items()
                if one.cost and one.cost.tokens_per_byte and name != BYTES
            ],
            "tokens a byte", ".3f", color,
        ),
    }  # fmt: skip
    yield {
        "title": "Cost of the text",
        "words": "The same text must cost the same by every tokenizer, but for rounding and mass that is open or non-canonical.",
        "spec": _bars(
            [
                {"product": name, "value": one.cost.bits_per_byte}
                for name, one in products.items()
                if one.cost and one.cost.bits_per_byte is not None
            ],
            "bits a byte", ".4f", color,
        ),
    }  # fmt: skip
    sized = {name: one for name, one in figures.products.items() if one.positions}
    yield {
        "title": "Bytes on disk a position",
        "words": "All columns together, compressed: the mean, and from the smallest to the largest file.",
        "spec": _ranges(
            [
                {
                    "product": name,
                    "value": one.disk_bytes / one.positions,
                    "least": min(one.disk_bytes_per_position),
                    "largest": max(one.disk_bytes_per_position),
                }
                for name, one in sized.items()
            ],
            "bytes a position",
            _color(list(sized)),
        ),
    }
    yield {
        "title": "Published over time",
        "wide": True,
        "words": "Teacher tokens by the times of the seals on the disk; a copied output has other times. Which actor did what is "
        "not stored.",
        "spec": _over_time(figures),
    }


def _cumulative(products: dict[str, ProductFigures], of: Callable[[ProductFigures], Spread | None]) -> Rows:
    rows: Rows = []
    for name, one in products.items():
        if (spread := of(one)) is None:
            continue
        below = 0
        for edge, count in zip(spread.edges[1:], spread.counts, strict=True):
            below += count
            rows.append({"product": name, "x": edge, "y": below / spread.count})
    return rows


def _by_rank(products: dict[str, ProductFigures]) -> Rows:
    rows: Rows = []
    for name, one in products.items():
        total = 0.0
        for rank, mass in enumerate(one.mass_by_rank, start=1):
            total += mass
            rows.append({"product": name, "x": rank, "y": total})
    return rows


def _lengths(products: dict[str, ProductFigures]) -> Rows:
    rows: Rows = []
    for name, one in products.items():
        if (spread := one.token_bytes) is not None and name != BYTES:
            bins = zip(spread.edges, spread.counts, strict=False)
            rows += [{"product": name, "x": low, "y": count / spread.count} for low, count in bins if low > 0]
    return rows


def _over_time(figures: Figures) -> Chart:
    rows: Rows = []
    if (published := figures.published) is not None:
        total = 0.0
        every = max(1, len(published.seconds) // _MOST_POINTS)
        last = len(published.seconds) - 1
        for i, (seconds, tokens) in enumerate(zip(published.seconds, published.teacher_tokens, strict=True)):
            total += tokens
            if i % every == 0 or i == last:
                rows.append({"x": round(seconds, 1), "y": total})
    unit = "s" if not rows or rows[-1]["x"] < 600 else "min" if rows[-1]["x"] < 36_000 else "h"
    per = {"s": 1, "min": 60, "h": 3600}[unit]
    rows = [{"x": row["x"] / per, "y": row["y"]} for row in rows]
    return {
        "data": {"values": rows},
        "mark": {"type": "line", "interpolate": "step-after", "point": len(rows) < 60},
        "encoding": {
            "x": {**_number(f"time since the first seal, {unit}"), "field": "x"},
            "y": {**_number("teacher tokens", "~s"), "field": "y"},
            "tooltip": [
                {"field": "x", "type": "quantitative", "title": unit, "format": ",.1f"},
                {"field": "y", "type": "quantitative", "title": "teacher tokens", "format": ",.0f"},
            ],
        },
        "height": _HEIGHT,
    }


def _color(names: list[str]) -> Chart:
    legend = {"title": None, "orient": "top", "symbolType": "circle"} if len(names) > 1 else None
    return {"field": "product", "type": "nominal", "scale": {"domain": names}, "legend": legend}


def _log(title: str, base: int = 10) -> Chart:
    label = "datum.value < 0.01 ? format(datum.value, '.0e') : format(datum.value, '~r')"
    axis = {"labelOverlap": True, "tickCount": 6, "labelExpr": label}
    return {"type": "quantitative", "title": title, "scale": {"type": "log", "base": base}, "axis": axis}


def _number(title: str, form: str | None = None) -> Chart:
    axis = {"labelOverlap": True, "tickCount": 6} | ({"format": form} if form else {})
    return {"type": "quantitative", "title": title, "axis": axis}


def _share(title: str) -> Chart:
    return {"type": "quantitative", "title": title, "axis": {"format": "~%"}, "scale": {"domainMax": 1, "zero": True}}


def _lines(rows: Rows, x: Chart, y: Chart, color: Chart) -> Chart:
    """A line for each product; the nearest point is named when the pointer is near. In a narrow page as in a wide one."""
    percent = y["axis"].get("format") == "~%"
    y = {**y, "scale": {"zero": True}} if percent and y["title"] == "share of tokens" else y
    hover = {"name": "near", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}
    tooltip = [
        {"field": "product", "type": "nominal"},
        {"field": "x", "type": "quantitative", "title": x["title"], "format": ".3~g"},
        {"field": "y", "type": "quantitative", "title": y["title"], "format": ".2%" if percent else ".3~g"},
    ]
    return {
        "data": {"values": rows},
        "encoding": {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}, "color": color},
        "layer": [
            {"mark": {"type": "line", "clip": True}},
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "params": [hover],
                "encoding": {
                    "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
                    "tooltip": tooltip,
                },
            },
        ],
        "height": _HEIGHT,
    }


def _bars(rows: Rows, title: str, form: str, color: Chart) -> Chart:
    room = {"domainMax": 1.18 * max((row["value"] for row in rows), default=1), "zero": True, "nice": False}
    return {
        "data": {"values": rows},
        "encoding": {
            "y": {"field": "product", "type": "nominal", "title": None, "sort": None, "axis": {"ticks": False}},
            "x": {"field": "value", "type": "quantitative", "title": title, "scale": room, "axis": {"tickCount": 4}},
        },
        "layer": [
            {"mark": {"type": "bar", "height": {"band": 0.6}}, "encoding": {"color": {**color, "legend": None}}},
            {
                "mark": {"type": "text", "align": "left", "dx": 6, "fontWeight": 600},
                "encoding": {"text": {"field": "value", "type": "quantitative", "format": form}},
            },
        ],
        "height": 34 * len(rows),
    }


def _ranges(rows: Rows, title: str, color: Chart) -> Chart:
    x = {"type": "quantitative", "title": title, "scale": {"zero": True}}
    quiet = {**color, "legend": None}
    return {
        "data": {"values": rows},
        "encoding": {"y": {"field": "product", "type": "nominal", "title": None, "sort": None, "axis": {"ticks": False}}},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 6, "strokeCap": "round", "opacity": 0.35},
                "encoding": {"x": {**x, "field": "least"}, "x2": {"field": "largest"}, "color": quiet},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                "encoding": {"x": {**x, "field": "value"}, "color": quiet},
            },
            {
                "mark": {"type": "text", "dy": -13, "fontWeight": 600},
                "encoding": {
                    "x": {**x, "field": "value"},
                    "text": {"field": "value", "type": "quantitative", "format": ".1f"},
                },
            },
        ],
        "height": 40 * len(rows),
    }  # fmt: skip
