"""Does a model draw what it remembers? The nearest training pictures of its samples, by its own features and by pixels.

    python -m experiments.studies.nearest --checkpoint=runs/cifar10-16 --samples=256 --completions=256
    python -m experiments.studies.nearest --checkpoint=runs/cifar10-16 --pictures=made                    the PNG and JPEG files of a folder instead

Every picture is compared in the palette's colours. Features are those of one layer, the mean over positions (igpt_jax.features; --layer, by default the best
layer of CHECKPOINT/probe.json, else the middle one), by cosine distance. Pixels are compared by the root mean square difference of their levels, 0 to 255.

Two numbers answer, for each kind of picture and each distance:
- the share of pictures that are nearer to a training picture than all but 1 % of the test pictures are (1 % if nothing is remembered);
- of equally many training and test pictures, how often the nearest one is a training picture (50 % if nothing is remembered).
The training pictures are --train random ones, so a copy of another one is not found. For a completion the upper half is a test picture's; that picture is
left out of the second number for it. Draws the nearest pictures and the distributions to --out; OUT.json holds the numbers.
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.report.provenance import provenance, typed
from experiments.report.summary import is_of
from experiments.studies import outputs
from igpt_jax import sample
from igpt_jax.cli import Parser, integer
from igpt_jax.inspection import batches
from igpt_jax.interop import hub
from igpt_jax.probing.intervals import wilson
from igpt_jax.sampling.generate import sample_codes
from igpt_jax.training import checkpoints
from igpt_jax.training.checkpoints import Pretrained

SPACES = {"features": "cosine distance of features", "pixels": "root mean square difference, levels"}
MADE = 256  # pictures of each kind
NEIGHBOURS = 3  # drawn of each picture, in each space
ROWS = 3  # of pictures drawn, of each kind and space
QUANTILE = 0.01
ENDINGS = (".png", ".jpg", ".jpeg")


class Pictures(NamedTuple):
    """Some pictures in both spaces."""

    codes: np.ndarray  # int32 [I, S]
    features: np.ndarray  # float32 [I, D]
    pixels: np.ndarray  # float32 [I, H * H * 3], divided by the root of their number: Euclidean distances are root mean squares


def run(arguments: argparse.Namespace) -> dict:
    """Make or read the pictures, measure, draw, and return the contents of the JSON file."""
    arguments.samples, arguments.completions = (MADE if count is None else count for count in (arguments.samples, arguments.completions))
    if arguments.pictures is None and not arguments.samples + arguments.completions:
        raise ValueError("there is nothing to examine: give --samples, --completions or --pictures")
    pretrained = hub.load(arguments.checkpoint)
    layer = choose_layer(pretrained, arguments)
    train, test = (batches.open_images(pretrained, count, split, arguments.data) for count, split in ((arguments.train, "train"), (arguments.test, "test")))
    test_codes = test.codes(np.arange(len(test)), pretrained.palette)
    codes, own = make_pictures(pretrained, arguments, test_codes)
    codes |= {"train": train.codes(np.arange(len(train)), pretrained.palette), "test": test_codes}
    sets = {name: describe(pretrained, codes_IS, layer, arguments.batch) for name, codes_IS in codes.items()}
    asked = [name for name in sets if name not in ("train", "test")]
    found = {space: {name: nearest(getattr(sets[name], space), getattr(sets["train"], space), space) for name in (*asked, "test")} for space in SPACES}
    result = outputs.facts_of(arguments.checkpoint, pretrained) | {"layer": layer}
    result["pictures"] = {name: len(codes_IS) for name, codes_IS in codes.items()}
    result["spaces"] = {space: measure(space, sets, found[space], own) for space in SPACES}
    result |= provenance(typed("studies.nearest"))
    draw(result, pretrained, sets, found).savefig(arguments.out, dpi=150)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def choose_layer(pretrained: Pretrained, arguments: argparse.Namespace) -> int:
    """Return --layer, the best layer of the run's probe, or the middle one."""
    layers = pretrained.model_config.layers
    if arguments.layer is not None:
        if arguments.layer > layers:
            raise ValueError(f"--layer={arguments.layer} must be from 0 to {layers}")
        return arguments.layer
    path = pathlib.Path(arguments.checkpoint) / "probe.json"
    if not path.exists():
        return layers // 2
    probe = json.loads(path.read_text())
    if not is_of(probe, pretrained):
        steps = f"{path} is of step {probe['step']}, and the model of step {pretrained.step} is another"
        raise ValueError(f"{steps}: give --layer, or write features and probes again")
    return probe["best"]["layer"]


