"""The benchmarks of speed: their small forms run and their results are complete; MFU, ratios and the largest batch by hand."""

import argparse
import importlib
import itertools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.bench import data, models, rounds, table, train
from experiments.report import entrance
from tests.models import random_model, tiny
from tests.runs import ROOT

GPU = ROOT / "experiments/bench/gpu.sh"
FIELDS = {"what", "sizes", "dtype", "batch", "small", "threads", "backend", "command", "commit", "hardware", "versions"}
QUICK = [
    ("encode", ["--programs", "ours", "ours-first"], ()),
    ("features", [], ()),
    ("probe", ["--programs", "ours", "scikit-learn"], ()),
]
SLOW = [
    ("train", [], ("torch", "transformers")),
    ("train", ["--programs", "ours", "torch", "--dtype=bfloat16"], ("torch",)),
    ("sample", [], ("torch", "transformers")),
    ("encode", [], ("torch", "transformers")),
    ("data", [], ("torch", "grain")),
    ("scaling", [], ()),
]


def small(name, options, needed, out):
    for library in needed:
        pytest.importorskip(library, reason=f"needs {library}")
    path = out / f"bench_{name}.json"
    importlib.import_module(f"experiments.bench.{name}").main(["--small", f"--out={path}", *options])
    return json.loads(path.read_text())


def check(name, found, shown):
    assert found.keys() >= FIELDS and found["small"] and {"python", "jax", "jaxlib"} <= found["versions"].keys()
    assert found["command"].startswith(f"python -m experiments.bench.{name} --small")
    for measured in found.get("sources", {"": found}).values() if "axes" not in found else []:
        for program, values in measured["programs"].items():
            assert values["seconds"] > 0 and len(values["ratios"]) == len(measured["rounds"][program]), program
            assert f"\n{program} " in shown
        assert measured["programs"]["ours"]["ours_is_faster_by"] == 1
        if name == "encode":
            assert all(values["agreeing"] > 0.99 for values in measured["programs"].values())  # float32 there, float64 here
        assert "ours is faster by" in shown


@pytest.mark.parametrize(("name", "options", "needed"), QUICK)
def test_the_small_form_runs(name, options, needed, tmp_path, capsys):
    found = small(name, options, needed, tmp_path)
    check(name, found, capsys.readouterr().out)
    if name == "probe":
        assert found["equal"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "needed"), SLOW)
def test_the_small_form_of_slow_ones_runs(name, options, needed, tmp_path, capsys):
    found = small(name, options, needed, tmp_path)
    check(name, found, capsys.readouterr().out)
    if name == "train":
        assert {"mfu", "tokens_per_second", "loss"} <= found["programs"]["torch"].keys() and "measured" in found["peak_source"]
        assert all(abs(values["loss"] - np.log(16)) < 0.5 for values in found["programs"].values())  # fresh models of 16 colours
    if name == "scaling":
        for axis in found["axes"].values():
            assert np.isfinite([axis["slope"], axis["expected_slope"]]).all()
            assert axis["points"][-1]["expected_seconds"] == pytest.approx(axis["points"][-1]["seconds"])
        assert (tmp_path / "bench_scaling.png").stat().st_size > 1000
    if name == "data":
        assert found["sources"].keys() == {"jpeg", "codes"} and found["step_images_per_second"] > 0


@pytest.mark.slow
def test_all_pipelines_make_the_same_batches(tmp_path):
    """The batches that DataLoader's workers would make of what it sends them, and ours."""
    for library in ("grain", "torch", "sklearn"):
        pytest.importorskip(library)
    sizes = argparse.Namespace(images=10, colours=16, image_size=16)
    palette = data.make_sources(tmp_path, sizes)
    for source, augment in data.AUGMENT.items():
        kind = {"jpeg": "folder", "codes": "codes"}[source]
        config = data.pipeline.DataConfig(f"{kind}:{tmp_path / source}", 16, augment, 0.0, "", 0, 0)
        dataset = data.pipeline.open_dataset(config, "train")
        ours = data.pipeline.train_batches(dataset, palette, 4, seed=0)
        for batch, picked in zip(itertools.islice(ours, 3), data.picks(dataset, 4), strict=False):
            theirs = data.Views(dataset, palette).__getitems__(picked)
            assert all(np.array_equal(theirs[name], batch[name]) for name in ("codes", "label"))
            if source == "jpeg":
                plain = data.PillowViews(dataset, palette).__getitems__(picked)
                assert np.mean(plain["codes"] == batch["codes"]) > 0.9 and np.array_equal(plain["label"], batch["label"])
        ours.close()


