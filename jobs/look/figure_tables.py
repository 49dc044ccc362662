"""The figures of an output as tables for a terminal, with a line of words wherever a number could be misread."""

from __future__ import annotations

from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from engine.dataset.store import Out
from engine.figures import Figures, collect, open_published
from engine.figures.models import Place, ProductFigures, Spread
from jobs.look.document_view import CONTROLS, tokens_of, visible
from schemas.counts import counted
from schemas.products import BYTES

PIPE_WIDTH = 130  # columns where the output is not a terminal
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_QUANTILES = ("p05", "p25", "p50", "p75", "p95", "p99")
_MOST_REFUSALS = 3


def width_words(figures: Figures) -> str:
    """What a width is and is not, for people who see .5 in a mean for the first time."""
    if all(product.facts.regime == "imported" for product in figures.products.values()):
        return (
            "Imported rows of another program: a width of 1 is no certificate, and nothing else is known. A true token that is "
            "not in its row costs inf where the files do not tell its log-probability; bits per byte leave such positions out, "
            "and are too low by them."
        )
    aim = f" ([targets] target_error {figures.target_error:g})" if figures.target_error else ""
    left = (
        ""
        if figures.expected_tv is None
        else f" What is expected to be wrong is far less: a total variation of {figures.expected_tv:.2g} in the mean, as the "
        f"search itself has counted over its students{aim}."
    )
    return (
        "Width is a guarantee for the worst case, not the error: the stored distribution is at most this far (total variation) "
        "from the definition, whatever the mass that was left open would do. Means of .4 to .7 are usual for compiled students "
        f"(beam, fast) and no error of that size.{left}"
    )


COST_WORDS = (
    "The same text costs the same by every tokenizer but for rounding, open, pruned and non-canonical mass. Bits per byte count "
    "the documents whose scored bytes are the same in both."
)


def figures_of(out: Out, *, most_positions: int, seed: int) -> Figures:
    """The figures of an output; tokens that it does not have itself are looked for at its tokenizers. Raises OutputError."""
    output = open_published(out)
    return collect(
        output,
        seed=seed,
        most_positions=most_positions,
        tokens_of=lambda product: tokens_of(output.store, product, output.plan.products[product]),
    )


def print_figures(figures: Figures, *, worst: int, stream: TextIO) -> None:
    """All tables. worst: how many positions of each product."""
    console = console_for(stream)
    console.print(headline(figures), markup=False)
    console.print(_products(figures))
    console.print(width_words(figures), markup=False)
    for name, product in figures.products.items():
        if product.width is not None:
            console.print(_spreads(name, product))
    ranked = {name: product for name, product in figures.products.items() if product.mass_by_rank}
    if ranked:
        console.print(_ranks(ranked))
    if figures.differences:
        console.print(_differences(figures))
        console.print(COST_WORDS, markup=False)
    for name, product in figures.products.items():
        for title, places in (("widest", product.widest), ("most surprising", product.most_surprising)):
            if places[:worst]:
                console.print(_places(f"{name}: {title} positions", places[:worst]))
    _print_quarantine(figures, console)
    if (published := figures.published) is not None and published.seconds[-1] > 0:
        # the first unit began before its seal: its tokens are not counted
        rate = sum(published.teacher_tokens[1:]) / published.seconds[-1]
        console.print(
            f"Published within {published.seconds[-1]:,.0f} s from {published.first} on, {rate:,.0f} teacher tokens a "
            "second behind the first unit, by the times of the seals on this disk (a copied output has other times).",
            markup=False,
        )


def console_for(stream: TextIO) -> Console:
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def headline(figures: Figures) -> str:
    """The first lines: which run, how much of it, what was read."""
    state = (
        "finished"
        if figures.finished
        else f"not finished, {figures.sealed:,} of {counted(figures.units, 'unit')} ready"
    )
    read = (
        f"Distributions, costs and places below: of {figures.read_units:,} of {counted(figures.sealed, 'unit')}, by "
        f"seed {figures.seed}."
        if figures.sampled
        else "All that is published was read."
    )
    each = "" if figures.evaluations_per_token is None else f" ({figures.evaluations_per_token:.3f} a token)"
    sources = "".join(f"\n  {name}: {counted(count, 'document')}" for name, count in figures.sources.items())
    return (
        f"{figures.out}: run {figures.fingerprint[:12]} of targetsmith {figures.engine_version}, {state}\n"
        f"{counted(figures.documents, 'document')}, {figures.quarantined:,} in quarantine; {figures.text_bytes:,} bytes of text, "
        f"{figures.teacher_tokens:,} teacher tokens, {figures.teacher_evaluations:,} evaluations{each}{sources}\n{read}"
    )


