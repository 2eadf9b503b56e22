"""Reading, checking, cropping and resizing pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from igpt_jax.data import images
from tests.data.pictures import PICTURE, bad_files, write_picture


def test_read_lossless_from_path_and_file(tmp_path):
    path = write_picture(tmp_path / "a.png")
    assert np.array_equal(images.read_image(path), PICTURE)
    assert np.array_equal(images.read_image(io.BytesIO(path.read_bytes())), PICTURE)


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
    write_picture(tmp_path / "alpha.png", np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8))
    assert images.read_image(tmp_path / "alpha.png").tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    write_picture(tmp_path / "grey.png", np.array([[[7, 255], [7, 0]]], np.uint8))
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
    write_picture(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(images.read_image(tmp_path / "turned.png"), np.rot90(PICTURE, -1))


def test_one_pixel_and_grey_and_bilevel(tmp_path):
    for mode, value in (("RGB", (1, 2, 3)), ("L", 9), ("1", 1)):
        Image.new(mode, (1, 1), value).save(tmp_path / f"{mode}.png")
        assert images.read_image(tmp_path / f"{mode}.png").shape == (1, 1, 3)
    one = images.read_image(tmp_path / "RGB.png")
    for view in (images.center_square(one, 8), images.imagenet_center(one, 8), images.imagenet_crop(one, (0.9, 0.9, 0.9), 8)):
        assert view.shape == (8, 8, 3) and (view == (1, 2, 3)).all()


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
    assert np.array_equal(images.resize(PICTURE[:20, :20], 20), PICTURE[:20, :20])
    checks = np.indices((64, 64)).sum(0)[..., None] % 2 * np.full(3, 255)
    small = images.resize(checks.astype(np.uint8), 8)
    assert np.abs(small.astype(int) - 128).max() < 20  # without antialiasing it would be black, white or aliased


def test_center_crop_square():
    assert np.array_equal(images.center_crop_square(PICTURE), PICTURE[:, 5:25])
    assert np.array_equal(images.center_crop_square(PICTURE.transpose(1, 0, 2)), PICTURE.transpose(1, 0, 2)[5:25])


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


def photograph(width, height, seed=0):
    """A smooth picture with edges: what a JPEG keeps well, and where a shift shows."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    blocks = Image.fromarray(random.integers(0, 2, (9, 9), dtype=np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(Image.blend(coarse, blocks.convert("RGB"), 0.3))


def crop_of_the_whole(path, uniform, size):
    return images.imagenet_crop(images.read_image(path), uniform, size)


UNIFORMS = [(0.0, 0.0, 0.0), (0.999, 0.999, 0.999), (0.35, 0.2, 0.7), (0.6, 0.9, 0.1)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_the_crop_of_a_file_decoded_whole_is_that_of_the_image(mode, tmp_path):
    picture = Image.fromarray(photograph(150, 100)).convert(mode)
    suffix = "jpg" if mode in ("RGB", "L", "CMYK") else "png"
    for name, size in ((f"a.{suffix}", 32), ("a.tiff", 8)):  # the first is too small for a fraction of its size, the second no JPEG
        picture.save(tmp_path / name)
        for uniform in UNIFORMS:
            assert np.array_equal(images.imagenet_crop(tmp_path / name, uniform, size), crop_of_the_whole(tmp_path / name, uniform, size))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 517), (256, 256)])
def test_a_jpeg_decoded_at_a_fraction_gives_nearly_the_same_crop(mode, width, height, tmp_path):
    """Below 1 of 255 levels on average; a shift by half a decoded pixel, which odd sides would bring, gives more than 2."""
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(width, height)).convert(mode).save(path, quality=90)
    for size in (16, 32):
        for uniform in UNIFORMS:
            difference = images.imagenet_crop(path, uniform, size).astype(int) - crop_of_the_whole(path, uniform, size)
            assert 0 < np.abs(difference).mean() < 1, (size, uniform)


