"""Evaluation on a split: nats and bits per pixel, and the accuracy of a class head.

Every image counts exactly once, for any batch size and number of devices. The masks of a bert model are drawn from each image's index.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh

from igpt_jax.data import pipeline
from igpt_jax.data.classes import match_classes
from igpt_jax.data.pipeline import Dataset
from igpt_jax.distributed import sharding
from igpt_jax.distributed.multihost import note
from igpt_jax.model.transformer import ImageGPT, ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from igpt_jax.training.step import LossConfig, eval_step
from igpt_jax.types import Array, Batch, PathLike

EVALUATION_SEED = 0  # of the masks; fixed, so that two evaluations are equal
EvalStep: TypeAlias = Callable[[ImageGPT, Batch, Array], dict[str, Array]]  # (model, batch, key) -> sums over the batch

# Metric of `evaluate` -> 1: higher is better, -1: lower is better.
DIRECTIONS = {
    "nats_per_pixel": -1, "bits_per_pixel": -1, "bits_per_dimension": -1, "class_nats": -1, "accuracy": 1, "accuracy_one_mask": 1, "accuracy_top5": 1,
}  # fmt: skip


def measured(config: ModelConfig) -> list[str]:
    """Return the names of DIRECTIONS that `evaluate` reports for a model of this configuration."""
    only_where = {"bits_per_dimension": config.tokens_per_pixel == 3, "class_nats": config.classes > 0, "accuracy": config.classes > 0}
    only_where |= {"accuracy_one_mask": config.classes > 0 and not config.causal, "accuracy_top5": config.classes > 10}
    return [name for name in DIRECTIONS if only_where.get(name, True)]


def make_eval_step(loss_config: LossConfig) -> EvalStep:
    """Return the jitted `eval_step`."""
    return jax.jit(partial(eval_step, loss_config=loss_config))


def evaluate(step: EvalStep, model: ImageGPT, batches: Iterable[Batch], mesh: Mesh) -> dict[str, Any]:
    """Run `step` (from `make_eval_step`) over evaluation batches; return {nats_per_pixel, bits_per_pixel, images} and, with a class head, accuracies."""
    key = jax.random.key(EVALUATION_SEED)
    sums: dict[str, float] = {}
    with jax.set_mesh(mesh):
        pending = None
        for batch in batches:
            batch_sums = step(model, sharding.shard_batch(mesh, batch), key)
            if pending is not None:  # the sums are read one step later, so that the device does not wait for the host
                _add(sums, pending)
            pending = batch_sums
        if pending is not None:
            _add(sums, pending)
    if not sums:
        raise ValueError("there is no image to evaluate")
    images = sums["images"]
    result: dict[str, Any] = {"nats_per_pixel": sums["nats"] / images, "bits_per_pixel": sums["nats"] / images / math.log(2), "images": int(images)}
    if model.config.tokens_per_pixel == 3:
        result["bits_per_dimension"] = result["bits_per_pixel"] / 3
    if "correct" in sums:
        result |= {"accuracy": sums["correct"] / images, "class_nats": sums["class_nats"] / images}
        if not model.config.causal:
            result["accuracy_one_mask"] = sums["correct_one_mask"] / images
        if model.config.classes > 10:
            result["accuracy_top5"] = sums["correct_top5"] / images
    return result


def check_fit(model_config: ModelConfig, palette: Palette, dataset: Dataset, labels_needed: bool) -> None:
    """ValueError where the palette, or the image size or classes of a data set, do not fit the model."""
    source, side = dataset.config.source, dataset.config.image_size
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
        raise ValueError(f"{source} has labels from {labels[0]} to {labels[1]} (-1: none), outside the {model_config.classes} classes")


def _add(sums: dict[str, float], result: dict[str, Array]) -> None:
    for name, value in result.items():
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
) -> dict[str, Any]:
    """Load a checkpoint and evaluate it on a split of its training data or of another source; the result names checkpoint, step, data, view and split.

    `view`: how a picture becomes a square; None: as in training. `limit`: at most so many images, drawn at random, the same each time; 0: all.
    Classes are matched as `match_classes` says; `loss_only` leaves the class head out. `mesh` None: all devices, with as many copies of the model as
    they hold (`sharding.divide`).
    """
    pretrained = checkpoints.load(path, mesh=mesh or partial(sharding.divide, devices=jax.devices()))
    data_config = pipeline.config_for(pretrained.config, pretrained.image_size, source, view)
    dataset = pipeline.open_dataset(data_config, split)
    classes = 0 if loss_only else _usable_classes(pretrained, dataset)
    if classes:
        dataset = match_classes(dataset, pretrained.class_names, pretrained.path, ". --loss-only leaves the class head out")
    model = pretrained.model if classes or not pretrained.model_config.classes else checkpoints.without_head(pretrained.model)
    dataset = dataset.draw(limit)
    check_fit(pretrained.model_config, pretrained.palette, dataset, labels_needed=classes > 0)
    size = sharding.round_up(pretrained.mesh, min(batch, len(dataset)))
    batches: Iterable[Batch] = pipeline.evaluation_batches(dataset, pretrained.palette, size, sharding.part_of_batch(pretrained.mesh, size))
    batches = pipeline.labelled(batches, data_config.source) if classes else batches
    result = evaluate(make_eval_step(LossConfig(**pretrained.config["loss"])), model, batches, pretrained.mesh)
    return {"checkpoint": pretrained.path, "step": pretrained.step, "data": data_config.source, "view": data_config.view, "split": split} | result


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
