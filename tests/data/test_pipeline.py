"""Batches: the same stream however it is cut, resumed, shared out or decoded."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from igpt_jax.data import pipeline, sampler
from igpt_jax.extras import install
from igpt_jax.palette.palette import Palette
from tests.data.samples import COLOURS, DIGITS, GREYS, assert_same, first, pictures, replace

PARTS = [np.array(part) for part in ([0, 1, 2, 3, 8, 9], [4, 5, 6, 7, 10, 11], [8, 9, 10, 11])]  # of 12 places: neither neighbours, nor equal, nor apart


def joined(shares, parts):
    """The batches of all processes as one process would have them; places that several processes supply hold the same."""
    places = np.concatenate([np.arange(12)[part] for part in parts])
    first, back = np.unique(places, return_index=True)[1], np.unique(places, return_inverse=True)[1]
    whole = []
    for batches in zip(*shares, strict=True):
        together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        whole.append({name: values[first] for name, values in together.items()})
        assert_same([together], [{name: values[back] for name, values in whole[-1].items()}])
    return whole


def test_augmentation_commutes_with_encoding():
    random = np.random.default_rng(0)
    pixels, uniform = random.integers(0, 256, (50, 9, 9, 3), dtype=np.uint8), random.random((50, 3))
    moved = pipeline.shift_and_flip(pixels, uniform)
    assert np.array_equal(COLOURS.encode(moved), pipeline.shift_and_flip(COLOURS.encode(pixels), uniform))
    assert not np.array_equal(moved, pixels)


def test_levels_are_moved_as_pixels_three_codes_at_a_time(tmp_path):
    """A batch of levels, decoded, is the batch of pictures that the augmentation makes of the pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=pixels)
    dataset = pipeline.open_dataset(replace(DIGITS, source=f"npz:{tmp_path}", validation=0.0), "train")
    batch = next(pipeline.train_batches(dataset, Palette.levels(), 6, seed=1))["codes"]
    assert batch.shape == (6, 192)
    rows, uniform = sampler.Shuffled(20, 6, 1)(0)
    assert np.array_equal(Palette.levels().decode(batch).reshape(6, 8, 8, 3), pipeline.shift_and_flip(pixels[rows], uniform))


def test_shift_and_flip_is_reflection_pad_crop_flip():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    padded = np.pad(pixels[0], ((4, 4), (4, 4), (0, 0)), "reflect")
    assert np.array_equal(pipeline.shift_and_flip(pixels, np.array([[4.5 / 9, 4.5 / 9, 0.5]])), pixels)
    assert np.array_equal(pipeline.shift_and_flip(pixels, np.array([[0, 0.999, 0.5]]))[0], padded[:8, 8:])
    assert np.array_equal(pipeline.shift_and_flip(pixels, np.array([[0.999, 0, 0.49]]))[0], padded[8:, :8][:, ::-1])


@pytest.mark.parametrize("augment", ["none", "cifar"])
def test_an_epoch_holds_every_image_once_in_a_new_order(augment):
    digits = pipeline.open_dataset(replace(DIGITS, augment=augment), "validation")
    batches = first(pipeline.train_batches(digits, GREYS, 36, seed=1), 8)  # two epochs of 144
    assert all(batch["codes"].shape == (36, 64) and batch["codes"].dtype == batch["label"].dtype == np.int32 for batch in batches)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert sorted(labels[:144]) == sorted(labels[144:]) == sorted(digits.labels)
    assert not np.array_equal(labels[:144], labels[144:])
    if augment == "none":
        codes = np.concatenate([batch["codes"] for batch in batches])
        stored = digits.codes(np.arange(144), GREYS)
        assert sorted(map(bytes, codes[:144])) == sorted(map(bytes, codes[144:])) == sorted(map(bytes, stored))


@pytest.mark.parametrize("kind", ["digits", "folder", "codes"])
def test_a_batch_numbers_its_images_and_a_part_of_a_set_keeps_their_numbers(kind, folder, coded):
    """By these numbers masks are drawn: in training, in evaluation, and where a limit draws some."""
    config = {"digits": DIGITS, "folder": pictures(folder), "codes": coded}[kind]
    palette = COLOURS if kind == "folder" else GREYS
    train = pipeline.open_dataset(replace(config, augment="none"), "train")
    part = train.draw(20).keep(np.arange(3, 15))
    batches = [*first(pipeline.train_batches(train, palette, 9, seed=3, step=1), 4), *first(pipeline.train_batches(part, palette, 5, seed=3), 3)]
    batches += [{name: values[batch["weight"] > 0] for name, values in batch.items()} for batch in pipeline.evaluation_batches(part, palette, 5)]
    for batch in batches:
        assert batch["index"].dtype == np.int32 and np.array_equal(train.codes(batch["index"], palette), batch["codes"])


