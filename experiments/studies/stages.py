"""The stages of a sweep's job: palette, images, pretraining, probe. A stage whose files exist is not computed again, so a stopped job continues.

Each stage stores what it was made of, and is used again only if that is the same (experiments/studies/origin.py).
"""

import copy
import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from experiments.report.measurements import Factors, Measurement, budget_of_probe, check_scores, fingerprint_of, from_bits, to_bits
from experiments.studies import origin
from experiments.studies.origin import Origin
from igpt_jax import features, probe
from igpt_jax.data import pipeline
from igpt_jax.files import write_atomically
from igpt_jax.probing.lbfgs_probe import choose_subset
from igpt_jax.probing.results import read_predictions
from igpt_jax.quantize import quantize
from igpt_jax.training import loop
from igpt_jax.types import PathLike, Recipe


@dataclasses.dataclass(frozen=True)
class Probing:
    """Which images are probed, and by which solver; the same for every model of a sweep."""

    labels_per_class: int  # random training images of each class, at most the size of the smallest class; 0: all
    test_images: int  # maximum number of random test images; 0: all
    solver: str  # see igpt_jax.probe

    def images(self, config: Recipe, source: str, place: pathlib.Path) -> pipeline.DataConfig:
        """Return the images of `source` at the recipe's resolution; a subset of them is written to `place` once."""
        full = images_of(config, source)
        if not self.labels_per_class and not self.test_images:
            return full
        found = origin.of_images(full)
        drawn = {"labels_per_class": self.labels_per_class, "drawn_test_images": self.test_images}
        drawn["test_images_are"] = found["test_images"] + (f", {self.test_images} by seed {full.seed}" if self.test_images else "")
        make_once(place, partial(_write_images, full, self.labels_per_class, self.test_images), drawn | {"images": found})
        known = {"data": config.data.to_dict()}
        return pipeline.config_for(known, config.data.image_size, f"npz:{place}", view="center_square")  # they already are squares of that size

    def layers(
        self, checkpoint: PathLike, images: pipeline.DataConfig, place: pathlib.Path, pixels: bool = False, options: Sequence[str] = ()
    ) -> dict:
        """Return the report of igpt_jax.probe on every layer, with `pixels` also on raw pixels; features and probes are written to `place`."""
        without = ["--no-raw-pixels"] if self.solver == "lbfgs" and not pixels else []
        return probe_layers(checkpoint, images, place, [f"--solver={self.solver}", *without, *options])


class ProbingFlags:
    """The flags of a Probing; after the command line is parsed, `value` is the Probing."""

    def __init__(self, flags):
        self.holders = {
            "labels_per_class": flags.DEFINE_integer("labels_per_class", 400, "maximum labelled training images of each class; 0: all", lower_bound=0),
            "test_images": flags.DEFINE_integer("test_images", 2_000, "maximum number of test images; 0: all", lower_bound=0),
            "solver": flags.DEFINE_enum("solver", "lbfgs", ["lbfgs", "sgd"], "solver of the probes, see igpt_jax.probe"),
        }

    @property
    def value(self) -> Probing:
        return Probing(**{name: holder.value for name, holder in self.holders.items()})


def changed(config: Recipe, **changes) -> Recipe:
    """Return a copy of a recipe with other values, for example model__layers=8; references to them, such as config.model.positions, follow."""
    recipe = copy.deepcopy(config)
    recipe.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return recipe


def images_of(config: Recipe, source: str | None = None) -> pipeline.DataConfig:
    """Return the images of `source`, default: the recipe's own, at its resolution."""
    return pipeline.config_for({"data": config.data.to_dict()}, config.data.image_size, source)


def make_once(folder: pathlib.Path, make: Callable[[pathlib.Path], object], made_of: Origin) -> pathlib.Path:
    """Return `folder`; if it is missing, make(temporary folder) fills it. It appears complete, and the first of several hosts wins.

    ValueError if it was made of other things than `made_of`.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            make(temporary)
            origin.write(temporary, made_of)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    origin.check(folder, origin.read(folder), made_of)
    return folder


def compute_once(path: pathlib.Path, compute: Callable[[], dict], made_of: Origin) -> dict:
    """Return the contents of the JSON file at `path`; if it is missing, compute() returns them. ValueError if it was computed of others than `made_of`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({origin.KEY: made_of} | compute(), indent=1).encode())
    found = json.loads(path.read_text())
    origin.check(path, found.pop(origin.KEY, None), made_of)
    return found


