"""What every program does with its command line: numbers in their range, paths with ~, and one line for whatever goes wrong."""

import argparse
import os
import pathlib
import re
import subprocess
import sys

import pytest

from igpt_jax import cli
from tests.runs import ROOT

WRONG = {  # kind of number -> what nobody means by it
    "integer": ["-1", "nan", "inf", "1.5", "x", "", "1e3", "99999999999999999999"],
    "real": ["-1", "nan", "inf", "-inf", "x", ""],
}
PROGRAMS = [  # program, what it must be given, {flag: further values that are wrong}
    ("igpt_jax.sample", ["--checkpoint=no", "--out=no.png"], {
        "count": ["0"], "unconditional": ["0"], "rows": [], "rounds": ["0"], "particles": ["0"], "completions": ["0"], "temperature": [], "top-k": [],
        "top-p": ["0", "1.1"], "seed": ["4294967296"], "batch": ["0"],
    }),
    ("igpt_jax.evaluate", ["--checkpoint=no"], {"batch": ["0"], "limit": []}),
    ("igpt_jax.features", ["--checkpoint=no", "--out=no"], {
        "image-size": ["0"], "validation": ["1"], "layers": ["1,,2", "1,-2"], "masks": [], "limit": [], "batch": ["0"], "images-per-part": ["0"],
    }),
    ("igpt_jax.probe", ["--features=no"], {
        "concatenate": [], "memory": ["0"], "C": ["0", "1,nan", "1,"], "labels-per-class": ["0", "4,0"], "subsets": ["0"],
        "learning-rates": ["0", "1,inf"], "steps": [], "batch": ["0"], "seed": [], "attention-rates": ["0"],
    }),
    ("igpt_jax.demo", ["--checkpoint=no"], {"port": ["0", "65536"]}),
    ("igpt_jax.convert", ["openai", "no", "no"], {"heads": ["0"]}),
    ("experiments.studies.colour_coding", [], {"size": ["0"], "colours": ["0"], "seed": []}),
    ("experiments.studies.completions", ["--checkpoint=no"], {
        "count": ["0"], "completions": ["0"], "rows": [], "temperature": [], "top-k": [], "top-p": ["0", "2"], "seed": [],
    }),
    ("experiments.studies.attention_maps", ["--checkpoint=no"], {
        "number": [], "row": [], "column": [], "layers": ["0", "1,,2"], "count": ["0"], "batch": ["0"],
    }),
    ("experiments.studies.logit_lens", ["--checkpoint=no"], {"count": ["0"], "shown": ["0"], "batch": ["0"]}),
    ("experiments.studies.nearest", ["--checkpoint=no"], {
        "samples": [], "completions": [], "train": ["0"], "test": ["1"], "layer": [], "temperature": [], "top-k": [], "top-p": ["0", "2"], "seed": [],
        "batch": ["0"],
    }),
    ("experiments.studies.sample_quality", ["--checkpoint=no"], {
        "count": ["1"], "draws": ["1"], "layer": [], "temperatures": ["1,,2", "-1"], "top-ps": ["0", "1", "2"], "seed": [], "batch": ["0"],
    }),
    ("experiments.scale.chaos", [], {"minutes": [], "seed": []}),
    ("experiments.bench.sample", [], {"batch": ["0"], "rounds": ["0"], "layers": ["0"], "width": ["0"], "positions": ["0"]}),
    ("experiments.bench.train", [], {"batch": ["0"], "steps": ["0"], "colours": ["0"]}),
]  # fmt: skip
REALS = ("temperature", "temperatures", "top-p", "top-ps", "validation", "memory", "C", "learning-rates", "attention-rates", "minutes")


@pytest.mark.parametrize(("program", "needed", "flags"), PROGRAMS, ids=[program for program, *_ in PROGRAMS])
def test_a_number_outside_its_range_is_one_line_and_code_1(program, needed, flags, monkeypatch, capsys):
    """Before anything is opened: what the program must be given is not there."""
    import importlib

    module = importlib.import_module(program)
    for flag, more in flags.items():
        for text in WRONG["real" if flag in REALS else "integer"] + more:
            monkeypatch.setattr(sys, "argv", [program, *needed, f"--{flag}={text}"])
            with pytest.raises(SystemExit) as stopped:
                (getattr(module, "_main", None) or module.main)()
            said = str(stopped.value.code)
            assert said.startswith("error: ") and f"--{flag}" in said and "\n" not in said and not capsys.readouterr().err, (flag, text, said)


