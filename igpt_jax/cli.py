"""The front door of every program: flags, numbers and paths checked, and whatever goes wrong as one line and exit code 1."""

import argparse
import contextlib
import difflib
import dis
import importlib.machinery
import importlib.util
import math
import os
import pathlib
import platform
import re
import runpy
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence

import jax
from etils import epath

from igpt_jax.distributed import runtime
from igpt_jax.distributed.multihost import join

USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ImportError, MemoryError)
ANY_ERROR = (Exception, KeyboardInterrupt)  # for a program to give to `fail`
OLD_KEYS = {  # former name of a recipe's key -> its name
    "accumulate": "gradient_accumulation_steps",
    "skips": "max_consecutive_skips",
    "optim.spike": "optim.loss_spike_factor",
}
OURS = ("__main__", "igpt_jax", "experiments", "configs")  # whose `raise` is a line written for the user
_MADE = []  # folders that `prepare_folder` made, each after the one that holds it
LARGEST = 2**31 - 1  # of the integers of an array
SEEDS = 2**32 - 1  # of a key
_PACKAGE = pathlib.Path(__file__).parent
OWN_RECIPES = pathlib.Path("configs")  # of the working directory
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "configs"  # of a wheel, of a repository


def run_recipe(main, define_flags=None, with_workdir: bool = True, trains: bool = False) -> None:
    """Parse `--config=FILE --config.key=value --workdir=DIR` and call main(config, workdir, **flags), or without a workdir main(config, **flags).

    `define_flags(flags)` may define more, and returns their holders by name. A program that `trains` has the cores of a CPU as devices where the
    recipe's mesh takes all devices there are.
    """
    from absl import app, flags, logging
    from ml_collections import config_flags

    recipe = config_flags.DEFINE_config_file("config", help_string="recipe: a file, or the name of one in configs/", lock_config=True, sys_argv=(words := []))
    workdir = flags.DEFINE_string("workdir", None, "directory of the run") if with_workdir else None
    more = define_flags(flags) if define_flags else {}

    def parse(arguments):
        try:
            words[:] = arguments = with_new_keys(with_recipe_file(with_home(arguments)))  # the flag reads the recipe's keys there, not in sys.argv
            rest = flags.FLAGS(arguments)
            if len(rest) > 1:
                raise ValueError(f"unknown arguments {' '.join(rest[1:])}")
            if recipe.value is None:
                raise ValueError(f"give a recipe by --config=FILE or --config=NAME ({', '.join(recipe_names())})")
            if workdir is not None and not workdir.value:
                raise ValueError("give a directory by --workdir=DIR")
        except (AttributeError, KeyError) as error:  # of the recipe; of a program's own a stack trace is written
            fail(unknown_key(arguments) or error)
        except (flags.Error, *USER_ERRORS) as error:
            fail(str(error))
        except ANY_ERROR as error:
            fail(error)
        return rest

    def program(_):
        logging.set_verbosity(logging.WARNING)  # orbax tells every step of a save
        runtime.keep()
        if recipe.value.deterministic:
            runtime.be_deterministic()
        try:
            if workdir is not None:
                join()
            if trains:
                divide_cores(recipe.value)
            main(recipe.value, *([workdir.value] if workdir is not None else []), **{name: holder.value for name, holder in more.items()})
        except ANY_ERROR as error:
            fail(error, None if workdir is None else workdir.value)

    app.run(program, flags_parser=parse)


