"""The front door of the programs that take a recipe: flags, and errors of the user as one line and exit code 1."""

import math
import sys

from igpt_jax import machine
from igpt_jax.processes import join

USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ImportError, MemoryError)


def run_recipe(main, define_flags=None, with_workdir: bool = True, trains: bool = False) -> None:
    """Parse `--config=FILE --config.key=value --workdir=DIR` and call main(config, workdir, **flags), or without a workdir main(config, **flags).

    `define_flags(flags)` may define more, and returns their holders by name. A program that `trains` has the cores of a CPU as devices where the
    recipe's mesh takes all devices there are.
    """
    from absl import app, flags, logging
    from ml_collections import config_flags

    recipe = config_flags.DEFINE_config_file("config", help_string="recipe, a file in configs/", lock_config=True)
    workdir = flags.DEFINE_string("workdir", None, "directory of the run", required=True) if with_workdir else None
    more = define_flags(flags) if define_flags else {}

    def parse(arguments):
        try:
            rest = app.parse_flags_with_usage(arguments)
            if len(rest) > 1:
                raise ValueError(f"unknown arguments {' '.join(rest[1:])}")
            if recipe.value is None:
                raise ValueError("give a recipe by --config=FILE (see configs/)")
            if workdir is not None and not workdir.value:
                raise ValueError("give a directory by --workdir=DIR")
        except (*USER_ERRORS, AttributeError, KeyError) as error:  # a misspelt key of the recipe
            fail(error)
        return rest

    def program(_):
        logging.set_verbosity(logging.WARNING)  # orbax tells every step of a save
        machine.keep()
        try:
            if workdir is not None:
                join()
            if trains:
                divide_cores(recipe.value)
            main(recipe.value, *([workdir.value] if workdir is not None else []), **{name: holder.value for name, holder in more.items()})
        except USER_ERRORS as error:
            fail(error)

    app.run(program, flags_parser=parse)


def divide_cores(config) -> None:
    """As many CPU devices as the recipe's batch and model can be divided into."""
    mesh = config.mesh
    if sorted((mesh.data, mesh.fsdp, mesh.tensor)) == [-1, 1, 1] and mesh.tensor == 1:
        machine.divide_cores(math.gcd(config.batch_size // max(1, config.accumulate), config.model.width))


def fail(error) -> None:
    """Say what is wrong in one line and exit with 1."""
    sys.exit("error: " + " ".join(str(error).split()))
