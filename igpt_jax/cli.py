"""The command line of every program: its help, checks of flags, numbers and paths, and one line and exit code 1 for every error."""

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
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax
from etils import epath

from igpt_jax.distributed import multihost, runtime
from igpt_jax.distributed.multihost import join
from igpt_jax.types import PathLike, Recipe

Number = TypeVar("Number", int, float)

USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ImportError, MemoryError)
ANY_ERROR = (Exception, KeyboardInterrupt)  # what a program catches and passes to `fail`
OLD_KEYS = {  # former name of a recipe's key -> its name
    "accumulate": "gradient_accumulation_steps",
    "skips": "max_consecutive_skips",
    "optim.spike": "optim.loss_spike_factor",
}
KEYS = (  # of a recipe, shown by --help of the programs that train
    "data.source", "data.image_size", "palette.size", "model.layers", "model.width", "model.heads", "model.objective", "batch_size",
    "gradient_accumulation_steps", "steps", "optim.learning_rate", "optim.warmup_steps", "mesh.fsdp", "eval_every", "save_every", "seed",
)  # fmt: skip
_PACKAGE = pathlib.Path(__file__).parent
OWN_RECIPES = pathlib.Path("configs")  # in the working directory
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "configs"  # in a wheel, in a repository
BASE = RECIPES / "base.py"  # the recipe that all others start from
OURS = ("__main__", "igpt_jax", "experiments", "configs")  # modules whose `raise` has a message for users
PATIENCE = 10  # seconds that a failed process waits at its end for the others of its run, which may have failed with it
LARGEST = 2**31 - 1  # largest integer of an array
SEEDS = 2**32 - 1  # largest seed of a key
_created: list[pathlib.Path] = []  # folders that `prepare_folder` created, each after its parent