def with_palette(config: Recipe, workdir: pathlib.Path) -> Recipe:
    """Return the recipe with one palette for all jobs. If it names no palette and reads no stored codes, one is fitted in WORKDIR/palette."""
    if config.palette.path or config.data.source.partition(":")[0] in ("codes", "npy"):
        return config
    made_of = {"images": origin.of_images(images_of(config))}
    return changed(config, palette__path=str(make_once(workdir / "palette", partial(quantize, config), made_of) / "palette.npy"))


def pretrain(recipe: Recipe, home: pathlib.Path) -> dict:
    """Train a recipe in `home` to its end; return its result.json: parameters, and the loss on all validation images."""
    return train_once(home, lambda: loop.train(recipe, home), {"images": origin.of_images(images_of(recipe))})


def train_once(home: pathlib.Path, train: Callable[[], object], made_of: Origin) -> dict:
    """Return the result.json of the training in `home`; if it is missing, train() starts or continues it.

    SystemExit if a signal stopped it; ValueError if it was begun with others than `made_of`.
    """
    origin.claim(home, made_of, begun=(home / "config.json").exists())
    if not (home / "result.json").exists():
        train()
    if not (home / "result.json").exists():
        raise SystemExit("stopped by a signal and saved: run the same command again to continue")
    return json.loads((home / "result.json").read_text())


def probe_layers(checkpoint: PathLike, images: pipeline.DataConfig, place: pathlib.Path, options: Sequence[str] = ()) -> dict:
    """Write features and linear probes of every layer to `place`; return the report of igpt_jax.probe, which is given `options`."""
    if (place / "probe.json").exists():
        claim_features(checkpoint, images, place)
    else:
        write_features(checkpoint, images, place)
        _probe(place, place, options)
    return json.loads((place / "probe.json").read_text())


def raw_pixels(features_folder: pathlib.Path, images: pipeline.DataConfig, place: pathlib.Path) -> dict[str, dict]:
    """Return {way: row of `read_ways`} of the raw pixels of images, of which a folder holds features; they are probed once, in `place`."""
    options = ["--solver=lbfgs", "--raw-pixels", "--layers=0"]
    make_once(place, lambda folder: _probe(features_folder, folder, options), {"images": origin.of_images(images)})
    return {way: found["raw_pixels"] for way, found in read_ways(place).items()}


def _probe(features_folder, out, options):
    if probe.main([f"--features={features_folder}", f"--out={out}", *options]):
        raise ValueError(f"the probe of {features_folder} failed: the error is printed above")


def claim_features(checkpoint: PathLike, images: pipeline.DataConfig, place: pathlib.Path) -> None:
    """Write of which model and images the features in `place` are; ValueError if they are of others."""
    begun = (place / "features.json").exists()
    described = json.loads((place / "features.json").read_text()) if begun else {}
    older = {"model": {key: described[key] for key in ("step", "checksum") if described.get(key) is not None}}
    origin.claim(place, {"model": origin.of_model(checkpoint), "images": origin.of_images(images)}, begun=begun, older=older)


def write_features(checkpoint: PathLike, images: pipeline.DataConfig, place: pathlib.Path) -> None:
    """Write the features of every layer to `place`, or what is missing of them. ValueError if those that are there are of another model or of other images."""
    claim_features(checkpoint, images, place)
    settings = [f"--{name}={getattr(images, name)}" for name in ("view", "validation", "directory")]
    if features.main([f"--checkpoint={checkpoint}", f"--out={place}", f"--data={images.source}", *settings]):
        raise ValueError(f"the features of {checkpoint} on {images.source} were not written: the error is printed above")