def test_no_program_takes_a_number_that_nobody_checks():
    for path in [*(ROOT / "igpt_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        text = path.read_text()
        assert not re.search(r"type=(int|float)\b", text), path
        assert path.name == "cli.py" or "ArgumentParser(" not in text, path
        for line in re.findall(r"DEFINE_(?:integer|float)\(.*", text):
            assert "lower_bound=" in line, (path, line)


def test_numbers_within_their_range_are_taken():
    assert [cli.integer(2, 5)(text) for text in ("2", "5")] == [2, 5]
    assert cli.real("any", lambda value: True)("1e3") == 1000.0 and cli.list_of(cli.positive())("1,0.5") == [1.0, 0.5]
    for parse, text in ((cli.integer(2, 5), "1"), (cli.integer(2, 5), "6"), (cli.positive(), "0"), (cli.list_of(cli.integer()), "1,x")):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            parse(text)


def test_a_tilde_is_the_home_wherever_a_path_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["--out=~/a.png", "~/b", "~", "--data=folder:~/c", "--config.data.source=npz:~/d", "--checkpoints=~/e,~/f", "--probe_data=x=folder:~"]
    assert cli.with_home(words) == [word.replace("~", "/home/me") for word in words]
    kept = ["--fill=a~/b", "x~", "--out=~nobody_of_this_name/x", "./~/x", "--note=1~2"]
    assert cli.with_home(kept) == kept


PROGRAM = """
import sys
from igpt_jax import cli
def raises(kind):
    if kind == "bug": {}["width"]
    if kind == "bug of a user's kind": int("x")
    if kind == "from a library": import numpy; numpy.zeros((2, 3)) @ numpy.zeros((2, 3))
    if kind == "no text": raise AssertionError
    if kind == "long": raise RuntimeError("x\\n" * 10_000)
    if kind == "line": raise ValueError("a line\\n written for it")
    if kind == "file": open("/nowhere/x")
    if kind == "interrupted": raise KeyboardInterrupt
def main(*_):
    raises(sys.argv[1])
"""


def run_program(kind, end, **environment):
    words = [sys.executable, "-c", PROGRAM + end, kind]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment)


def traces(folder):
    return [path.read_text() for path in pathlib.Path(folder).glob("error-*.txt")]


@pytest.mark.parametrize("kind", ["bug", "bug of a user's kind", "from a library", "no text", "long"])
def test_what_no_line_was_written_for_is_one_line_and_a_stack_trace_in_a_file(kind, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "tmp").mkdir()
    workdir = "try: main()\nexcept cli.ANY_ERROR as error: cli.fail(error, {!r})".format(str(tmp_path / "run"))
    for end, folder in ((workdir, "run"), (workdir.replace("run", "not there"), "tmp"), ("cli.program(main)", "tmp")):
        for old in (tmp_path / folder).iterdir():
            old.unlink()
        done = run_program(kind, end, TMPDIR=str(tmp_path / "tmp"))
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and len(done.stderr) < 700
        [trace] = traces(tmp_path / folder)
        [path] = (tmp_path / folder).iterdir()
        assert re.match(r"error: \w+Error", done.stderr) and done.stderr.strip().endswith(str(path))
        assert "Traceback" in trace and "raises" in trace and kind.split("'")[0] in trace.splitlines()[0] and "jax" in trace.splitlines()[1]


@pytest.mark.parametrize(
    ("kind", "said", "code"),
    [("line", "error: a line written for it", 1), ("file", "error: [Errno 2] No such file or directory: '/nowhere/x'", 1), ("interrupted", "interrupted", 130)],
)
def test_what_a_line_was_written_for_needs_no_stack_trace(kind, said, code, tmp_path):
    done = run_program(kind, "cli.program(main)", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr.strip(), done.stdout) == (code, said, "") and not traces(tmp_path)


def test_an_output_is_checked_and_its_folder_made_first(tmp_path):
    assert cli.prepare_file(tmp_path / "a" / "b" / "c.png") == tmp_path / "a" / "b" / "c.png" and (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for prepare, path, message in (
        (cli.prepare_file, tmp_path / "a", "a is a folder: give the name of a file"),
        (cli.prepare_file, tmp_path / "file" / "x.png", "file cannot be written: "),
        (cli.prepare_folder, tmp_path / "file", "file cannot be written: File exists"),
        (cli.prepare_folder, "/proc/x", "/proc/x cannot be written"),
    ):
        with pytest.raises(OSError, match=message):
            prepare(path)
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_refusal_leaves_no_empty_folder_that_was_made_for_the_output(tmp_path):
    (tmp_path / "before").mkdir()
    cli.prepare_folder(tmp_path / "before")
    cli.prepare_file(tmp_path / "a" / "b" / "c.png")
    cli.prepare_folder(tmp_path / "kept" / "empty")
    (tmp_path / "kept" / "written").touch()
    assert cli.explain("no") == "error: no"
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["before", "kept", "kept/written"]


def test_a_key_that_the_recipe_does_not_have_is_said_with_those_it_has():
    recipe = f"--config={ROOT / 'configs/digits.py'}"
    said = {
        "--config.optim.lr=1": "config.optim has no 'lr': it has base_width, ",
        "--config.optimm.steps=1": "config has no 'optimm' (did you mean config.optim?): it has ",
        "--config.optim.warmup=1": "config.optim has no 'warmup' (did you mean config.optim.warmup_steps?): it has ",
        "--config.learning_rate=1": "config has no 'learning_rate' (did you mean config.optim.learning_rate?): it has ",
        "--config.steps.x=1": "config.steps is a value and has no 'x'",
    }
    for word, line in said.items():
        assert cli.unknown_key(["program", recipe, "--config.steps=3", word]).startswith(line)
    assert cli.unknown_key(["program", recipe, "--config.optim.beta1=0.9"]) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.optim.lr = 0.1", "config.optim has no 'lr': it has base_width, "),
        ("config.save_evry = 10", "config has no 'save_evry' (did you mean config.save_every?): it has batch_size, "),
        ("config.optim.update({'warmup_step': 1})", "config.optim has no 'warmup_step' (did you mean config.optim.warmup_steps?): it has "),
        ("config.steps = config.model.layer", "config.model has no 'layer' (did you mean config.model.layers?): it has "),
        ("config.update_from_flattened_dict({'model.laeyrs': 2})", "config.model has no 'laeyrs' (did you mean config.model.layers?): it has "),
    ],
)
def test_a_key_that_a_recipe_of_ones_own_misspells_is_named_with_its_line(tmp_path, line, said):
    """Not taken as a new one, which nothing would read."""
    path = tmp_path / "mine.py"
    path.write_text(f"from configs import digits\n\n\ndef get_config():\n    config = digits.get_config()\n    {line}\n    return config\n")
    assert cli.unknown_key(["program", f"--config={path}"]).startswith(f"{path}, line 6: {said}")