def test_k_means_in_small_and_its_folder(tmp_path, capsys):
    found = small("palette", ["--programs", "ours", "ours-early"], (), tmp_path)
    assert found["median"].keys() == {"ours", "ours-early"} and 0 < found["median"]["ours"]["mse"] <= found["median"]["ours-early"]["mse"] and found["small"]
    with pytest.raises(SystemExit, match="error: give the folder of train.npz by --images, or --small"):
        importlib.import_module("experiments.bench.palette").main([f"--out={tmp_path}/x.json", "--programs", "ours"])


def stored(**values):
    """A result of one round in which ours took 1 s and each peer 2, as the benchmarks write it."""
    turns = {name: [{"seconds": seconds, "mse": 0.1}] for name, seconds in (("ours", 1.0), ("hugging-face", 2.0), ("torch", 2.0), ("faiss", 2.0))}
    programs = rounds.summary(turns)
    return json.dumps({
        "command": "python -m experiments.bench.probe --small", "commit": "c", "hardware": "1 x NVIDIA H200", "small": False, "backend": "cpu", "batch": 4,
        "rounds": turns, "programs": programs, "median": {name: turn[0] for name, turn in turns.items()}, "sources": {"jpeg": {"rounds": turns}},
    } | values)  # fmt: skip


READERS = {
    "train": table.on_a_cpu, "data": lambda results: table._data(results, set()), "palette": table._palette,
    "gpu/bench_sample_s_hf": lambda results: table._gpu(results / "gpu"), "bench_sample": entrance.speed_block,
}  # fmt: skip


@pytest.mark.parametrize(("values", "said"), [
    ({"small": True}, r"is of a rehearsal .*: run `python -m experiments.bench.probe`$"),
    ({"backend": "tpu"}, "was measured on 1 x NVIDIA H200, and its table is of a [cg]pu"),
])  # fmt: skip
@pytest.mark.parametrize("name", READERS)
def test_a_table_takes_no_rehearsal_and_no_other_backend(name, values, said, tmp_path):
    (tmp_path / "gpu").mkdir()
    path = tmp_path / (f"{name}.json" if "bench" in name else f"bench_{name}.json")
    path.write_text(stored(**values))
    with pytest.raises(ValueError, match=said):
        READERS[name](tmp_path)


def test_a_peer_that_failed_has_its_reason_in_readmes_table(tmp_path):
    (tmp_path / "bench_sample.json").write_text(stored(programs={"ours": {}, "hugging-face": {"failed": "out of memory"}}))
    assert "beside Hugging Face's generate | out of memory |  | 1 x NVIDIA H200 |" in entrance.speed_block(tmp_path)


@pytest.mark.parametrize(("backend", "options", "folder"), [
    ("cpu", [], "experiments/results"), ("gpu", [], "experiments/results/gpu"), ("tpu", [], "experiments/results/tpu"), ("gpu", ["--small"], "runs/rehearsal"),
])  # fmt: skip
def test_results_of_another_backend_and_of_a_rehearsal_replace_none_of_a_cpu(backend, options, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "backend", lambda: backend)
    places = []
    rounds.start("probe", lambda arguments: places.append(str(arguments.out)) or {}, train.Parser(), options, {"ours": ()}, {})
    assert places == [f"{folder}/bench_probe.json"]


def test_pictures_have_a_row_for_each_engine_and_each_peer(tmp_path):
    turns = {"ours": 2.0, "ours-processes": 1.0, "torch": 1.5, "torch-pillow": 3.0}
    measured = {"rounds": {name: [{"seconds": seconds}] * 2 for name, seconds in turns.items()}}
    (tmp_path / "bench_data.json").write_text(stored(sources={"jpeg": measured}))
    rows = [line for line in table._data(tmp_path, set()) if "batches" in line]
    assert [("processes" in row, "plain" in row, float(row.split("| ")[-1].split()[0])) for row in rows] == [
        (False, False, 0.75), (False, True, 1.5), (True, False, 1.5), (True, True, 3.0),
    ]  # fmt: skip
    measured["rounds"]["ours-processes"] = [{"failed": "no memory"}]
    (tmp_path / "bench_data.json").write_text(stored(sources={"jpeg": measured}))
    assert "by processes | failed: no memory | | | |" in table._data(tmp_path, set())[-1]


