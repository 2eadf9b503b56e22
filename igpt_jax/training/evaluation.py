"""Evaluation on a split: nats and bits per pixel, and the accuracy of a class head.

Every image counts exactly once, for any batch size and number of devices. The masks of a bert model are drawn from each image's index.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from igpt_jax.data import pipeline
from igpt_jax.data.classes import NAMES_LISTED, match_classes
from igpt_jax.data.messages import listed
from igpt_jax.data.pipeline import Dataset
from igpt_jax.distributed import sharding
from igpt_jax.distributed.multihost import check_same, note
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.progress import Progress
from igpt_jax.training import checkpoints
from igpt_jax.training.step import LossConfig, eval_step, score_images, sum_scores
from igpt_jax.types import Array, Batch, PathLike

EVALUATION_SEED = 0  # of the masks; fixed, so that two evaluations are equal
EvalStep: TypeAlias = Callable[[ImageGPT, Batch, Array], dict[str, Any]]  # (model, batch, key) -> sums over the batch, and `each`: arrays [B] of its images

EMA = "_ema"  # at the end of the name of a metric of the average of the weights
# Metric of `evaluate` -> 1: higher is better, -1: lower is better.
DIRECTIONS = {
    "nats_per_pixel": -1, "bits_per_pixel": -1, "bits_per_dimension": -1, "class_nats": -1, "accuracy": 1, "accuracy_one_mask": 1, "accuracy_top5": 1,
}  # fmt: skip


def measured(config: ModelConfig, ema: bool = False) -> list[str]:
    """Return the names of DIRECTIONS that `evaluate` reports for a model of this configuration, and with `ema` those of the average of the weights."""
    only_where = {"bits_per_dimension": config.tokens_per_pixel == 3, "class_nats": config.classes > 0, "accuracy": config.classes > 0}
    only_where |= {"accuracy_one_mask": config.classes > 0 and not config.causal, "accuracy_top5": config.classes > 10}
    names = [name for name in DIRECTIONS if only_where.get(name, True)]
    return names + [name + EMA for name in names if ema]


def direction(metric: str) -> int:
    """Return 1 if a higher value of one of `measured` is better, -1 if a lower one is."""
    return DIRECTIONS[metric.removesuffix(EMA)]


def make_eval_step(loss_config: LossConfig, each_image: bool = False) -> EvalStep:
    """Return the jitted `eval_step`; with `each_image` its result has the scores of each image too, on every device, under `each`."""
    return jax.jit(partial(_eval_each if each_image else eval_step, loss_config=loss_config))


def evaluate(step: EvalStep, model: ImageGPT, batches: Iterable[Batch], mesh: Mesh) -> dict[str, Any]:
    """Run `step` (from `make_eval_step`) over evaluation batches; return {nats_per_pixel, bits_per_pixel, images} and, with a class head, accuracies.

    Where the step gives the scores of each image, `each_image` holds them as arrays [N] in the order of the batches, the same on every process: `index`
    (the image's number in the split), `label` (-1: none), `nats` (per pixel), and with a class head `predicted` (the class), `class_nats`, and for a bert
    model `predicted_one_mask`.
    """
    key = jax.random.key(EVALUATION_SEED)
    sums: dict[str, float] = {}
    each: list[dict[str, np.ndarray]] = []
    with jax.set_mesh(mesh):
        pending = None
        for batch in batches:
            found = step(model, sharding.shard_batch(mesh, batch), key)
            if pending is not None:  # the sums are read one step later, so that the device does not wait for the host
                _add(sums, each, pending)
            pending = found
        if pending is not None:
            _add(sums, each, pending)
    if not sums:
        raise ValueError("there is no image to evaluate")
    result = _summarise(sums, model.config)
    if each:
        result["each_image"] = {name: np.concatenate([part[name] for part in each]) for name in each[0]}
    return result


def evaluate_dataset(
    step: EvalStep, model: ImageGPT, dataset: Dataset, palette: Palette, batch: int, mesh: Mesh, labelled: bool = False, shown: bool = False
) -> dict[str, Any]:
    """Evaluate a data set as `evaluate` does, about `batch` images at once; with `labelled`, ValueError for an image without a label.

    `shown`: show the progress on the first process.

    For a mixture the metrics are those over all images, each counted once, and `sources` holds {name: metrics} of each source's images.
    """
    found = {}
    for name, part in (dataset.sources or {"": dataset}).items():
        size = sharding.round_up(mesh, min(batch, len(part)))
        batches: Iterable[Batch] = pipeline.evaluation_batches(part, palette, size, sharding.part_of_batch(mesh, size))
        batches = pipeline.labelled(batches, part.config.source) if labelled else batches
        found[name] = evaluate(step, model, _counted(batches, len(part), size) if shown and jax.process_index() == 0 else batches, mesh)
    return found[""] if "" in found else _together(found)


def _together(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics over the images of all sources, and of each under `sources`."""
    each = [metrics.pop("each_image", None) for metrics in found.values()]
    images = sum(metrics["images"] for metrics in found.values())
    names = [name for name in next(iter(found.values())) if name != "images"]
    result: dict[str, Any] = {name: sum(metrics[name] * metrics["images"] for metrics in found.values()) / images for name in names}
    if None not in each:
        result["each_image"] = {name: np.concatenate([scores[name] for scores in each if scores]) for name in each[0] or ()}
    return result | {"images": images, "sources": found}


def _summarise(sums: dict[str, float], config: ModelConfig) -> dict[str, Any]:
    """Metrics of `evaluate` from the sums over all images."""
    images = sums["images"]
    result: dict[str, Any] = {"nats_per_pixel": sums["nats"] / images, "bits_per_pixel": sums["nats"] / images / math.log(2), "images": int(images)}
    if config.tokens_per_pixel == 3:
        result["bits_per_dimension"] = result["bits_per_pixel"] / 3
    if "correct" in sums:
        result |= {"accuracy": sums["correct"] / images, "class_nats": sums["class_nats"] / images}
        if not config.causal:
            result["accuracy_one_mask"] = sums["correct_one_mask"] / images
        if config.classes > 10:
            result["accuracy_top5"] = sums["correct_top5"] / images
    return result


def _eval_each(model: ImageGPT, batch: Batch, run_key: Array, *, loss_config: LossConfig) -> dict[str, Any]:
    scores = score_images(model, batch, run_key, loss_config=loss_config)
    each = {name: batch[name] for name in ("index", "label", "weight")} | {"nats": scores["nats"]}
    if "top5" in scores:
        each |= {"predicted": scores["top5"][:, 0], "class_nats": scores["class_nats"]}
        if not model.config.causal:
            each["predicted_one_mask"] = scores["predicted_one_mask"]
    return sum_scores(scores, batch) | {"each": jax.tree.map(lambda x_B: sharding.constrain(x_B, None), each)}  # on all devices, so that each process reads it


def check_fit(model_config: ModelConfig, palette: Palette, dataset: Dataset, labels_needed: bool) -> None:
    """ValueError where the palette, or the image size or classes of a data set, do not fit the model."""
    source, side = dataset.config.source, dataset.config.image_size
    if labels_needed:
        dataset.check_classes()
    if palette.size != model_config.vocabulary:
        way_out = f"set config.palette.size={palette.size} or fit another"
        raise ValueError(f"the palette has {palette.size} colours and the model {model_config.vocabulary}: {way_out}")
    if palette.tokens_per_pixel != model_config.tokens_per_pixel:
        coded = f"{palette.tokens_per_pixel} to a pixel and the model {model_config.tokens_per_pixel}"
        raise ValueError(f"the palette codes {coded}: set config.palette.kind and config.model.tokens_per_pixel, see configs/cifar10_rgb.py")
    if model_config.positions != side**2 * palette.tokens_per_pixel:
        tokens = f"{side**2} pixels" + (f" of {palette.tokens_per_pixel} tokens" if palette.tokens_per_pixel > 1 else "")
        raise ValueError(f"images of {side} x {side} ({source}) have {tokens} and the model {model_config.positions} positions")
    if labels_needed and not len(dataset.class_names) == model_config.classes > 0:
        raise ValueError(f"{source} has {len(dataset.class_names)} classes and the model's head {model_config.classes}: set config.model.classes")
    if labels_needed and not 0 <= (labels := dataset.label_range)[0] <= labels[1] < model_config.classes:
        if labels[0] < 0:
            way_out = "leave them out, or that source of a mixture; --loss-only evaluates without the head"
            raise ValueError(f"{source} has images without a label, which a class head cannot learn from: {way_out}")
        raise ValueError(f"{source} has labels from {labels[0]} to {labels[1]}, outside the {model_config.classes} classes")


def _add(sums: dict[str, float], each: list[dict[str, np.ndarray]], found: dict[str, Any]) -> None:
    """Add what a step found of a batch: the sums, and the scores of its images without the padding."""
    if scores := found.pop("each", None):
        scores = {name: np.asarray(value_B) for name, value_B in scores.items()}
        is_image_B = scores.pop("weight") > 0
        each.append({name: value_B[is_image_B] for name, value_B in scores.items()})
    for name, value in found.items():
        sums[name] = sums.get(name, 0.0) + float(value)


def evaluate_checkpoint(
    path: PathLike,
    split: str = "test",
    source: str | None = None,
    batch: int = 256,
    limit: int = 0,
    loss_only: bool = False,
    view: str | None = None,
    mesh: Mesh | None = None,
    each_image: bool = False,
    image_size: int | None = None,
    ema: bool = False,
) -> dict[str, Any]:
    """Load a checkpoint and evaluate it on a split of its training data or of another source; the result names checkpoint, step, data, view and split.

    `view`: how a picture becomes a square; None: as in training. `limit`: at most so many images, drawn at random, the same each time; 0: all.
    Classes are matched as `match_classes` says; `loss_only` leaves the class head out. `mesh` None: all devices, with as many copies of the model as
    they hold (`sharding.divide`). A mixture is evaluated as `evaluate_dataset` says. With `each_image` the result has the scores of each image in the data's
    order, as `evaluate` says, and `class_names`: label and predicted class n are `class_names[n]`. They are the model's, and the data's where the class head
    is left out. `image_size`: as in `checkpoints.load`; the result then names it, because losses per pixel at two resolutions are not comparable. `ema`
    evaluates the moving average of the weights in their place, and the result names it.
    """
    place = mesh or partial(sharding.divide, devices=jax.devices())
    pretrained = checkpoints.load(path, mesh=place, image_size=image_size, ema=ema)
    data_config = pipeline.config_for(pretrained.config, pretrained.image_size, source, view)
    dataset = pipeline.open_dataset(data_config, split)
    classes = 0 if loss_only else _usable_classes(pretrained, dataset)
    if classes:
        dataset = match_classes(dataset, pretrained.class_names, pretrained.path, ". --loss-only leaves the class head out")
    model = pretrained.model if classes or not pretrained.model_config.classes else checkpoints.without_head(pretrained.model)
    dataset = dataset.draw(limit)
    if jax.process_count() > 1:
        options = [split, batch, limit, loss_only, data_config.view, image_size, ema, each_image]
        check_same(options=options, images=[len(dataset), dataset.fingerprint()])
    check_fit(pretrained.model_config, pretrained.palette, dataset, labels_needed=classes > 0)
    step = make_eval_step(LossConfig(**pretrained.config["loss"]), each_image)
    result = evaluate_dataset(step, model, dataset, pretrained.palette, batch, pretrained.mesh, labelled=classes > 0, shown=True)
    if each_image:
        result["each_image"]["class_names"] = np.array(dataset.class_names)
        _note_numbers(dataset, pretrained.path)
    named = ({"ema": True} if ema else {}) | ({} if image_size is None else {"image_size": image_size})
    return {"checkpoint": pretrained.path, "step": pretrained.step, "data": data_config.source, "view": data_config.view, "split": split} | named | result


def _counted(batches: Iterable[Batch], images: int, size: int) -> Iterator[Batch]:
    """Yield the batches, of `size` images on all processes together, and show how many of the images are done."""
    with Progress("evaluation", images) as progress:
        for batch in batches:
            yield batch
            progress.advance(min(size, images - progress.done))


def _note_numbers(dataset: Dataset, model: str) -> None:
    """Say it in a line if classes of the data have other numbers in the model."""
    numbers = dataset.class_numbers
    if numbers is not None and any(number not in (-1, own) for own, number in enumerate(numbers.tolist())):
        order = listed([f"{number} {name}" for number, name in enumerate(dataset.class_names)], NAMES_LISTED)
        note(f"the classes of {dataset.config.source} have other numbers in {model}: labels and predictions are numbers of its classes, {order}")


def _usable_classes(pretrained: checkpoints.Pretrained, dataset: Dataset) -> int:
    """Number of classes of the model's head; 0, with a note, if the head is left out because the data has other classes or no labels."""
    classes, source = pretrained.model_config.classes, dataset.config.source
    if classes and pretrained.class_names is None and len(dataset.class_names) != classes:  # as OpenAI's weights, whose head was never trained
        note(f"the class head of {classes} classes is left out: {source} has {len(dataset.class_names)}")
        return 0
    if classes and not (dataset.labels >= 0).any():
        note(f"the class head is left out: no image of {source} has a label")
        return 0
    return classes