@pytest.mark.slow
def test_a_recipe_program_says_a_wrong_flag_in_one_line(tmp_path):
    for words, said in (
        (["--config=configs/digits.py", "--config.optim.lr=1"], "error: config.optim has no 'lr': it has "),
        (["--config=configs/digits.py", "--config.batch_size=x"], "error: flag --config.batch_size=x: "),
        (["--config=configs/digits.py", "--foo=1"], "error: Unknown command line flag 'foo'"),
        (["--config=configs/digits.py"], "error: give a directory by --workdir=DIR"),
    ):
        done = subprocess.run([sys.executable, "-m", "igpt_jax.quantize", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1, done.stderr


HELP = {  # program -> what its help shows: flags, defaults, recipe keys
    "train": ["--config=FILE", "--init_from=", "--config.batch_size=VALUE", "(default: 128)", "131,072 tokens", "--config.optim.learning_rate="],
    "quantize": ["--codes", "--refit", "--config.palette.size=VALUE", "(default: 512)"],
    "finetune": ["--checkpoint=", "--keep_head", "--config.steps="],
    "aot": ["--topology=", "(default: v4-128)", "--config.mesh.tensor="],
    "evaluate": ["--split={train,validation,test}", "(default: test)", "images:"],
    "sample": ["--images FILE [FILE ...]", "(default: 4)", "sampling:"],
    "features": ["--kind={normalised,raw,positions}", "(default: normalised)", "images:"],
    "probe": ["--C=LIST", "0.0001,0.001,0.01,0.1,1,10,100", "--solver=sgd:", "(default: 8)"],
    "convert": ["openai", "to-hf"],
    "demo": ["--port=", "(default: 127.0.0.1)"],
}


@pytest.mark.parametrize("program", HELP)
def test_help_shows_flags_defaults_keys_and_an_example_without_a_device(program):
    environment = os.environ | {"JAX_PLATFORMS": "no such platform", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-m", f"igpt_jax.{program}", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m igpt_jax.{program} ") and "`python -m" not in done.stdout
    shown, examples = re.split(r"\nexamples?:\n", done.stdout)
    assert not [text for text in HELP[program] if text not in shown]
    for example in examples.splitlines():
        assert example.startswith(f"  python -m igpt_jax.{program} ") and "[" not in example
        if program != "convert":  # its commands have the flags
            assert not [flag for flag in re.findall(r"--[\w-]+", example) if flag not in shown], example


def test_help_shows_the_values_of_the_recipe_that_is_given(tmp_path):
    def shown(*words):
        return subprocess.run([sys.executable, "-m", "igpt_jax.train", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)

    done = shown("--help", "--config=configs/xl.py", "--foo=1")
    assert done.returncode == 0 and "with the values of configs/xl.py" in done.stdout and "(default: 3072)" in done.stdout
    done = shown("--config=configs/none_such.py", "-h")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "none_such.py" in done.stderr and len(done.stderr.splitlines()) == 1


def test_every_key_that_help_shows_is_one_of_the_recipe_with_a_comment():
    from configs import base
    from igpt_jax import aot, quantize
    from igpt_jax.training.recipe import flatten

    keys = {*cli.KEYS, *quantize.KEYS, *aot.KEYS}
    assert keys <= flatten(base.get_config().to_dict()).keys() and keys <= cli._comments(cli.BASE).keys()


@pytest.mark.slow
def test_every_spelling_of_a_key_and_every_wrong_recipe_ends_in_one_line(tmp_path):
    """Former keys in brackets, in a --flagfile and in recipes; files and folders that are called like recipes; recipes that are none."""
    head = "from configs import digits\ndef get_config():\n    c = digits.get_config()\n"
    files = {
        "old.py": f"{head}    c.accumulate = 2\n    return c\n", "unlocked.py": f"{head}    with c.unlocked():\n        c.accumulate = 2\n    return c\n",
        "keys": "--config.accumulate=2\n", "name": "--config=digits\n", "lost": "--config=configs/none.py\n", "digits": "x =\n",
        "configs/three.py": "def get_config():\n    return 3\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    renamed, steps = "it is now config.gradient_accumulation_steps", "config.optim.steps must be a whole number from 1 to 2147483647, not 0"
    cases = {
        ("--help", "--config=old.py"): renamed, ("--config=old.py",): renamed, ("--config=unlocked.py",): renamed,
        ("--config=digits", '--config.optim["spike"]=2', "--config.steps=0"): steps, ("--config=digits", "--flagfile=keys", "--config.steps=0"): steps,
        ("--flagfile=name", "--config.steps=0"): steps, ("--flagfile=lost",): "there is no recipe 'configs/none.py'",
        ("--config=",): "Path to config file is an empty string", ("--config=three",): "whose get_config returns a ConfigDict",
        ("--config=__init__",): "there is no recipe '__init__'", ("--config=xl:more",): "get_config() takes 0 positional arguments but 1 was given",
    }  # fmt: skip
    for flags, message in cases.items():
        command = [sys.executable, "-m", "igpt_jax.train", "--workdir=run", *flags]
        ended = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200)
        lines = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "Traceback"))]
        assert ended.returncode == 1 and len(lines) == 1 and message in lines[0] and "not expected" not in lines[0], (flags, ended.stderr)