def read_ways(place: pathlib.Path) -> dict[str, dict]:
    """Return what the probes in `place` predicted: {way: {layers: [row], raw_pixels: row or None, fingerprint}} of linear probes and, if they were run, kNN.

    The fingerprint is that of the test images (experiments/report/measurements.py). A row is that of `pack` for the test images, with the accuracy on
    `validation` images, which were not fitted then, and the number of the `layer`.
    """
    test, validation = (read_predictions(place, part) for part in ("test", "validation"))
    images = (origin.read(place) or {}).get("images", {}).get("test_images", "")  # "" of folders of older versions

    def row(predicted_B, validation_B):
        return {"validation": float((validation_B == validation.labels).mean())} | pack(predicted_B == test.labels)

    ways = {}
    for way, layers, pixels in (("linear probe", "layers", "pixels"), ("kNN", "knn", "pixels_knn")):
        chosen = getattr(validation, layers)
        rows = [{"layer": layer} | row(predicted_B, chosen[layer]) for layer, predicted_B in getattr(test, layers).items()]
        of_pixels = getattr(test, pixels)
        if rows:
            ways[way] = {"layers": rows, "raw_pixels": None if of_pixels is None else row(of_pixels, getattr(validation, pixels))}
            ways[way]["fingerprint"] = fingerprint_of(test.labels, images)
    return ways


def best_row(rows: list[dict]) -> dict:
    """Return the row of `read_ways` with the highest accuracy on validation images; of equal ones the first."""
    return max(rows, key=lambda row: row["validation"])


def levels(rows: list[dict]) -> dict[str | int, dict]:
    """Return level -> row of `read_ways`, in the levels of a measurement's `layer`: each number, `best`, and of more than two layers `best interior`."""
    found: dict[str | int, dict] = {row["layer"]: row for row in rows} | {"best": best_row(rows)}
    return found | ({"best interior": best_row(rows[1:-1])} if len(rows) > 2 else {})


def counts_of(report: dict) -> dict[str, int]:
    """Return the numbers of images in a report of igpt_jax.probe: of each split, and `refit`, those that the tested probes are fitted to."""
    return report["counts"] | {"refit": report["refit"]["images"]}


def measured(factors: Factors, seed: int, row: dict, counts: dict[str, int], fingerprint: str) -> Measurement:
    """Return a row of `read_ways` as a measurement; `counts` are those of `counts_of`."""
    layer = factors.get("layer")
    chosen = ("k" if factors.get("way") == "kNN" else "the probe's setting") + (f" and the {layer} layer" if isinstance(layer, str) else "")
    return Measurement(factors, seed, unpack(row).astype(float), "accuracy", budget_of_probe(counts, chosen), fingerprint)


def pack(right_B: np.ndarray) -> dict:
    """Return bool [B] for JSON: {accuracy, images: B, right: bits in hex}."""
    return {"accuracy": float(right_B.mean()), "images": len(right_B), "right": to_bits(right_B)}


def unpack(row: dict) -> np.ndarray:
    """Return bool [B] from what `pack` returned; ValueError if they do not have its accuracy."""
    right_B = from_bits(row["right"], row["images"])
    check_scores("which images are right", right_B, row["images"], row["accuracy"])
    return right_B.astype(bool)


def _write_images(config, labels_per_class, test_images, folder):
    for part, split in (("train", "all_train"), ("test", "test")):
        dataset = pipeline.open_dataset(config, split)
        labels = np.asarray(dataset.labels)
        if labels.min() < 0:
            raise ValueError(f"{config.source} has {(labels < 0).sum()} {part} images without a label: a linear probe needs labels")
        if part == "train" and labels_per_class:
            counts = np.bincount(labels)
            dataset = dataset.keep(np.sort(choose_subset(labels, len(counts), min(labels_per_class, counts[counts > 0].min()), config.seed)))
        elif part == "test":
            dataset = dataset.draw(test_images)
        images = dataset.images(0, len(dataset))
        np.savez(folder / f"{part}.npz", images=images, labels=dataset.labels, class_names=np.asarray(dataset.class_names))
