"""Actors: one and two of them for real, one to 256 in simulated time: python -m benchmarks.scaling

1  scores a corpus with heavy-tailed document lengths (log-normal, cut) with 1 and with 2 actors, on an own Ray, and keeps the
   seconds of each unit as the pool saw them, the time to load a teacher, and what a unit costs the driver
2  simulates the same two runs from these figures, with the pool's own policy (benchmarks/simulation.py), beside the clock
3  simulates 1 to 256 actors on unit times drawn from the measured ones: efficiency = work / (actors x time), by units an actor
4  simulates what happens when some actors are slow or frozen, with and without copies

Needs a quiet machine with two cores for 1 and 2; takes about four minutes. Options: --documents, --unit-documents, --median,
--sigma, --longest (characters), --seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.simulation import Costs, simulate
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units, sample
from engine.dataset.commit import open_output
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from jobs.pool.events import Done, Ready
from jobs.pool.ray_cluster import connect
from jobs.pool.ray_pool import Pool
from jobs.pool.schedule import PATIENCE
from jobs.pool.unit_worker import UnitWorker
from schemas.runfile import load_run

DEMO = Path(__file__).resolve().parent.parent / "jobs" / "demo_assets"
ACTORS = (1, 2, 4, 16, 64, 256)
PER_ACTOR = (5, 10, 20, 50, 100)
JOINED = 64  # small units of this benchmark that make one of the default size (256 documents)


@dataclass(frozen=True)
class Measured:
    """A real run. seconds: by unit. load_s: until the first actor is ready. work_s: from then to the last unit. driver_s: of the
    driver's thread, by unit."""

    seconds: dict[int, float]
    load_s: float
    work_s: float
    driver_s: float


def write_corpus(folder: Path, args: argparse.Namespace) -> None:
    """Documents of log-normal length, put together from the demo's."""
    rng = np.random.default_rng(args.seed)
    texts = [json.loads(line)["text"] for line in (DEMO / "corpus.jsonl").open(encoding="utf-8")]
    wanted = np.minimum(args.median * np.exp(rng.normal(0, args.sigma, args.documents)), args.longest)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for size in wanted.astype(int):
            text = ""
            while len(text) < size:
                text += texts[rng.integers(len(texts))] + "\n"
            stream.write(json.dumps({"text": text[: max(size, 20)].strip()}) + "\n")
    (folder / "run.toml").write_text(
        f'output = "unused"\n[teacher]\nmodel = {json.dumps(str(DEMO / "teacher"))}\n[corpus]\npaths = ["corpus.jsonl"]\n'
        f'unit_documents = {args.unit_documents}\n[[student]]\nname = "bl"\ntokenizer = '
        f"{json.dumps(str(DEMO / 'student_bl'))}\n[targets]\ntop_k = 32\n",
        encoding="utf-8",
    )


def measure(folder: Path, actors: int) -> tuple[Measured, list[int]]:
    """Score the corpus for real; also the characters of each unit."""
    run = load_run(folder / "run.toml")
    run = run.model_copy(
        update={"output": folder / f"out{actors}", "ray": run.ray.model_copy(update={"actors": actors})}
    )
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    every = range(len(plan.units))
    sizes = [1 + sum(len(d.text) for d in documents) for _, documents in read_units(run.corpus, scan, every)]
    calibration = sample(run.corpus, scan, run.targets.calibration_documents)
    seconds, ready = {}, 0.0
    with connect(run.ray, "local"):
        pool = Pool(partial(UnitWorker, pin(run), plan, calibration), run.ray, local=True)
        began, thread = time.monotonic(), time.thread_time()
        with closing(pool.run(read_units(run.corpus, scan, every), len(every))) as events:
            for event in events:
                if isinstance(event, Ready):
                    ready = ready or time.monotonic()
                elif isinstance(event, Done):
                    seconds[event.unit.index] = event.seconds
            ended = time.monotonic()
        driver_s = (time.thread_time() - thread) / len(every)
    return Measured(seconds, ready - began, ended - ready, driver_s), sizes


def wait_seconds(actors: int) -> float:
    """What one look at `actors` pending results costs the driver, by actor: two `ray.wait`, as the pool does."""

    class Sleeper:
        def sleep(self) -> None:
            time.sleep(3600)

    with connect(load_run(DEMO / "run.toml").ray.model_copy(update={"actors": 1}), "local"):
        handle: Any = ray.remote(Sleeper).options(num_cpus=0).remote()
        refs = [handle.sleep.remote() for _ in range(actors)]
        began = time.perf_counter()
        for _ in range(100):
            ray.wait(refs, timeout=0)
            ray.wait(refs, num_returns=len(refs), timeout=0)
        took = time.perf_counter() - began
        ray.kill(handle)
    return took / 100 / actors