def number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def _products(figures: Figures) -> Table:
    headings = [
        "scored",
        "stored mass",
        "width",
        "non-canon.",
        "bits/byte",
        "tokens/byte",
        "top-1 true",
        "disk MB",
        "bytes/pos",
    ]
    name = Column("product", overflow="fold", min_width=10)
    table = Table(name, "regime", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, product in figures.products.items():
        facts, cost = product.facts, product.cost
        made = facts.regime if facts.codec == "topk" else f"{facts.regime}, {facts.codec}"
        table.add_row(
            escape(name),
            made,
            f"{product.scored:,}",
            number(product.mean_stored_mass, ".6f"),
            number(product.mean_width, ".2e"),
            number(product.mean_noncanonical_mass, ".2e"),
            number(cost and cost.bits_per_byte, ".4f"),
            "1" if name == BYTES else number(cost and cost.tokens_per_byte, ".4f"),
            number(product.agreement, ".2%"),
            f"{product.disk_bytes / 1e6:,.2f}",
            number(product.disk_bytes / product.positions if product.positions else None, ".1f"),
        )
    return table


def _spreads(name: str, product: ProductFigures) -> Table:
    table = Table(Column(name, min_width=32), box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("mean", *_QUANTILES, "largest"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=8)
    rows: list[tuple[str, Spread | None]] = [
        ("certified width", product.width),
        ("mass that is not stored", product.tail_mass),
        ("entropy, bits", product.entropy),
        ("surprise of the true token, bits", product.surprise),
        ("bytes of text a token", product.token_bytes),
    ]
    for title, spread in rows:
        if spread is not None:
            table.add_row(
                title, *(number(value) for value in (spread.mean, *(spread.quantiles[q] for q in _QUANTILES), spread.largest))
            )  # fmt: skip
    return table


def _ranks(products: dict[str, ProductFigures]) -> Table:
    longest = max(len(product.mass_by_rank) for product in products.values())
    ranks = [rank for rank in _RANKS if rank <= longest]
    table = Table(Column("mean mass of the likeliest", min_width=32), box=SIMPLE_HEAD, pad_edge=False)
    for rank in ranks:
        table.add_column(f"{rank}", justify="right", min_width=8)
    for name, product in products.items():
        masses = product.mass_by_rank
        table.add_row(
            escape(name), *(number(sum(masses[:rank]) if rank <= len(masses) else None, ".4f") for rank in ranks)
        )
    return table


def _differences(figures: Figures) -> Table:
    table = Table(Column("cost of the same text", min_width=32), "beside", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("documents", "left out", "bits/byte", "beside", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for difference in figures.differences:
        table.add_row(
            escape(difference.product),
            escape(difference.against),
            f"{difference.documents:,}",
            f"{difference.left_out:,}",
            number(difference.bits_per_byte, ".4f"),
            number(difference.against_bits_per_byte, ".4f"),
            number(difference.difference_bits_per_byte, "+.4f"),
            "[bold red]finding: look at it[/]"
            if difference.finding
            else ""
            if difference.documents
            else "none to compare",
        )
    return table


def _places(title: str, places: tuple[Place, ...]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("document", overflow="fold", max_width=22)
    for heading in ("#", "width", "bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("text before, the token, text behind", overflow="fold")
    table.add_column("likeliest", overflow="fold", max_width=16)
    for place in places:
        before, token, after = (visible(text.encode()) for text in (place.before, place.token, place.after))
        table.add_row(
            escape(place.doc_id.translate(CONTROLS)),
            str(place.position),
            f"{place.width:.2g}",
            number(place.surprise_bits, ".1f") if place.surprise_bits is not None else "inf",
            f"[dim]{escape(before[-36:])}[/][bold]{escape(token)}[/][dim]{escape(after[:24])}[/]",
            escape(visible(place.likeliest.encode())),
        )
    return table


def _print_quarantine(figures: Figures, console: Console) -> None:
    for refused in figures.quarantine:
        console.print(f"{refused.count:6,} in quarantine  {refused.reason}: {refused.meaning}", markup=False)
        console.print(f"          do: {refused.remedy}", markup=False)
        for one in refused.samples[:_MOST_REFUSALS]:
            console.print(f"          {one.doc_id}: {one.detail}".translate(CONTROLS), markup=False)
