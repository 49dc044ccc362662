"""The page of `report` in a headless Chromium: it loads without a network and without a word on the console, shows what the
reader reads, can be used by mouse, touch and keyboard, and no text of a document acts on it.

TARGETSMITH_SHOTS=folder keeps the screenshots, to be looked at by people.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.dataset.token_tables import TokenTable, read_tokens, token_file
from engine.figures import open_published
from engine.reader import Targets
from jobs.page.write import write_page
from tests.support.browsers import chromium, opened_browser
from tests.support.runs import TEXTS, score_here, write_run

ATTACK = "</script><img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script><!-- <script>"
BIDI = "left \u202eright\u202c and \u0007 bell"
CHECK = "Anna has 3 apples"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hostile texts, ids, quarantine and, in place of the real ones, hostile names of tokens."""
    chromium()
    lines = "".join(
        json.dumps({"id": name, "text": text}) + "\n"
        for name, text in (("<b onclick=x>", f"Tell me. {ATTACK} 3 + 4 = 7"), ("bidi", BIDI), ("<i>bad</i>", ""))
    )
    out = score_here(write_run(tmp_path_factory.mktemp("run"), lines=lines))
    store, facts = open_published(out).store, open_published(out).plan.products["student/bl"]
    tokens = read_tokens(store, "student/bl", facts)
    assert tokens is not None
    names = [ATTACK if piece in (b" ", b"3") else name for piece, name in zip(tokens.pieces, tokens.names, strict=True)]
    (out / token_file("student/bl")).write_bytes(
        TokenTable(tokens.pieces, names, tokens.roles).to_bytes(facts.tokenizer_hash)
    )
    return out