def report_real(measured: dict[int, Measured], sizes: list[int], costs: Costs) -> None:
    for actors, run in measured.items():
        times = list(run.seconds.values())
        mean, middle, longest = statistics.mean(times), statistics.median(times), max(times)
        print(
            f"{actors} actor(s): {len(times)} units, {sum(sizes):,} characters; ready after {run.load_s:.1f} s, then "
            f"{run.work_s:.1f} s\n  a unit takes mean {mean:.3f}, median {middle:.3f}, longest {longest:.3f} s, and of "
            f"the driver {1e3 * run.driver_s:.2f} ms"
        )
    one, two = measured[1], measured[2]
    slower = sum(two.seconds.values()) / sum(one.seconds.values())
    print(
        f"two actors are {one.work_s / two.work_s:.3f} x as fast as one; a unit takes {slower:.3f} x as long with two"
    )
    print("\nsimulated beside real, seconds without loading:")
    cases = [(1, one, "its own unit times"), (2, two, "its own unit times"), (2, one, "unit times of one actor")]
    for actors, source, name in cases:
        seconds = [source.seconds[i] for i in range(len(sizes))]
        wall = simulate(seconds, sizes, actors, costs).wall_s
        real = measured[actors].work_s
        print(f"  {actors} actor(s), {name}: {wall:.2f} simulated, {real:.2f} real, {100 * (wall / real - 1):+.1f} %")


def report_simulated(run: Measured, sizes: list[int], costs: Costs, seed: int) -> None:
    small = np.array([[run.seconds[i], sizes[i]] for i in range(len(sizes))])
    rng = np.random.default_rng(seed)
    joined = small[rng.integers(len(small), size=(2000, JOINED))].sum(axis=1)
    for name, units in (
        ("units as measured", small),
        (f"units of default size ({JOINED} of these in one)", joined),
    ):
        mean, spread = units[:, 0].mean(), units[:, 0].std() / units[:, 0].mean()
        print(
            f"\n{name}: mean {mean:.2f} s, standard deviation {spread:.2f} and longest {units[:, 0].max() / mean:.1f} x "
            f"the mean;\nefficiency without loading, by actors (down) and units an actor (across), driver's costs included"
        )
        print("        " + "".join(f"{n:>8}" for n in PER_ACTOR))
        for actors in ACTORS:
            row = []
            for per in PER_ACTOR:
                rounds = max(1, 64 // actors)  # few actors are quick to simulate, and their figures swing
                work = wall = 0.0
                for _ in range(rounds):
                    drawn = units[rng.integers(len(units), size=actors * per)]
                    work += drawn[:, 0].sum() / actors
                    wall += simulate(drawn[:, 0].tolist(), drawn[:, 1].tolist(), actors, costs).wall_s
                row.append(work / wall)
            print(f"{actors:>8}" + "".join(f"{100 * value:>7.1f}%" for value in row))
    busy = costs.unit_s * 256 / 0.95
    print(
        f"\nloading takes {run.load_s:.1f} s an actor: for 95 % with it, an actor needs {19 * run.load_s:.0f} s of work\n"
        f"the driver hands out at most {1 / costs.unit_s:,.0f} units a second: with 256 actors a unit should take "
        f"{busy:.1f} s or more"
    )
    report_stragglers(joined, costs, rng)


def report_stragglers(units: np.ndarray, costs: Costs, rng: np.random.Generator) -> None:
    print("\n256 actors, 20 units of default size each: efficiency (copies), by patience; work / (speed of all x time)")
    drawn = units[rng.integers(len(units), size=256 * 20)]
    never = 1e9
    cases = {
        "all even": (),
        "4 at a quarter": (0.25,) * 4,
        "64 at 0.7": (0.7,) * 64,
        "1 frozen": (0.0,),
        "8 frozen": (0.0,) * 8,
    }
    for name, speeds in cases.items():
        cells = []
        for patience in (0.0, 1.0, PATIENCE, 2.0, 3.0, never):
            if 0.0 in speeds and patience == never:
                cells.append("no copies: never ends")
                continue
            found = simulate(drawn[:, 0].tolist(), drawn[:, 1].tolist(), 256, costs, speeds=speeds, patience=patience)
            share = drawn[:, 0].sum() / (256 - len(speeds) + sum(speeds)) / found.wall_s
            label = "no copies of begun units" if patience == never else f"{patience:g}"
            cells.append(f"{label}: {100 * share:.1f} % ({found.copies})")
        print(f"  {name}: " + ", ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=640)
    parser.add_argument("--unit-documents", type=int, default=4)
    parser.add_argument("--median", type=float, default=120.0)
    parser.add_argument("--sigma", type=float, default=1.2)
    parser.add_argument("--longest", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), args)
        measured, sizes = {}, []
        for actors in (1, 2):
            measured[actors], sizes = measure(Path(folder), actors)
    round_s = wait_seconds(256)
    costs = Costs(unit_s=measured[1].driver_s, round_s=round_s)
    print(f"the driver looks at an actor in {1e6 * round_s:.1f} us")
    report_real(measured, sizes, costs)
    report_simulated(measured[1], sizes, costs, args.seed)


if __name__ == "__main__":
    main()
