"""The stages of a sweep's job: palette, images, pretraining, probe. What is there already is kept, so that a job goes on where it stopped."""

import copy
import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np

from igpt_jax import features, probe
from igpt_jax.data import pipeline
from igpt_jax.palette.palette import write_whole
from igpt_jax.probing.lbfgs_probe import choose_subset
from igpt_jax.quantize import quantize
from igpt_jax.training import loop


@dataclasses.dataclass(frozen=True)
class Probing:
    """Which images are probed, and how; the same for every model of a sweep."""

    labels_per_class: int  # random training images of each class, or as many as the smallest class has; 0: all
    test_images: int  # random test images, at most; 0: all
    solver: str  # see igpt_jax.probe

    def images(self, config, source: str, place: pathlib.Path) -> pipeline.DataConfig:
        """The images of `source` as the recipe's model sees them, or fewer of them, written to `place` once."""
        known = {"data": config.data.to_dict()}
        whole = pipeline.config_for(known, config.data.image_size, source)
        if not self.labels_per_class and not self.test_images:
            return whole
        made_once(place, partial(_write_images, whole, self.labels_per_class, self.test_images))
        return pipeline.config_for(known, config.data.image_size, f"npz:{place}", view="center_square")  # they are squares of that size, seen once

    def layers(self, checkpoint, images: pipeline.DataConfig, place: pathlib.Path, pixels=False, options=()) -> dict:
        """What igpt_jax.probe reports of every layer, and of the `pixels` themselves; features and probes are written to `place`."""
        without = ["--no-raw-pixels"] if self.solver == "lbfgs" and not pixels else []
        return probe_layers(checkpoint, images, place, [f"--solver={self.solver}", *without, *options])


class ProbingFlags:
    """The command line's flags for a Probing, which is their `value` once they are parsed."""

    def __init__(self, flags):
        self.holders = {
            "labels_per_class": flags.DEFINE_integer("labels_per_class", 400, "labelled training images of each class, at most; 0: all", lower_bound=0),
            "test_images": flags.DEFINE_integer("test_images", 2_000, "test images, at most; 0: all", lower_bound=0),
            "solver": flags.DEFINE_enum("solver", "lbfgs", ["lbfgs", "sgd"], "of the probes, see igpt_jax.probe"),
        }

    @property
    def value(self) -> Probing:
        return Probing(**{name: holder.value for name, holder in self.holders.items()})


def changed(config, **changes):
    """A copy of a recipe with other values, model__layers=8; what refers to them, as positions to the size of an image, follows."""
    recipe = copy.deepcopy(config)
    recipe.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return recipe


def made_once(folder: pathlib.Path, make: Callable) -> pathlib.Path:
    """`folder`, filled by make(another folder) where it is missing: it appears whole, and of several hosts at it the first one's stays."""
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


def kept(path: pathlib.Path, make: Callable[[], dict]) -> dict:
    """What the JSON at `path` says, made where it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(make(), indent=1).encode())
    return json.loads(path.read_text())


def with_palette(config, workdir: pathlib.Path):
    """The recipe with one palette for all jobs, fitted once to WORKDIR/palette where it neither names one nor reads stored codes."""
    if config.palette.path or config.data.source.partition(":")[0] in ("codes", "npy"):
        return config
    return changed(config, palette__path=str(made_once(workdir / "palette", partial(quantize, config)) / "palette.npy"))


def pretrain(recipe, home: pathlib.Path) -> dict:
    """Train a recipe in `home` to its end; returns what result.json says: parameters, and the loss on all validation images."""
    if not (home / "result.json").exists():
        loop.train(recipe, home)
    if not (home / "result.json").exists():
        raise SystemExit("stopped by a signal, saved: the same command goes on from there")
    return json.loads((home / "result.json").read_text())


def probe_layers(checkpoint, images: pipeline.DataConfig, place: pathlib.Path, options=()) -> dict:
    """Features of every layer and their linear probes, written to `place`; what igpt_jax.probe reports. `options` are more of its own."""
    if not (place / "probe.json").exists():
        arguments = [f"--checkpoint={checkpoint}", f"--out={place}", f"--data={images.source}"]
        arguments += [f"--{name}={getattr(images, name)}" for name in ("view", "validation", "directory")]
        if features.main(arguments) or probe.main([f"--features={place}", *options]):
            raise ValueError(f"the probe of {checkpoint} on {images.source} failed, see above")
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