@pytest.fixture(scope="module")
def page_file(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    said = write_page(out, path, most_positions=10**6, seed=0)
    assert "7 of 8 documents" in said and path.stat().st_size < 5_000_000
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as browser:
        yield browser


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Open]:
    """The page in a window. Behind the test: the console said nothing, no dialog, nothing was asked for but the file itself."""
    contexts, said = [], []

    def open_page(size: dict[str, int] = WIDE, **options: Any) -> Any:
        context = browser.new_context(viewport=size, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if request.url == page_file.as_uri() else said.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_function("window.drawn")
        page.evaluate("window.drawn")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [line for line in said if not line.startswith("data:")] == []


def keep(page: Any, name: str) -> bytes:
    folder = os.environ.get("TARGETSMITH_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return page.screenshot(**({"path": f"{folder}/{name}.png"} if folder else {}))


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def test_it_loads_and_draws_every_chart(opened: Open) -> None:
    page = opened()
    assert page.title() == "out · Targetsmith report"
    titles = texts(page, ".chart b")
    assert {"Certified width", "Mass by rank", "Tokens a byte", "Cost of the text", "Published over time"} <= {*titles}
    for chart in page.locator(".chart").all():
        box = chart.locator("svg").bounding_box()
        assert box["width"] > 200 and box["height"] > 80
        assert chart.locator("svg [role=graphics-symbol]").count() > 0  # marks, not only axes
    assert page.locator("#tiles dd").all_text_contents()[:2] == ["8", "1"]


def test_hostile_texts_are_texts(opened: Open) -> None:
    """Of documents, ids, quarantine and tokens: all are seen as they are, and none acts."""
    page = opened()
    page.locator("#search").fill("onerror")
    assert page.locator("#list li").count() == 1
    page.locator("#list li").click()
    assert "<b onclick=x>" in page.locator("#doc-title").text_content()
    assert ATTACK in "".join(texts(page, ".under .tok")).replace("·", " ")
    seen = ""
    for box in page.locator(".under .tok").all()[:20]:
        box.hover()
        seen += page.locator("#detail").text_content()
    assert ATTACK.replace(" ", "␣") in seen
    assert "corpus.jsonl#7" in page.locator("#quarantine").text_content()
    assert page.evaluate("document.images.length") == 0 and page.locator("body script").count() == 4
    assert page.title() == "out · Targetsmith report"
    assert page.evaluate("document.querySelectorAll('[onerror],[onclick]').length") == 0


def test_the_page_forbids_other_scripts(opened: Open, browser: Any, page_file: Path) -> None:
    """Were a text to become markup all the same, its script would not run."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(page_file.as_uri())
    page.evaluate("""() => {
        const node = document.createElement("div");
        node.innerHTML = "<img src=x onerror=\\"document.title='gone'\\">";
        document.body.append(node);
        const script = document.createElement("script");
        script.textContent = "document.title = 'gone'";
        document.body.append(script);
    }""")
    page.wait_for_timeout(300)
    assert page.title() != "gone" and any("Content Security Policy" in line for line in said)
    context.close()


def test_controls_and_directions_are_named(opened: Open) -> None:
    page = opened()
    page.locator("#search").fill("bell")
    shown = page.locator("#text").text_content()
    assert "⟨202e⟩" in shown and "⟨7⟩" in shown and "\u202e" not in page.locator("body").inner_text()


def test_a_document_is_its_tokens(opened: Open, out: Path) -> None:
    """Boxes are the student's tokens in order, with the teacher's above them; both rows of a place are equally wide."""
    page = opened()
    for product in ("bl", "sp"):
        page.locator("#product").select_option(f"student/{product}")
        page.locator("#search").fill(CHECK)
        for which in ("under", "over"):
            boxes = texts(page, f".{which} .tok")
            assert "".join(boxes).replace("·", " ").rstrip("∎") == TEXTS[0]
        document = next(d for d in Targets(out, product).documents() if d.doc_id == "t0")
        scored = [
            i for i, end in enumerate(document.byte_end.tolist()) if end > (0 if i == 0 else document.byte_end[i - 1])
        ]
        assert page.locator(".under .tok").count() == len(scored) + 1  # the end
    for segment in page.locator(".seg").all():
        over, under = (segment.locator(f".{which}").bounding_box() for which in ("over", "under"))
        tops, bottoms = (segment.locator(f".{which} .tok").all() for which in ("over", "under"))
        if tops and bottoms and "∎" not in (segment.text_content() or ""):
            right = [box.bounding_box() for box in (tops[-1], bottoms[-1])]
            assert right[0]["x"] + right[0]["width"] == pytest.approx(right[1]["x"] + right[1]["width"], abs=1.5)
            assert over["y"] < under["y"]


def test_hover_click_and_keys(opened: Open, out: Path) -> None:
    """What is shown of a position is what the reader reads."""
    page = opened()
    page.locator("#product").select_option("student/sp")
    page.locator("#search").fill(CHECK)
    document = next(d for d in Targets(out, "sp").documents() if d.doc_id == "t0")
    output = open_published(out)
    tokens = read_tokens(output.store, "student/sp", output.plan.products["student/sp"])
    assert tokens is not None

    def check() -> int:
        position = int(page.locator("#detail dd").nth(0).text_content())
        best = [str(tokens.names[t]).replace(" ", "␣").replace("\n", "⏎") for t in document.ids[position][:6].tolist()]
        mine = page.locator("#detail > div").nth(1)
        assert [text.rstrip(" ✓") for text in mine.locator(".fill").all_text_contents()] == best
        for text, logp in zip(mine.locator("em").all_text_contents(), document.logps[position].tolist(), strict=False):
            p = float(np.exp(logp))
            value = {"<1e-6": 0.0, ">.9999": 1.0}.get(text)
            assert float(text if value is None else value) == pytest.approx(p, rel=0.5, abs=6e-5)
        return position

    boxes = page.locator(".under .tok")
    boxes.nth(3).hover()
    first = check()
    boxes.nth(5).hover()
    assert check() != first
    boxes.nth(4).click()
    pinned = check()
    boxes.nth(8).hover()
    assert check() == pinned  # pinned by the click
    page.keyboard.press("ArrowRight")
    assert check() == pinned + 1
    page.keyboard.press("ArrowLeft")
    assert check() == pinned
    assert page.locator(".over .tok.beside").count() >= 1
    page.keyboard.press("Escape")
    assert page.locator(".tok.on").count() == 0 and "Point at a token" in page.locator("#detail").text_content()
    page.locator(".over .tok").nth(2).click()  # the teacher's: the student's that begins there, or holds the place
    check()


def test_search_order_and_documents_by_keys(opened: Open) -> None:
    page = opened()
    every = texts(page, "#list b span")
    assert len(every) == 7
    page.keyboard.press("j")
    assert page.locator('#list [aria-selected="true"] b span').text_content() == every[1]
    page.keyboard.press("k")
    assert page.locator('#list [aria-selected="true"] b span').text_content() == every[0]
    page.keyboard.press("/")
    page.keyboard.type("MIRRORS")
    assert texts(page, "#list b span") == ["t1"] and page.locator(".tok.found").count() >= 1
    page.locator("#search").fill("no such words")
    assert page.locator("#none").is_visible() and page.locator("#list li").count() == 0
    page.locator("#search").fill("")
    page.locator("#order").select_option("w")
    widths = [float(text.removeprefix("width ")) for text in texts(page, "#list b i")]
    assert widths == sorted(widths, reverse=True) and len({*widths}) > 1
    page.keyboard.press("Escape")
    page.locator("#text").focus()
    page.keyboard.press("c")
    assert page.locator('#colour [aria-pressed="true"]').text_content() == "surprise"
    assert page.locator("#text").get_attribute("data-colour") == "b"


def test_a_worst_position_opens_in_its_document(opened: Open) -> None:
    page = opened()
    row = page.locator("#place-table tbody tr").first
    document, position, *_ = row.locator("td").all_text_contents()
    row.click()
    assert page.locator("#doc-title").text_content().startswith(document)
    assert page.locator("#detail dd").nth(0).text_content() == position
    assert page.locator(".under .tok.on").count() == 1
    page.locator("#place-kind button", has_text="most surprising").click()
    bits = [float(cells.replace("∞", "inf")) for cells in texts(page, '#place-table td[data-name="bits"]')]
    assert bits == sorted(bits, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["wide", "phone"])
def test_both_themes_wide_and_on_a_phone(opened: Open, scheme: str, name: str) -> None:
    page = opened(PHONE if name == "phone" else WIDE, color_scheme=scheme, has_touch=name == "phone")
    width = page.evaluate("innerWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in ("summary", "figures", "places", "documents", "quarantine"):
        page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        keep(page, f"{name}_{scheme}_{section}")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.body).color")
    dark = [sum(map(int, colour[4:-1].split(","))) < 384 for colour in (ground, ink)]
    assert dark == ([True, False] if scheme == "dark" else [False, True])
    box = page.locator(".under .tok").nth(6)
    if name == "phone":
        assert not page.locator("#detail").is_visible()
        box.tap()
        page.wait_for_timeout(700)  # it scrolls
        sheet, token = page.locator("#detail").bounding_box(), box.bounding_box()
        assert page.locator("#detail").is_visible() and token["y"] + token["height"] <= sheet["y"]
        keep(page, f"{name}_{scheme}_tapped")
        page.locator(".close").tap()
        assert not page.locator("#detail").is_visible()
    else:
        box.hover()
        keep(page, f"{name}_{scheme}_hover")
    before = page.evaluate("document.documentElement.dataset.theme")
    page.locator("#theme").click()
    page.evaluate("window.drawn")
    assert {before, page.evaluate("document.documentElement.dataset.theme")} == {"light", "dark"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
