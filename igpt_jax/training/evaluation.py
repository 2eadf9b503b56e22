"""A pass over a split: nats and bits per pixel, accuracy of a class head.

Every image counts exactly once whatever the batch size and the number of devices, and a bert model's masks are drawn from each image's index.
"""

import math
from functools import partial

import jax

from igpt_jax.data import pipeline
from igpt_jax.data.classes import match_classes
from igpt_jax.distributed import sharding
from igpt_jax.distributed.multihost import note
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.palette.palette import Palette
from igpt_jax.training import checkpoints
from igpt_jax.training.step import LossConfig, eval_step

EVALUATION_SEED = 0  # of the masks; fixed, so that two evaluations are the same


# What `evaluate` measures -> 1: more is better, -1: less.
DIRECTIONS = {
    "nats_per_pixel": -1, "bits_per_pixel": -1, "bits_per_dimension": -1, "class_nats": -1, "accuracy": 1, "accuracy_one_mask": 1, "accuracy_top5": 1,
}  # fmt: skip


def measured(config: ModelConfig) -> list[str]:
    """The names of DIRECTIONS that `evaluate` reports of such a model."""
    only_where = {"bits_per_dimension": config.tokens_per_pixel == 3, "class_nats": config.classes > 0, "accuracy": config.classes > 0}
    only_where |= {"accuracy_one_mask": config.classes > 0 and not config.causal, "accuracy_top5": config.classes > 10}
    return [name for name in DIRECTIONS if only_where.get(name, True)]


def make_eval_step(loss_config: LossConfig):
    """The jitted `eval_step`: (model, batch, key) -> sums."""
    return jax.jit(partial(eval_step, loss_config=loss_config))


def evaluate(step, model, batches, mesh) -> dict[str, float]:
    """Run `step` (from `make_eval_step`) over evaluation batches; {nats_per_pixel, bits_per_pixel, images} and, with a class head, accuracies."""
    key = jax.random.key(EVALUATION_SEED)
    sums: dict[str, float] = {}
    with jax.set_mesh(mesh):
        pending = None
        for batch in batches:
            result = step(model, sharding.shard_batch(mesh, batch), key)
            if pending is not None:  # read one step late: the device never waits for the host
                _add(sums, pending)
            pending = result
        if pending is not None:
            _add(sums, pending)
    if not sums:
        raise ValueError("there is no image to evaluate")
    images = sums["images"]
    result = {"nats_per_pixel": sums["nats"] / images, "bits_per_pixel": sums["nats"] / images / math.log(2), "images": int(images)}
    if model.config.tokens_per_pixel == 3:
        result["bits_per_dimension"] = result["bits_per_pixel"] / 3
    if "correct" in sums:
        result |= {"accuracy": sums["correct"] / images, "class_nats": sums["class_nats"] / images}
        if not model.config.causal:
            result["accuracy_one_mask"] = sums["correct_one_mask"] / images
        if model.config.classes > 10:
            result["accuracy_top5"] = sums["correct_top5"] / images
    return result


def check_fit(model_config: ModelConfig, palette: Palette, dataset, labels_needed: bool) -> None:
    """ValueError where palette, image size or classes of a data set disagree with the model's."""
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
        found = f"{labels[0]} to {labels[1]}"
        raise ValueError(f"{source} has labels from {found} (-1: none), outside the {model_config.classes} classes")


def _add(sums, result):
    for name, value in result.items():
        sums[name] = sums.get(name, 0.0) + float(value)


def evaluate_checkpoint(
    path, split: str = "test", source: str | None = None, batch: int = 256, limit: int = 0, loss_only: bool = False, view=None, mesh=None
) -> dict:
    """Load a checkpoint and evaluate it on a split of the data it was trained on, or of another source; the result names all three and the `view`.

    `view`: how a picture becomes a square; None: as in training. `limit`: at most so many images, drawn at random, the same each time; 0: all.
    Classes are matched as `match_classes` says; `loss_only` leaves the class head out. `mesh` None: all devices, with copies of the model where they hold
    it, else parts.
    """
    pretrained = checkpoints.load(path, mesh=mesh or partial(sharding.divide, devices=jax.devices()))
    mesh = pretrained.mesh
    data_config = pipeline.config_for(pretrained.config, pretrained.image_size, source, view)
    dataset = pipeline.open_dataset(data_config, split)
    model, classes = pretrained.model, 0 if loss_only else pretrained.model_config.classes
    if classes and pretrained.class_names is None and len(dataset.class_names) != classes:  # as OpenAI's weights, whose head was never trained
        note(f"the class head of {classes} classes is left out: {data_config.source} has {len(dataset.class_names)}")
        classes = 0
    elif classes and not (dataset.labels >= 0).any():
        note(f"the class head is left out: no image of {data_config.source} has a label")
        classes = 0
    if classes:
        dataset = match_classes(dataset, pretrained.class_names, pretrained.path, ". --loss-only leaves the class head out")
    elif pretrained.model_config.classes:
        model = checkpoints.without_head(model)
    dataset = dataset.draw(limit)
    check_fit(pretrained.model_config, pretrained.palette, dataset, labels_needed=classes > 0)
    size = sharding.round_up(mesh, min(batch, len(dataset)))
    batches = pipeline.evaluation_batches(dataset, pretrained.palette, size, sharding.part_of_batch(mesh, size))
    batches = pipeline.labelled(batches, data_config.source) if classes else batches
    result = evaluate(make_eval_step(LossConfig(**pretrained.config["loss"])), model, batches, mesh)
    return {"checkpoint": pretrained.path, "step": pretrained.step, "data": data_config.source, "view": data_config.view, "split": split} | result
