"""What the options mean together; reads no weights and needs no torch."""

from __future__ import annotations

from pathlib import Path

from .options import COMPETING, FALLBACK, WINDOWS, Options


def problems(options: Options) -> list[str]:
    """What contradicts, has no effect or is not there, one sentence each."""
    found = []
    fixed = options.sinks + options.recent
    if options.rows is not None and options.rows < fixed:
        found.append(
            f"rows={options.rows} is less than the {options.sinks} sinks and {options.recent} recent rows that always "
            f"stay: give rows={fixed} or more, or lower sinks and recent"
        )
    if options.rows is not None and options.keep != 0.25:
        found.append("keep has no effect beside rows: give one of them")
    if (options.threshold is None) == (options.budget == "threshold"):
        found.append("threshold and budget='threshold' belong together: give both or neither")
    if options.window is not None and not WINDOWS.get(options.scorer, WINDOWS[FALLBACK]):
        found.append(f"window has no effect on the scorer {options.scorer!r}: leave it out")
    if options.weights and options.scorer not in ("auto", "learned"):
        found.append(f"weights have no effect on the scorer {options.scorer!r}: choose learned, or leave them out")
    if options.weights and not Path(options.weights).expanduser().is_file():
        found.append(f"there is no file {options.weights!r}: make it with `andes okv fit`")
    if options.safeguard != 0.2 and options.budget not in (*COMPETING, "auto"):
        found.append(f"safeguard has no effect under the budget {options.budget!r}, in which heads do not compete")
    return found


def told(options: Options, chosen: str, backend: str) -> dict[str, str]:
    """Rows of `explain()`."""
    scorer = chosen or options.scorer
    if scorer == "auto":
        scorer = f"learned, if its weights for this model are here, else {FALLBACK} (which needs no training)"
    elif options.scorer == "auto":
        why = (
            "its weights for this model are here" if chosen == "learned" else "no learned scorer for this model is here"
        )
        scorer = f"{chosen}: {why}"
    share = f"{options.keep:.4g} of the rows seen, {options.least} or more"
    rows = share if options.rows is None else f"{options.rows} rows per head"
    ways = {
        "auto": "all heads of all layers compete where scores compare (kvzip, kvzip+, learned), else each has as many",
        "head": "each head the same number, its own best rows",
        "layer": f"heads of a layer compete, each has {options.safeguard:.3g} of an even split for sure",
        "global": f"all heads of all layers compete, each has {options.safeguard:.3g} of an even split for sure",
        "threshold": f"rows that score {options.threshold} or more, at most as many",
        "uniform": "the same rows in every head and layer, by the mean of their ranks",
    }
    when = (
        f"between chunks of {options.chunk} rows"
        if options.reading
        else "at the end of a prompt: its peak is the whole"
    )
    return {
        "scorer": scorer,
        "budget": f"{rows}; {ways[options.budget]}",
        "always stay": f"{options.sinks} first and {options.recent} latest rows; pictures and text each "
        f"{options.floor:.3g} of their part",
        "evicts": f"{when}; while decoding, after {options.slack} rows more",
        "precision of rows": f"that of the backend {backend!r}; numba has kv='int8'",
    }