def run_recipe(
    main: Callable[..., Any],
    define_flags: Callable[[Any], dict[str, Any]] | None = None,
    with_workdir: bool = True,
    trains: bool = False,
    keys: Sequence[str] = KEYS,
) -> None:
    """Parse `--config=FILE --config.key=value --workdir=DIR` and call main(config, workdir, **flags), or main(config, **flags) without a workdir.

    `define_flags(flags)` may define more flags, and returns their holders by name. A program that `trains` uses the cores of a CPU as devices if the mesh
    of the recipe takes all devices. `keys` are those that --help shows.
    """
    from absl import app, flags, logging
    from ml_collections import config_flags

    others = set(flags.FLAGS)
    words: list[str] = []  # where the flag looks for keys of the recipe, instead of sys.argv
    recipe = config_flags.DEFINE_config_file("config", help_string="recipe: a file, or the name of one in configs/", lock_config=True, sys_argv=words)
    workdir = flags.DEFINE_string("workdir", None, "directory of the run") if with_workdir else None
    more = define_flags(flags) if define_flags else {}
    if {"-h", "--help", "-help"} & set(sys.argv[1:]):
        own = [flags.FLAGS[name] for name in flags.FLAGS if name not in others]
        try:
            return _recipe_parser(sys.modules[main.__module__].__doc__, own, with_recipe_file(with_home(sys.argv[1:])), keys).print_help()
        except (AttributeError, KeyError) as error:
            fail(unknown_key(with_recipe_file(with_home(sys.argv[1:]))) or error)
        except ANY_ERROR as error:
            fail(error)

    def parse(arguments: Sequence[str]) -> list[str]:
        try:
            arguments = [arguments[0], *flags.FLAGS.read_flags_from_files(list(arguments[1:]), force_gnu=False)]  # --flagfile
            words[:] = arguments = with_new_keys(with_recipe_file(with_home(arguments)))
            rest = flags.FLAGS(arguments)
            if len(rest) > 1:
                raise ValueError(f"unknown arguments {' '.join(rest[1:])}")
            if not hasattr(recipe.value, "to_dict"):
                names = ", ".join(recipe_names())
                raise ValueError(f"give a recipe by --config=FILE, whose get_config returns a ConfigDict, or --config=NAME ({names})")
            if workdir is not None and not workdir.value:
                raise ValueError("give a directory by --workdir=DIR")
        except (AttributeError, KeyError) as error:  # a wrong key of the recipe, or an error of the program, which gets a stack trace
            fail(unknown_key(arguments) or error)
        except (flags.Error, *USER_ERRORS) as error:
            fail(_without_trace(str(error)))
        except ANY_ERROR as error:
            fail(error)
        return rest

    def program(_: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax logs every step of a save
        try:
            runtime.prepare()
            if recipe.value.deterministic:
                runtime.be_deterministic()
            if workdir is not None:
                join()
            if trains:
                divide_cores(recipe.value)
            main(recipe.value, *([workdir.value] if workdir is not None else []), **{name: holder.value for name, holder in more.items()})
        except ANY_ERROR as error:
            fail(error, None if workdir is None else workdir.value)

    app.run(program, flags_parser=parse)


def program(main: Callable[[], Any]) -> None:
    """Run the `main()` of a program. Every error is one line."""
    try:
        main()
    except ANY_ERROR as error:
        fail(error)


# ---- help ----


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and exit code 1. It knows ~, and its help shows defaults, and the examples of a program's docstring at the end."""

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any):
        """`description` is the docstring of the program."""
        text, examples = _split_docstring(description or "")
        epilog = "\n".join([f"example{'s' * (len(examples) > 1)}:", *(f"  {example}" for example in examples)]) if examples else None
        super().__init__(**{"prog": prog or _program_name(), "description": text, "epilog": epilog} | options | {"formatter_class": _Layout})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # what `parse_args` calls
        """As argparse's, with ~ expanded; an option that does not exist is named before one that is missing."""
        words = with_home(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # else the options are those of a command
            self._check_options(words)
        return super().parse_known_args(words, namespace)

    def _check_options(self, words: Sequence[str]) -> None:
        known = list(self._option_string_actions)
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                close = difflib.get_close_matches(name, known, 1)
                self.error(f"there is no option {name}" + (f" (did you mean {close[0]}?)" if close else ""))

    def error(self, message: str) -> NoReturn:
        """End the program with one line."""
        fail(f"{message}; --help lists the options")


class _Layout(argparse.HelpFormatter):
    """Wraps paragraphs and items of lists one by one, shows required flags in the usage, and adds the default to a flag's help."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, **{"max_help_position": 32} | options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for block in re.split(r"\n{2,}|\n(?=- )", text.strip()):
            table = re.search(r"^ |\S {2,}\S", block, re.M)
            lines += [] if block.startswith("- ") else [""]
            lines += [block if table else super()._fill_text(block, width, indent)]
        return "\n".join(lines).lstrip("\n")

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[Any], prefix: str | None = None) -> None:
        """Unlike argparse's, the usage names only what is required."""
        if usage is None:
            words = [f"{action.option_strings[0]}={_metavar(action)}" if action.option_strings else _metavar(action) for action in actions if action.required]
            has_options = any(action.option_strings and not action.required and action.dest != "help" for action in actions)
            usage = " ".join(["%(prog)s", *words, *(["[--FLAG=VALUE ...]"] if has_options else [])])
        super().add_usage(usage, actions, groups, prefix)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = super()._format_action_invocation(action)
        return text.replace(" ", "=", 1) if action.option_strings and action.nargs is None else text

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default is None or default is False or default in ("", (), [], argparse.SUPPRESS) or "default:" in text:
            return text
        value = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in (default if isinstance(default, list | tuple) else [default]))
        return f"{text} (default: {value.replace('%', '%%')})".lstrip()


