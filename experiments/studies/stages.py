"""The stages of a sweep's job: palette, images, pretraining, probe. A stage whose files exist is not computed again, so a stopped job continues."""

import copy
import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from igpt_jax import features, probe
from igpt_jax.data import pipeline
from igpt_jax.files import write_atomically
from igpt_jax.probing.lbfgs_probe import choose_subset
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
        known = {"data": config.data.to_dict()}
        full = pipeline.config_for(known, config.data.image_size, source)
        if not self.labels_per_class and not self.test_images:
            return full
        make_once(place, partial(_write_images, full, self.labels_per_class, self.test_images))
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


def make_once(folder: pathlib.Path, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Return `folder`; if it is missing, make(temporary folder) fills it. It appears complete, and the first of several hosts wins."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            make(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def compute_once(path: pathlib.Path, compute: Callable[[], dict]) -> dict:
    """Return the contents of the JSON file at `path`; if it is missing, compute() returns them."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(compute(), indent=1).encode())
    return json.loads(path.read_text())


def with_palette(config: Recipe, workdir: pathlib.Path) -> Recipe:
    """Return the recipe with one palette for all jobs. If it names no palette and reads no stored codes, one is fitted in WORKDIR/palette."""
    if config.palette.path or config.data.source.partition(":")[0] in ("codes", "npy"):
        return config
    return changed(config, palette__path=str(make_once(workdir / "palette", partial(quantize, config)) / "palette.npy"))


def pretrain(recipe: Recipe, home: pathlib.Path) -> dict:
    """Train a recipe in `home` to its end; return its result.json: parameters, and the loss on all validation images."""
    if not (home / "result.json").exists():
        loop.train(recipe, home)
    if not (home / "result.json").exists():
        raise SystemExit("stopped by a signal and saved: run the same command again to continue")
    return json.loads((home / "result.json").read_text())


def probe_layers(checkpoint: PathLike, images: pipeline.DataConfig, place: pathlib.Path, options: Sequence[str] = ()) -> dict:
    """Write features and linear probes of every layer to `place`; return the report of igpt_jax.probe, which is given `options`."""
    if not (place / "probe.json").exists():
        arguments = [f"--checkpoint={checkpoint}", f"--out={place}", f"--data={images.source}"]
        arguments += [f"--{name}={getattr(images, name)}" for name in ("view", "validation", "directory")]
        if features.main(arguments) or probe.main([f"--features={place}", *options]):
            raise ValueError(f"the probe of {checkpoint} on {images.source} failed: the error is printed above")
    return json.loads((place / "probe.json").read_text())


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