def run_on_a_gpu(tmp_path, body, **environment):
    """Run gpu.sh with a Python that runs `body` for each program; JAX finds a GPU unless the body says otherwise."""
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\n{body}\n')
    stub.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(stub), "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")} | environment
    return subprocess.run(["bash", GPU], env=environment, capture_output=True, text=True, timeout=60)


def test_one_program_of_the_gpus_script_cannot_cost_the_others(tmp_path):
    """The first takes longer than its limit, the second is killed, the others fail at once; the reasons stand at the end."""
    body = '[ "$1" = -c ] && exit\ncase "$*" in *--model=l*--steps=4*) sleep 30 ;; *torch-compiled*) kill -KILL $$ ;; *) exit 3 ;; esac'
    done = run_on_a_gpu(tmp_path, body, STAGE="bench", LIMIT="4")
    assert done.returncode == 1 and "not done: train_l (took longer than 4 s) train_s_torch (exit code 137) kernels_s (exit code 3)" in done.stdout
    assert "palette (exit code 3)" in done.stdout
    slow = run_on_a_gpu(tmp_path, '[ "$1" = -c ] && exit\ncase "$*" in *igpt_jax.train*) sleep 6 ;; esac', STAGE="science", LIMIT="4")
    assert slow.returncode == 0, slow.stdout  # the training of science has all the time


@pytest.mark.parametrize("given", [{"MINUTES": "0.5"}, {"LIMIT": "0"}, {"LIMIT": "9s"}])
def test_the_gpus_script_refuses_times_that_are_no_whole_numbers(given, tmp_path):
    done = run_on_a_gpu(tmp_path, "exit", **given)
    assert done.returncode == 1 and done.stdout.startswith("error: MINUTES=") and "must be whole numbers, LIMIT above 0" in done.stdout and not done.stderr
    assert run_on_a_gpu(tmp_path, "exit", MINUTES="08", STAGE="smoke").returncode == 0  # not octal


def test_the_gpus_script_replaces_nothing_where_there_is_no_gpu(tmp_path):
    body = f'echo "$@" >> {tmp_path}/asked; [ "$1" = -c ] && exit 1'
    done = run_on_a_gpu(tmp_path, body, STAGE="smoke")
    assert done.returncode == 1 and done.stdout.startswith("error: jax finds no GPU here") and len((tmp_path / "asked").read_text().splitlines()) == 1
    run_on_a_gpu(tmp_path, body, STAGE="smoke", SMALL="1", OUT="")
    assert "--small --out=runs/rehearsal/bench_smoke_s.json" in (tmp_path / "asked").read_text()
    run_on_a_gpu(tmp_path, f'echo "$@" >> {tmp_path}/there', STAGE="smoke", OUT="")
    assert "--out=experiments/results/gpu/bench_smoke_s.json" in (tmp_path / "there").read_text()


def test_mfu_by_hand():
    config = tiny(layers=2, width=4, heads=1, vocabulary=3, positions=5)
    weights = 2 * (4 * 4 * 4 + 2 * 4 * 16) + 3 * 4  # q, k, v, output; the mlp's two; the head
    attention = 2 * (2 * 2 * 4 * 5 * 5) * 3 / 2  # each layer: two products of 5 x 5 x 4, forward and twice backward; the half is causal
    flops = 6 * weights * 5 + attention
    found = train.rates(config, batch=7, seconds=0.5, peak=1e6)
    assert found["mfu"] == pytest.approx(7 * flops / 0.5 / 1e6)
    assert found["tokens_per_second"] == 7 * 5 / 0.5 and found["milliseconds"] == 500


