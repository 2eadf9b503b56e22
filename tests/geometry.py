"""The programs over processes x devices x meshes: `python -m tests.geometry` prints the table. Every pair of conditions occurs in a row.

    python -m tests.geometry    all rows, each as real processes on the CPU, beside one process with one device
    python -m tests.geometry run {PROGRAM: DIR} DATA FSDP TENSOR    what one process of some rows does; process 0 prints a line of JSON
"""

import contextlib
import functools
import itertools
import json
import pathlib
import shutil
import sys
import tempfile
import time

import jax
import numpy as np

from configs import digits_finetune
from igpt_jax import finetune, quantize, train
from igpt_jax.data import pipeline
from igpt_jax.distributed import multihost, sharding
from igpt_jax.probing import extract
from igpt_jax.training import checkpoints, evaluation
from igpt_jax.training.loop import Run
from tests.runs import make_workdir, recipe

PROCESSES, DEVICES = (1, 2, 4), (1, 2)  # of each process
MESHES = {  # how all devices are divided: (data, fsdp, tensor); products need four
    "fsdp": lambda count: (1, count, 1),
    "tensor": lambda count: (1, 1, count),
    "data": lambda count: (count, 1, 1),
    "fsdp x tensor": lambda count: (1, count // 2, 2),
    "data x fsdp x tensor": lambda count: (2, count // 4, 2),
}
PROGRAMS = ("train", "resume", "evaluate", "finetune", "features", "quantize")
MODEL = {"model__width": 32, "model__heads": 8, "log_every": 1, "steps": 6, "save_every": 3, "eval_every": 6, "model__dtype": "float32", "batch_size": 16}
AT = 3  # the step after whose checkpoint a run is killed that is resumed


def rows() -> list[tuple]:
    """(processes, devices, mesh, program) that together hold every pair of conditions; drawn greedily, those that need no new processes first.

    One process with one device is what the rows are compared with, and no row.
    """
    every, missing, chosen = possible(), pairs(*possible()), []
    while missing:
        started = {row[:3] for row in chosen}
        best = max(every, key=lambda row: (len(missing & pairs(row)), row[:3] in started, -row[0]))
        chosen.append(best)
        missing -= pairs(best)
    return sorted(chosen, key=lambda row: (row[:3], PROGRAMS.index(row[3])))


def possible() -> list[tuple]:
    """Every combination of conditions that can be; a product mesh needs four devices, any other two."""
    every = itertools.product(PROCESSES, DEVICES, MESHES, PROGRAMS)
    return [row for row in every if row[0] * row[1] >= (4 if "x" in row[2] else 2)]


def pairs(*rows) -> set:
    """The pairs of conditions that occur in rows."""
    return set(itertools.chain.from_iterable(itertools.combinations(enumerate(row), 2) for row in rows))


def table(folder, say=print) -> list[dict]:
    """Run every row beside one process with one device, say a line for each, and return them: {row, equal, result, expected}."""
    from tests.distributed.test_multihost import finish, start_together

    def run(programs, count, devices, mesh):
        places = {program: str(prepared(folder, f"{program}-{count}x{devices}-{mesh}".replace(" ", ""), program)) for program in programs}
        sizes = (1, 1, 1) if count * devices == 1 else MESHES[mesh](count * devices)
        text = finish(start_together(["tests.geometry", "run", json.dumps(places), *map(str, sizes)], devices, count))[0]
        return json.loads(text.strip().splitlines()[-1])

    folder, started = pathlib.Path(folder), time.monotonic()
    expected = run(["train", "begin", *PROGRAMS[1:]], 1, 1, "fsdp")
    say(f"{'processes':>9} {'devices':>7}  {'mesh':20}  {'program':8}  beside one process with one device")
    found = []
    for (count, devices, mesh), group in itertools.groupby(rows(), key=lambda row: row[:3]):
        programs, began = [row[3] for row in group], time.monotonic()
        results = run(programs, count, devices, mesh)
        for program in programs:
            equal = same(results[program], expected[program])
            seconds = f", {time.monotonic() - began:.0f} s" if program == programs[-1] else ""
            say(f"{count:>9} {devices:>7}  {mesh:20}  {program:8}  {'equal' if equal else 'DIFFERS'}: {short(results[program])}{seconds}")
            found.append({"row": (count, devices, mesh, program), "equal": equal, "result": results[program], "expected": expected[program]})
    equal, every = pairs(*(one["row"] for one in found if one["equal"])), pairs(*possible())
    say(f"{len(found)} rows, {len(equal)} of {len(every)} pairs of conditions in rows that are equal: {time.monotonic() - started:.0f} s")
    return found


def prepared(folder, name, program):
    """A work directory, for `resume` a copy of the run that was stopped; `train` and `begin` of one process are what others go on from."""
    place = folder / name
    if program == "resume" and (folder / "begin-1x1-fsdp").exists():
        shutil.copytree(folder / "begin-1x1-fsdp", place)
    else:
        make_workdir(place) if program not in ("quantize", "resume") else None
    return place


def same(result, expected) -> bool:
    """Counts equal, numbers within what sums of float32 in another order differ by."""
    return result.keys() == expected.keys() and all(np.allclose(result[name], expected[name], rtol=2e-5, atol=1e-6) for name in expected)


def short(result) -> str:
    """The last number of each measure."""
    return ", ".join(f"{name} {np.ravel(value)[-1]:.6g}" for name, value in result.items())


class Killed(Exception):
    """In the place of a SIGKILL."""


@contextlib.contextmanager
def killed_at(step):
    """A run ends when the checkpoint of this step is written, and writes nothing more."""
    save = Run.save

    def save_and_end(self, now, state, values):
        save(self, now, state, values)
        if now == step:
            self.checkpoints.manager.wait_until_finished()
            raise Killed

    Run.save = save_and_end
    try:
        yield
    finally:
        Run.save = save


def losses(workdir) -> list[float]:
    """The training losses of a run."""
    return [line["train/loss"] for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if "train/loss" in line]


def measures(workdir, found) -> dict:
    """What is compared of a training run."""
    return {"losses": losses(workdir)} | {name: found[name] for name in ("images", "nats_per_pixel", "accuracy") if name in found}


def main(program, place, sizes) -> dict:
    """One row's program in this process; the run that others begin with lies beside `place`."""
    place = pathlib.Path(place)
    mesh, run = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), sizes, strict=True)), place.parent / "train-1x1-fsdp"
    match program:
        case "begin":  # as a run of six steps is that was killed after its third
            config = recipe(**MODEL | mesh)
            with contextlib.suppress(Killed), killed_at(AT):
                train.train(config, place)
            shutil.copytree(place, place.parent / "resume-1x1-fsdp", dirs_exist_ok=True)
            return {}
        case "train" | "resume":
            return measures(place, train.train(recipe(**MODEL | mesh), place))
        case "finetune":
            config = recipe(digits_finetune, **MODEL | mesh | {"best__metric": ""})
            return measures(place, finetune.finetune(config, place, str(run)))
        case "evaluate":
            found = evaluation.evaluate_checkpoint(run, batch=50, mesh=sharding.make_mesh(*sizes), each_image=True)
            each_image = {name: found["each_image"][name].tolist() for name in ("index", "label", "nats")}
            return each_image | {name: found[name] for name in ("images", "nats_per_pixel")}
        case "features":
            pretrained = checkpoints.load(run, mesh=sharding.make_mesh(*sizes))
            config = pipeline.config_for(pretrained.config, pretrained.image_size)
            with contextlib.redirect_stdout(sys.stderr):
                described = extract.write_features(pretrained, config, place / "features", splits=("validation", "test"), batch=50, images_per_part=100)
            parts = [np.load(path) for split in ("validation", "test") for path in sorted((place / f"features/{split}").glob("part-*.npy"))]
            return {"images": list(described["counts"].values()), "features": [float(np.abs(part).mean()) for part in parts]}
        case "quantize":
            quantize.quantize(recipe(), place)
            multihost.wait_for_all("quantize")
            facts = json.loads((place / "palette.json").read_text())
            return {"pixels": facts["pixels"], "mse": facts["mse"], "palette": np.load(place / "palette.npy").ravel().tolist()}
    raise ValueError(program)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        multihost.join()
        results = {program: main(program, place, tuple(map(int, sys.argv[3:]))) for program, place in json.loads(sys.argv[2]).items()}
        if jax.process_index() == 0:
            print(json.dumps(results))
    else:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(not all(row["equal"] for row in table(folder, functools.partial(print, flush=True))))
