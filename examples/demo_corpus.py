"""The demo's corpus: short arithmetic word problems with worked answers, a pure function of (split, index).

A problem is a story, a question, its worked steps and a closing sentence; each of six families draws one, `render` lays
it out in one of six ways, and one document in twenty is a worksheet of several problems. Names, prices and signs are
not all ASCII, so that multi-byte characters occur. `examples/make_demo.py` writes the documents to disk.

Depends on Python's `random` alone: each document has its own generator, seeded by a string (which Python hashes with
SHA-512), so document 17 can be made without the sixteen before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SEED = 20_240

NAMES = (
    "Ada Ben Carla Dmitri Emma Farid Grace Hugo Ines Jamal Kira Liam Maya Nadia Omar Priya Quentin Rosa Samir Tara "
    "Uma Victor Wendy Yusuf Aisha Marcus Alice Bruno Cecilia Daniel Eleanor Fatima Gabriel Hannah Ivan Jasmine Kevin "
    "Leila Miguel Naomi Oliver Patricia Rashid Sofia Thomas Valentina William Xavier Yolanda Zachary Anton Beatrice "
    "Connor Delphine Esther Felix Zoë José Søren Łukasz François Jürgen Chloé Mónica Aïcha Renée Zdeněk Björn Şebnem "
    "Юля Олег Ελένη 小明 さくら"
).split()
ITEMS = (  # all of them take a plain -s
    "apple marble sticker book coin pencil card shell balloon button ribbon cookie stamp candle ticket bottle lemon "
    "feather crayon postcard magnet badge orange teacup notebook blanket lantern pumpkin lunch-bag umbrella envelope "
    "necklace mirror hammer bracelet pillow basket carrot tomato-plant muffin pebble photograph calendar keyring "
    "bookmark snow-globe spoon crêpe jalapeño piñata éclair soufflé"
).split()
PLACES = (
    "market library station garden museum school bakery harbour café théâtre airport village stadium warehouse fair"
).split()


@dataclass(frozen=True, slots=True)
class Problem:
    """Steps are equations such as '3 * 4 = 12', signs in ASCII; `closing` says the answer in words, unit included."""

    story: str
    question: str
    steps: tuple[str, ...]
    answer: int
    closing: str


def number(rng: random.Random, low: int = 1) -> int:
    """A number in low..999 that leans to the small ones, as numbers in real word problems do."""
    return rng.randrange(low, rng.choice((12, 20, 20, 50, 100, 100, 1000)))


def count(n: int, item: str) -> str:
    return f"{n} {item}" if n == 1 else f"{n} {item}s"


def inventory(rng: random.Random, events: int = 0) -> Problem:
    """Somebody has things; so many events change their number (0: one to four)."""
    name, other = rng.sample(NAMES, 2)
    item, have = rng.choice(ITEMS), number(rng)
    story, steps = [f"{name} {rng.choice(('has', 'starts the day with', 'owns'))} {count(have, item)}."], []
    for _ in range(events or rng.choice((1, 2, 2, 3, 4))):
        kind = rng.choice(("gain", "gain", "lose", "lose", "times"))
        if kind == "lose" and have > 1:
            k = min(number(rng), have - 1)
            sale = f"sells {k} at the {rng.choice(PLACES)}"
            event = rng.choice((f"gives {k} to {other}", f"loses {k}", f"throws away {k}", sale))
            sign, after = "-", have - k
        elif kind == "times" and have < 300:
            k = rng.choice((2, 3))
            event, sign, after = f"{('doubles', 'triples')[k - 2]} the number of {item}s", "*", have * k
        else:
            k = number(rng)
            event = rng.choice(
                (f"buys {k} more", f"finds {k} more", f"borrows {k} more", f"gets {k} more from {other}")
            )
            sign, after = "+", have + k
        story.append(f"{rng.choice(('Then', 'Later', 'After that', 'On the next day'))} {name} {event}.")
        steps.append(f"{have} {sign} {k} = {after}")
        have = after
    question = rng.choice((f"How many {item}s does {name} have now?", f"How many {item}s are there in the end?"))
    return Problem(" ".join(story), question, tuple(steps), have, f"{name} has {count(have, item)}.")


def shopping(rng: random.Random) -> Problem:
    """Several things at a price each, sometimes a second kind of thing, sometimes change from a note."""
    name, sign = rng.choice(NAMES), rng.choice("€€€$£")
    (first, second), price, pieces = rng.sample(ITEMS, 2), rng.randrange(1, 40), rng.randrange(2, 25)
    total = price * pieces
    story = f"At the {rng.choice(PLACES)}, {name} buys {pieces} {first}s for {sign}{price} each"
    steps = [f"{pieces} * {price} = {total}"]
    if rng.random() < 0.5:
        extra = number(rng)
        story += f" and one {second} for {sign}{extra}"
        steps.append(f"{total} + {extra} = {total + extra}")
        total += extra
    if rng.random() < 0.6:
        return Problem(story + ".", f"How much does {name} pay?", tuple(steps), total, f"{name} pays {sign}{total}.")
    paid = (total // 100 + 1) * 100
    change = paid - total
    steps.append(f"{paid} - {total} = {change}")
    story += f", and pays with {sign}{paid}."
    question = rng.choice((f"How much change does {name} get?", "What is the change?"))
    return Problem(story, question, tuple(steps), change, f"The change is {sign}{change}.")


def comparison(rng: random.Random) -> Problem:
    """Two people, the second one's number given by the first one's."""
    (one, two), item, have = rng.sample(NAMES, 2), rng.choice(ITEMS), number(rng, 2)
    kind = rng.choice(("more", "fewer", "times as many"))
    if kind == "fewer":
        k = rng.randrange(1, have)
        sign, theirs = "-", have - k
    elif kind == "more":
        k = number(rng)
        sign, theirs = "+", have + k
    else:
        k = rng.randrange(2, 10)
        sign, theirs = "*", have * k
    than = "as" if sign == "*" else "than"
    story = f"{one} has {have} {item}s, and {two} has {k} {kind} {item}s {than} {one}."
    step = f"{have} {sign} {k} = {theirs}"
    if rng.random() < 0.5:
        closing = f"{two} has {count(theirs, item)}."
        return Problem(story, f"How many {item}s does {two} have?", (step,), theirs, closing)
    both = have + theirs
    steps = (step, f"{have} + {theirs} = {both}")
    return Problem(story, "How many do they have together?", steps, both, f"Together they have {both} {item}s.")


def journey(rng: random.Random) -> Problem:
    """Speed times hours, then a rest of the way."""
    name, speed, hours, rest = rng.choice(NAMES), rng.randrange(4, 121), rng.randrange(2, 10), number(rng)
    way = speed * hours
    story = f"{name} travels {hours} hours at {speed} km/h and then {rest} km more to the {rng.choice(PLACES)}."
    steps = (f"{hours} * {speed} = {way}", f"{way} + {rest} = {way + rest}")
    return Problem(story, "How long is the whole way?", steps, way + rest, f"The way is {way + rest} km long.")


def packing(rng: random.Random) -> Problem:
    """Things into boxes, or shared equally: a division with a remainder."""
    name, item, size, full = rng.choice(NAMES), rng.choice(ITEMS), rng.randrange(2, 13), rng.randrange(2, 60)
    left = rng.randrange(size)
    total = size * full + left
    steps = (f"{total} - {left} = {total - left}", f"{total - left} / {size} = {full}")
    if rng.random() < 0.5:
        story = f"{name} packs {total} {item}s into boxes of {size}."
        return Problem(story, "How many boxes are full?", steps, full, f"{full} boxes are full, with {left} left over.")
    story = f"{name} shares {total} {item}s equally among {size} friends."
    return Problem(story, "How many does each friend get?", steps, full, f"Each friend gets {count(full, item)}.")


def rectangle(rng: random.Random) -> Problem:
    """Area or fence of a field."""
    thing, long, wide = rng.choice(("garden", "field", "yard")), rng.randrange(2, 100), rng.randrange(2, 40)
    story, area, half = f"A {thing} is {long} m long and {wide} m wide.", long * wide, long + wide
    if rng.random() < 0.5:
        return Problem(story, "What is its area?", (f"{long} * {wide} = {area}",), area, f"The area is {area} m².")
    steps = (f"{long} + {wide} = {half}", f"2 * {half} = {2 * half}")
    return Problem(story, "How long is the fence around it?", steps, 2 * half, f"The fence is {2 * half} m long.")


FAMILIES = (inventory,) * 3 + (shopping, comparison, packing) * 2 + (journey, rectangle)


def render(problem: Problem, rng: random.Random) -> str:
    """The problem as text, in one of six layouts (several of them multi-line)."""
    times, minus, over = rng.choice((("*", "-", "/"), ("×", "-", "÷"), ("×", "−", "÷")))
    steps = [s.replace("*", times).replace(" - ", f" {minus} ").replace("/", over) for s in problem.steps]
    ask, inline, closing = f"{problem.story} {problem.question}", ", then ".join(steps), problem.closing
    return rng.choice(
        (
            f"{ask} {inline}. {closing}",
            f"{ask}\n{inline}.\n#### {problem.answer}",
            f"Question: {ask}\nAnswer: {inline}. {closing}\n#### {problem.answer}",
            f"Q: {ask}\nA: " + "".join(f"Step {i}: {s}.\n" for i, s in enumerate(steps, 1)) + closing,
            f"{ask}\n\n" + "\n".join(f"    {s}" for s in steps) + f"\n\n{closing}",
            f"{ask} Let’s see: {inline}. So the answer is {problem.answer}.{rng.choice(('', '', '', ' 🎉'))}",
        )
    )


def document(split: str, index: int) -> str:
    """Document `index` of a split ('train' or 'held-out'); a pure function of (SEED, split, index)."""
    rng = random.Random(f"{SEED}/{split}/{index}")
    if rng.random() < 0.05:  # a worksheet: the long documents
        problems = [rng.choice(FAMILIES)(rng) for _ in range(rng.randrange(2, 5))]
        parts = [f"Worksheet, page {number(rng)}", *(f"{i}) {render(p, rng)}" for i, p in enumerate(problems, 1))]
        return "\n\n".join(parts)
    return render(rng.choice(FAMILIES)(rng), rng)