def program(main) -> None:
    """Run the `main()` of a program; whatever goes wrong is one line."""
    try:
        main()
    except ANY_ERROR as error:
        fail(error)


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line and exit code 1, and which knows ~."""

    def parse_args(self, arguments=None, namespace=None):
        return super().parse_args(with_home(sys.argv[1:] if arguments is None else arguments), namespace)

    def error(self, message):
        fail(f"{message}; --help lists the options")


def with_home(arguments) -> list[str]:
    """The words of a command line with ~ and ~user written out where a path begins: of `--out=~/x` or `folder:~/x` a shell leaves it as it is."""
    return [re.sub(r"(?:(?<=^)|(?<=[=,:]))~\w*(?=/|,|$)", lambda found: os.path.expanduser(found[0]), word) for word in arguments]


def with_recipe_file(arguments: Sequence[str]) -> list[str]:
    """Replace a recipe's bare name, `--config=xl`, by its file: ./configs/xl.py if that exists, else the recipe that is installed with the package.

    Recipes may then say `from configs import base` in any working directory. Raises ValueError, with the names, if there is no such file or name.
    """
    words, installed = list(arguments), False
    for index, word in enumerate(words):
        parts = re.fullmatch(r"(--?config=)?([^:]+)(:.*)?", word)
        if parts and (parts[1] or (index and words[index - 1] in ("-config", "--config"))):
            file = _recipe_file(parts[2])
            words[index], installed = f"{parts[1] or ''}{file}{parts[3] or ''}", pathlib.Path(file).parent == RECIPES
    _make_recipes_importable(installed)
    return words


def recipe_names() -> list[str]:
    """The names that `--config=NAME` takes in this working directory."""
    return sorted({path.stem for folder in (OWN_RECIPES, RECIPES) for path in folder.glob("*.py")} - {"__init__"})


def _recipe_file(recipe: str) -> str:
    if os.path.isfile(recipe):
        return recipe
    for folder in (OWN_RECIPES, RECIPES):
        if re.fullmatch(r"[\w-]+", recipe) and (folder / f"{recipe}.py").is_file():
            return str(folder / f"{recipe}.py")
    close = difflib.get_close_matches(pathlib.Path(recipe).stem, recipe_names(), n=1)
    raise ValueError(f"there is no recipe {recipe!r}{f' (did you mean {close[0]}?)' if close else ''}: give a file, or one of {', '.join(recipe_names())}")


def _make_recipes_importable(installed: bool) -> None:
    """Let `from configs import base` find ./configs/base.py or else the installed one; the installed one first for an `installed` recipe.

    In a wheel the recipes are the package igpt_jax.recipes, so that site-packages has no `configs`. This module of that name exists only in programs
    that load a recipe.
    """
    package = sys.modules.get("configs") or importlib.util.module_from_spec(importlib.machinery.ModuleSpec("configs", None, is_package=True))
    folders = [str(RECIPES), str(OWN_RECIPES.absolute())][:: 1 if installed else -1]
    package.__path__ = list(dict.fromkeys([*folders, *getattr(package, "__path__", [])]))
    sys.modules["configs"] = package


def with_new_keys(arguments) -> list[str]:
    """The words of a command line with `--config.KEY` under its present name; a line on the standard error names it."""
    renamed = []
    for word in arguments:
        key = re.match(r"--?config\.([\w.]+)", word)
        if key and key[1] in OLD_KEYS:
            print(f"note: config.{key[1]} is now config.{OLD_KEYS[key[1]]}", file=sys.stderr)
            word = word.replace(key[1], OLD_KEYS[key[1]], 1)
        renamed.append(word)
    return renamed


def unknown_key(arguments) -> str | None:
    """A line on the first key that is none of the recipe's, `--config.section.key` of the command line or one that the recipe's file uses, with the section
    and the keys that it has; None if there is none.
    """
    text = " ".join(arguments)
    path = re.search(r"--?config[= ](\S+)", text)
    try:
        recipe = runpy.run_path(path[1].split(":")[0])["get_config"](*path[1].split(":")[1:]) if path else {}
    except (AttributeError, KeyError) as error:
        return _unknown_in_file(error)
    for dotted in re.findall(r"--?config\.([\w.]+)", text):
        section, name = recipe, "config"
        for key in dotted.split("."):
            if not hasattr(section, "keys"):
                return f"{name} is a value and has no {key!r}"
            if key not in section:
                return _no_key(recipe, name, section, key)
            section, name = section[key], f"{name}.{key}"
    return None


def _no_key(recipe, name, section, key):
    """The line, with the key that may be meant: one alike in this section, or of the same name in another."""
    dotted = f"{name}.{key}".removeprefix("config.")
    if dotted in OLD_KEYS:
        return f"{name} has no {key!r}: it is now config.{OLD_KEYS[dotted]}"
    places = {"config": recipe} | {f"config.{place}": value for place, value in recipe.items() if hasattr(value, "keys")}
    meant = [f"{name}.{one}" for one in difflib.get_close_matches(key, list(section.keys()), n=1)]
    meant += [f"{place}.{key}" for place, keys in places.items() if key in keys]
    question = f" (did you mean {meant[0]}?)" if meant else ""
    return f"{name} has no {key!r}{question}: it has {', '.join(section.keys())}"


def _unknown_in_file(error):
    """The line on a key that a recipe's own code asked for, found by the frames of its exception; None where they do not tell."""
    key = re.search(r"Key \W*(\w+)", str(error)) or re.search(r"(\w+)", str(error))
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    sections = [frame.f_locals["self"] for frame, _ in frames if hasattr(frame.f_locals.get("self"), "is_locked")]
    recipes = [(value, frame, line) for frame, line in frames for value in frame.f_locals.values() if hasattr(value, "is_locked")]
    if not key or not sections:
        return None
    recipe, frame, line = recipes[0]
    names = {id(recipe): "config"} | {id(value): f"config.{name}" for name, value in recipe.items()}
    return f"{frame.f_code.co_filename}, line {line}: {_no_key(recipe, names.get(id(sections[-1]), 'the section'), sections[-1], key[1])}"


