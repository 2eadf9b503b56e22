"""Linear probes of all layers and values of C beside scikit-learn: `python -m experiments.bench.probe`.

ours                   igpt_jax.probing.lbfgs_probe.probe: all layers and values of C in parallel; its tolerance equals scikit-learn's tol=1e-6
scikit-learn           LogisticRegression, one fit after the other, with the same choice of C and the same final fit, tol=1e-6
scikit-learn-default   the same with its default tol=1e-4

The features are synthetic. The classes are a little apart, and further apart in later layers. The variance of the noise falls along the axes as a power law,
as that of real features does. Test accuracies of every layer should agree within 0.2 points; the output says whether they do.
"""

import argparse
import functools
import warnings

import numpy as np

from experiments.bench import rounds
from igpt_jax.cli import Parser, integer, positive
from igpt_jax.probing.lbfgs_probe import C_VALUES, probe, standardise
from igpt_jax.probing.splits import Sample

PROGRAMS = {"ours": (), "scikit-learn": ("scikit-learn",), "scikit-learn-default": ("scikit-learn",)}
CLASSES = 10
TOLERANCES = {"scikit-learn": 1e-6, "scikit-learn-default": 1e-4}
POINTS = 0.2  # largest difference of a layer's accuracies, percentage points
COLUMNS = {
    "s": ("seconds", "{:,.2f}"),
    "mean test accuracy": ("accuracy", "{:.2%}"),
    "largest difference, points": ("difference", "{:.2f}"),
}


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    parser.add_argument("--layers", type=integer(1), default=9, help="layers to probe")
    parser.add_argument("--width", type=integer(1), default=64, help="size of a feature vector")
    parser.add_argument("--images", type=integer(1), default=5000, help="training images; as many test images, and a fifth as many validation images")
    parser.add_argument("--C", type=positive(), nargs="+", default=list(C_VALUES), help="values of scikit-learn's C")
    small = {"layers": 2, "width": 8, "images": 500, "C": [0.01, 1.0], "rounds": 2}
    return rounds.start("probe", bench, parser, argv, PROGRAMS, small)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    samples = standardise(*synthetic_samples(arguments.layers, arguments.width, arguments.images))
    fits = {"ours": lambda: [row["test"] for row in probe(*samples, CLASSES, arguments.C)]}
    for name, tolerance in TOLERANCES.items():
        fits[name] = functools.partial(_one_by_one, *samples, arguments.C, tolerance)

    def program(name):
        def turn():
            results = []
            seconds = rounds.seconds_each(lambda: results.append(fits[name]()), 1, lambda _: None, warm=0)
            return {"seconds": seconds, "accuracies": results[0]}

        return turn

    fits["ours"]()  # compiles
    rows = rounds.alternate({name: program(name) for name in arguments.programs}, arguments.rounds)
    summary = rounds.summary(rows, arguments.layers * len(arguments.C), "probes")
    for values in summary.values():
        if "failed" not in values:
            differences = np.abs(np.subtract(values["accuracies"], summary["ours"]["accuracies"]))
            values |= {"accuracy": float(np.mean(values["accuracies"])), "difference": 100 * float(differences.max())}
    print(f"{arguments.layers} layers x {len(arguments.C)} values of C, {arguments.images} images, width {arguments.width}")
    rounds.print_table(summary, COLUMNS)
    equal = all(values.get("difference", 0) <= POINTS + 1e-9 for values in summary.values())
    print(f"accuracies are {'' if equal else 'NOT '}equal within {POINTS} points")
    sizes = {name: getattr(arguments, name) for name in ("layers", "width", "images", "C")} | {"classes": CLASSES}
    what = "probes of all layers and values of C, the best of each layer fitted again and tested"
    result = {"what": what, "sizes": sizes, "dtype": "float32", "batch": arguments.images, "equal_within_points": POINTS, "equal": equal}
    return result | {"programs": summary, "rounds": rows}


def synthetic_samples(layers: int, width: int, images: int) -> list[Sample]:
    """Return training, validation and test samples with features float32 [layers, N, width], which a random matrix mixes in each layer."""
    generator = np.random.default_rng(0)
    means = generator.normal(size=(CLASSES, width))
    spread = np.arange(1, width + 1) ** -0.5
    mixing = generator.normal(size=(layers, width, width)) / width**0.5
    apart = np.linspace(0.2, 0.6, layers)[:, None, None]
    samples = []
    for count in (images, images // 5, images):
        labels = generator.integers(CLASSES, size=count)
        noise = generator.normal(size=(count, width)) * spread
        features = ((apart * spread * means[labels] + noise) @ mixing).astype(np.float32)
        samples.append(Sample(features, labels.astype(np.int32)))
    return samples


def _one_by_one(training, validation, test, C_values, tolerance) -> list[float]:
    """Test accuracy of each layer by scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fit(features, labels, C):
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            return LogisticRegression(C=C, tol=tolerance, max_iter=1000).fit(features, labels)

    accuracies = []
    for layer in range(len(training.features)):
        fits = [fit(training.features[layer], training.labels, C) for C in C_values]
        best = int(np.argmax([model.score(validation.features[layer], validation.labels) for model in fits]))
        both = np.concatenate([training.features[layer], validation.features[layer]]), np.concatenate([training.labels, validation.labels])
        accuracies.append(float(fit(*both, C_values[best]).score(test.features[layer], test.labels)))
    return accuracies


if __name__ == "__main__":
    main()
