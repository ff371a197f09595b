"""What the words of the report mean, for a reader who knows nothing of the project. Standard library only."""

from __future__ import annotations

from edgewise.selector.report_data import ReportData
from edgewise.selector.views import name_of
from edgewise.selector.words import finite, percent, plural
from edgewise.units import METRICS

RECIPES = {
    "fp32": "The model as it was trained, 32-bit floating-point weights: the reference of the others.",
    "fp16": "Weights in 16-bit floating point: half the bytes.",
    "int8-dynamic": "Weights in 8-bit integers, a quarter of the bytes; the scales of what flows between them are "
    "found at each call.",
    "int8-static": "Weights in 8-bit integers; the scales of what flows between them were found on training rows.",
    "int8-weights": "Weights in 8-bit integers, in blocks with a scale each.",
    "int4-weights": "Weights in 4-bit integers, in blocks with a scale each: an eighth of the bytes.",
    "int4-in-place": "4-bit weights, and a cache of keys and values that is written in place (for models that write).",
}
"""By how a recipe's name begins; the longest that fits counts."""
_OPTIMIZED = "The model in 32 bits, with operators merged when it was exported."


def scope(data: ReportData) -> str:
    """What was looked at, in one sentence for those who start here."""
    entries = [v.entry for s in data.selections for v in s.verdicts]
    candidates = {e.candidate for e in entries}
    recipes = {e.recipe for e in entries if e.recipe}
    devices = [s.device for s in data.selections]
    ok = sum(e.status == "ok" for e in entries)
    failed, partly = len(entries) - ok, sum(e.status == "ok" and e.partial for e in entries)
    feasible = sum(v.feasible for s in data.selections for v in s.verdicts)
    if not entries:
        return "Nothing was measured."
    return (
        f"{plural(len(candidates), 'candidate model')} in {plural(len(recipes), 'form')} (recipes) "
        f"{'was' if len(candidates) == 1 else 'were'} {'compared' if partly else 'measured'} on "
        f"{plural(len(devices), 'device')} ({', '.join(devices)}) with different run settings: "
        f"{plural(ok, 'combination')}, "
        + (f"{ok - partly:,} of them measured in full, " if partly else "")
        + f"of which {feasible or 'none'} {'keep' if feasible > 1 else 'keeps'} every budget"
        + (f"; {failed:,} more failed." if failed else ".")
    )


def glossary(data: ReportData) -> list[tuple[str, str]]:
    """(word, what it means): of the words that this report uses."""
    level = percent(data.selections[0].confidence) if data.selections else "95%"
    words = [
        ("Candidate", "A model with its own training, named by whoever wrote the plan."),
        ("Recipe", "The form that a candidate was brought into: its number format and what was optimized."),
        *[(name, found) for name in _recipes(data) if (found := recipe_words(name))],
        ("Bundle", "A candidate in one form: the folder that goes to a device."),
        (
            "Run settings",
            "How a bundle runs: what computes (cpu), threads, the length in tokens that texts are cut to.",
        ),
        ("Budget", "A limit that the chosen one must keep. Where it is not measured, it is not kept."),
        (
            "Bound",
            f"The end of the interval that must keep the limit: in {level} of such measurements the true value is no "
            "worse.",
        ),
        ("Room", "From the bound to the limit."),
        ("Tied", "The difference is smaller than the noise of the measurement: the next objective decides."),
        ("Pareto front", "Those that nothing else beats in every objective at once."),
        ("Dominated", "Something else is at least as good in every objective, and better in one."),
        (
            "Confirmed",
            "Measured once more, on rows that had no part in training or choosing (confirm) and in fresh processes; "
            "the choice itself was made on other rows (val).",
        ),
        (
            "Measured, estimated, unavailable",
            "Measured: counted or timed. ≈ Estimated: computed from other measurements. ⊘ Unavailable: it could not be "
            "measured here, with the reason. A dash: nobody looked.",
        ),
        ("n", "The size of the sample behind a value: calls, rows or processes."),
    ]
    return words + [(name_of(n), METRICS[n].about) for n in METRICS if n in _metrics(data)]


def _recipes(data: ReportData) -> list[str]:
    return list(dict.fromkeys(e.recipe for e in data.entries if e.recipe))


def recipe_words(name: str) -> str:
    """What a recipe is; '' for one that is not known."""
    if name.startswith("fp32-o"):
        return _OPTIMIZED
    best = max((base for base in RECIPES if name.startswith(base)), key=len, default=None)
    return RECIPES[best] if best else ""


def _metrics(data: ReportData) -> set[str]:
    return {n for e in data.entries for n, m in e.metrics.items() if finite(m.value)}