def test_a_crop_keeps_two_decoded_pixels_for_each_of_its_own(tmp_path, monkeypatch):
    whole = Image.fromarray(photograph(500, 375))
    whole.save(tmp_path / "a.jpg")
    whole.save(tmp_path / "a.png")
    sides = []
    monkeypatch.setattr(images, "_resize_region", lambda picture, box, size: sides.append((picture.size, box[2] - box[0])))
    for size, fraction in ((13, 8), (14, 4), (27, 4), (28, 2), (54, 2), (55, 1), (224, 1)):
        images.imagenet_crop(tmp_path / "a.jpg", (0.999, 0.5, 0.5), size)  # of 218.75 pixels
        images.imagenet_crop(tmp_path / "a.png", (0.999, 0.5, 0.5), size)
        (decoded, side), png = sides[-2:]
        assert decoded == (-(-500 // fraction), -(-375 // fraction)) and side == 218.75 / fraction, size
        assert png == ((500, 375), 218.75) and (fraction == 1 or side >= 2 * size)


@pytest.mark.parametrize(("width", "height"), [(496, 376), (500, 375)])
def test_a_turned_jpeg_is_cropped_upright(width, height, tmp_path):
    """Sides that a fraction does not divide would shift it, and so the second is decoded whole."""
    exif, path = Image.Exif(), tmp_path / "a.jpg"
    for orientation in range(10):  # 0 and 9 mean nothing
        exif[images.ORIENTATION] = orientation
        Image.fromarray(photograph(width, height)).save(path, exif=exif, quality=90)
        for uniform in UNIFORMS:
            difference = images.imagenet_crop(path, uniform, 16).astype(int) - crop_of_the_whole(path, uniform, 16)
            least, most = (0.01, 1.5) if width % 8 == 0 else (0, 1.5 * (orientation in (0, 1, 9)))
            assert least <= np.abs(difference).mean() <= most, (orientation, uniform)


def test_evaluation_decodes_every_pixel(tmp_path):
    whole, path = Image.fromarray(photograph(512, 384)), tmp_path / "a.jpg"
    whole.save(path)
    stored = np.asarray(Image.open(path))
    for view in images.VIEWS:
        assert np.array_equal(images.evaluation_view(path, view, 8), images.evaluation_view(stored, view, 8)), view


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_crop_of_a_bad_file_is_one_line_too(tmp_path):
    for name in bad_files(tmp_path / "bad"):
        with pytest.raises(ValueError, match=f"^.*{name} is not a readable image: .+$") as caught:
            images.imagenet_crop(tmp_path / "bad" / name, (0.5, 0.5, 0.5), 8)
        assert "\n" not in str(caught.value)
    broken = write_picture(tmp_path / "a.jpg", photograph(400, 400), exif=b"Exif\0\0no TIFF")
    assert images.imagenet_crop(broken, (0.5, 0.5, 0.5), 8).shape == (8, 8, 3)


def test_a_large_picture_is_converted_strip_by_strip(tmp_path, monkeypatch):
    for mode in ("RGB", "RGBA", "L", "P", "CMYK"):
        Image.fromarray(PICTURE).convert(mode).save(tmp_path / f"{mode}.tiff")
        whole = images.read_image(tmp_path / f"{mode}.tiff")
        with monkeypatch.context() as patch:
            patch.setattr(images, "STRIP", 100)  # three rows of 30 pixels, and two at the end
            assert np.array_equal(images.read_image(tmp_path / f"{mode}.tiff"), whole), mode


def test_a_broken_exif_leaves_a_picture_as_it_stands(tmp_path):
    for suffix in ("png", "jpg"):
        path = write_picture(tmp_path / f"a.{suffix}", exif=b"Exif\0\0no TIFF")
        assert images.read_image(path).shape == PICTURE.shape


def test_postscript_is_not_run_and_a_name_of_two_lines_is_one(tmp_path):
    program = tmp_path / "program.eps"
    program.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    (tmp_path / "two\nlines.png").write_text("not a picture")
    with pytest.raises(ValueError, match="PostScript is a program, which is not run"):
        images.read_image(program)
    with pytest.raises(ValueError, match="two lines.png is not a readable image: no format that Pillow knows"):
        images.read_image(tmp_path / "two\nlines.png")


def test_squash_is_the_whole_picture_and_other_views_are_its_middle():
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :8] = wide[:, 24:] = 255
    assert images.evaluation_view(wide, "center_square", 8).max() == 0
    assert images.evaluation_view(wide, "squash", 8)[:, 0].min() == 255 and images.evaluation_view(wide, "squash", 8)[:, 4].max() == 0
    assert np.array_equal(images.evaluation_view(wide, "imagenet", 8), images.imagenet_center(wide, 8))