def make_pictures(pretrained: Pretrained, arguments: argparse.Namespace, test_codes: np.ndarray) -> tuple[dict, dict]:
    """Return ({kind: codes [I, S]}, {kind: int [I], the number of the test picture that each was made from}) of what is to be examined."""
    if arguments.pictures is not None:
        paths = sorted(path for path in arguments.pictures.iterdir() if path.suffix.lower() in ENDINGS)
        if not paths:
            raise ValueError(f"{arguments.pictures} holds no file that ends in {', '.join(ENDINGS)}")
        return {"pictures": batches.encode_pictures(pretrained, paths)}, {}
    codes, own, key = {}, {}, jax.random.key(arguments.seed)
    settings = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "batch")}
    if arguments.samples:
        codes["samples"] = sample_codes(pretrained.model, np.zeros((1, 0), np.int32), key, arguments.samples, **settings)[0]
    if arguments.completions:
        own["completions"] = some(len(test_codes), arguments.completions)
        rows = pretrained.image_size // 2
        given_IP = test_codes[own["completions"], : rows * pretrained.model_config.columns]
        codes["completions"] = sample_codes(pretrained.model, given_IP, key, **settings)[:, 0]
    return codes, own


def some(total: int, count: int) -> np.ndarray:
    """Return at most `count` of the numbers below `total`, int [n], drawn at random but the same each time: the first ones may be of one class."""
    return np.random.RandomState(0).permutation(total)[:count]


def describe(pretrained: Pretrained, codes_IS: np.ndarray, layer: int, batch: int) -> Pictures:
    """Return pictures of codes [I, S] in both spaces; features after `layer` blocks, as igpt_jax.features writes them."""

    @jax.jit
    def features(model, codes_BS):
        return model.forward_features(codes_BS).features[layer]

    parts = []
    for start in range(0, len(codes_IS), batch):
        part = codes_IS[start : start + batch]
        padded = np.concatenate([part, np.zeros((min(batch, len(codes_IS)) - len(part), part.shape[1]), part.dtype)])  # one shape, compiled once
        parts.append(np.asarray(features(pretrained.model, padded))[: len(part)])
    pixels = batches.decode_pictures(pretrained, codes_IS).reshape(len(codes_IS), -1).astype(np.float32)
    return Pictures(codes_IS, np.concatenate(parts), pixels / pixels.shape[1] ** 0.5)


