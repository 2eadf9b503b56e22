"""The palette: exact codes by both ways, files that lie, and the original programs' codes."""

import pickle
import stat

import numpy as np
import pytest

from igpt_jax.palette import palette as palette_module
from igpt_jax.palette.palette import Palette, build_table


def random_centers(size, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (size, 3)).astype(np.float32)


def random_pixels(number, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (number, 3), np.uint8)


def nearest(pixels, centers):
    """The definition, all distances at once."""
    return ((pixels[:, None] / 127.5 - 1 - centers.astype(np.float64)) ** 2).sum(-1).argmin(-1)


@pytest.fixture
def table_at_once(monkeypatch):
    monkeypatch.setattr(palette_module, "_DIRECT_PAIRS", 0)
    monkeypatch.setattr(palette_module, "_DIRECT_PIXELS", 0)


GRID = np.stack(np.meshgrid(*[np.array([-1, -0.5, 0, 0.5, 1])] * 3), -1).reshape(-1, 3)
PALETTES = {
    "two": random_centers(2),
    "greys": np.repeat(np.linspace(-1, 1, 17)[:, None], 3, 1),
    "grid, full of ties": GRID,
    "the same twice": np.repeat(random_centers(40), 2, axis=0),
    "random": random_centers(300),
    "crowded": np.clip(0.3 + 0.02 * np.random.default_rng(2).normal(size=(3000, 3)), -1, 1),
}


@pytest.mark.parametrize("centers", PALETTES.values(), ids=PALETTES)
def test_both_ways_give_the_nearest_center(centers):
    palette, table = Palette(centers), build_table(np.float32(centers))
    # everywhere, and close to the centres, where the fight is
    near = np.rint(127.5 * (palette.centers[:500] + 1)).astype(int) + np.random.default_rng(3).integers(-9, 10, (len(centers[:500]), 3))
    pixels = np.concatenate([random_pixels(3000), np.clip(near, 0, 255).astype(np.uint8)])
    expected = nearest(pixels, palette.centers)
    np.testing.assert_array_equal(palette.encode(pixels), expected)
    np.testing.assert_array_equal(table[pixels.astype(int) @ [1 << 16, 1 << 8, 1]], expected)


def test_all_levels_lose_nothing_and_few_take_the_nearest():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    palette = Palette.levels()
    codes = palette.encode(images)
    assert palette.tokens_per_pixel == 3 and codes.shape == images.shape and codes.dtype == np.int32
    np.testing.assert_array_equal(codes, images)
    np.testing.assert_array_equal(palette.decode(codes), images)
    np.testing.assert_array_equal(palette.decode(codes.reshape(2, -1)), images.reshape(2, -1))
    assert np.abs(Palette.levels(16).decode(Palette.levels(16).encode(images)).astype(int) - images).max() == 8  # half of 255 / 15, rounded


def test_a_palette_of_levels_is_saved_and_drawn(tmp_path):
    Palette.levels(8).save(tmp_path / "palette.npy")
    kept = Palette.load(tmp_path / "palette.npy")
    assert kept.size == 8 and kept.tokens_per_pixel == 3
    assert kept.picture().shape[2] == 3


def test_a_tie_goes_to_the_lower_code():
    centers = np.float32([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, -1]])
    pixels = np.uint8([[90, 90, 90], [0, 200, 200], [255, 0, 0]])
    assert Palette(centers).encode(pixels).tolist() == [0, 1, 0]
    assert build_table(centers)[pixels.astype(int) @ [1 << 16, 1 << 8, 1]].tolist() == [0, 1, 0]


def test_a_large_palette_has_codes_up_to_65535():
    centers = np.clip(random_centers(65536, 5), -1, 1)
    palette = Palette(centers)
    own = np.rint(127.5 * (centers[-64:] + 1)).astype(np.uint8)
    codes = palette.encode(own)
    np.testing.assert_array_equal(codes, nearest(own, centers))
    assert codes.max() > 65000


