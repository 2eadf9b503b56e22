"""A pass over a split: nats and bits per pixel, accuracy of a class head. `python -m igpt_jax.evaluate --checkpoint=DIR` prints JSON.

Every image counts exactly once whatever the batch size and the number of devices, and a bert model's masks are drawn from each image's index.
"""

import argparse
import json
import math
from functools import partial

import jax

from igpt_jax import checkpoint, data, sharding
from igpt_jax.cli import USER_ERRORS, fail
from igpt_jax.state import LossConfig, eval_step

EVALUATION_SEED = 0  # of the masks; fixed, so that two evaluations are the same


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
    if "correct" in sums:
        result |= {"accuracy": sums["correct"] / images, "class_nats": sums["class_nats"] / images}
        if model.config.classes > 10:
            result["accuracy_top5"] = sums["correct_top5"] / images
    return result


def _add(sums, result):
    for name, value in result.items():
        sums[name] = sums.get(name, 0.0) + float(value)


def evaluate_checkpoint(path, split: str = "test", source: str | None = None, batch: int = 256) -> dict:
    """Load a checkpoint and evaluate it on a split of the data it was trained on, or of another source; the result names all three."""
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    pretrained = checkpoint.load(path, mesh=mesh)
    data_config = data.config_for(pretrained.config, pretrained.image_size, source)
    if data_config.image_size != pretrained.image_size:
        raise ValueError(f"{data_config.source} has images of {data_config.image_size} pixels a side and the model {pretrained.image_size}")
    dataset = data.open_dataset(data_config, split)
    size = sharding.round_up(mesh, min(batch, len(dataset)))
    batches = data.evaluation_batches(dataset, pretrained.palette, size, jax.process_index(), jax.process_count())
    result = evaluate(make_eval_step(LossConfig(**pretrained.config["loss"])), pretrained.model, batches, mesh)
    return {"checkpoint": pretrained.path, "step": pretrained.step, "data": data_config.source, "split": split} | result


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m igpt_jax.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="directory of a run, or of a converted model")
    parser.add_argument("--data", help="data source (see igpt_jax/data.py); default: the one the model was trained on")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--batch", type=int, default=256, help="images in one forward pass")
    arguments = parser.parse_args()
    try:
        result = evaluate_checkpoint(arguments.checkpoint, arguments.split, arguments.data, arguments.batch)
    except USER_ERRORS as error:
        fail(error)
    print(json.dumps(result))


if __name__ == "__main__":
    _main()
