"""A training run that completes the same held-out images after every evaluation (config.eval_pictures), as pictures for TensorBoard and wandb."""

from contextlib import closing
from typing import Any

import jax
import numpy as np

from igpt_jax.data import pipeline
from igpt_jax.files import one_line
from igpt_jax.sampling.complete import complete, fill
from igpt_jax.sampling.grid import completion_grid
from igpt_jax.training import loop
from igpt_jax.training.checkpoints import Pretrained
from igpt_jax.training.loop import Evaluated
from igpt_jax.types import PathLike, Recipe

SEED = 0  # of all draws
PLACES = 2  # completions of each image


def train(config: Recipe, workdir: PathLike, pretrained: Pretrained | None = None, keep_head: bool = False) -> dict[str, Any]:
    """Train as `loop.train` does, draw config.eval_pictures images after each evaluation, and return the last evaluation."""
    values: dict[str, Any] = {}
    following = ""
    wanted = config.eval_pictures > 0
    with closing(loop.evaluations(config, workdir, pretrained, keep_head)) as evaluations:
        for evaluated in evaluations:
            values, following = evaluated.values, next_program(evaluated)
            wanted = wanted and bool(values) and draw(evaluated, config.eval_pictures)
            del evaluated  # its arrays are replaced by the next step
    if values and jax.process_index() == 0:
        print(f"wrote {workdir}, shown by python -m igpt_jax.report {workdir}\nnext: python -m igpt_jax.{following}", flush=True)
    return values


def next_program(evaluated: Evaluated) -> str:
    """Return the command that looks at a finished run: evaluation of its best model, features where the images have labels, else samples."""
    run, workdir = evaluated.run, evaluated.run.workdir
    if run.best:
        split = "" if "test" in pipeline.splits_of(pipeline.DataConfig(**run.config.data)) else " --split=validation"
        return f"evaluate --checkpoint={workdir}/best{split}"
    if run.training.class_names:
        return f"features --checkpoint={workdir} --out={workdir}/features"
    corner = run.config.data.image_size // 4
    region = "" if run.setup.model_config.causal else f" --fill={corner},{corner},{2 * corner},{2 * corner}"
    return f"sample --checkpoint={workdir} --out={workdir}/completions.png{region}"


def draw(evaluated: Evaluated, count: int) -> bool:
    """Write a picture of `count` held-out images and what the model makes of them, the same images and the same draws each time.

    A causal model completes the upper half, a bert model fills the square in the middle. Returns False, after a line, where that cannot be done: on several
    hosts, each of which has a part of the run's arrays, and where memory is short. The training goes on without pictures then.
    """
    run, model = evaluated.run, evaluated.model
    if jax.process_count() > 1:
        run.writer.say(f"config.eval_pictures: no pictures are drawn in a run of {jax.process_count()} processes; `python -m igpt_jax.sample` draws them later")
        return False
    pretrained = Pretrained(model, run.setup.palette, run.config.to_dict(), evaluated.step, str(run.workdir))
    chosen, size = run.validation.draw(count), pretrained.image_size
    pictures = list(chosen.images(0, len(chosen), pretrained.palette))
    try:
        if pretrained.model_config.causal:
            made = complete(pretrained, pictures, completions=PLACES, seed=SEED)
        else:
            middle = np.zeros((size, size), bool)
            middle[size // 4 : size - size // 4, size // 4 : size - size // 4] = True
            made = fill(pretrained, pictures, middle, completions=PLACES, seed=SEED)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        run.writer.say(f"config.eval_pictures: no more pictures are drawn: {one_line(error)}")
        return False
    run.writer.write_picture(evaluated.step, f"{run.validation.split}/completions", np.asarray(completion_grid(made)))
    return True
