"""Reading, checking and resizing pictures, and the sources made of files and arrays."""

import concurrent.futures
import io
import itertools
import logging
import os
import struct
import threading
import time
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import images, pipeline

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def write(path, array=COLOURS, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def bomb(path, side=20_000):
    """A PNG that says it has side x side pixels and holds none."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def test_read_lossless_from_path_and_file(tmp_path):
    path = write(tmp_path / "a.png")
    assert np.array_equal(images.read_image(path), COLOURS)
    assert np.array_equal(images.read_image(io.BytesIO(path.read_bytes())), COLOURS)


def test_read_cmyk(tmp_path):
    Image.fromarray(np.full((8, 8, 4), (0, 255, 255, 0), np.uint8), "CMYK").save(tmp_path / "red.jpg", quality=95)
    red = images.read_image(tmp_path / "red.jpg")
    assert red.shape == (8, 8, 3) and red[..., 0].min() > 240 and red[..., 1:].max() < 15


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_read_16_bit_scales_instead_of_clipping(tmp_path, suffix):
    wide = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / f"wide.{suffix}")
    assert images.read_image(tmp_path / f"wide.{suffix}")[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def test_read_alpha_over_white(tmp_path):
    write(tmp_path / "alpha.png", np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8))
    assert images.read_image(tmp_path / "alpha.png").tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    write(tmp_path / "grey.png", np.array([[[7, 255], [7, 0]]], np.uint8))
    assert images.read_image(tmp_path / "grey.png").tolist() == [[[7] * 3, [255] * 3]]


def test_read_palette_mode_with_and_without_transparency(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "clear.png", transparency=1)
    assert images.read_image(tmp_path / "opaque.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert images.read_image(tmp_path / "clear.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_read_honours_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    write(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(images.read_image(tmp_path / "turned.png"), np.rot90(COLOURS, -1))


def test_one_pixel_and_grey_and_bilevel(tmp_path):
    for mode, value in (("RGB", (1, 2, 3)), ("L", 9), ("1", 1)):
        Image.new(mode, (1, 1), value).save(tmp_path / f"{mode}.png")
        assert images.read_image(tmp_path / f"{mode}.png").shape == (1, 1, 3)
    one = images.read_image(tmp_path / "RGB.png")
    for view in (images.center_square(one, 8), images.imagenet_center(one, 8), images.imagenet_crop(one, (0.9, 0.9, 0.9), 8)):
        assert view.shape == (8, 8, 3) and (view == (1, 2, 3)).all()


def bad_files(folder):
    folder.mkdir(exist_ok=True)
    good = write(folder.parent / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(good[:-300])  # its header is whole
    (folder / "text.jpg").write_text("not a picture\n")
    (folder / "empty.png").write_bytes(b"")
    bomb(folder / "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bomb(folder / "small_bomb.png", side=10_000)  # over the limit at which Pillow warns, below the one at which it raises
    os.symlink(folder / "nowhere.png", folder / "dangling.png")
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_are_one_line_with_name_and_reason(tmp_path):
    names = bad_files(tmp_path / "bad")
    assert len(names) == 6
    for name in names:
        with pytest.raises(ValueError) as caught:
            images.read_image(tmp_path / "bad" / name)
        message = str(caught.value)
        assert name in message and "\n" not in message and not message.rstrip().endswith(":"), message
    with pytest.raises(ValueError, match="100,000,000 pixels are over"):
        images.read_image(tmp_path / "bad" / "small_bomb.png")


def test_resize_agrees_with_the_processor_oracle(oracles):
    expected = np.load(oracles / "processor" / "expected.npz")
    for i in range(6):
        pixels = expected["v5pil/pixels_32x32"][i].transpose(1, 2, 0)  # in [-1, 1]
        assert np.array_equal(images.resize(expected[f"image_{i}"], 32), np.rint((pixels + 1) * 127.5).astype(np.uint8)), i


def test_resize_leaves_the_right_size_untouched_and_averages_when_shrinking():
    assert np.array_equal(images.resize(COLOURS[:20, :20], 20), COLOURS[:20, :20])
    checks = np.indices((64, 64)).sum(0)[..., None] % 2 * np.full(3, 255)
    small = images.resize(checks.astype(np.uint8), 8)
    assert np.abs(small.astype(int) - 128).max() < 20  # without antialiasing it would be black, white or aliased


def test_center_crop_square():
    assert np.array_equal(images.center_crop_square(COLOURS), COLOURS[:, 5:25])
    assert np.array_equal(images.center_crop_square(COLOURS.transpose(1, 0, 2)), COLOURS.transpose(1, 0, 2)[5:25])


def test_imagenet_crop_is_resizing_the_whole_and_cropping():
    image = np.random.default_rng(1).integers(0, 256, (300, 600, 3), dtype=np.uint8)  # the longer side stays whole at every length
    for uniform in ((0.0, 0.0, 0.0), (0.999, 0.999, 0.999), (0.35, 0.2, 0.7)):
        shorter = 256 + int(uniform[0] * 129)
        whole = np.asarray(Image.fromarray(image).resize((2 * shorter, shorter), Image.Resampling.BILINEAR)).astype(int)
        top, left = int(uniform[1] * (shorter - 224 + 1)), int(uniform[2] * (2 * shorter - 224 + 1))
        difference = np.abs(images.imagenet_crop(image, uniform, 224) - whole[top : top + 224, left : left + 224])
        assert difference.max() <= 1, uniform  # the box is float32 in Pillow
        assert images.imagenet_crop(image, uniform, 32).shape == (32, 32, 3)


def test_imagenet_crop_reaches_both_ends():
    ramp = np.broadcast_to(np.linspace(0, 255, 600)[None, :, None], (300, 600, 3)).astype(np.uint8)
    assert images.imagenet_crop(ramp, (0, 0, 0), 224).min() <= 1
    assert images.imagenet_crop(ramp, (0, 0, 0.9999), 224).max() >= 253


def test_digits_are_grey_stratified_and_always_the_same():
    train, test = images.open_digits("train"), images.open_digits("test")
    assert len(train) + len(test) == 1797 and len(test) == 359
    assert np.bincount(test.labels).min() >= 35 and train.images.max() == 255 and train.read(0)[0].shape == (8, 8, 3)
    assert (np.ptp(train.read(0)[0], axis=-1) == 0).all()
    assert (int(test.labels[:50].sum()), int(test.images.astype(np.int64).sum())) == (204, 1804817)





def test_npz_grey_colour_and_errors(tmp_path):
    grey = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    np.savez(tmp_path / "train.npz", images=grey)
    source = images.open_npz(tmp_path, "train")
    assert source.labels.tolist() == [-1] * 3 and source.class_names == ()
    assert np.array_equal(source.read_block(0, 3), np.repeat(grey[..., None], 3, -1)) and np.array_equal(source.read(1)[0][..., 2], grey[1])
    with pytest.raises(FileNotFoundError, match="test.npz does not exist"):
        images.open_npz(tmp_path, "test")
    colour = np.zeros((3, 4, 4, 3), np.uint8)
    for arrays, message in (
        ({"images": colour.astype(np.float32) + 7}, "`images` is float32 from 7.0 to 7.0: give uint8 from 0 to 255, or floats from 0 to 1"),
        ({"pictures": colour}, r"test.npz has no `images`, uint8 .*: its arrays are pictures"),
        ({"images": colour, "labels": np.arange(2)}, "the labels of the 3 images"),
        ({"images": colour, "labels": np.arange(3), "class_names": np.array(["a", "b"])}, "label 2 has no name"),
        ({"images": np.array([{}, {}, {}], object)}, "plain arrays"),
    ):
        np.savez(tmp_path / "test.npz", **arrays)
        with pytest.raises(ValueError, match=message) as caught:
            images.open_npz(tmp_path, "test")
        assert "\n" not in str(caught.value)
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="test.npz is not an npz"):
        images.open_npz(tmp_path, "test")


def test_folder_with_train_and_test(tmp_path):
    for part, name in (("train", "cat/1.png"), ("train", "cat/deep/er/2.png"), ("train", "dog/1.png"), ("test", "dog/9.png")):
        write(tmp_path / part / name)
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("ignored")
    train, test = images.open_folder(tmp_path, "train", 0), images.open_folder(tmp_path, "test", 0)
    assert train.class_names == ("cat", "dog") and train.labels.tolist() == [0, 0, 1]
    assert test.class_names == ("cat", "dog") and test.labels.tolist() == [1]
    assert images.open_folder(tmp_path / "train" / "cat", "train", 0).class_names == ()  # one sub-folder is no class


def test_folder_is_split_by_the_seed(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i:02d}.png", np.full((2, 2, 3), i, np.uint8))
    values = {}
    for split_by, part in itertools.product(("name", "position"), ("train", "test")):
        source = images.open_folder(tmp_path, part, 5, split_by)
        assert source.labels.tolist() == [-1] * len(source) and source.class_names == ()
        values[split_by, part] = [int(source.read(i)[0][0, 0, 0]) for i in range(len(source))]
        assert values[split_by, part] == sorted(values[split_by, part])
    for split_by in ("name", "position"):
        assert sorted(values[split_by, "train"] + values[split_by, "test"]) == list(range(40)) and 0 < len(values[split_by, "test"]) < 10
        other = images.open_folder(tmp_path, "test", 6, split_by)
        assert [int(other.read(i)[0][0, 0, 0]) for i in range(len(other))] != values[split_by, "test"]
    # as versions before drew them: a stored run is tested on the pictures that it did not see
    assert values["position", "test"] == sorted(np.random.RandomState([5, 1]).permutation(40)[:4].tolist())


def test_a_tenth_of_the_names_is_drawn_and_each_by_itself():
    names = [f"{label}/{i}.png" for label in "ab" for i in range(5000)]
    folder = images.Folder("x", names, names, np.zeros(len(names)), (), None)
    draws = folder.draws(3, "test")
    assert abs((draws < 0.1).mean() - 0.1) < 0.01 and abs((folder.draws(3, "validation")[draws < 0.1] < 0.1).mean() - 0.1) < 0.03
    assert np.array_equal(folder.keep(np.arange(7, 9)).draws(3, "test"), draws[7:9])
    assert images.Folder("y", names[:1], names[:1], np.zeros(1), (), None).draws(3, "test") == draws[0]


def test_a_picture_stays_in_its_split_when_others_come_and_go(tmp_path):
    def parts():
        return {part: set(images.open_folder(tmp_path, part, 0).names) for part in ("train", "test")}

    for i in range(60):
        write(tmp_path / "ab"[i % 2] / f"caf\u00e9 {i}.png")
    before = parts()
    for i in range(60, 90):
        write(tmp_path / "abc"[i % 3] / f"{i}.png")
    for name in sorted(before["train"])[:5]:
        (tmp_path / name).unlink()
    for name in sorted(before["test"])[:1] + sorted(before["train"])[7:20]:  # copied through another system
        (tmp_path / name).rename(tmp_path / unicodedata.normalize("NFD", name))
    after = parts()
    assert len(before["test"]) > 2 and not before["train"] & after["test"] and not before["test"] & after["train"] and before["test"] <= after["test"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_folder_leaves_out_bad_files_and_says_so_once(tmp_path, caplog):
    names = bad_files(tmp_path / "set")
    for i in range(20):
        write(tmp_path / "set" / f"{i}.png")
    with caplog.at_level(logging.WARNING):
        train, test = images.open_folder(tmp_path / "set", "train", 0), images.open_folder(tmp_path / "set", "test", 0)
    assert len(train) + len(test) == 20
    (record,) = caplog.records
    assert f"{len(names)} of 26 files are left out" in record.getMessage() and "\n" not in record.getMessage()


def test_folder_errors(tmp_path):
    (tmp_path / "list.txt").write_text("")
    for name, said in (("nowhere", "folder .*nowhere does not exist"), ("list.txt", "folder .*list.txt is a file: name the folder it lies in")):
        for split in ("train", "validation", "test", "all_train"):
            with pytest.raises(FileNotFoundError, match=said):
                pipeline.open_dataset(pipeline.DataConfig(f"folder:{tmp_path / name}", 8, "none", 0.1, "", 0, 0), split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        images.open_folder(tmp_path / "empty", "train", 0)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("a")
    with pytest.raises(ValueError, match="none of its 1 files"):
        images.open_folder(tmp_path / "texts", "train", 0)
    write(tmp_path / "half" / "train" / "a.png")
    assert len(images.open_folder(tmp_path / "half", "train")) == 1  # a test folder is asked for where it is needed
    with pytest.raises(ValueError, match="half has no test pictures, only train/: give another split, or lay them into .*half/test"):
        images.open_folder(tmp_path / "half", "test")


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("validation", ["val", "Valid", "VALIDATION", "dev"])
@pytest.mark.parametrize("test", ["test", "Testing", None])
def test_usual_names_of_splits_are_known(tmp_path, train, validation, test):
    for root, value in ((train, 1), (validation, 2), (test, 3)):
        for label in ("cat", "dog") if root else ():
            write(tmp_path / root / label / "1.png", np.full((2, 2, 3), value, np.uint8))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.json").write_text("{}")
    for split, expected in (("train", [1, 1]), ("validation", [2, 2]), ("test", [3, 3]), ("all_train", [1, 1, 2, 2])):
        if split == "test" and not test:
            continue
        source = images.open_folder(tmp_path, split)
        assert [int(source.read(i)[0][0, 0, 0]) for i in range(len(source))] == expected and source.class_names == ("cat", "dog")
        assert source.labels.tolist() == [0, 1] * (len(expected) // 2)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("train/a train2/b", "train and beside it train2: are these splits, or classes"),
        ("train/a cat/1", "train and beside it cat: are these splits, or classes"),
        ("train_old/a cat/1 dog/1", "holds train_old: are these splits, or classes"),
        ("test-A/a cat/1", "holds test-A: "),
        ("trainImages/a valImages/b", "holds trainImages, valImages: "),
        ("seg_train/x/a seg_test/x/a other/x/b", "holds seg_test, seg_train: "),
        ("VAL2017/a x/b", "holds VAL2017: "),
        ("train/a Train/b", "Train/ and train/, both train: leave one"),
        ("train/a val/a validation/a", "val/ and validation/, both validation"),
        ("val/a test/a", "holds val, test and no train/|holds test, val and no train/"),
        ("test/a", "holds test and no train/"),
        ("data/train/x/a data/test/x/a", "data holds test, train, splits below a folder of classes: name it itself"),
        ("cat/train/a cat/val/a dog/train/a dog/val/a", "cat holds train, val, splits below"),
        ("train/train/cat/a train/train/dog/a", "train holds train/ alone: move what is in it one up"),
        ("train/cat/a train/dog/a test/cat/a test/bird/a", "test holds bird, where training has the classes cat, dog"),
        ("train/cat/a train/dog/a dev/wolf/a", "dev holds wolf, where training has the classes cat, dog"),
        ("train/a test/cat/a test/dog/a", "test holds cat, dog, where training has no classes"),
    ],
)
def test_a_folder_that_may_mean_two_things_is_refused_with_the_layouts_known(tmp_path, pictures, message):
    for name in pictures.split():
        write(tmp_path / f"{name}.png")
    for split in ("train", "all_train"):
        with pytest.raises(ValueError, match=message) as caught:
            images.open_folder(tmp_path, split)
        assert "\n" not in str(caught.value) and ("known are DIR/CLASS" in str(caught.value) or "where training has" in str(caught.value))


def test_a_split_that_is_a_link_to_another_is_refused(tmp_path):
    write(tmp_path / "train" / "a.png")
    os.symlink(tmp_path / "train", tmp_path / "test")
    with pytest.raises(ValueError, match="test/ and train/ are one folder"):
        images.open_folder(tmp_path, "train")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_class_is_a_folder_with_a_readable_picture(tmp_path, capsys):
    for left in ("__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "found.000", "Thumbs.db"):
        write(tmp_path / left / "cat.png")
        write(tmp_path / "cat" / "deep" / left / "cat.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("no picture")
    bad_files(tmp_path / "broken")  # and a whole one beside the folders
    for label in ("cat", "dog"):
        for i in range(10):
            write(tmp_path / label / "deep" / f"{i}.png")
    write(tmp_path / "beside.png")
    parts = [images.open_folder(tmp_path, part) for part in ("train", "test")]
    assert {part.class_names for part in parts} == {("cat", "dog")} and sum(len(part) for part in parts) == 22
    assert sorted(np.concatenate([part.labels for part in parts]).tolist()) == [-1] * 2 + [0] * 10 + [1] * 10
    assert f"{tmp_path}: no class, since without pictures: broken, empty, texts" in capsys.readouterr().err


def test_names_of_classes_are_those_of_one_unicode_form(tmp_path, capsys):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for name in (f"train/{composed}/1", "train/bar/1", f"test/{decomposed}/1", f"train/{decomposed}/2"):
        write(tmp_path / f"{name}.png")
    train, test = (images.open_folder(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("bar", composed)
    assert sorted(train.labels.tolist()) == [0, 1, 1] and test.labels.tolist() == [1]
    assert f"{composed} are two folders of the same name in two Unicode forms, taken as one class" in capsys.readouterr().err


def test_the_line_of_counts():
    assert images.counted(np.array([0, 1, 1, -1]), ("cat", "dog")) == "4 pictures: 1 cat, 2 dog, 1 in no class"
    assert images.counted(np.array([-1, -1]), ()) == "2 pictures, unlabelled"
    assert images.counted(np.repeat(np.arange(9), np.arange(1, 10)), tuple("abcdefghi")) == "45 pictures: 9 classes of 1 (a) to 9 (i)"


def test_another_picture_of_the_label_is_looked_for_only_where_one_cannot_be_read(tmp_path):
    """Reading a picture looks at no other's label, and finding another for it at no more than come before it."""

    class Labels(np.ndarray):
        read = []

        def __getitem__(self, row):
            Labels.read.append(row)
            return np.asarray(self)[row]

        def __eq__(self, other):
            pytest.fail("all labels were looked at")

    paths = [str(write(tmp_path / f"{i}.png")) for i in range(4)]
    labels = np.array([0, 1, 0, 0]).view(Labels)
    folder = images.Folder("x", paths, paths, labels, ("a", "b"), images.Failures("x", 1000))
    assert folder.read(1)[1] == 1 and len(Labels.read) == 1
    open(paths[0], "wb").close()
    Labels.read.clear()
    assert folder.read(0)[1] == 0 and set(Labels.read) == {0, 1, 2}


def test_large_folder_checks_headers_and_later_failures_are_substituted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(images, "DECODE_AT_MOST", 10)
    for part, count in (("train", 300), ("test", 1)):
        for i in range(count):
            write(tmp_path / part / "ab"[i % 2] / f"{i:03d}.png", np.full((2, 2, 3), i % 256, np.uint8))
        (tmp_path / part / "b").mkdir(exist_ok=True)

    def truncate(i):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i:03d}.png"
        path.write_bytes(path.read_bytes()[:45])  # the header alone

    for i in (4, 6, 299):
        truncate(i)
    source = images.open_folder(tmp_path, "train", 0)
    assert len(source) == 300  # the headers are whole
    value = {i: source.read(row)[0][0, 0, 0] for row, i in enumerate([*range(0, 300, 2), *range(1, 300, 2)])}
    assert value[4] == 8 and value[6] == 8 and value[299] == 1  # the next good one of the same label, round the end
    assert len(caplog.records) == 3
    truncate(10)
    with pytest.raises(ValueError, match="4 of 300 pictures, more than 1%"):
        source.read(5)


