"""What the studies that draw one picture share: their start, in which the flags and the files are checked before the work, and what their JSON begins with."""

import argparse
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from igpt_jax.cli import ANY_ERROR, check_together, fail, prepare_file
from igpt_jax.distributed import runtime
from igpt_jax.model.transformer import parameter_count
from igpt_jax.sampling.grid import Save, prepare_picture
from igpt_jax.training.checkpoints import Pretrained


def save_figure(file: IO[bytes], ending: str) -> None:
    """Write a small figure of matplotlib to an open file."""
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(file, format=ending)


def start(
    run: Callable[[argparse.Namespace], dict],
    arguments: argparse.Namespace,
    exclusive: Mapping[str, Iterable[str]],
    others: Iterable[pathlib.Path] = (),
    inputs: Iterable[pathlib.Path | None] = (),
    save: Save | None = save_figure,
) -> dict:
    """Return run(arguments), after checks of the flags (`exclusive` as in `cli.check_together`) and of the files; any error ends the program with one line.

    --out must have an ending in which `save` (None: Pillow) can write pictures; the JSON beside it and `others` must be writable. None of them may be one
    of `inputs`, the files and folders that the study reads; a None among them is left out.
    """
    runtime.prepare()
    try:
        check_together(arguments, exclusive)
        given = [path for path in inputs if path is not None]
        prepare_picture(arguments.out, given, save)
        for path in (arguments.out.with_suffix(".json"), *others):
            prepare_file(path, given)
        return run(arguments)
    except ANY_ERROR as error:
        fail(error)


def tell(text: str, out: pathlib.Path) -> None:
    """Print the result of a study in words, and the files that it wrote."""
    print(f"{text}\nwrote {out} and {out.with_suffix('.json')}")


def facts_of(checkpoint: str, pretrained: Pretrained, names: Iterable[str] = ("layers", "width", "heads")) -> dict[str, Any]:
    """Return which model a study looked at, for its JSON; `names` are those of fields of its ModelConfig."""
    model = {name: getattr(pretrained.model_config, name) for name in names} | {"parameters": parameter_count(pretrained.model)}
    return {"checkpoint": checkpoint, "step": pretrained.step, "model": model, "image_size": pretrained.image_size}
