"""The launch recipes: their syntax and options, and what they do, with stand-ins for the programs of a cluster."""

import importlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from igpt_jax.training import checkpoints
from tests.runs import ROOT, flags, make_workdir, recipe
from tests.test_docs import flags_of

LAUNCH = ROOT / "experiments/launch"
SCRIPTS = {path.name: path.read_text() for path in sorted(LAUNCH.iterdir())}
OURS = [
    (name, program, options)
    for name, text in SCRIPTS.items()
    for program, options in re.findall(r"-m igpt_jax\.(\w+)((?: +--[\w.]+(?:=\S+)?)*)", text.replace("$PROGRAM igpt_jax", "-m igpt_jax"))
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_shell_reads_it(name):
    read = subprocess.run(["bash", "-n", LAUNCH / name], capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    assert "set -eu\n" in SCRIPTS[name] and SCRIPTS[name].startswith("#!/usr/bin/env bash\n# ")


def test_shellcheck_has_nothing_to_say():
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck")
    told = subprocess.run(["shellcheck", *SCRIPTS], cwd=LAUNCH, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_checks_then_fits_the_palette_then_trains(name):
    programs = [program for where, program, _ in OURS if where == name]
    assert [program for program in dict.fromkeys(programs)] == ["aot", "quantize", "train"]


@pytest.mark.parametrize(("name", "program", "options"), OURS)
def test_our_options_exist(name, program, options):
    known = flags_of(ROOT / f"igpt_jax/{program}.py") | flags_of(ROOT / "igpt_jax/cli.py")
    assert {"--config", "--topology" if program == "aot" else "--workdir"} <= {word.partition("=")[0] for word in options.split()}
    for word in options.split():
        flag = word.removeprefix("--").partition("=")[0]
        assert flag.startswith("config.") or flag in known, f"{name}: {program} has no --{flag}"


@pytest.mark.parametrize(("name", "text"), SCRIPTS.items())
def test_recipes_topologies_and_values_exist(name, text):
    from igpt_jax.distributed.topology import CHIPS

    for path in re.findall(r"\b(?:configs|experiments/launch)/[\w.]+", text):
        assert (ROOT / path.rstrip(".")).exists(), f"{name}: {path}"
    for kind, size in re.findall(r"(?:TOPOLOGY:-|--topology=)(\w+?)-(\d+)", text):
        chip = CHIPS[kind]
        assert not chip.shapes or int(size) // chip.cores in chip.shapes, f"{name}: {kind}-{size}"
    for key in re.findall(r"\bconfig\.([\w.]*\w)", text):
        found = importlib.import_module("configs.base").get_config()
        for part in key.split("."):
            found = found[part]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_values_shipped_feed_every_process(name):
    """Recipe, mesh and batch of each script on the devices of its topology: hosts of eight GPUs with a process each, slices of TPUs with hosts of four."""
    import numpy as np
    from jax.sharding import Mesh

    from igpt_jax.distributed import sharding
    from igpt_jax.distributed.topology import CHIPS
    from igpt_jax.model.transformer import ModelConfig
    from tests.distributed.test_sharding import gpus

    text = SCRIPTS[name]
    kind, size, slices = re.search(r"(?:TOPOLOGY:-|--topology=)(\w+?)-(\d+)(?:x(\d+))?", text).groups()
    config = importlib.import_module(re.search(r"RECIPE:-(configs/\w+)\.py", text)[1].replace("/", ".")).get_config()
    values = re.search(r"^VALUES=\((.*)\)", text, re.MULTILINE)
    for key, value in re.findall(r"--config\.([\w.]+)=(\S+)", values[1].replace('"$SLICES"', slices or "1") if values else ""):
        config.update_from_flattened_dict({key: int(value)})
    count, on_tpu = int(size) // CHIPS[kind].cores * int(slices or 1), bool(CHIPS[kind].shapes)
    devices = gpus(count, of_host=4 if on_tpu else 8, a_process=not on_tpu)
    sizes = [size if size != -1 else count // (config.mesh.data * config.mesh.tensor) for size in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)]
    if on_tpu and config.mesh.tensor == 4:  # a host's 2 x 2 chips are rows of two: two tensor groups, each of two hosts
        pairs = np.array(devices, dtype=object).reshape(-1, 2, 2, 2).swapaxes(1, 2).reshape(sizes)
        mesh = Mesh(pairs, sharding.MESH_AXES)
    else:
        mesh = sharding.make_mesh(*sizes, devices=devices)
    model = ModelConfig(**config.model)
    sharding.check_model(mesh, model.width, model.heads, model.mlp)
    sharding.check_batch(mesh, config.batch_size, config.gradient_accumulation_steps)
    needed = {device.process_index: set() for device in devices}
    for device, (rows,) in sharding.batch_sharding(mesh).devices_indices_map((config.batch_size,)).items():
        needed[device.process_index] |= set(range(config.batch_size)[rows])
    for process, rows in needed.items():
        part = sharding.part_of_batch(mesh, config.batch_size, process).tolist()
        assert part == sorted(rows) and len(part) * sharding.batch_shards(mesh) % config.batch_size == 0


def small(**changes):
    """Arguments and environment of a run of seconds."""
    config = recipe(steps=60, save_every=60, eval_every=60, **changes)
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return flags(config), os.environ | settings | {"RECIPE": "configs/digits.py", "PYTHON": sys.executable}


def start(words, environment, **changed):
    """Start a command as a group of its own, so that nothing of it outlives a failed test."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", *words], cwd=ROOT, env=environment | changed, start_new_session=True, **pipes)


def launch(name, arguments, environment, **changed):
    """Start a recipe."""
    return start([f"experiments/launch/{name}", *arguments], environment, **changed)


def finish(process):
    try:
        return process.communicate(timeout=300)[0]
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def read_until(lines, text):
    read = []
    for line in lines:
        read.append(line)
        if text in " ".join(line.split()):  # steps are aligned
            return
    raise AssertionError("".join(read))


def command(directory, name, text):
    """A stand-in for a program, first on the PATH."""
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


def free_port(ports=range(40000, 61000)) -> int:
    for port in random.sample(ports, 100):
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")


@pytest.mark.slow
def test_one_machine_as_two_processes_saves_at_sigterm_and_goes_on_to_its_end(tmp_path):
    arguments, environment = small(mesh__data=2, mesh__fsdp=2)
    workdir = make_workdir(tmp_path / "run")
    environment |= {"WORKDIR": str(workdir), "PROCESSES": "2", "DEVICES": "2", "PORT": str(free_port())}
    process = launch("one_machine.sh", arguments, environment)
    read_until(process.stdout, "step 3/60")
    process.send_signal(signal.SIGTERM)
    assert "stopped by a signal at step" in (text := finish(process)) and process.returncode == 0, text
    step = checkpoints.load(workdir).step
    assert 3 <= step < 60 and not (workdir / "result.json").exists()
    process = launch("one_machine.sh", arguments, environment)
    assert f"from step {step} to 60" in (text := finish(process)) and process.returncode == 0, text
    assert "4 x cpu (data 2 x fsdp 2 x tensor 1)" in text and (workdir / "result.json").exists()


@pytest.mark.slow
def test_one_machine_as_two_processes_ends_with_the_error_of_its_run(tmp_path):
    arguments, environment = small(batch_size=15)
    environment |= {"WORKDIR": str(make_workdir(tmp_path / "run")), "PROCESSES": "2", "PORT": str(free_port())}
    process = launch("one_machine.sh", arguments, environment)
    assert "error: batch_size 15 is not divisible" in (text := finish(process)) and process.returncode == 1, text


SRUN = """#!{python}
# As SLURM does: two tasks on one node, each told its place; a log for each; all end where one fails. Their numbers are left in a file.
import os, subprocess, sys, time
options = sys.argv[1 : sys.argv.index({python!r})]
output = next(word for word in options if word.startswith("--output=")).removeprefix("--output=")
assert "--kill-on-bad-exit=1" in options and "--gpu-bind=none" in options and "--open-mode=append" in options, options
words = sys.argv[1 + len(options):]
tasks = []
for task in range(2):
    step = dict(SLURM_NTASKS="2", SLURM_PROCID=str(task), SLURM_LOCALID=str(task))
    step |= dict(SLURM_STEP_NODELIST="127.0.0.1", SLURM_STEP_NUM_NODES="1")
    log = open(output.replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", str(task)), "a")
    tasks.append(subprocess.Popen(words, env=os.environ | step, stdout=log, stderr=log))
with open({tasks!r}, "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        [task.kill() for task in tasks]
    time.sleep(0.1)
sys.exit(max(abs(task.returncode) for task in tasks))
"""


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins for srun and scontrol, and what SLURM tells a batch script."""
    commands = tmp_path / "commands"
    commands.mkdir()
    command(commands, "srun", SRUN.format(python=sys.executable, tasks=str(tmp_path / "tasks")))
    command(commands, "scontrol", f'#!/bin/sh\necho "$@" >> {tmp_path / "scontrol"}\n')
    job = str(4096 * 7 + free_port(range(61440, 65536)) - 61440)  # jax makes the coordinator's port from it
    return {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": job, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "1"}


@pytest.mark.slow
def test_slurm_saves_before_the_limit_queues_itself_again_and_goes_on_to_its_end(tmp_path, slurm):
    """From the palette, fitted by two processes, to the result; both processes get the signal that the header asks for, at once."""
    arguments, environment = small()
    workdir, log = tmp_path / "run", tmp_path / f"run/logs/{slurm['SLURM_JOB_ID']}-0.log"
    warning = re.search(r"#SBATCH --signal=(\w+)@\d+", SCRIPTS["slurm.sbatch"])[1]
    process = launch("slurm.sbatch", arguments, environment, WORKDIR=str(workdir), **slurm)
    for _ in range(1200):
        if process.poll() is not None or log.exists() and "step 3/60" in " ".join(log.read_text().split()):
            break
        time.sleep(0.1)
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.Signals[f"SIG{warning}"])
    text = finish(process)
    assert process.returncode == 0 and "queued again" in text, text + log.read_text()
    assert (tmp_path / "scontrol").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    step = checkpoints.load(workdir).step
    assert 3 <= step < 60 and "2 x cpu (data 1 x fsdp 2 x tensor 1)" in log.read_text()
    process = launch("slurm.sbatch", arguments, environment, WORKDIR=str(workdir), **slurm)
    text = finish(process)
    assert process.returncode == 0 and "queued again" not in text and f"from step {step} to 60" in log.read_text(), text + log.read_text()
    assert (workdir / "result.json").exists() and len((tmp_path / "scontrol").read_text().splitlines()) == 1


def test_slurm_does_not_queue_a_failed_run_again(tmp_path, slurm):
    command(tmp_path / "commands", "srun", "#!/bin/sh\nexit 3\n")
    process = launch("slurm.sbatch", *small(), WORKDIR=str(tmp_path / "run"), **slurm)
    finish(process)
    assert process.returncode == 3 and not (tmp_path / "scontrol").exists()


def test_jax_reads_what_slurm_tells_each_process(monkeypatch):
    from jax._src.clusters.slurm_cluster import SlurmCluster

    header = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", SCRIPTS["slurm.sbatch"]))
    tasks = int(header["nodes"]) * int(header["ntasks-per-node"])
    assert header["ntasks-per-node"] == header["gpus-per-node"] and f"h100-{tasks}" in SCRIPTS["slurm.sbatch"]
    told = {"JOB_ID": "4097", "NTASKS": str(tasks), "PROCID": "9", "LOCALID": "1", "STEP_NODELIST": "gpu[03-10]", "STEP_NUM_NODES": "8"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert SlurmCluster.is_env_present() and SlurmCluster.get_coordinator_address(1, None) == f"gpu03:{61440 + 1}"
    assert (SlurmCluster.get_process_count(), SlurmCluster.get_process_id(), SlurmCluster.get_local_process_id()) == (tasks, 9, 1)


def written(tmp_path, name, words):
    """The arguments with which a recipe calls a program."""
    calls = tmp_path / "calls"
    command(tmp_path, name, f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(calls)!r}, 'a'))\n")
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WORKDIR": "/gcs/runs/a", "RECIPE": "configs/digits.py"}
    process = launch(words[0], words[1:], os.environ | places)
    text = finish(process)
    assert process.returncode == 0, text
    return [json.loads(line) for line in calls.read_text().splitlines()]


@pytest.mark.slow
def test_a_pod_of_xpk_asks_to_be_started_again_until_its_run_is_finished(tmp_path):
    """The command that is sent, run as XPK's container runs it: its direct child alone is told of SIGTERM."""
    arguments, environment = small()
    [call] = written(tmp_path, "xpk", ["xpk.sh", "run", "--config.data.source=folder:/gcs/my images"])
    assert call[:2] == ["workload", "create"] and "--num-slices=2" in call
    sent = next(word for word in call if word.startswith("--command=")).removeprefix("--command=")
    words = shlex.split(sent)
    assert "exec" in words and words[-1] == "--config.data.source=folder:/gcs/my images" and "--config.mesh.data=2" in words
    workdir = make_workdir(tmp_path / "run")
    worker = shlex.join([*words[words.index("exec") : words.index("worker") + 1], *arguments])
    wait = "while kill -0 $child 2>/dev/null; do sleep 0.2; done; wait $child"
    container = f"trap 'kill -TERM $!' TERM; (WORKDIR={workdir} {worker}) & child=$!; {wait}"
    for ended in (42, 0):
        process = start(["-c", container], environment)
        if ended:
            read_until(process.stdout, "step 3/60")
            process.send_signal(signal.SIGTERM)
        text = finish(process)
        assert process.returncode == ended, text
        assert (workdir / "result.json").exists() == (ended == 0)


def test_a_pod_of_xpk_that_fails_says_so(tmp_path):
    command(tmp_path, "python", '#!/bin/sh\n[ "$2" = igpt_jax.train ] && exit 7\nexit 0\n')
    process = launch("xpk.sh", ["worker"], os.environ, PYTHON=str(tmp_path / "python"), WORKDIR=str(tmp_path))
    finish(process)
    assert process.returncode == 7


def test_workers_of_a_tpu_pod_run_the_palette_and_the_training_as_one_service(tmp_path):
    """What each worker is sent, run with stand-ins for its system: quoting survives the connection, the service and its shell."""
    value = "--config.data.source=folder:/gcs/my images"
    [call] = written(tmp_path, "gcloud", ["tpu_pod.sh", "run", value])
    assert call[:5] == ["compute", "tpus", "queued-resources", "ssh", "igpt"] and {"--node=all", "--worker=all"} <= set(call)
    home = tmp_path / "home"
    (home / "igpt_jax/.venv/bin").mkdir(parents=True)
    command(tmp_path, "sudo", '#!/bin/sh\nexec "$@"\n')
    command(tmp_path, "mountpoint", "#!/bin/sh\n")
    command(tmp_path, "systemd-run", '#!/bin/bash\nwhile [ "$1" != sh ]; do shift; done\nexec "$@"\n')
    command(home / "igpt_jax/.venv/bin", "python", "#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    sent = next(word for word in call if word.startswith("--command=")).removeprefix("--command=")
    system = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(home)}
    ran = subprocess.run(["bash", "-c", sent], env=system, capture_output=True, text=True)
    places = f"<--config=configs/digits.py><--workdir=/gcs/runs/a><{value}>"
    assert ran.stdout == f"<-m><igpt_jax.quantize>{places}<-m><igpt_jax.train>{places}", ran


@pytest.mark.parametrize("action", re.findall(r"^  ([a-z]+)\)", SCRIPTS["tpu_pod.sh"], re.MULTILINE))
def test_every_action_on_a_tpu_pod_is_explained_and_names_the_pod_or_the_bucket(tmp_path, action):
    head = SCRIPTS["tpu_pod.sh"].split("set -eu")[0]
    assert re.search(rf"\b{action}\b", head)
    if action in ("check", "run"):
        return
    for call in written(tmp_path, "gcloud", ["tpu_pod.sh", action]):
        assert "igpt" in call or any("my-bucket" in word for word in call), call


def test_a_missing_action_shows_the_explanation():
    for name in ("tpu_pod.sh", "xpk.sh"):
        shown = subprocess.run([f"./{name}"], cwd=LAUNCH, capture_output=True, text=True)
        assert shown.returncode == 2 and "in this order" in shown.stdout and "set -eu" not in shown.stdout
