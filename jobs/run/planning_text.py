"""What a run will take and give, for a person."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from engine.plan.estimate import Estimate
from jobs.run.planning import Told
from schemas.counts import counted
from schemas.manifest import REGIMES
from schemas.reasons import REMEDIES

_WIDTH = 110
_COLUMNS = ("positions", "bytes/token", "stored mass", "open", "width", "bytes/pos", "on disk")


def as_text(told: Told) -> str:
    """Lines for a terminal."""
    stream = io.StringIO()
    console = Console(file=stream, highlight=False, soft_wrap=True, width=_WIDTH)
    found = told.estimate
    source = (
        f"from {counted(told.tried, 'document')} scored here"
        if told.tried
        else "by rule of thumb: nothing was scored (--sample N does)"
    )
    console.print(f"plan of {told.output}, {source}\n", markup=False)
    console.print(
        f"{counted(found.documents, 'document')}, {_size(found.text_bytes)} of text, about {found.teacher_tokens:,} "
        "teacher tokens, "
        f"{found.evaluations_per_token:.2f} evaluations each"
    )
    headings = [
        Column("product", overflow="fold"),
        Column("regime"),
        *(Column(name, justify="right") for name in _COLUMNS),
    ]
    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for name, product in found.products.items():
        shares = (product.stored_mass, product.open_mass, product.width)
        table.add_row(
            name,
            product.regime,
            f"{product.positions:,}",
            f"{product.text_bytes_per_token:.2f}",
            *("-" if share is None else f"{share:.4f}" for share in shares),
            f"{product.bytes_per_position:.1f}",
            _size(product.bytes),
        )
    console.print(table)
    console.print(
        "bytes/token: of text; open: share of mass whose student token hangs on what follows; width: certified, an upper bound\n"
        "that says how much was proven, not how far off a row is; bytes/pos: on disk for each row."
    )
    for regime in dict.fromkeys(product.regime for product in found.products.values()):
        console.print(f"  {regime}: {REGIMES[regime]}", markup=False)
    for name, why in told.why.items():
        console.print(f"  {name} is {found.products[name].regime}: {why}", markup=False)
    console.print("\n".join(_expected(found)), markup=False)
    others = ", ".join(
        f"{kind} {_size(size)}" for kind, size in sorted(found.other_bytes.items(), key=lambda one: -one[1])
    )
    products = _size(sum(product.bytes for product in found.products.values()))
    console.print(f"disk      {_size(found.disk_bytes)}: products {products}, {others}", markup=False)
    parts = ", ".join(f"{what} {_size(count)}" for what, count in told.memory if count)
    console.print(f"memory    {_size(sum(count for _, count in told.memory))} an actor at most: {parts}", markup=False)
    console.print("\n".join(_time(found)), markup=False)
    _say_quarantine(console, told)
    for note in told.notes:
        console.print(f"note: {note}", markup=False)
    return stream.getvalue().rstrip()


def _expected(found: Estimate) -> list[str]:
    if not found.expected_tv:
        return ["error     not estimated: exact, or open mass is bounded by the widths above"]
    told = [
        f"error     expected total variation {found.expected_tv['spent']:.4f} with what this run spends;",
        "          by evaluations a student token:",
    ]
    for budget in (key for key in found.expected_tv if key != "spent"):
        told.append(
            f"            {budget} more: {found.expected_tv[budget]:.4f}, open {found.open_share[budget]:.4f} of the mass"
        )
    return told


def _time(found: Estimate) -> list[str]:
    if found.hours is None:
        return ["time      not known: --sample N measures it here, --gpu KIND works it out, --tokens-per-s gives it"]
    told = (
        f"time      {_hours(found.hours)} with {counted(found.actors, 'actor')} at {found.tokens_per_s:,.0f} "
        "teacher tokens/s in all"
    )
    if found.gpu_hours:
        told += f", {found.gpu_hours:,.1f} GPU-hours"
    lines = [told, f"          {found.how}"]
    if found.price is not None:
        lines.append(f"price     {found.price:,.2f}")
    return lines


def _say_quarantine(console: Console, told: Told) -> None:
    quarantined = told.estimate.quarantined
    if not quarantined:
        console.print("quarantine none expected")
        return
    console.print(f"quarantine about {counted(sum(quarantined.values()), 'document')}:")
    for reason, count in sorted(quarantined.items(), key=lambda one: -one[1]):
        example = f" ({told.examples[reason]})" if reason in told.examples else ""
        console.print(f"  {count:6,}  {reason}{example}", markup=False)
        console.print(f"          do: {REMEDIES[reason]}", markup=False)


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 2 else f"{hours:,.1f} h"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.2f} {unit}"
        count /= 1000
    raise AssertionError
