"""What is written at the end of a run to describe it: README.md and croissant.json, as files for `finish` to publish."""

from __future__ import annotations

from pathlib import PurePath

from engine.card.croissant import croissant
from engine.card.headline import headline
from engine.card.inputs import inputs_of, run_file
from engine.card.readme import readme
from engine.dataset.layout import CARD, CROISSANT
from engine.dataset.store import Store
from engine.plan.pin import pin
from schemas.manifest import Manifest, Plan
from schemas.products import TEACHER
from schemas.redact import redacted
from schemas.runfile import RunConfig
from schemas.settings_card import CardConfig


def describe(store: Store, plan: Plan, manifest: Manifest, run: RunConfig | None = None) -> dict[str, bytes]:
    """Name -> content. The same run gives the same bytes, whoever finishes it and wherever it ran.

    run: the run file, where there is one. Raises OutputError for a damaged shard, IdentityError for impossible values: some are
    read for the figures.
    """
    said = run.card if run is not None else CardConfig()
    title = redacted(said.title or f"Targets of {_teacher(manifest, run)}")
    found = headline(store, plan, manifest)
    inputs = inputs_of(plan, manifest, run, pin(run) if run is not None else None)
    text = readme(plan, manifest, said, title, inputs, run_file(run), found)
    return {CARD: text.encode(), CROISSANT: croissant(manifest, said, title).encode()}


def _teacher(manifest: Manifest, run: RunConfig | None) -> str:
    """The teacher's name, the last part of it."""
    if run is not None:
        return PurePath(run.teacher.model).name or "a teacher"
    facts = manifest.products.get(TEACHER)
    return PurePath(facts.tokenizer).name if facts is not None else "a teacher"