def test_links_to_folders_are_followed_without_end(tmp_path):
    write(tmp_path / "real" / "a.png")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "real" / "back")
    assert [os.path.basename(path) for path in images.list_files(tmp_path / "set")] == ["a.png"]


def test_a_large_picture_is_converted_strip_by_strip(tmp_path, monkeypatch):
    for mode in ("RGB", "RGBA", "L", "P", "CMYK"):
        Image.fromarray(COLOURS).convert(mode).save(tmp_path / f"{mode}.tiff")
        whole = images.read_image(tmp_path / f"{mode}.tiff")
        with monkeypatch.context() as patch:
            patch.setattr(images, "STRIP", 100)  # three rows of 30 pixels, and two at the end
            assert np.array_equal(images.read_image(tmp_path / f"{mode}.tiff"), whole), mode


def test_no_more_pixels_at_once_than_the_budget():
    budget, most, now, lock = images._Budget(10), [], [], threading.Lock()

    def work(share):
        with budget.taken(share):
            with lock:
                now.append(share)
                most.append(sum(now))
            time.sleep(0.002)
            with lock:
                now.remove(share)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 4, 25, 1, 9, 2, 2, 2] * 5))
    assert len(most) == 40 and sorted(set(most))[-1] == 25 and all(total <= 10 or total == 25 for total in most)
    with pytest.raises(ZeroDivisionError):
        with budget.taken(10):
            raise ZeroDivisionError
    assert budget.used == 0


