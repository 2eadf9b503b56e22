"""The lines that igpt_jax.probe prints about probe.json."""

from collections.abc import Iterator
from typing import Any

from igpt_jax.probing.intervals import in_percent
from igpt_jax.probing.logistic import ITERATIONS, TOLERANCE
from igpt_jax.types import PathLike


def report_lines(result: dict[str, Any], out: PathLike) -> Iterator[str]:
    """Yields a table of the layers, the best results, the settings, and warnings. `out` is the folder that the files were written to."""
    best, last = result["best"], result["last"]
    yield from _table(result)
    yield f"best layer by validation: {best['layer']}, test {_tested(best)}; layer {last['layer']}: {_tested(last)}"
    if result["knn"]:
        row = max(result["layers"], key=lambda row: row["knn"]["validation"])
        yield f"best layer by validation with nearest neighbours: {row['layer']}, test {_tested(row['knn'])}"
    if "best_attention" in result:
        row = result["best_attention"]
        yield f"best layer by validation with attention: {row['layer']}, test {_tested(row['attention'])}"
    if "concatenated" in result:
        joined = result["concatenated"]
        yield f"layers {joined['layers'][0]} to {joined['layers'][-1]} concatenated: test {_tested(joined)}"
    for row in result.get("low_data", []):
        yield f"{row['labels_per_class']} labels per class, layer {row['layer']}: test {_percent(row['mean'])} +- {_percent(row['std'])}"
    if "low_data" in result:
        choices = result["low_data_choices"]
        yield f"of few labels, C is chosen on {choices['C']['labels']} labels and the layer on {choices['layer']['labels']}; the fit has the few alone"
    if "masks" in result:
        yield f"validation and test: the vote of {result['masks']} masks (one mask for held-out training images), which also chose C or rate"
    if "sgd" in result:
        sgd = result["sgd"]
        yield f"sgd: {sgd['steps']} steps of {sgd['batch']} images, {sgd['epochs']:g} epochs, from windows of {sgd['window']} images"
        yield f"rate chosen on {result['rate_chosen_on']}; {result['seconds']:.1f} s on {result['device']}"
    else:
        yield f"C chosen on {result['C_chosen_on']}; {result['seconds']:.1f} s on {result['device']}"
    yield f"written: {out}/probe.json, {out}/probe.npz, {out}/accuracy_by_layer.png"
    yield from _warnings(result)


def _table(result: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each layer: C or learning rate, accuracies, and 95 % intervals of test accuracy. One mask, and other probes, have their own columns."""
    setting, name = ("learning_rate", "rate") if "sgd" in result else ("C", "C")
    masked = "masks" in result
    accuracies = ["  train", " validation", "   test", " 95 % interval"] + [" one mask"] * masked
    columns = ["layer", f"{name:>7}", *accuracies]
    columns += ["| attention: rate", *accuracies] * ("best_attention" in result)
    columns += ["| neighbours: k", *accuracies[1:4]] * bool(result["knn"])
    yield " ".join(columns)

    def accuracy_cells(row: dict[str, Any]) -> list[str]:
        return [f"{_percent(row['validation']):>11}", f"{_percent(row['test']):>7}", f"{_interval(row):>14}"]

    def cells(row: dict[str, Any]) -> list[str]:
        texts = [f"{row[setting]:>7g}", f"{_percent(row['train']):>7}", *accuracy_cells(row)]
        return texts + [f"{_percent(row.get('test_one_mask')):>9}"] * masked

    for name, row in [(row["layer"], row) for row in result["layers"]] + ([("pixels", result["raw_pixels"])] if result["raw_pixels"] else []):
        beside = cells(row["attention"]) if "attention" in row else []
        texts = [f"{name:>5}", *cells(row), *(["|" + f"{beside[0]:>16}", *beside[1:]] if beside else [])]
        yield " ".join(texts + ([f"|{row['knn']['k']:>14}", *accuracy_cells(row["knn"])] if "knn" in row else []))


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


def _interval(row: dict[str, Any]) -> str:
    return "-" if row["interval"] is None else in_percent(row["interval"])


def _tested(row: dict[str, Any]) -> str:
    """Test accuracy with its interval."""
    return _percent(row["test"]) + ("" if row["interval"] is None else f" ({_interval(row)})")
