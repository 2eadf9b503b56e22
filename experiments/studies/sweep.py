"""What the sweeps of this folder share: many jobs, one figure.

    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/layers               every job in turn
    python -m experiments.studies.accuracy_by_layer --config=configs/cifar10_16.py --workdir=runs/layers --shard=2/8   only jobs 2, 10, 18, ...
    sbatch --array=0-7 --wrap='python -m experiments.studies.accuracy_by_layer ... --shard=$SLURM_ARRAY_TASK_ID/8'     the same on a cluster

A job is one pretrained model and everything that is measured of it, so no job waits for another. Its result is one file, WORKDIR/jobs/NAME.json, which
appears complete; a job that has its file is not run again, and its file says of which data and given model it is (experiments/studies/origin.py): where these
have changed, the sweep is refused. A job that fails is tried again (--tries) and continues where it stopped. A line reports the
failure, WORKDIR/jobs/NAME.error holds the stack trace, and the other jobs continue. The exit code is 1 if a job failed every time. All hosts see the same
WORKDIR. A command with --shard runs only the jobs of its shard, counted from 0. When all have ended, the same command without --shard runs what is still
missing and writes FIGURE.json and FIGURE.png to WORKDIR and to --results. --tries=0 runs no job and draws the jobs that are done.
"""

import dataclasses
import json
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.report.provenance import provenance, typed
from experiments.studies import origin
from experiments.studies.origin import Origin
from experiments.studies.stages import images_of
from igpt_jax.cli import base_recipe, fail
from igpt_jax.data.pipeline import DataConfig
from igpt_jax.distributed.multihost import note
from igpt_jax.files import one_line, write_atomically
from igpt_jax.probing.results import dumps
from igpt_jax.progress import Progress
from igpt_jax.training.recipe import differences, keep_config, read_config
from igpt_jax.types import PathLike, Recipe