def test_the_peak_is_the_data_sheets_or_measured(monkeypatch):
    speed, source = train.peak_flops("float32", with_torch=False, side=64)
    assert speed > 0 and "measured" in source and "jax" in source
    monkeypatch.setattr(train.metrics, "peak_flops", {jax.devices()[0].device_kind: 5e12}.get)
    assert train.peak_flops("bfloat16", with_torch=False) == (5e12, f"data sheet of {jax.devices()[0].device_kind}, dense bfloat16")


def test_the_largest_batch_fills_the_memory_and_no_more():
    def bytes_of(batch):
        return 100 + 10 * batch

    assert train.largest_batch(bytes_of, 200 / train.MEMORY) == 10
    assert train.largest_batch(bytes_of, 395 / train.MEMORY) == 24  # 29 fit, a multiple of 8
    with pytest.raises(ValueError, match="a batch of 1 takes"):
        train.largest_batch(bytes_of, 100)


def test_the_bytes_of_a_step_grow_with_its_batch():
    one, nine = (train.step_bytes(tiny(layers=1), batch) for batch in (1, 9))
    assert nine - one > 8 * 4 * 64 * (32 + 128)  # float32 [S, D] and [S, F] of each image, at the least


def test_a_batch_that_does_not_fit_shrinks_until_it_does(monkeypatch, capsys):
    def ours(config, batch, steps):
        if batch > 40:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
        return lambda: {"seconds": 1.0}

    monkeypatch.setattr(train, "ours", ours)
    assert train._fitted(None, 48, 1)[1] == 37 and "out of memory: batch 42" in capsys.readouterr().out


def test_programs_take_turns_and_each_round_has_its_ratio():
    turns, speeds = [], {"ours": iter([1.0, 2.0, 4.0]), "theirs": iter([2.0, 6.0, 4.0])}

    def program(name):
        def turn():
            turns.append(name)
            return {"seconds": next(speeds[name])}

        return turn

    found = rounds.summary(rounds.alternate({name: program(name) for name in speeds}, 3), work=8, unit="images")
    assert turns == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert found["theirs"]["ratios"] == [2, 3, 1] and found["theirs"]["ours_is_faster_by"] == 2
    assert found["ours"]["images_per_second"] == 4 and found["theirs"]["seconds"] == 4


def test_a_peer_that_fails_is_a_row_and_ours_is_an_error(capsys):
    def fails():
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    found = rounds.summary(rounds.alternate({"ours": lambda: {"seconds": 1.0}, "theirs": fails}, 2))
    assert found["theirs"] == {"failed": "out of memory"} and len(found["ours"]["ratios"]) == 2
    rounds.print_table(found, {"s": ("seconds", "{:.1f}")})
    assert "failed: out of memory" in capsys.readouterr().out
    with pytest.raises(RuntimeError):
        rounds.alternate({"ours": fails}, 1)


@pytest.mark.parametrize("name", ["train", "sample", "encode", "data"])
def test_a_missing_peer_is_one_clear_line(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(rounds, "installed", lambda library: library != "torch")
    with pytest.raises(SystemExit, match=r"error: [\w-]+ needs torch, which is not installed: pip install .*--programs$"):
        importlib.import_module(f"experiments.bench.{name}").main(["--small", f"--out={tmp_path}/x.json"])


def test_options_go_before_small_and_sizes(tmp_path):
    found = {}
    parser = train.Parser()
    models.add_arguments(parser)

    def bench(arguments):
        found.update(vars(arguments))
        return {}

    options = ["--small", "--model=m", "--width=96", f"--out={tmp_path}/x.json"]
    rounds.start("train", bench, parser, options, {"ours": ()}, models.SMALL, {}, models.SIZES)
    assert (found["layers"], found["width"], found["colours"]) == (36, 96, 512)


@pytest.mark.slow
def test_the_plain_torch_model_is_ours():
    torch = pytest.importorskip("torch", reason="needs torch")
    config = tiny()
    model, theirs = random_model(config), models.plain_torch(config, torch.device("cpu"))
    arrays = {name: np.asarray(value) for name, value in models_arrays(model).items()}
    theirs.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in arrays.items()})
    codes_BS = models.random_codes(config, 2)
    inputs_BS = np.concatenate([np.full((2, 1), config.vocabulary, np.int32), codes_BS[:, :-1]], axis=1)
    with torch.no_grad():
        logits_BSV = theirs(torch.from_numpy(inputs_BS).long()).numpy()
    np.testing.assert_allclose(logits_BSV, model(codes_BS).logits, rtol=1e-3, atol=1e-3)  # float32, sums in another order