def test_a_broken_exif_leaves_a_picture_as_it_stands(tmp_path):
    for suffix in ("png", "jpg"):
        path = write(tmp_path / f"a.{suffix}", exif=b"Exif\0\0no TIFF")
        assert images.read_image(path).shape == COLOURS.shape


def test_postscript_is_not_run_and_a_name_of_two_lines_is_one(tmp_path):
    program = tmp_path / "program.eps"
    program.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    (tmp_path / "two\nlines.png").write_text("not a picture")
    with pytest.raises(ValueError, match="PostScript is a program, which is not run"):
        images.read_image(program)
    with pytest.raises(ValueError, match="two lines.png is not a readable image: no format that Pillow knows"):
        images.read_image(tmp_path / "two\nlines.png")


def test_failures_belong_to_the_rows_of_one_part(tmp_path):
    for i in range(20):
        write(tmp_path / f"{i:02d}.png")
    source = images.open_folder(tmp_path, "train", 0)
    (tmp_path / os.path.basename(source.paths[4])).write_bytes(b"")
    source.read(4)
    part = source.keep(np.arange(3, 9))
    assert list(source.failures.reasons) == [4] and part.failures.reasons == {}
    part.read(1)
    assert list(part.failures.reasons) == [1] and list(source.failures.reasons) == [4]