# Keys of a recipe that may differ between starts: they do not change what is computed. The content of the data is compared, whatever its directory.
FREE_KEYS = (
    "mesh.", "track", "log_every", "eval_every", "eval_images", "eval_pictures", "save_every", "keep_last", "keep_every", "data.workers", "data.directory",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece of work that writes one file."""

    name: str  # of the file: letters, digits, ._-
    work: Callable[[], dict]  # returns the contents of the file; called again after a failure, it continues
    checkpoint: PathLike | None = None  # of a given model, which the job did not train


@dataclasses.dataclass(frozen=True)
class Figure:
    """How the results of the jobs become numbers, a table and a picture."""

    name: str
    summary: Callable[[list[dict]], dict]  # results of the jobs -> the numbers to draw
    table: Callable[[dict], list[str]]  # summary -> lines to print
    draw: Callable[[dict], Any]  # summary -> matplotlib's Figure


def run(
    figure: Figure, jobs: list[Job], config: Recipe, settings: dict, workdir: PathLike, results: PathLike | None = None, shard: str | None = None,
    tries: int = 2, data: Mapping[str, DataConfig] | None = None,
) -> dict | None:  # fmt: skip
    """Run the missing jobs and write the figure of all that are done; return the contents of its JSON file. With a `shard` no figure is written.

    Every job depends on `config`, on `settings` and on the images of `data`, by name (default: those of the recipe): ValueError if WORKDIR holds jobs of
    others. Exits with code 1 if a job failed.
    """
    workdir = pathlib.Path(workdir)
    shard_jobs = share(jobs, shard)
    if jax.process_count() > 1:
        raise ValueError(f"a sweep is one process, not {jax.process_count()} processes of one run: start a separate process for each --shard")
    now, before = config.to_dict() | {"sweep": settings}, _with_newer_keys(read_config(workdir))
    if listed := ", ".join(f"{key} {a!r} -> {b!r}" for key, (a, b) in differences(before or now, now).items() if not key.startswith(FREE_KEYS)):
        raise ValueError(f"{workdir} holds a sweep of another recipe: {listed}. Give another --workdir, or these values")
    data = {config.data.source: images_of(config)} if data is None else data
    origins = check_origins(jobs, [job for job in shard_jobs if tries and not _path(job, workdir).exists()], data, workdir)
    keep_config(workdir, now)
    failed = perform(shard_jobs, workdir, tries, origins, data)
    contents = None
    if shard:
        done = sum(_path(job, workdir).exists() for job in jobs)
        print(f"{figure.name}: {done} of {len(jobs)} jobs are done; when all are done, run the same command without --shard to draw the figure", flush=True)
    else:
        contents = gather(figure, jobs, workdir, config, settings)
        if contents:
            write(figure, contents, [workdir] + ([pathlib.Path(results)] if results else []))
    if failed:
        fail(f"{len(failed)} of {len(shard_jobs)} jobs failed, {', '.join(failed)}: run the same command to try them again; the others are done")
    return contents


def _with_newer_keys(before: dict | None) -> dict | None:
    """A recipe that an older version wrote, with the base recipe's values of the keys that it lacks."""
    if before is None:
        return None
    base = {key: value | before.get(key, {}) if isinstance(value, dict) else before.get(key, value) for key, value in base_recipe().to_dict().items()}
    return before | base


def share(jobs: list[Job], shard: str | None) -> list[Job]:
    """Return the jobs of a shard "i/n", with i from 0; None: all. Each job is in exactly one of the n shards."""
    names = [job.name for job in jobs]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
        raise ValueError(f"jobs must have different names of letters, digits and ._-, not {', '.join(names)}")
    if shard is None:
        return jobs
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--shard={shard} must be i/n with i from 0 to n - 1, for example 0/4 for the first of four hosts")
    return jobs[int(match[1]) :: int(match[2])]


def check_origins(jobs: list[Job], missing: list[Job], data: Mapping[str, DataConfig], workdir: pathlib.Path) -> dict[str, Origin]:
    """Return the origin of each job that is done or `missing`; ValueError if a done one was made of other things.

    What cannot be read is an error if a missing job needs it. Else it is not compared, and a note says so.
    """
    images, origins, unknown = _readable("the data", partial(_images_of, data), bool(missing)), {}, []
    for job in jobs:
        path = _path(job, workdir)
        if job not in missing and not path.exists():
            continue
        model = _readable(f"the model of job {job.name}", partial(_model_of, job), job in missing)
        origins[job.name] = images | model
        if path.exists():
            row = json.loads(path.read_text())
            written = row[origin.KEY] if origin.KEY in row else _older_origin(row["found"])
            folders = [workdir / kept / job.name for kept in ("probes", "models") if (workdir / kept / job.name).exists()]
            lacks = origin.compare(path, written, images, str(workdir))
            lacks += origin.compare(path, written, model, " and ".join(map(str, [path, *folders])))
            unknown += [job.name] * bool(lacks)
    if unknown:
        note(f"{len(unknown)} of {len(jobs)} jobs in {workdir} do not say of which data and model they are, only the rest is compared: {', '.join(unknown)}")
    return origins


def perform(jobs: list[Job], workdir: pathlib.Path, tries: int, origins: Mapping[str, Origin], data: Mapping[str, DataConfig]) -> list[str]:
    """Run the jobs that have no file yet; return the names of those that failed `tries` times. `tries` 0 runs none."""
    missing = [job for job in jobs if tries and not _path(job, workdir).exists()]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are " + ("done already" if tries else "left out"), flush=True)
    (workdir / "jobs").mkdir(parents=True, exist_ok=True)
    failed = []
    with Progress("jobs", len(missing), "jobs") as progress:
        for job in missing:
            if not any(_attempt(job, _path(job, workdir), turn, tries, origins[job.name], data) for turn in range(1, tries + 1)):
                failed.append(job.name)
            jax.clear_caches()  # the next job is another model, and the programs of this one would stay in memory
            progress.advance(1)
    return failed


def gather(figure: Figure, jobs: list[Job], workdir: pathlib.Path, config: Recipe, settings: dict) -> dict | None:
    """Return everything that the figure shows, and from which jobs; None, after a line on stderr, if no job is done."""
    missing = [job.name for job in jobs if not _path(job, workdir).exists()]
    rows = [json.loads(_path(job, workdir).read_text()) for job in jobs if job.name not in missing]
    if not rows:
        print(f"{figure.name}: not drawn, none of {len(jobs)} jobs is done", file=sys.stderr, flush=True)
        return None
    if missing:
        print(f"{figure.name}: drawn without {len(missing)} of {len(jobs)} jobs, {', '.join(missing)}", flush=True)
    contents = figure.summary([row["found"] for row in rows]) | {"missing": missing, "settings": settings}
    contents |= {"jobs": rows, "recipe": config.to_dict()} | _provenance()
    return json.loads(json.dumps(contents, default=str))  # the figure is drawn from what the file will hold


def write(figure: Figure, contents: dict, folders: list[pathlib.Path]) -> None:
    """Write FIGURE.json and FIGURE.png to each folder, and print the table."""
    picture = figure.draw(contents)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{figure.name}.json", (dumps(contents) + "\n").encode())
        picture.savefig(folder / f"{figure.name}.png", dpi=150)
    print("\n".join([*figure.table(contents), *(f"wrote {folder / figure.name}.json, .png" for folder in folders)]), flush=True)


def spread(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """Return the mean of a sample as text, and the deviation if it has several values."""
    return f"{np.mean(values):.{digits}f}" + (f" +- {deviation(values):.{digits}f}" if len(values) > 1 else "")


def deviation(values: Sequence[float] | np.ndarray) -> float:
    """Return the standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=min(1, len(values) - 1)))


def flags(flags) -> dict:
    """Define the flags that every sweep has; return their holders by name."""
    return {
        "results": flags.DEFINE_string("results", None, "also write the figure's JSON and PNG to this folder"),
        "shard": flags.DEFINE_string("shard", None, "i/n with i from 0: run only every n-th job from the i-th on; default: all jobs, and the figure"),
        "tries": flags.DEFINE_integer("tries", 2, "how many times a job that fails is started; 0: run none and draw the jobs that are done", lower_bound=0),
    }


def _images_of(data):
    return {"data": {name: origin.of_images(images) for name, images in data.items()}}


def _model_of(job):
    return {} if job.checkpoint is None else {"model": origin.of_model(job.checkpoint)}


def _older_origin(found):
    """What the file of a job without an origin says of it: the step of its model, at most."""
    model = found.get("model")
    return {"model": {"step": model["step"]}} if isinstance(model, dict) and "step" in model else {}


def _readable(what, read, needed):
    """What `read` returns; {} after a note if it cannot be read and is not needed."""
    try:
        return read()
    except (OSError, ValueError) as error:
        if needed:
            raise
        note(f"{what} cannot be read, so it is not compared with what the jobs were made of: {one_line(error)}")
        return {}


def _attempt(job, path, turn, tries, made_of, data):
    """Run a job and write its file; return whether it succeeded."""
    began = time.monotonic()
    try:
        result = job.work()
        if (_images_of(data) | _model_of(job)) != made_of:
            raise ValueError("its data or its model changed while it ran: run the same command again")
        row = {"job": job.name, "seconds": round(time.monotonic() - began, 1), "found": result, origin.KEY: made_of} | _provenance()
        write_atomically(path, (dumps(row) + "\n").encode())
    except Exception as error:  # whatever it is, the other jobs continue
        path.with_suffix(".error").write_text(traceback.format_exc())
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"job {job.name} failed, try {turn} of {tries}: {reason} ({path.with_suffix('.error')})", file=sys.stderr, flush=True)
        return False
    path.with_suffix(".error").unlink(missing_ok=True)
    return True


def _path(job, workdir):
    return workdir / "jobs" / f"{job.name}.json"


def _provenance():
    return provenance(typed(f"studies.{pathlib.Path(sys.argv[0]).stem}"))