@pytest.mark.parametrize("augment", ["none", "cifar", "imagenet"])
@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_resuming_is_as_if_never_stopped(kind, augment, folder):
    config = replace(DIGITS, augment=augment) if kind == "digits" else pictures(folder, augment)
    train = pipeline.open_dataset(config, "train")
    whole = first(pipeline.train_batches(train, COLOURS, 10, seed=7), 9)  # past the folder's epoch of 27
    assert_same(whole[4:], first(pipeline.train_batches(train, COLOURS, 10, seed=7, step=4), 5))
    assert not np.array_equal(whole[0]["codes"], first(pipeline.train_batches(train, COLOURS, 10, seed=8), 1)[0]["codes"])


@pytest.mark.parametrize("augment", ["none", "cifar", "imagenet"])
@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_a_global_step_does_not_depend_on_the_processes(kind, augment, folder):
    config = replace(DIGITS, augment=augment) if kind == "digits" else pictures(folder, augment)
    train = pipeline.open_dataset(config, "train")
    alone = first(pipeline.train_batches(train, COLOURS, 12, seed=0, step=1), 3)
    for parts in (PARTS, np.arange(12).reshape(6, 2)):
        shares = [first(pipeline.train_batches(train, COLOURS, 12, 0, 1, part), 3) for part in parts]
        assert all(batch["codes"].shape[0] == len(part) for part, share in zip(parts, shares, strict=True) for batch in share)
        assert_same(joined(shares, parts), alone)