IMAGES = np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (IMAGES / np.float32(255), IMAGES),
        (IMAGES / np.float64(255), IMAGES),
        (IMAGES.astype(np.float16), IMAGES),
        (IMAGES.astype(np.int64), IMAGES),
        (IMAGES.astype(">i4"), IMAGES),
        (IMAGES.transpose(0, 3, 1, 2), IMAGES),
        ((IMAGES / np.float32(255)).transpose(0, 3, 1, 2), IMAGES),
        (IMAGES[..., :1], IMAGES[..., :1]),
        (IMAGES[..., 0] / np.float32(255), IMAGES[..., 0]),
        (IMAGES[:, None, :, :, 0], IMAGES[..., :1]),
        (IMAGES[..., 0] > 127, 255 * (IMAGES[..., 0] > 127)),
        (np.concatenate([IMAGES, np.full((6, 8, 8, 1), 255, np.uint8)], 3), IMAGES),
        (np.concatenate([IMAGES, np.zeros((6, 8, 8, 1), np.uint8)], 3), np.full_like(IMAGES, 255)),
        (IMAGES[:, :4, :4], IMAGES[:, :4, :4]),  # 4 x 4 pixels, not four channels of 4 x 3
    ],
)
def test_images_of_one_meaning_are_taken(stored, expected):
    pixels, how = images.take_pixels(stored, "images")
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected)
    assert bool(how) == (stored.dtype != np.uint8 or stored.shape[-1] not in (1, 3)) and (not how or str(stored.dtype) in how)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (IMAGES / 255 * 1.5, "is float64 from 0.0 to 1.5: give uint8 from 0 to 255, or floats from 0 to 1"),
        (IMAGES / 127.5 - 1, "is float64 from -1.0 to 1.0"),
        (IMAGES[..., 0] / 255 * 16, "is float64 from 0.* to 1[56]"),  # scikit-learn's digits
        (np.where(IMAGES == IMAGES[0, 0, 0, 0], np.nan, IMAGES), "from nan to nan"),
        (IMAGES.astype(float) * 257, "to 65535"),
        (IMAGES.astype(np.uint16) * 257, "is uint16 from 0 to 65535"),
        (IMAGES.astype(np.int64) - 1, "is int64 from -1 to 254"),
        (IMAGES.astype(np.int64) // 128, "is int64 from 0 to 1"),
        (IMAGES[..., 0].astype(np.int64), "palette ids are read from .npy files"),
        (IMAGES[:, :3, :, :], r"uint8 \[6, 3, 8, 3\]: is the axis of 3 or that of 3 the channels"),
        (IMAGES[:, :3, :3], "is the axis of 3 or that of 3 the channels"),
        (IMAGES[..., :2], "no axis of 1, 3 or 4 channels"),
        (IMAGES[0], "8 grey images of 8 x 3 pixels, or a single picture"),
        (IMAGES.reshape(6, -1), r"must be \[N, H, W, 3\] or \[N, H, W\], not uint8 \[6, 192\]"),
        (IMAGES.astype(complex), "not complex128"),
        (IMAGES.astype(str), "not <U"),
    ],
)
def test_images_of_several_meanings_are_refused_with_the_numbers(stored, message):
    with pytest.raises(ValueError, match=message) as caught:
        images.take_pixels(stored, "images")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stored",
    [
        *(LABELS.astype(dtype) for dtype in (np.uint8, np.int64, np.uint64, np.float32, ">i2")),
        *(LABELS[:, None], LABELS[:, None].astype(np.uint8), np.eye(3)[LABELS], np.eye(3, dtype=bool)[LABELS], np.eye(3, dtype=np.uint8)[LABELS]),
    ],
)
def test_labels_of_one_meaning_are_taken(tmp_path, stored):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=stored)
    source = images.open_npz(tmp_path, "train")
    assert source.labels.dtype == np.int32 and source.labels.tolist() == LABELS.tolist() and source.class_names == (0, 1, 2)


