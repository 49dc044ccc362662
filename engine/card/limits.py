"""What a run is not, in sentences for its card: what is estimated, what is left out, how precisely numbers are stored."""

from __future__ import annotations

from engine.card.headline import Headline
from engine.card.markdown import code
from schemas.counts import counted
from schemas.manifest import NOISE_MEAN, NOISE_MOST, REGIMES, SEMANTICS, Manifest, Plan, ProductFacts
from schemas.plan_inputs import setting

_ESTIMATES = ("fast", "beam")
_IMPORTED = "imported"


def limits(plan: Plan, manifest: Manifest, found: Headline, names: dict[str, str]) -> list[str]:
    """names: product -> its configuration. Each is a line of Markdown."""
    facts = manifest.products
    lines = [f"regime `{word}`: {REGIMES[word]}" for word in sorted({one.regime for one in facts.values()})]
    lines += [f"semantics `{word}`: {SEMANTICS[word]}" for word in sorted({one.semantics for one in facts.values()})]
    estimates = [names[product] for product, one in facts.items() if one.regime in _ESTIMATES]
    if estimates:
        lines.append(
            f"{_listed(estimates)}: estimates. `err` is the certified width of each position: total variation to the "
            "definition is at most this; 0 where nothing is open"
        )
    if exact := [names[product] for product, one in facts.items() if one.regime not in (*_ESTIMATES, _IMPORTED)]:
        eps = setting(plan.semantic, "settings", "targets", "eps")
        pruned = f", but for contexts of a weight below {eps:g}, bounded in `pruned_mass`" if eps else ""
        lines.append(f"{_listed(exact)}: exact, up to the precision of storage{pruned}")
    lines += [f"{code(names[product])}: {_kept(one)}" for product, one in facts.items()]
    lines.append(
        f"floats are stored with {manifest.mantissa_bits} bits behind the first: a log-probability is off by at most a "
        f"{2 ** (manifest.mantissa_bits + 1):,}th of itself"
    )
    for product, figures in found.products.items():
        if lost := figures.positions - figures.scored:
            lines.append(
                f"{code(names[product])}: {lost:,} of {figures.positions:,} positions are unscored: context that nobody asked "
                "for, or no distribution there; `flags` says which"
            )
    if NOISE_MOST in manifest.stats:  # of a teacher in half precision, or with quantised weights
        lines.append(
            "the teacher is in half precision, or quantised: with other texts in its batch a context's distribution moves by "
            f"{manifest.stats[NOISE_MEAN]:.2g} on average and {manifest.stats[NOISE_MOST]:.2g} at most (total variation, "
            "measured at the start)"
        )
    if manifest.quarantined:
        lines.append(
            f"{manifest.quarantined:,} of {counted(manifest.documents, 'document')} could not be scored (left out); why: "
            "`_engine/quarantine`"
        )
    lines.append(
        "the texts of the corpus are in the files (column `text`)"
        if plan.stores_text is not False
        else "the texts of the corpus are not stored; their tokens are, and tokens can be read"
    )
    lines.append("these are a model's probabilities at temperature 1, with its errors and biases; they are no facts")
    return lines


def _kept(facts: ProductFacts) -> str:
    """What of a distribution is stored."""
    if facts.codec == "topk":
        return f"the {facts.top_k} likeliest tokens of each position, and the rest as one tail mass"
    if facts.codec == "sample":
        return f"{facts.draws} tokens drawn at each position, with their counts, not the distribution itself"
    return f"hidden states of {facts.hidden_size:,} numbers in bfloat16; logits need the lm_head beside them"


def _listed(names: list[str]) -> str:
    return ", ".join(code(name) for name in names)