def integer(least: int = 0, most: int = LARGEST):
    """For `add_argument(type=...)`: a whole number of this range."""

    def allowed(value):
        return least <= value <= most

    return _number(int, f"a whole number from {least} to {most}" if most != LARGEST else f"a whole number of at least {least}, at most 2^31 - 1", allowed)


def real(wanted: str, allowed):
    """For `add_argument(type=...)`: a finite number for which `allowed(number)`; `wanted` says which those are."""
    return _number(float, wanted, lambda value: math.isfinite(value) and allowed(value))


def positive():
    """For `add_argument(type=...)`: a finite number above 0."""
    return real("a number above 0", lambda value: value > 0)


def list_of(parse):
    """For `add_argument(type=...)`: a list 1,2,3, each part read by `parse`."""
    return lambda text: [parse(part) for part in text.split(",")]


def prepare_folder(path):
    """Make the folder that is going to be written to; OSError in one line where that cannot be, said before the work.

    What it made and nothing was written to goes again where the program ends by `explain`.
    """
    folder = epath.Path(path)
    try:
        if "://" not in os.fspath(path):
            whole = pathlib.Path(path).absolute()
            _MADE.extend(one for one in (*reversed(whole.parents), whole) if not one.exists())
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # of a bucket: wrong credentials, no library that reads it, and each library raises its own
        raise OSError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    return path


def prepare_file(path):
    """Make the folder of a file that is going to be written; OSError in one line where that cannot be, said before the work."""
    if pathlib.Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file to write")
    if pathlib.Path(path).exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written: Permission denied")
    prepare_folder(pathlib.Path(path).parent)
    return path


def divide_cores(config) -> None:
    """As many CPU devices as the recipe's batch and model can be divided into."""
    mesh = config.mesh
    if sorted((mesh.data, mesh.fsdp, mesh.tensor)) == [-1, 1, 1] and mesh.tensor == 1:
        runtime.divide_cores(math.gcd(config.batch_size // max(1, config.gradient_accumulation_steps), config.model.width))


def fail(error, folder=None) -> None:
    """Say what is wrong, an exception or a text, in one line, and exit with 1, after Ctrl-C with 130; `folder` as in `explain`."""
    if isinstance(error, KeyboardInterrupt):
        print(explain(error), file=sys.stderr)
        sys.exit(130)
    sys.exit(explain(error, folder))


def explain(error, folder=None) -> str:
    """What is wrong as one line; of an exception that no line was written for it names a file with the stack trace, in `folder` or the temporary one.

    Folders that were made for an output and are still empty are removed.
    """
    said = _explain(error, folder)
    while _MADE:
        with contextlib.suppress(OSError):  # it holds something
            _MADE.pop().rmdir()
    return said


def _explain(error, folder):
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, str) or (text and _is_written_for(error)):
        return f"error: {text}"
    said = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return f"error: {said}; this is not expected, please report it with its stack trace: {_write_trace(error, folder)}"


def _number(kind, wanted, allowed):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


def _is_written_for(error):
    """Whether the message was meant for a user: one of the system's, which name a file, a library or a size, or one of a `raise` in this project."""
    if isinstance(error, OSError | ImportError | MemoryError):
        return True
    if not isinstance(error, USER_ERRORS) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    module, code = last.tb_frame.f_globals.get("__name__", ""), last.tb_frame.f_code.co_code
    return module.split(".")[0] in OURS and code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _write_trace(error, folder):
    """Write the stack trace with what is needed to read it, and return the file's path."""
    versions = f"jax {jax.__version__}, Python {platform.python_version()}, {platform.platform()}"
    text = f"{shlex.join(sys.argv)}\n{versions}\n\n" + "".join(traceback.format_exception(error))
    for place in ([folder] if folder else []) + [None]:
        try:
            number, path = tempfile.mkstemp(prefix="error-", suffix=".txt", dir=place)
            with open(number, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            return path
        except OSError:  # a folder that is not there yet, a bucket, a full disk
            continue
    return f"no folder can be written, here it is: {text!r}"