def models_arrays(model):
    """Our parameters under the names of the plain torch model, whose matrices are [out, in]."""
    blocks, D = model.blocks, model.config.width
    found = {
        "tokens.weight": np.concatenate([model.token_embedding[...], model.start_vector[...][None]]),
        "positions.weight": model.position_embedding[...],
        "final_norm.weight": model.final_norm[...],
        "output.weight": model.output_embedding[...],
    }
    for layer in range(model.config.layers):
        for name in ("attention_norm", "mlp_norm"):
            found[f"blocks.{layer}.{name}.weight"] = getattr(blocks, name)[...][layer]
        for name in ("query_key_value", "attention_output", "mlp_in", "mlp_out"):
            matrix = np.asarray(getattr(blocks, name)[...][layer])
            found[f"blocks.{layer}.{name}.weight"] = matrix.reshape(len(matrix), -1).T
    assert found["blocks.0.query_key_value.weight"].shape == (3 * D, D)
    return found


def test_the_gpu_script_asks_for_what_exists_and_names_what_failed(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit\necho "$@" >> {tmp_path}/asked\ncase "$*" in *bench.features*) exit 3;; esac\n')
    stub.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(stub), "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")}
    run = subprocess.run(["bash", GPU], env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and run.stdout.strip().endswith("error: not done: features (exit code 3)"), run.stdout + run.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    stages = [subprocess.run(["bash", GPU], env=environment | {"STAGE": stage}, capture_output=True, text=True) for stage in ("smoke", "bench", "science")]
    assert [stage.returncode for stage in stages] == [0, 1, 0] and (tmp_path / "asked").read_text().splitlines() == 2 * asked
    programs = {line: re.match(r"-m (?:experiments\.bench|igpt_jax)\.(\w+) |-m pytest .* (tests/\w+\.py)$|(\S*/cifar10\.py) ", line) for line in asked}
    assert all(programs.values()), programs
    sources = "".join((ROOT / f"experiments/bench/{name}.py").read_text() for name in ("models", "rounds"))
    for line, match in programs.items():
        assert match[2] is None or (ROOT / match[2]).exists()
        if "experiments.bench" in line:
            source = sources + (ROOT / f"experiments/bench/{match[1]}.py").read_text()
        elif match[1]:
            source = (ROOT / f"igpt_jax/{match[1]}.py").read_text() + (ROOT / "igpt_jax/cli.py").read_text() + '"--config" "--workdir"'
        for option in re.findall(r"--([\w-]+)[= ]", line) if match[1] else ():
            assert f'"--{option}"' in source or option in models.LAPTOP, line
    late = subprocess.run(["bash", GPU], env=environment | {"MINUTES": "0"}, capture_output=True, text=True)
    assert late.returncode == 1 and "train_l (no time left)" in late.stdout
    assert (tmp_path / "asked").read_text().splitlines() == 2 * asked
    assert subprocess.run(["bash", GPU], env=environment | {"STAGE": "x"}, capture_output=True, text=True).returncode == 1


@pytest.mark.slow
def test_benchmarks_need_only_the_core_and_torch():
    """The GPU's programs start where grain, TFDS, ml_collections, scikit-learn and matplotlib are not installed."""
    program = """
import sys
for name in ("grain", "tensorflow_datasets", "ml_collections", "sklearn", "matplotlib", "tensorboardX"): sys.modules[name] = None
from experiments.bench import features, sample, scaling, train
features.main(["--small", "--out=" + sys.argv[1]])
"""
    subprocess.run([sys.executable, "-c", program, "/dev/null"], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.slow
def test_each_choice_about_speed_is_measured_and_written(tmp_path):
    from experiments.bench import choices

    result = choices.main(["--small", f"--out={tmp_path / 'bench_choices.json'}"])
    assert set(result["programs"]) == {"ours", *choices.CHOICES} and not [program for program in result["programs"].values() if "failed" in program]
    text = (tmp_path / "speed.md").read_text()
    assert all(f"| {name} | {predicted} |" in text for name, (_, predicted, _) in choices.CHOICES.items())