def _metavar(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _split_docstring(text: str) -> tuple[str, list[str]]:
    """A program's docstring without its example commands, and these commands without optional parts."""
    examples = re.findall(r"^ {4}(python -m .+)$", text, re.M) or re.findall(r"`(python -m [^`]+)`", text)[:1]
    text = re.sub(r"^ {4}python -m .+\n?", "", text, flags=re.M)
    text = re.sub(r": `python -m [^`]+`(?=[.,;])", "", text, count=1)
    return text, [re.sub(r" \[[^\]]*\]", "", example).strip() for example in examples]


def _program_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else sys.argv[0]


def _recipe_parser(docstring: str | None, own_flags: Iterable[Any], arguments: Sequence[str], keys: Sequence[str]) -> Parser:
    """A parser that only prints help: of absl flags, and of `keys` of the recipe on the command line, or of configs/base.py."""
    own_flags = list(own_flags)
    required = [f"--{flag.name}={'FILE' if flag.name == 'config' else 'DIR'}" for flag in own_flags if flag.name in ("config", "workdir")]
    name = _program_name()
    parser = Parser(name, docstring, usage=" ".join([name, *required, "[--FLAG=VALUE ...]", "[--config.KEY=VALUE ...]"]))
    for flag in own_flags:
        metavar, values = {"config": "FILE", "workdir": "DIR"}.get(flag.name, flag.name.upper()), getattr(flag.parser, "enum_values", None)
        shape: dict[str, Any] = {"action": "store_true"} if flag.boolean else {"choices": values} if values else {"metavar": metavar}
        text = re.sub(r"^<.*?>: ", "", flag.help).replace("%", "%%")  # absl puts the values of an enum in front
        parser.add_argument(f"--{flag.name}", help=text, default=flag.default, **shape)
    path = _recipe_path(arguments) or str(BASE)
    recipe, comments = _load_recipe(path), _comments(BASE)
    group = parser.add_argument_group("recipe keys", f"the most used, with the values of {os.path.relpath(path)}; {os.path.relpath(BASE)} has all keys")
    for key in keys:
        value = recipe
        for part in key.split("."):
            value = value[part]
        group.add_argument(f"--config.{key}", metavar="VALUE", help=comments.get(key, "").replace("%", "%%"), default=str(value))
    return parser


def _recipe_path(arguments: Sequence[str]) -> str | None:
    """The value of --config on a command line."""
    match = re.search(r"(?:^| )--?config[= ](\S+)", " ".join(arguments))
    return match[1] if match else None


def _load_recipe(path: str) -> Recipe:
    """The recipe that `--config=path` names; after a colon stands the argument of its get_config."""
    file, *options = path.split(":")
    return runpy.run_path(file)["get_config"](*options)


def recipe_flags(flags: Any) -> dict[str, Any]:
    """Define the flag of the programs that train, which print their recipe; return its holder by name."""
    return {"full_recipe": flags.DEFINE_bool("full_recipe", False, "print every key of the recipe; default: those that differ from configs/base.py")}


class GivenKeys:
    """A holder as of a flag, whose value are the keys of the recipe that stand on the command line, such as "data.validation"."""

    @property
    def value(self) -> tuple[str, ...]:
        """The keys; () before the command line is parsed."""
        from absl import flags
        from ml_collections import config_flags

        return tuple(config_flags.get_override_values(flags.FLAGS["config"]))


def base_recipe() -> Recipe:
    """The recipe of configs/base.py, from which all others start."""
    return _load_recipe(str(BASE))


def _comments(path: pathlib.Path) -> dict[str, str]:
    """Key -> comment of a recipe's file."""
    return dict(re.findall(r"^ +config\.([\w.]+) = .*?  # (.+)$", path.read_text(), re.M))


# ---- words and keys ----


def with_home(arguments: Iterable[str]) -> list[str]:
    """The words of a command line with ~ and ~user expanded at the start of a path, also in `--out=~/x` and `folder:~/x`, which a shell does not expand."""
    return [re.sub(r"(?:(?<=^)|(?<=[=,:]))~\w*(?=/|,|$)", lambda match: os.path.expanduser(match[0]), word) for word in arguments]


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
    """The file of a recipe that is given by file or name."""
    for folder in (OWN_RECIPES, RECIPES):
        if recipe in recipe_names() and (folder / f"{recipe}.py").is_file():
            return str(folder / f"{recipe}.py")
    if os.path.isfile(recipe):
        return recipe
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


def with_new_keys(arguments: Iterable[str]) -> list[str]:
    """The words of a command line with former names of recipe keys replaced; a line on standard error names the new key.

    Keys in brackets are written with dots, `--config.optim["spike"]=2` as `--config.optim.spike=2`.
    """
    renamed = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        if re.match(r"--?config\W", flag):
            word = re.sub(r"""\[(["']?)([A-Za-z_]\w*)\1\]""", r".\2", flag) + equals + value
        key = re.match(r"--?config\.([\w.]+)", word)
        if key and key[1] in OLD_KEYS:
            print(f"note: config.{key[1]} is now config.{OLD_KEYS[key[1]]}", file=sys.stderr)
            word = word.replace(key[1], OLD_KEYS[key[1]], 1)
        renamed.append(word)
    return renamed


def _without_trace(text: str) -> str:
    """A message with the last line alone of a stack trace that it contains, and with words for Python's about numbers."""
    head, _, trace = text.partition("Traceback (most recent call last)")
    text = f"{head} {trace.strip().splitlines()[-1]}" if trace.strip() else text
    text = re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is not a whole number", text)
    return re.sub(r"could not convert string to float: ('.*?')", r"\1 is not a number", text)


def unknown_key(arguments: Sequence[str]) -> str | None:
    """A line on the first key that the recipe does not have, with the keys that its section has; None if there is no such key.

    Keys are looked for on the command line, `--config.section.key`, and in the recipe's file.
    """
    path = _recipe_path(arguments)
    try:
        recipe = _load_recipe(path) if path else {}
    except (AttributeError, KeyError) as error:
        return _unknown_in_file(error)
    for dotted in re.findall(r"--?config\.([\w.]+)", " ".join(arguments)):
        section, name = recipe, "config"
        for key in dotted.split("."):
            if not hasattr(section, "keys"):
                return f"{name} is a value and has no {key!r}"
            if key not in section:
                return _no_key(recipe, name, section, key)
            section, name = section[key], f"{name}.{key}"
    return None


def _no_key(recipe: Recipe, name: str, section: Recipe, key: str) -> str:
    """The line, with the key that may be meant: a similar one in this section, or one of the same name in another."""
    dotted = f"{name}.{key}".removeprefix("config.")
    if dotted in OLD_KEYS:
        return f"{name} has no {key!r}: it is now config.{OLD_KEYS[dotted]}"
    sections = {"config": recipe} | {f"config.{place}": value for place, value in recipe.items() if hasattr(value, "keys")}
    candidates = [f"{name}.{similar}" for similar in difflib.get_close_matches(key, list(section.keys()), n=1)]
    candidates += [f"{place}.{key}" for place, keys in sections.items() if key in keys]
    question = f" (did you mean {candidates[0]}?)" if candidates else ""
    return f"{name} has no {key!r}{question}: it has {', '.join(section.keys())}"


def _unknown_in_file(error: BaseException) -> str | None:
    """The line on a key that the code of a recipe used, from the frames of its exception; None if they do not show it."""
    key = re.search(r"Key \W*(\w+)", str(error)) or re.search(r"(\w+)", str(error))
    frames: list[tuple[FrameType, int]] = list(traceback.walk_tb(error.__traceback__))
    sections = [frame.f_locals["self"] for frame, _ in frames if hasattr(frame.f_locals.get("self"), "is_locked")]
    recipes = [(value, frame, line) for frame, line in frames for value in frame.f_locals.values() if hasattr(value, "is_locked")]
    if not key or not sections:
        return None
    recipe, frame, line = recipes[0]
    names = {id(recipe): "config"} | {id(value): f"config.{name}" for name, value in recipe.items()}
    return f"{frame.f_code.co_filename}, line {line}: {_no_key(recipe, names.get(id(sections[-1]), 'the section'), sections[-1], key[1])}"


# ---- numbers ----


def integer(least: int = 0, most: int = LARGEST) -> Callable[[str], int]:
    """For `add_argument(type=...)`: a whole number in this range."""

    def allowed(value: int) -> bool:
        return least <= value <= most

    return _number(int, f"a whole number from {least} to {most}" if most != LARGEST else f"a whole number of at least {least}, at most 2^31 - 1", allowed)


def real(wanted: str, allowed: Callable[[float], bool]) -> Callable[[str], float]:
    """For `add_argument(type=...)`: a finite number for which `allowed(number)` is true; `wanted` describes these numbers."""
    return _number(float, wanted, lambda value: math.isfinite(value) and allowed(value))


def positive() -> Callable[[str], float]:
    """For `add_argument(type=...)`: a finite number above 0."""
    return real("a number above 0", lambda value: value > 0)


def list_of(parse: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    """For `add_argument(type=...)`: a list 1,2,3, each part of which `parse` reads."""
    return lambda text: [parse(part) for part in text.split(",")]


def _number(kind: Callable[[str], Number], wanted: str, allowed: Callable[[Number], bool]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if allowed(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


# ---- outputs and devices ----


def prepare_folder(path: PathLike) -> PathLike:
    """Create a folder before the work that writes to it. Raises OSError if it cannot be written.

    If the program ends by `explain`, created folders that are still empty are removed.
    """
    folder = epath.Path(path)
    try:
        if "://" not in os.fspath(path):
            absolute = pathlib.Path(path).absolute()
            _created.extend(parent for parent in (*reversed(absolute.parents), absolute) if not parent.exists())
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # a bucket may have wrong credentials, or no library that reads it, and each library has its own exceptions
        raise OSError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    return path


def prepare_file(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> str | os.PathLike[str]:
    """Create the folder of a file before the work that writes it. Raises OSError if the file cannot be written.

    ValueError if the file is one of `inputs`, under any name, or lies in one of them that is a folder: the program would replace what it reads.
    """
    for given in inputs:
        if _is_part_of(pathlib.Path(path), pathlib.Path(given)):
            raise ValueError(f"{path} would replace an input, {given}: give another name of the file to write")
    if pathlib.Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file to write")
    if pathlib.Path(path).exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written: Permission denied")
    prepare_folder(pathlib.Path(path).parent)
    return path


def _is_part_of(path: pathlib.Path, given: pathlib.Path) -> bool:
    """Whether an existing file is the given one, through links and in other case where the file system ignores it, or lies in the given folder."""
    if not path.exists() or not given.exists():
        return False
    return any(place.samefile(given) for place in (path, *path.resolve().parents)) if given.is_dir() else path.samefile(given)


def check_together(arguments: argparse.Namespace, exclusive: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError for a flag that has no effect beside another one; `exclusive` is {flag: those without effect beside it}. None: not given."""
    for flag, without in exclusive.items():
        for other in without:
            if getattr(arguments, flag) is not None and getattr(arguments, other) is not None:
                raise ValueError(f"--{other} has no effect with --{flag}: leave out one of them")


def divide_cores(config: Recipe) -> None:
    """Make as many CPU devices as the recipe's batch and model can be divided among."""
    mesh = config.mesh
    if sorted((mesh.data, mesh.fsdp, mesh.tensor)) == [-1, 1, 1] and mesh.tensor == 1:
        runtime.divide_cores(math.gcd(config.batch_size // max(1, config.gradient_accumulation_steps), config.model.width))


# ---- errors ----


def fail(error: BaseException | str, folder: PathLike | None = None) -> NoReturn:
    """Print an error as one line and exit with code 1, after Ctrl-C with 130, by SIGKILL if another process is lost. `folder` is as in `explain`."""
    if isinstance(error, KeyboardInterrupt):
        print(explain(error), file=sys.stderr)
        sys.exit(130)
    line = explain(error, folder)
    leave_others(error, line)
    sys.exit(line)


def leave_others(error: BaseException | str, line: str) -> None:
    """Let this process, if it is one of several, end soon after the error that `line` tells: an orderly exit waits for the others, and they for this one.

    Where another process is lost, print the line and end at once by SIGKILL: a supervisor starts again what ends by a signal. Otherwise end with code 1 after
    PATIENCE, in which all processes that failed together end in order.
    """
    if not jax.distributed.is_initialized():
        return
    if isinstance(error, BaseException) and multihost.is_lost(error):
        print(line, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    timer = threading.Timer(PATIENCE, os._exit, [1])
    timer.daemon = True
    timer.start()


def explain(error: BaseException | str, folder: PathLike | None = None) -> str:
    """The error as one line. The stack trace of an unexpected exception is written to a file in `folder`, or in the temporary folder, and the line names it.

    Folders that were created for an output and are still empty are removed.
    """
    line = _explain(error, folder)
    while _created:
        with contextlib.suppress(OSError):  # it is not empty
            _created.pop().rmdir()
    return line


def _explain(error: BaseException | str, folder: PathLike | None) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, str) or (text and _is_for_users(error)):
        return f"error: {text}"
    if multihost.is_lost(error):
        return f"error: another process of this run has ended or cannot be reached, see what it says; start all of them again ({text[:120]})"
    message = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return f"error: {message}; this is not expected, please report it with its stack trace: {_write_trace(error, folder)}"


def _is_for_users(error: BaseException) -> bool:
    """Whether users understand the message: it is the system's, about a file, a library or a size, or of a `raise` statement in this project."""
    if isinstance(error, OSError | ImportError | MemoryError):
        return True
    if not isinstance(error, USER_ERRORS) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    module, code = last.tb_frame.f_globals.get("__name__", ""), last.tb_frame.f_code.co_code
    return module.split(".")[0] in OURS and code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _write_trace(error: BaseException, folder: PathLike | None) -> str:
    """Write the stack trace, the command and the versions to a file. Returns its path."""
    versions = f"jax {jax.__version__}, Python {platform.python_version()}, {platform.platform()}"
    text = f"{shlex.join(sys.argv)}\n{versions}\n\n" + "".join(traceback.format_exception(error))
    for place in ([folder] if folder else []) + [None]:
        try:
            descriptor, path = tempfile.mkstemp(prefix="error-", suffix=".txt", dir=place)
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            return path
        except OSError:  # a missing folder, a bucket, a full disk
            continue
    return f"(no folder can be written) {text!r}"
