"""The lines that igpt_jax.probe prints about probe.json."""

from collections.abc import Iterator
from typing import Any

from igpt_jax.probing.logistic import ITERATIONS, TOLERANCE
from igpt_jax.types import PathLike


def report_lines(result: dict[str, Any], out: PathLike) -> Iterator[str]:
    """Yields a table of the layers, the best results, the settings, and warnings. `out` is the folder that the files were written to."""
    best, last = result["best"], result["last"]
    yield from _table(result)
    yield f"best layer by validation: {best['layer']}, test {_percent(best['test'])}; layer {last['layer']}: {_percent(last['test'])}"
    if "best_attention" in result:
        row = result["best_attention"]
        yield f"best layer by validation with attention: {row['layer']}, test {_percent(row['attention']['test'])}"
    if "concatenated" in result:
        joined = result["concatenated"]
        yield f"layers {joined['layers'][0]} to {joined['layers'][-1]} concatenated: test {_percent(joined['test'])}"
    for row in result.get("low_data", []):
        yield f"{row['labels_per_class']} labels per class, layer {row['layer']}: test {_percent(row['mean'])} +- {_percent(row['std'])}"
    if "masks" in result:
        yield f"validation and test: the vote of {result['masks']} masks (one mask for held-out training images), which also chose C or rate"
    if "sgd" in result:
        sgd = result["sgd"]
        yield f"sgd: {sgd['steps']} steps of {sgd['batch']} images, {sgd['epochs']:g} epochs, from windows of {sgd['window']} images"
        yield f"rate chosen on {result['rate_chosen_on']}; {result['seconds']:.1f} s on {result['device']}"
    else:
        yield f"C chosen on {result['C_chosen_on']}; {result['seconds']:.1f} s on {result['device']}"
    yield f"written: {out}/probe.json, {out}/accuracy_by_layer.png"
    yield from _warnings(result)


def _table(result: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each layer: C or learning rate, and accuracies. Those with one mask, and with attention, have columns of their own."""
    setting = "learning_rate" if "sgd" in result else "C"
    columns = [f"{'rate' if 'sgd' in result else 'C':>7}", "  train", " validation", "   test"]
    masked, attention = "masks" in result, "best_attention" in result
    columns += [" one mask"] * masked + ["| attention: rate", "  train", " validation", "   test"] * attention + [" one mask"] * (masked and attention)
    yield " ".join(["layer", *columns])

    def cells(row: dict[str, Any]) -> list[str]:
        texts = [f"{row[setting]:>7g}", f"{_percent(row['train']):>7}", f"{_percent(row['validation']):>11}", f"{_percent(row['test']):>7}"]
        return texts + [f"{_percent(row.get('test_one_mask')):>9}"] * masked

    for name, row in [(row["layer"], row) for row in result["layers"]] + ([("pixels", result["raw_pixels"])] if result["raw_pixels"] else []):
        beside = cells(row["attention"]) if attention else []
        yield " ".join([f"{name:>5}", *cells(row), *(["|" + f"{beside[0]:>16}", *beside[1:]] if beside else [])])


def _warnings(result: dict[str, Any]) -> Iterator[str]:
    """Yields notes on what may be wrong: no convergence, or a chosen value at the end of its range."""
    best = result["best"]
    if "sgd" in result:
        chosen = {"mean": best} | ({"attention": result["best_attention"]["attention"]} if "best_attention" in result else {})
        for kind, row in chosen.items():
            rates = result["sgd"]["learning_rates"][kind]
            if row["learning_rate"] in (rates[0], rates[-1]) and len(rates) > 1:
                flag = "--learning-rates" if kind == "mean" else "--attention-rates"
                yield f"note: the best layer's rate {row['learning_rate']:g} is at the end of {flag}; try values beyond it"
        return
    if not all(row["converged"] for row in result["layers"]):
        yield f"warning: not every fit reached a gradient of {TOLERANCE:g} in {ITERATIONS} steps (`converged` in probe.json)"
    if best["C"] in (result["C_values"][0], result["C_values"][-1]) and len(result["C_values"]) > 1:
        yield f"note: the best layer's C = {best['C']:g} is at the end of --C; try values beyond it"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"
