"""How wide the rows are, language by language: python -m benchmarks.languages --teacher FOLDER --student FOLDER

The beginnings of the Universal Declaration of Human Rights (TARGETSMITH_SHARED, text/udhr.jsonl), as NFC. All contexts of the
teacher are evaluated, so that nothing is pruned and the width is that of open mass. One line a language: how many rows, and
their means: share of the mass that is open, certified width, log-probability of the gold token (nats).
"""

from __future__ import annotations

import argparse
import json
import unicodedata

from benchmarks.fresh import SHARED
from benchmarks.real_pair import Settings, run_of
from engine.corpus.document import Document
from engine.plan.regimes import regimes_of
from engine.plan.vocabularies import load_vocabularies
from engine.scoring.scorer import Scorer
from engine.scoring.stages import derive_stages
from engine.teacher.model import load_teacher

LANGUAGES = ("eng", "fra", "deu_1996", "spa", "ces", "vie", "rus", "ell_monotonic", "kor", "hin")


def documents(languages: list[str], characters: int) -> list[Document]:
    """The beginning of each language's text. Raises SystemExit where the texts, or a language, are not there."""
    file = SHARED / "text/udhr.jsonl"
    if not file.is_file():
        raise SystemExit(f"no {file}: set TARGETSMITH_SHARED to the folder that has text/udhr.jsonl")
    found = {row["code"]: row["text"] for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    missing = [code for code in languages if code not in found]
    if missing:
        raise SystemExit(f"{file}: no language {missing}; want some of {sorted(found)}")
    texts = {code: unicodedata.normalize("NFC", found[code])[:characters] for code in languages}
    return [Document(code, i, text, "udhr", code) for i, (code, text) in enumerate(texts.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a model")
    parser.add_argument("--student", required=True, help="folder of a tokenizer")
    parser.add_argument("--regime", default="fast", choices=("fast", "beam"))
    parser.add_argument("--characters", type=int, default=500, help="of each language")
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), help="codes of the file")
    args = parser.parse_args()
    texts = documents(args.languages, args.characters)
    run = run_of(Settings("", args.teacher, (args.student,), regime=args.regime, bytes=True))
    known = load_vocabularies(run)
    teacher = load_teacher(run.teacher, run.locate(run.teacher.model), tokenizer_end=known.teacher.eos_id)
    scorer = Scorer(run, derive_stages(run, known, teacher, regimes_of(run, known.teacher, known.students)))
    print(f"{'':16}{'rows':>8}{'open':>8}{'width':>8}{'gold':>8}")
    for document in texts:
        result = scorer.score_unit([document])
        if result.quarantine:
            print(f"{document.doc_id:16}{result.quarantine[0]['reason']:>16}", flush=True)
            continue
        rows = result.stats["student/s0.scored"]
        means = [result.stats[f"student/s0.{name}_sum"] / rows for name in ("open_mass", "err", "gold_nats")]
        print(f"{document.doc_id:16}{rows:8.0f}" + "".join(f"{mean:8.3f}" for mean in means), flush=True)


if __name__ == "__main__":
    main()