def nearest(queries_QD: np.ndarray, references_RD: np.ndarray, space: str, count: int = NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """Return (distances float [Q, count], rows int [Q, count]) of the nearest references, the nearest first.

    `space` is `features`, by cosine distance, or `pixels`, by Euclidean distance. Rows may come from any features or pictures: `store.read_layer` reads those
    of a folder that igpt_jax.features wrote.
    """
    from sklearn.neighbors import NearestNeighbors

    finder = NearestNeighbors(n_neighbors=min(count, len(references_RD)), metric="cosine" if space == "features" else "euclidean", algorithm="brute")
    return finder.fit(np.asarray(references_RD, np.float64)).kneighbors(np.asarray(queries_QD, np.float64))


def measure(space: str, sets: dict[str, Pictures], found: dict[str, tuple], own: dict[str, np.ndarray]) -> dict:
    """Return both numbers of each kind of picture, with 95 % intervals, and the quantiles of its distances."""
    threshold = float(np.quantile(found["test"][0][:, 0], QUANTILE))
    equal = min(len(sets["train"].codes), len(sets["test"].codes))
    halves = {name: some(len(sets[name].codes), equal) for name in ("train", "test")}
    result: dict[str, Any] = {"threshold": threshold, "halves": equal}
    for name, (distances, _) in found.items():
        nearer = int((distances[:, 0] < threshold).sum())
        result[name] = {"quantiles": quantiles(distances[:, 0]), "nearer": nearer} | share(nearer, len(distances))
        if name != "test":
            parts = (getattr(sets[half], space)[rows] for half, rows in halves.items())
            result[name]["nearest_in_training"] = train_wins(getattr(sets[name], space), *parts, space, place_in(halves["test"], own.get(name)))
    return result


def train_wins(queries: np.ndarray, train: np.ndarray, test: np.ndarray, space: str, own: np.ndarray | None) -> dict:
    """Return how often the nearest of both is a training picture; `own`, int [Q], is the row of the test picture that does not count, -1: all count.

    Some pictures are the nearest of many others. Pictures with the same nearest one are no independent trials, so the 95 % interval is that of as many trials
    as there would be equally frequent nearest pictures: Q**2 / sum of the squared frequencies. It is too wide
    where the pictures are few for so many queries.
    """
    _, rows = nearest(queries, np.concatenate([train, test]), space, 2)
    is_own = np.zeros(len(queries), bool) if own is None else (rows[:, 0] == len(train) + own) & (own >= 0)
    first = np.where(is_own, rows[:, -1], rows[:, 0])
    trials = len(queries) ** 2 / float((np.bincount(first) ** 2).sum())
    part = float((first < len(train)).mean())
    return {"share": part, "interval": wilson(part, trials), "trials": trials}


def place_in(rows: np.ndarray, numbers: np.ndarray | None) -> np.ndarray | None:
    """Return where each number stands in `rows`, int [n], -1 where it does not; None for None."""
    if numbers is None:
        return None
    places = np.full(max(rows.max(), numbers.max()) + 1, -1)
    places[rows] = np.arange(len(rows))
    return places[numbers]


def share(count: int, total: int) -> dict:
    """Return a share and its 95 % interval."""
    return {"share": count / total, "interval": wilson(count / total, total)}


def quantiles(distances: np.ndarray) -> dict[str, float]:
    """Return the distances below which 1, 10, 50, 90 and 99 % are."""
    return {f"{100 * level:g}": float(np.quantile(distances, level)) for level in (0.01, 0.1, 0.5, 0.9, 0.99)}


def title(result: dict) -> str:
    """Give both numbers for the first kind of pictures, a line each."""
    name = next(name for name in result["pictures"] if name not in ("train", "test"))

    def of_each_space(key: str | None) -> str:
        measured = {space: of[name] if key is None else of[name][key] for space, of in result["spaces"].items()}
        texts = {space: (100 * of["share"], *(100 * end for end in of["interval"])) for space, of in measured.items()}
        return " and ".join(f"{share:.1f} % ({low:.1f} to {high:.1f}) by {space}" for space, (share, low, high) in texts.items())

    nearer = f"{of_each_space(None)} are nearer to a training picture than 99 % of the test pictures"
    nearest_in_training = f"{of_each_space('nearest_in_training')} have a training picture as nearest (50 % if none is remembered)"
    return f"Of {result['pictures'][name]:,} {name}, {nearer};\n{nearest_in_training}"


def draw(result: dict, pretrained: Pretrained, sets: dict[str, Pictures], found: dict) -> Any:
    """Draw the pictures that come nearest beside their neighbours, and the distributions of the distance."""
    from matplotlib.figure import Figure

    kinds = [name for name in sets if name not in ("train", "test")]
    figure = Figure(figsize=(15, 2.0 + 1.24 * max(5, ROWS * len(kinds))), layout="constrained")
    *grids, right = figure.subfigures(1, 3, width_ratios=(1, 1, 1.25), wspace=0.03)
    for part, space in zip(grids, SPACES, strict=True):
        part.suptitle(f"nearest by {space}, {ROWS} of each kind", fontsize=11)
        grid = part.subplots(ROWS * len(kinds), 1 + NEIGHBOURS)
        for number, kind in enumerate(kinds):
            _draw_rows(grid[ROWS * number : ROWS * (number + 1)], kind, space, pretrained, sets, found[space][kind])
        for axes, name in zip(grid[0], ("made", "nearest", "second", "third"), strict=False):
            axes.set_title(name if name == "made" else f"{name}\n{axes.get_title()}", fontsize=9, pad=3)
    for axes, space in zip(right.subplots(2, 1), SPACES, strict=True):
        _draw_distances(axes, space, result, {kind: found[space][kind][0][:, 0] for kind in (*kinds, "test")})
    figure.suptitle(title(result), fontsize=13)
    return figure


def _draw_rows(grid: Any, kind: str, space: str, pretrained: Pretrained, sets: dict[str, Pictures], found: tuple) -> None:
    distances, rows = found
    for axes_C, one in zip(grid, np.argsort(distances[:, 0], kind="stable"), strict=False):
        shown = [sets[kind].codes[one], *sets["train"].codes[rows[one]]]
        for place, (axes, codes) in enumerate(zip(axes_C, shown, strict=False)):
            axes.imshow(batches.decode_pictures(pretrained, codes))
            axes.set(xticks=[], yticks=[])
            if place:
                axes.set_title(f"{distances[one, place - 1]:.3f}" if space == "features" else f"{distances[one, place - 1]:.0f} levels", fontsize=8, pad=2)
        axes_C[0].set_ylabel(kind[:-1], fontsize=9)


def _draw_distances(axes: Any, space: str, result: dict, distances: dict[str, np.ndarray]) -> None:
    """Draw the share of pictures below each distance, with its 95 % interval."""
    styles = {"test": ("#444444", "-"), "samples": ("#08519c", "--"), "completions": ("#d95f02", "-."), "pictures": ("#08519c", "--")}
    of = result["spaces"][space]
    for kind, values in distances.items():
        label = f"{len(values):,} {'test pictures' if kind == 'test' else kind}"
        if kind != "test":
            low, high = (100 * end for end in of[kind]["nearest_in_training"]["interval"])
            label += f": a training picture is nearest for {100 * of[kind]['nearest_in_training']['share']:.0f} % ({low:.0f} to {high:.0f})"
        places, below = np.sort(values), np.arange(1, len(values) + 1)
        axes.step(places, 100 * below / len(values), styles[kind][1], where="post", color=styles[kind][0], linewidth=1.8, label=label)
        ends = 100 * np.array([wilson(count / len(values), len(values)) for count in below]).T
        axes.fill_between(places, *ends, step="post", color=styles[kind][0], alpha=0.15, linewidth=0)
    axes.axvline(of["threshold"], color="black", linewidth=1, linestyle=":", label="1 % of the test pictures are nearer")
    most = max(np.quantile(values, 0.99) for values in distances.values())
    axes.set(xlabel=f"{SPACES[space]}, to the nearest training picture", ylabel="pictures up to this distance, %", ylim=(0, 100), xlim=(0, most))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def main() -> None:
    parser = Parser(prog="python -m experiments.studies.nearest", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help=checkpoints.HELP)
    parser.add_argument("--data", help="data source of training and test images (see igpt_jax/data/config.py); default: the one the model was trained on")
    parser.add_argument("--samples", type=integer(), help=f"pictures made from nothing (default: {MADE})")
    parser.add_argument("--completions", type=integer(), help=f"test images whose lower half is drawn by the model (default: {MADE})")
    parser.add_argument("--pictures", type=pathlib.Path, metavar="DIR", help="a folder of picture files to examine instead")
    parser.add_argument("--train", type=integer(1), default=10_000, help="training images, drawn at random, always the same")
    parser.add_argument("--test", type=integer(2), default=2_000, help="test images, drawn at random, always the same")
    parser.add_argument("--layer", type=integer(), help="whose features are compared; default: the best of CHECKPOINT/probe.json, else the middle one")
    sample.add_draws(parser)
    parser.add_argument("--batch", type=integer(1), default=64, help="images at once")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("nearest.png"), help="the PNG to write; the JSON is written beside it")
    arguments = parser.parse_args()
    result = outputs.start(run, arguments, {"pictures": ("samples", "completions")}, inputs=[arguments.pictures])
    outputs.tell(title(result), arguments.out)


if __name__ == "__main__":
    main()