def test_an_option_that_does_not_exist_is_named_before_one_that_is_missing():
    parser = cli.Parser(prog="python -m igpt_jax.sample")
    parser.add_argument("--checkpoint", required=True)
    for words, message in ((["--checkpont=x"], "there is no option --checkpont (did you mean --checkpoint?)"), (["--zzz"], "there is no option --zzz;")):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        assert message in str(ended.value.code)
    assert parser.parse_args(["--check=x"]).checkpoint == "x"  # a beginning is enough, as for argparse


def test_the_package_lists_its_programs():
    done = subprocess.run([sys.executable, "-m", "igpt_jax"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[2].removeprefix("igpt_jax.") for line in done.stdout.splitlines() if "-m igpt_jax." in line}
    assert listed == {path.stem for path in (ROOT / "igpt_jax").glob("*.py") if '__name__ == "__main__"' in path.read_text() and not path.stem.startswith("_")}
    assert all(len(line) > 40 for line in done.stdout.splitlines()[2:])


@pytest.mark.parametrize(
    ("flag", "message"), [("--config.steps=ten", "'ten' is not a whole number"), ("--config.optim.learning_rate=x", "'x' is not a number")]
)
def test_what_is_no_number_is_said_in_words(flag, message):
    words = [sys.executable, "-m", "igpt_jax.train", "--config=digits", "--workdir=/nowhere", flag]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 1 and done.stderr == f"error: flag {flag}: {message}\n"
