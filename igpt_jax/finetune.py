"""Fine-tune a model to classify: `python -m igpt_jax.finetune --config=configs/digits_finetune.py --workdir=runs/digits_ft --checkpoint=runs/digits`.

Loads the pretrained parameters, puts a zero-initialised class matrix on the mean of the final norm's output, and trains all of it on generative plus
classification loss at a constant learning rate (paper 2.4). Without --checkpoint it starts from random parameters, for comparison. Writes to WORKDIR what
igpt_jax.train writes, and the model with the best validation accuracy as WORKDIR/best, which every other program takes as --checkpoint.
"""

import jax
import numpy as np
from etils import epath

from igpt_jax import checkpoint as checkpoints
from igpt_jax import processes, run
from igpt_jax.cli import run_recipe
from igpt_jax.model import PAPER, ModelConfig
from igpt_jax.palette import Palette

SAME = ("layers", "width", "heads", "vocabulary", "positions", "objective", *PAPER)  # what makes the parameters those of the checkpoint


def finetune(config, workdir, checkpoint: str | None = None) -> dict[str, float]:
    """Run a fine-tuning recipe from a pretrained checkpoint, or from random parameters; returns the last evaluation, `best` among it."""
    if config.model.classes < 1 or config.loss.classification <= 0:
        found = f"config.model.classes {config.model.classes}, config.loss.classification {config.loss.classification}"
        raise ValueError(f"fine-tuning needs a class head and its loss, not {found}: see configs/digits_finetune.py")
    if not checkpoint:
        return run.train(config, workdir)
    pretrained = checkpoints.load(checkpoint)
    check_same(ModelConfig(**config.model), pretrained.model_config, checkpoint)
    keep_palette(pretrained.palette, epath.Path(config.palette.path or epath.Path(workdir) / "palette.npy"))
    return run.train(config, workdir, pretrained.model)


def check_same(wanted: ModelConfig, found: ModelConfig, path) -> None:
    """ValueError naming the sizes in which a recipe and a checkpoint differ."""
    differ = [f"{name} {getattr(found, name)!r}, recipe {getattr(wanted, name)!r}" for name in SAME if getattr(found, name) != getattr(wanted, name)]
    if differ:
        raise ValueError(f"{path} is a model of another architecture: {'; '.join(differ)}. Set config.model, config.palette.size and config.data to its")


def keep_palette(palette: Palette, path) -> None:
    """Put the model's palette where the run looks for one; ValueError where another lies there: the model would see wrong colours."""
    if jax.process_index() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        palette.save(path)
    processes.wait_for_all("palette")
    if not np.array_equal(Palette.load(path).centers, palette.centers):
        raise ValueError(f"{path} is not the palette of the checkpoint: remove it, or take another --workdir")


def _flags(flags):
    return {"checkpoint": flags.DEFINE_string("checkpoint", None, "pretrained run or converted model; none: random parameters")}


if __name__ == "__main__":
    run_recipe(finetune, _flags, trains=True)