def test_labels_of_uint8_to_255_and_none():
    labels, classes, how = images.take_labels(np.array([255, 0], np.uint8), 2, "labels")
    assert labels.tolist() == [255, 0] and classes == 256 and how == ""
    assert images.take_labels(np.array([-1, 2]), 2, "labels")[0].tolist() == [-1, 2]
    assert images.take_labels(np.array([True, False]), 2, "labels")[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (LABELS + 0.5, "from 0 on .-1: none., not float64 from 0.5 to 2.5"),
        (np.where(LABELS == 2, np.nan, LABELS), "not float64 from nan to nan"),
        (LABELS - 2, "not int64 from -2 to 0"),
        (LABELS + 2**32, "to 4294967298"),
        (np.eye(3)[LABELS] * 2, "one-hot, .* which row 0 is not"),
        (np.eye(3)[LABELS] * 0.5 + 0.25, "one-hot"),
        (LABELS[:5], "the labels of the 6 images beside it"),
        (LABELS[None], "the labels of the 6 images beside it"),
        (LABELS.astype(complex), "not complex128"),
    ],
)
def test_other_labels_are_refused(tmp_path, stored, message):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=stored)
    with pytest.raises(ValueError, match=message) as caught:
        images.open_npz(tmp_path, "train")
    assert "`labels`" in str(caught.value) and "\n" not in str(caught.value)