def test_many_pixels_go_through_the_table(table_at_once, monkeypatch):
    palette = Palette(random_centers(64))
    images = random_pixels(2 * 8 * 16).reshape(2, 8, 16, 3)
    codes = palette.encode(images)
    assert palette._table is not None
    assert codes.shape == (2, 8, 16) and codes.dtype == np.int32
    np.testing.assert_array_equal(codes.reshape(-1), nearest(images.reshape(-1, 3), palette.centers))
    monkeypatch.setattr(palette_module, "_nearest", lambda *arguments: pytest.fail("compared where there is a table"))
    np.testing.assert_array_equal(palette.encode(images[0, 0]), codes[0, 0])


def test_few_pixels_build_no_table():
    palette = Palette(random_centers(512))
    codes = palette.encode(random_pixels(64).reshape(8, 8, 3))
    assert palette._table is None and codes.shape == (8, 8) and codes.dtype == np.int32
    assert palette.encode(np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 4, 4)


@pytest.mark.parametrize("side", ["32x32", "24x40"])
@pytest.mark.parametrize("size", [16, 512])
@pytest.mark.parametrize("by_table", [False, True])
def test_codes_and_colours_are_openais(oracles, side, size, by_table, request):
    if by_table:
        request.getfixturevalue("table_at_once")
    expected = np.load(oracles / "processor/expected.npz")
    palette = Palette(expected[f"clusters_{size}"])
    pixels = np.rint(127.5 * (expected[f"v5pil/pixels_{side}"].transpose(0, 2, 3, 1) + 1)).astype(np.uint8)
    codes = palette.encode(pixels).reshape(len(pixels), -1)
    np.testing.assert_array_equal(codes, expected[f"openai/ids_{size}_{side}"])
    np.testing.assert_array_equal(codes, expected[f"v5pil/ids_{size}_{side}"])
    if size == 512:
        np.testing.assert_array_equal(palette.decode(codes), expected[f"openai/dequantized_{size}_{side}"])


def test_decode_gives_the_colour():
    colours = np.unique(random_pixels(200), axis=0)
    palette = Palette(colours / 127.5 - 1)
    np.testing.assert_array_equal(palette.decode(palette.encode(colours.reshape(1, -1, 3))), colours.reshape(1, -1, 3))
    assert palette.decode(np.zeros((3, 0), np.uint16)).shape == (3, 0, 3)


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"uint8 .* got float32 \[2, 4, 4, 3\]"),
        (np.zeros((4, 4, 1), np.uint8), r"\[4, 4, 1\]; give a grey image three equal channels"),
        (np.zeros((), np.uint8), "uint8"),
    ],
)
def test_wrong_images_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        Palette(GRID).encode(images)


@pytest.mark.parametrize("codes, words", [([0, 16], "0 to 16.*0 to 15"), ([-1], "-1 to -1"), ([0.5], "integers, got float64")])
def test_wrong_codes_are_refused(codes, words):
    with pytest.raises(ValueError, match=words):
        Palette(random_centers(16)).decode(np.array(codes))


