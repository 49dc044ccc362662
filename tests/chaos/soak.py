"""Kills at random moments, and what is left of a run afterwards: the long version. The tiers: docs/CONTRIBUTING.md.

    python -m tests.chaos.soak --kills 120 [--seed N]       a table: what was killed, and what it did to the output

Rounds are in tests/chaos/rounds.py, what must hold after each of them in tests/chaos/checks.py.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.errors import TargetsmithError
from tests.chaos.checks import Log, Watcher, accounts, check_output, files
from tests.chaos.cluster import Nodes
from tests.chaos.rounds import (
    Kills,
    Site,
    actors_killed,
    cluster,
    drivers_killed,
    nodes_frozen,
    nodes_killed,
    site,
    two_drivers,
)

PAIR = "one of two drivers"
KINDS: dict[str, tuple[int, Callable[[Site, str, random.Random, int, Nodes], Kills]]] = {
    "actors, private Ray": (6, lambda place, name, rng, most, _: actors_killed(place, name, rng, most)),
    "driver, private Ray": (2, lambda place, name, rng, most, _: drivers_killed(place, name, rng, most)),
    "driver, cluster": (5, lambda place, name, rng, most, ray: drivers_killed(place, name, rng, most, ray.address)),
    "node killed, one joins": (4, nodes_killed),
    "node frozen, writes on": (3, nodes_frozen),
    "node leaves, one joins": (4, lambda *given: nodes_killed(*given, how="leave")),
    PAIR: (3, lambda place, name, rng, most, ray: two_drivers(place, name, rng, most, ray.address)),
}
"""What is killed: kills of a round at most, and the round."""


@dataclass
class Line:
    """One kind of kill in the table."""

    rounds: int = 0
    kills: int = 0
    missing: int = 0  # documents, over all products
    duplicated: int = 0
    units: int = 0
    executions: int = 0
    redone: int = 0  # executions that a death made necessary
    most: int = 0  # of these because of one actor
    copies: int = 0
    reads: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.faults and self.missing == self.duplicated == 0


def play(line: Line, kind: str, place: Site, ray: Nodes, name: str, rng: random.Random) -> int:
    """One round, watched and judged; the kills that were made. Whatever is wrong becomes a fault of the line."""
    most, play_round = KINDS[kind]
    try:
        with Watcher(place.folder / name / "out", place.documents) as watcher:
            kills = play_round(place, name, rng, most, ray)
    except AssertionError as error:  # a command that failed, or something that did not happen in time
        place.stop()
        line.faults.append(f"{name}: {error}")
        return 0
    judge(line, place, name, kills, watcher, pair=kind == PAIR)
    return kills.number()


def judge(line: Line, place: Site, name: str, kills: Kills, watcher: Watcher, *, pair: bool = False) -> None:
    """Enter a finished round into its line. pair: two commands worked at one time, so most units were done twice."""
    out = place.folder / name / "out"
    found = kills.tally(Log(out.with_name("log")), place.units)
    missing, duplicated = accounts(out, place.documents)
    again = [len(units) for units in found.redone.values()]
    line.rounds, line.kills = line.rounds + 1, line.kills + kills.number()
    line.missing, line.duplicated = line.missing + missing, line.duplicated + duplicated
    line.units, line.executions = line.units + found.units, line.executions + found.executions
    line.redone, line.most = line.redone + sum(again), max([line.most, *again])
    line.copies, line.reads = line.copies + found.copies, line.reads + watcher.reads
    line.faults += [f"{name}: {fault}" for fault in [*found.faults, *watcher.errors, *kills.orphans]]
    if not watcher.reads:
        line.faults.append(f"{name}: nothing was read while it ran")
    if not pair and found.executions != found.units + sum(again) + found.copies:
        line.faults.append(f"{name}: {found.executions} executions of {found.units} units are not all explained")
    try:
        check_output(out, place.reference, place.documents)
    except (AssertionError, TargetsmithError) as error:
        differs = {file for file, _ in set(files(out).items()) ^ set(files(place.reference).items())}
        line.faults.append(f"{name}: {str(error)[:200]} {sorted(differs)}")


def soak(kills: int, seed: int, units: int = 50) -> dict[str, Line]:
    """Rounds of every kind, in turn, until `kills` were made. Prints as it goes."""
    rng, table, number = random.Random(seed), {kind: Line() for kind in KINDS}, 0
    with site(units) as place, cluster(place) as ray:
        while sum(line.kills for line in table.values()) < kills:
            kind, started = list(KINDS)[number % len(KINDS)], time.monotonic()
            known = len(table[kind].faults)
            made = play(table[kind], kind, place, ray, f"r{number}", random.Random(rng.random()))
            print(f"round {number}, {kind}: {made} kills, {time.monotonic() - started:.0f} s", flush=True)
            print(*table[kind].faults[known:], sep="\n", end="", flush=True)
            number += 1
    return table


def show(table: dict[str, Line]) -> None:
    columns = ("rounds", "kills", "missing", "duplicated", "units", "executions", "redone", "most", "copies", "reads")
    print(f"{'killed':24}" + "".join(f"{name:>12}" for name in (*columns, "equal")))
    for kind, line in table.items():
        values = [str(getattr(line, name)) for name in columns]
        print(f"{kind:24}" + "".join(f"{value:>12}" for value in (*values, "yes" if line.good else "no")))
    print(f"{'all':24}{sum(line.rounds for line in table.values()):12}{sum(line.kills for line in table.values()):12}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"--kills {options.kills} --seed {options.seed}", flush=True)
    result = soak(options.kills, options.seed)
    show(result)
    sys.exit(not all(line.good for line in result.values()))