def test_labels_of_text_are_matched_by_name(tmp_path):
    names = np.array(["dog", "caf\u00e9", "ant"])
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=names[LABELS])
    np.savez(tmp_path / "test.npz", images=IMAGES[:2], labels=np.array([["dog"], ["cafe\u0301"]]))
    train, test = (images.open_npz(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("ant", "caf\u00e9", "dog") and train.labels.tolist() == [2, 1, 0, 0, 1, 2]
    assert test.labels.tolist() == [2, 1]
    np.savez(tmp_path / "test.npz", images=IMAGES[:2], labels=np.array([b"dog", b"wolf"]))
    with pytest.raises(ValueError, match="holds wolf, which training lacks or has twice: ant, caf\u00e9, dog"):
        images.open_npz(tmp_path, "test")


def test_a_class_has_the_number_it_has_in_training(tmp_path):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=LABELS, class_names=np.array(["cat", "dog", "fish"]))
    np.savez(tmp_path / "test.npz", images=IMAGES[:3], labels=np.array([0, 1, -1]), class_names=np.array(["fish", "cat", "bird"]))
    test = images.open_npz(tmp_path, "test")
    assert test.labels.tolist() == [2, 0, -1] and test.class_names == ("cat", "dog", "fish")
    np.savez(tmp_path / "test.npz", images=IMAGES[:3], labels=np.array([0, 1, 1]))  # lacks a class
    assert images.open_npz(tmp_path, "test").class_names == ("cat", "dog", "fish")
    np.savez(tmp_path / "test.npz", images=IMAGES[:3], labels=np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="goes to 3, training has the 3 classes cat, dog, fish"):
        images.open_npz(tmp_path, "test")


def refused_npz(place, split):
    with pytest.raises(FileNotFoundError) as caught:
        images.open_npz(place, split)
    return str(caught.value)


def test_a_file_that_is_one_split_is_named_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("train.npz", images=IMAGES, labels=LABELS)
    for place, folder in ((tmp_path / "train.npz", tmp_path), ("train.npz", ".")):
        for split in ("train", "test"):
            said = f"{place} has no {split} images, as `x_{split}` or `{split}_images`: its arrays are images, labels"
            assert refused_npz(place, split) == f"{said}; a file of one split is named by its folder: npz:{folder}"
    assert refused_npz("gone.npz", "train") == "gone.npz does not exist"
    assert refused_npz("gone", "train").startswith("gone/train.npz does not exist: write it by numpy.savez('gone/train.npz', ")


@pytest.mark.parametrize("shape", [(4, 0, 8, 3), (4, 8, 0), (4, 3, 0, 8), (4, 0, 0)])
def test_images_without_pixels_are_refused(tmp_path, shape):
    np.savez(tmp_path / "train.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"train.npz: `images` must be .* not uint8 \[4, .*\]: images without pixels"):
        images.open_npz(tmp_path, "train")


@pytest.mark.parametrize(
    "names",
    ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels", "X_train Y_train X_test Y_test", "trainX trainY testX testY", "Xtr"],
)
def test_one_file_of_several_splits(tmp_path, names, capsys):
    arrays = dict(zip(names.split(), (IMAGES, LABELS[:, None], IMAGES[:2], LABELS[:2]), strict=False))
    np.savez(tmp_path / "set.npz", **arrays)
    if names == "Xtr":
        assert "named by its folder" not in refused_npz(tmp_path, "train")
        with pytest.raises(FileNotFoundError, match=r"set.npz has no train images, as `x_train` or `train_images`: its arrays are Xtr"):
            images.open_npz(tmp_path, "train")
        return
    for place in (tmp_path, tmp_path / "set.npz"):
        train, test = (images.open_npz(place, split) for split in ("train", "test"))
        assert np.array_equal(train.images, IMAGES) and train.labels.tolist() == LABELS.tolist()
        assert np.array_equal(test.images, IMAGES[:2]) and test.labels.tolist() == [0, 1] and test.class_names == (0, 1, 2)
        with pytest.raises(FileNotFoundError, match="has no validation images"):
            images.open_npz(place, "validation")
    assert f"images are `{names.split()[0]}`; labels are `{names.split()[1]}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("x images", None),
        ("data labels", None),
        ("X y fine_labels", None),
        ("x data", "holds x, data, each of which may be the images: name the right one `images`"),
        ("images y target", "holds y, target, each of which may be the labels"),
        ("arr_0 arr_1", "has no `images`, .* its arrays are arr_0, arr_1"),
        ("x_test y_test", "has no `images`, .* its arrays are x_test, y_test"),
    ],
)
def test_other_names_of_arrays(tmp_path, names, message, capsys):
    np.savez(tmp_path / "train.npz", **{name: IMAGES if i == 0 or name == "images" or name == "data" else LABELS for i, name in enumerate(names.split())})
    if message:
        with pytest.raises(ValueError, match=message):
            images.open_npz(tmp_path, "train")
    else:
        assert np.array_equal(images.open_npz(tmp_path, "train").images, IMAGES)
        told = capsys.readouterr().err
        assert "not read: fine_labels" in told if "fine_labels" in names else "images are `data`" in told if "data" in names else True


def test_validation_arrays_are_the_validation_split(tmp_path):
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "val.npz", images=IMAGES[:2], labels=LABELS[:2])
    assert set(images.npz_files(tmp_path)) == {"train", "validation"}
    assert [len(images.open_npz(tmp_path, split)) for split in ("train", "validation", "all_train")] == [6, 2, 8]
    np.savez(tmp_path / "valid.npz", images=IMAGES[:2])
    with pytest.raises(ValueError, match="val.npz and .*valid.npz are both the validation split: remove one"):
        images.open_npz(tmp_path, "train")


def test_squash_is_the_whole_picture_and_other_views_are_its_middle():
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :8] = wide[:, 24:] = 255
    assert images.evaluation_view(wide, "center_square", 8).max() == 0
    assert images.evaluation_view(wide, "squash", 8)[:, 0].min() == 255 and images.evaluation_view(wide, "squash", 8)[:, 4].max() == 0
    assert np.array_equal(images.evaluation_view(wide, "imagenet", 8), images.imagenet_center(wide, 8))
