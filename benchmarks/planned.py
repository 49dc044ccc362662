"""What `plan` foretells beside what `score` then takes and gives: python -m benchmarks.planned RUN.toml [RUN.toml ...]

Both as commands of their own, one after the other, the output in a folder that is thrown away. Columns: foretold, found, their
ratio; for teacher tokens, bytes of data/, and seconds of the whole command (wanted: bytes within 10 %, seconds within 25 %).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.dataset.layout import load_manifest
from engine.plan.pin import pin
from schemas.runfile import load_run


def compare(run_file: Path, sample: int) -> None:
    """One run file."""
    command = [sys.executable, "-m", "jobs.cli"]
    asked = [*command, "plan", str(run_file), "--sample", str(sample), "--json"]
    begin = time.monotonic()
    told = json.loads(subprocess.run(asked, stdout=subprocess.PIPE, check=True, text=True).stdout)["estimate"]
    plan_s = time.monotonic() - begin
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        source = pin(load_run(run_file)).model_copy(update={"output": out})
        here = run_file.with_name(f".planned-{run_file.name}")
        lines = run_file.read_text(encoding="utf-8").splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("output"))
        lines[at] = f"output = {json.dumps(str(source.output))}"
        here.write_text("\n".join(lines) + "\n", encoding="utf-8")
        begin = time.monotonic()
        try:
            subprocess.run([*command, "score", str(here)], stdout=subprocess.DEVNULL, check=True)
        finally:
            here.unlink()
        score_s = time.monotonic() - begin
        manifest = load_manifest(out)
        found = {
            "teacher tokens": (told["teacher_tokens"], manifest.stats["teacher_tokens"]),
            "bytes": (told["disk_bytes"], sum(path.stat().st_size for path in out.rglob("*") if path.is_file())),
            "seconds": (told["hours"] * 3600, score_s),
        }
        for product, total in manifest.totals.items():
            found[f"bytes {product}"] = (told["products"][product]["bytes"], total.bytes)
    print(f"{run_file}, --sample {sample} ({plan_s:.0f} s)\n{'':24}{'foretold':>14}{'found':>14}{'ratio':>8}")
    for name, (a, b) in found.items():
        print(f"{name:24}{a:14,.0f}{b:14,.0f}{a / b:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", type=Path, nargs="+")
    parser.add_argument("--sample", type=int, default=64)
    given = parser.parse_args()
    for run_file in given.run_file:
        compare(run_file, given.sample)


if __name__ == "__main__":
    main()