@pytest.mark.parametrize(
    "centers, words",
    [
        (np.zeros((5, 4)), r"\[5, 4\]"),
        (np.zeros((1, 3)), r"from 2 to 65536, got \[1, 3\]"),
        (np.zeros((65537, 3)), "65537"),
        (np.full((4, 3), np.nan), "4 of 4 centres are not finite"),
        (np.array([[0, 0, 0], [0, 0, 255.0]]), "0 to 255"),
        (np.zeros((4, 3), np.uint8), "uint8"),
    ],
)
def test_wrong_centers_are_refused(centers, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        Palette(centers)
    np.save(tmp_path / "palette.npy", centers)
    with pytest.raises(ValueError, match=words) as raised:
        Palette.load(tmp_path / "palette.npy")
    assert "palette.npy" in str(raised.value) and "\n" not in str(raised.value)


def test_save_and_load(tmp_path):
    centers = np.random.default_rng(0).uniform(-1, 1, (10, 3))
    Palette(centers).save(tmp_path / "palette.npy")
    loaded = Palette.load(str(tmp_path / "palette.npy"))
    np.testing.assert_array_equal(loaded.centers, centers.astype(np.float32))
    assert loaded.size == 10 and loaded.centers.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["palette.npy"]


def test_files_that_are_no_palette(tmp_path):
    path = tmp_path / "palette.npy"
    with pytest.raises(FileNotFoundError, match=r"palette.npy: fit one with `python -m igpt_jax.quantize"):
        Palette.load(path)
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    raises_one_line(path)
    for content in (b"", b"not an array", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        raises_one_line(path)
    with open(path, "wb") as file:
        np.savez(file, random_centers(4))
    raises_one_line(path)


def raises_one_line(path):
    with pytest.raises(ValueError, match="palette.npy") as raised:
        Palette.load(path)
    assert "\n" not in str(raised.value)


def test_the_table_is_kept_and_checked(tmp_path, table_at_once, monkeypatch):
    path, pixels = tmp_path / "palette.npy", random_pixels(100)
    Palette(random_centers(32)).save(path)
    expected = Palette.load(path).encode(pixels)
    kept = tmp_path / "palette.table.npy"
    assert kept.exists()
    built = []
    monkeypatch.setattr(palette_module, "build_table", lambda centers: built.append(1) or build_table(centers))
    np.testing.assert_array_equal(Palette.load(path).encode(pixels), expected)
    assert not built

    Palette(random_centers(32, seed=9)).save(path)  # another palette under the same name
    np.testing.assert_array_equal(Palette.load(path).encode(pixels), nearest(pixels, random_centers(32, seed=9)))
    assert len(built) == 1

    content = bytearray(kept.read_bytes())
    content[5000] ^= 1
    for damaged in (bytes(content), bytes(content[:1000]), b""):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(Palette.load(path).encode(pixels), nearest(pixels, random_centers(32, seed=9)))
    assert len(built) == 4


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, table_at_once):
    Palette(random_centers(8)).save(tmp_path / "palette.npy")
    palette = Palette.load(tmp_path / "palette.npy")
    (tmp_path / "palette.table.npy").mkdir()  # stands in the way, for root too
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        np.testing.assert_array_equal(palette.encode(random_pixels(50)), nearest(random_pixels(50), palette.centers))
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_palette_pickles(table_at_once):
    palette = Palette(random_centers(8))
    expected = palette.encode(random_pixels(50))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(palette)).encode(random_pixels(50)), expected)


@pytest.mark.parametrize("size", [2, 17, 512, 5000])
def test_the_picture_shows_every_colour(size):
    colours = np.unique(np.random.default_rng(0).integers(0, 255, (3 * size, 3)), axis=0)[:size]  # 255 left out: white is no colour of it
    palette = Palette(np.random.default_rng(0).permutation(colours) / 127.5 - 1)
    picture = palette.picture()
    shown = np.unique(picture.reshape(-1, 3), axis=0)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and 256 <= picture.shape[1] <= 512
    np.testing.assert_array_equal(shown[(shown < 255).all(axis=1)], colours)


def test_the_picture_goes_from_dark_to_light_and_in_a_row_by_hue():
    """Green is lighter than red, and red than blue: 0.587, 0.299, 0.114 of white."""
    blue, red, green, white = (0, 0, 255), (255, 0, 0), (0, 255, 0), (255, 255, 255)
    picture = Palette(np.array([green, blue, white, red]) / 127.5 - 1).picture()
    assert picture[::256, ::256].tolist() == [[list(blue), list(red)], [list(white), list(green)]]
    palette = Palette(random_centers(90))
    squares = palette.picture()[::51, ::51]  # 9 rows of 10
    light = squares.astype(float) @ [0.299, 0.587, 0.114]
    assert light.shape == (9, 10) and (light[:-1].max(axis=1) <= light[1:].min(axis=1)).all()
    assert Palette(random_centers(5)).picture()[::170, ::170].tolist()[1][2] == [255, 255, 255]  # 2 rows of 3, of which one is unused