@pytest.mark.parametrize("kind", ["digits", "folder", "codes"])
@pytest.mark.parametrize("parts", [[slice(None)], PARTS])
def test_evaluation_sees_every_image_once(kind, parts, folder, coded):
    config = {"digits": DIGITS, "folder": pictures(folder), "codes": coded}[kind]
    palette = COLOURS if kind == "folder" else GREYS
    test = pipeline.open_dataset(config, "test")
    shares = [list(pipeline.evaluation_batches(test, palette, 12, part)) for part in parts]
    assert {len(share) for share in shares} == {-(-len(test) // 12)}
    batches = joined(shares, parts)
    real = np.concatenate([batch["weight"] for batch in batches])
    assert real.dtype == np.float32 and real.tolist() == [1] * len(test) + [0] * (len(real) - len(test))
    codes, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("codes", "label"))
    assert np.array_equal(codes[real == 1], test.codes(np.arange(len(test)), palette)) and (codes[real == 0] == 0).all()
    assert np.array_equal(labels[real == 1], test.labels) and (labels[real == 0] == -1).all()
    assert np.concatenate([batch["index"] for batch in batches])[real == 1].tolist() == list(range(len(test)))


def test_evaluation_of_a_part():
    test = pipeline.open_dataset(DIGITS, "test")
    batches = list(pipeline.evaluation_batches(test, GREYS, 4, start=10, stop=15))
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == [*test.labels[10:15], -1, -1, -1]
    assert list(pipeline.evaluation_batches(test, GREYS, 4, start=5, stop=5)) == []
    assert sum(batch["weight"].sum() for batch in pipeline.evaluation_batches(test, GREYS, 50, stop=10_000)) == 359


def test_batch_errors():
    train = pipeline.open_dataset(DIGITS, "validation")
    for arguments, message in (
        ((145, 0), "batch size 145 is more than the 144 images of digits"),
        ((0, 0), "batch size 0 must be at least 1"),
        ((12, 0, -1), "step -1 must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):  # at the call, before the first batch
            pipeline.train_batches(train, GREYS, *arguments)


def test_both_engines_make_the_same_stream(folder, tmp_path):
    decoded = pipeline.open_dataset(pictures(folder), "all_train")
    np.savez(tmp_path / "train.npz", images=decoded.images(0, None), labels=decoded.labels)
    stored = pipeline.open_dataset(replace(pictures(folder), source=f"npz:{tmp_path}"), "all_train")
    assert_same(*(first(pipeline.train_batches(dataset, COLOURS, 8, seed=0), 6) for dataset in (decoded, stored)))


@pytest.mark.slow
@pytest.mark.parametrize("palette", ["colours", "stored", "levels"])
def test_the_number_of_workers_does_not_change_the_stream(folder, palette):
    """In a process of its own: Grain's workers are spawned, and import the main file anew."""
    program = """
import hashlib, itertools, sys
import numpy as np
from igpt_jax.data import pipeline
from igpt_jax.palette.palette import Palette

if __name__ == "__main__":
    colours = Palette(np.random.default_rng(0).uniform(-1, 1, (32, 3)).astype(np.float32))
    palette = Palette.levels(8) if sys.argv[2] == "levels" else colours
    if sys.argv[2] == "stored":
        colours.save(sys.argv[1] + "/palette.npy")
        palette = Palette.load(sys.argv[1] + "/palette.npy")
    for workers in (0, 1, 2):
        config = pipeline.DataConfig("folder:" + sys.argv[1], 10, "imagenet", 0.1, "", workers, 0)
        train = pipeline.open_dataset(config, "train")
        batches = pipeline.train_batches(train, palette, 6, seed=0, step=2)
        digest = hashlib.sha256()
        for batch in itertools.islice(batches, 7):
            digest.update(batch["codes"].tobytes() + batch["label"].tobytes())
        batches.close()
        print(digest.hexdigest())
"""
    script = folder / "workers.py"
    script.write_text(program)
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run([sys.executable, script, folder, palette], env=environment, capture_output=True, text=True, timeout=240)
    for path in (script, *folder.glob("palette*")):
        path.unlink()
    assert run.returncode == 0, run.stderr
    digests = run.stdout.split()
    assert len(digests) == 3 and len(set(digests)) == 1


def test_imagenet_augmentation_varies_and_evaluation_does_not(folder):
    train = pipeline.open_dataset(replace(pictures(folder, "imagenet"), image_size=32), "all_train")
    epochs = first(pipeline.train_batches(train, COLOURS, 30, seed=0), 2)
    stored = set(map(bytes, train.codes(np.arange(30), COLOURS)))
    views = [set(map(bytes, epoch["codes"])) for epoch in epochs]
    assert len(views[0] | views[1]) == 60 and not stored & views[0]


def test_an_image_without_a_label_is_refused_where_its_class_is_needed():
    batch = {"label": np.int32([2, 0, -1]), "index": np.int32([7, 5, 0]), "weight": np.float32([1, 1, 0])}
    assert list(pipeline.labelled([batch], "tfds:x")) == [batch]  # padding needs none
    for some in (batch | {"label": np.int32([2, -1, -1])}, {"label": np.int32([1, -1]), "index": np.int32([7, 5])}):
        with pytest.raises(ValueError, match="^image 5 of tfds:x has no label"):
            list(pipeline.labelled([batch, some], "tfds:x"))


def test_stored_sets_need_neither_grain_nor_tfds(coded):
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("grain", "tensorflow_datasets", "ml_collections", "absl"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
from igpt_jax.data import pipeline
train = pipeline.open_dataset(pipeline.DataConfig(sys.argv[1], 8, "cifar", 0.1, "", 0, 0), "train")
print(next(pipeline.train_batches(train, train.palette, 16, seed=0))["codes"].shape)
try:
    pipeline.open_dataset(pipeline.DataConfig("tfds:mnist", 8, "cifar", 0.1, "", 0, 0), "train")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", program, coded.source], env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines() == ["(16, 64)", f"source tfds:mnist needs TFDS: {install('tfds')}"], run.stderr


def test_prefetch_keeps_order_and_depth_and_closes():
    made, closed = [], threading.Event()

    def numbers():
        try:
            for i in range(100):
                made.append(i)
                yield i
        finally:
            closed.set()

    source = numbers()  # a reference of our own, so that only close() can end it
    ahead = pipeline.prefetch(source, lambda number: 10 * number, depth=3)
    assert [next(ahead), next(ahead)] == [0, 10]
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3, 4]  # two taken, three ahead
    ahead.close()
    assert closed.is_set() and not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert list(pipeline.prefetch(range(5), str)) == list("01234")


def test_prefetch_raises_errors_after_the_batches_before():
    def failing():
        yield 1
        raise OSError("disk gone")

    ahead = pipeline.prefetch(failing(), lambda number: number)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)
    with pytest.raises(ZeroDivisionError):
        next(pipeline.prefetch([0], lambda number: 1 / number))
    with pytest.raises(ValueError, match="depth 0"):
        next(pipeline.prefetch([0], str, depth=0))
