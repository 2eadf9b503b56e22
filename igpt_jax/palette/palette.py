"""The palette: RGB pixels to codes and back, exactly the nearest of V colours (paper 3.2; `color_quantize` in OpenAI's src/utils.py).

A palette of levels, centres [V, 1], codes red, green and blue separately, three codes to a pixel. With all 256 levels nothing is lost, and the loss
is in the unit of the density-estimation literature.

Distances are squared, between `x / 127.5 - 1` and the centre, in float64, with the channels added in the order red, green, blue; a tie goes to
the lower code. A few pixels are compared with every centre. Many are looked up in a table of all 256^3 colours, which gives the same codes.
"""

import hashlib
import io
import itertools
import os
import threading
from typing import Any

import numpy as np
from etils import epath

from igpt_jax.files import write_atomically
from igpt_jax.types import PathLike

MAX_SIZE = 65536  # codes fit uint16
_LEVELS = np.arange(256) / 127.5 - 1  # float64: the place of every 8-bit value in palette space
# a table is built after _DIRECT_PAIRS + V * _DIRECT_PIXELS comparisons: then it costs no more than they did
_DIRECT_PAIRS, _DIRECT_PIXELS = 1 << 27, 1 << 14
_LEAF = 4  # side in 8-bit levels of the cubes in which the table is filled
_PAIR_LIMIT = 1 << 20  # cube-centre pairs in memory while the table is built
_table_lock = threading.Lock()  # in the module, not in the palette, so that a palette can be pickled


class Palette:
    """V colours, `centers` float32 [V, 3] in [-1, 1], or V levels [V, 1]; a code is an index into them. OpenAI's kmeans_centers.npy is such an array."""

    def __init__(self, centers: Any) -> None:
        self.centers = _checked(centers, "palette")
        self.size = len(self.centers)
        self.tokens_per_pixel = 3 // self.centers.shape[1]
        self._path: epath.Path | None = None  # the file that holds this palette; its table is stored beside it
        self._table: np.ndarray | None = None
        self._table_looked_for = False
        self._pairs_compared = 0

    def __repr__(self) -> str:
        return f"Palette({self.size} {'colours' if self.tokens_per_pixel == 1 else 'levels of each channel'})"

    @classmethod
    def levels(cls, size: int = 256) -> "Palette":
        """Return the palette of `size` equally spaced levels of each channel."""
        return cls(np.linspace(-1, 1, size, dtype=np.float32)[:, None])

    @classmethod
    def load(cls, path: PathLike) -> "Palette":
        """Read float [V, 3] or [V, 1] from a .npy file; raise FileNotFoundError or ValueError, one line with the file's name."""
        path = epath.Path(os.path.expanduser(path))
        if not path.is_file():
            raise FileNotFoundError(f"no palette at {path}: fit one with `python -m igpt_jax.quantize --config=... --workdir=...`")
        try:
            centers = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else "empty"
            raise ValueError(f"{path} is not a plain .npy array of numbers ({reason})") from None
        if not isinstance(centers, np.ndarray):
            raise ValueError(f"{path} is an archive of several arrays, expected one .npy array [V, 3]")
        palette = cls(_checked(centers, str(path)))
        palette._path = path
        return palette

    @property
    def checksum(self) -> str:
        """SHA-256 of the colours. It is stored beside codes, to tell their palette from others of its size."""
        return hashlib.sha256(f"{self.centers.shape}".encode() + np.ascontiguousarray(self.centers, "<f4").tobytes()).hexdigest()

    def save(self, path: PathLike) -> None:
        """Write the centres to a .npy file; if that fails, an existing file stays as it is."""
        path = epath.Path(path)
        write_atomically(path, _npy(self.centers))
        self._path = path

    def differs_from(self, path: PathLike) -> bool:
        """Return whether a file holds another palette than this one; False where there is no file. Raises ValueError, as `load`, for a damaged one."""
        return epath.Path(path).exists() and not np.array_equal(Palette.load(path).centers, self.centers)

    def encode(self, images: Any) -> np.ndarray:
        """Return the code of the nearest centre of every pixel of uint8 [..., H, W, 3], int32 [..., H, W]; for levels int32 [..., H, W, 3]."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim == 0 or images.shape[-1] != 3:
            raise ValueError(
                f"images must be uint8 [..., H, W, 3], got {images.dtype} {list(images.shape)}; give a grey image three equal channels"
            )
        if self.tokens_per_pixel == 3:
            return self._nearest_level()[images]
        pixels = images.reshape(-1, 3)
        table = self._table_for(len(pixels))
        codes = _nearest(pixels, self.centers) if table is None else _look_up(table, pixels)
        return codes.reshape(images.shape[:-1])

    def prepare(self) -> None:
        """Read the table of all colours, or build it, before the palette is copied to other processes, so that each does not build its own."""
        if self.tokens_per_pixel == 1:
            self._table_for(_DIRECT_PAIRS)

    def decode(self, codes: Any) -> np.ndarray:
        """Return the colours rint(127.5 (c + 1)) of integer codes [...] as uint8 [..., 3]; for levels [..., 3] as [..., 3].

        Raises ValueError for a code outside the palette.
        """
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be integers, got {codes.dtype}")
        if codes.size and (codes.min() < 0 or codes.max() >= self.size):
            raise ValueError(f"codes span {codes.min()} to {codes.max()}, outside the palette's 0 to {self.size - 1}")
        return self._colours()[codes] if self.tokens_per_pixel == 1 else self._colours()[codes, 0]

    def picture(self) -> np.ndarray:
        """Return a picture uint8 [h, w, 3] of all colours as squares, rows from dark to light and each row by hue; unused places are white."""
        colours = np.broadcast_to(self._colours(), (self.size, 3))
        red, green, blue = colours.astype(np.float64).T
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        hue = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
        columns = int(np.ceil(np.sqrt(self.size)))
        row = np.empty(self.size, int)
        row[np.argsort(luminance, kind="stable")] = np.arange(self.size) // columns
        grid = np.full((-(-self.size // columns) * columns, 3), 255, np.uint8)
        grid[: self.size] = colours[np.lexsort((luminance, hue, row))]
        side = max(4, 512 // columns)
        return grid.reshape(-1, columns, 3).repeat(side, 0).repeat(side, 1)

    def _colours(self) -> np.ndarray:
        return np.rint(127.5 * (self.centers + 1)).astype(np.uint8)  # in float32, like the original

    def _nearest_level(self) -> np.ndarray:
        """Return the code of every value of a channel, int32 [256]."""
        return np.abs(_LEVELS[:, None] - self.centers[:, 0]).argmin(axis=1).astype(np.int32)

    def _table_for(self, pixels: int) -> np.ndarray | None:
        """Return the table of all colours if there is a valid one beside the palette, or once the comparisons so far cost as much as building it."""
        if self._table is not None:
            return self._table
        with _table_lock:  # threads wait for one table instead of reading or building one each
            if not self._table_looked_for:
                self._table = _read_table(self._path, self.centers)
                self._table_looked_for = True
            self._pairs_compared += pixels * self.size
            if self._table is None and self._pairs_compared > _DIRECT_PAIRS + _DIRECT_PIXELS * self.size:
                self._table = build_table(self.centers)
                _store_table(self._path, self.centers, self._table)
        return self._table


def build_table(centers: np.ndarray) -> np.ndarray:
    """Return the code of every colour red << 16 | green << 8 | blue, uint16 [256^3], for centres float32 [V, 3]: the same codes as by comparison.

    The colour cube is divided again and again, by halving each side. A cube keeps only its candidates: the centres that can be the nearest somewhere
    inside it. A candidate is nearer, somewhere in the cube, than the centre nearest to the cube's middle. The difference of the two squared distances is
    linear in the colour, so its greatest value over the cube is at a corner.
    """
    distinct, first = np.unique(np.asarray(centers, np.float64), axis=0, return_index=True)
    order = np.argsort(first)  # of equal centres only the first can be chosen
    centers, codes = distinct[order], first[order]
    table = np.empty((256, 256, 256), np.uint16)
    work = [(256, np.zeros((1, 3), np.int32), np.array([len(centers)]), np.arange(len(centers)))]
    while work:
        side, corners, counts, candidates = work.pop()
        if side == _LEAF:
            _fill_cubes(table, corners, counts, candidates, centers, codes)
            continue
        if len(candidates) * 8 > _PAIR_LIMIT and len(corners) > 1:
            half = len(corners) // 2
            end = counts[:half].sum()
            work += [(side, corners[:half], counts[:half], candidates[:end]), (side, corners[half:], counts[half:], candidates[end:])]
        else:
            work.append(_split_cubes(side, corners, counts, candidates, centers))
    return table.reshape(-1)


def _checked(values: Any, name: str) -> np.ndarray:
    """Return centres as float32 [V, 3] or [V, 1]; ValueError that begins with `name` if they are not such."""
    centers = np.asarray(values)
    if centers.ndim != 2 or centers.shape[1] not in (1, 3) or not 2 <= len(centers) <= MAX_SIZE:
        raise ValueError(f"{name}: expected centres [V, 3], or levels [V, 1], with V from 2 to {MAX_SIZE}, got {list(centers.shape)}")
    if centers.dtype.kind != "f":
        raise ValueError(f"{name}: expected floating-point centres in [-1, 1], got {centers.dtype}")
    if not np.isfinite(centers).all():
        raise ValueError(f"{name}: {(~np.isfinite(centers)).any(axis=1).sum()} of {len(centers)} centres are not finite")
    if centers.min() < -1 or centers.max() > 1:
        raise ValueError(f"{name}: centres span {centers.min():g} to {centers.max():g}, expected [-1, 1] (x / 127.5 - 1)")
    return centers.astype(np.float32)


def _nearest(pixels: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the codes int32 [N] of pixels uint8 [N, 3], by comparison with every centre [V, 3], a block of pixels at a time."""
    codes = np.empty(len(pixels), np.int32)
    places, centers = _LEVELS[pixels], centers.astype(np.float64).T
    block = max(1, (1 << 16) // centers.shape[1])  # the block's distances, 512 kB, fit in the cache
    for start in range(0, len(pixels), block):
        red, green, blue = (places[start : start + block, channel, None] - centers[channel] for channel in range(3))
        distances = np.square(red, out=red)
        distances += np.square(green, out=green)
        distances += np.square(blue, out=blue)
        codes[start : start + block] = distances.argmin(axis=1)
    return codes


def _look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the codes int32 [N] of pixels uint8 [N, 3] from the table, a block of pixels at a time."""
    codes = np.empty(len(pixels), np.int32)
    for start in range(0, len(pixels), 1 << 16):
        block = pixels[start : start + (1 << 16)]
        key = block[:, 0].astype(np.int64)
        key <<= 8
        key |= block[:, 1]
        key <<= 8
        key |= block[:, 2]
        codes[start : start + (1 << 16)] = table[key]
    return codes


def _split_cubes(
    side: int, corners: np.ndarray, counts: np.ndarray, candidates: np.ndarray, centers: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Divide cubes of one side, with their candidates (a flat list, `counts` of each cube), into eight parts each with the candidates that remain."""
    half = side // 2
    offsets = np.array(list(itertools.product((0, half), repeat=3)), np.int32)
    corners = (corners[:, None] + offsets).reshape(-1, 3)
    starts = np.cumsum(counts) - counts
    counts = counts.repeat(8)
    starts = starts.repeat(8)
    first = np.cumsum(counts) - counts
    cube = np.arange(len(corners)).repeat(counts)
    candidates = candidates[np.arange(len(cube)) + (starts - first).repeat(counts)]
    low, high = _LEVELS[corners], _LEVELS[corners + half - 1]
    middle = (low + high) / 2
    place = centers[candidates]
    distance = np.square(place - middle[cube]).sum(axis=1)
    nearest = np.minimum.reduceat(distance, first)
    is_pivot = np.flatnonzero(distance == nearest[cube])
    pivot = np.empty((len(corners), 3))
    pivot[cube[is_pivot]] = place[is_pivot]
    pivot = pivot[cube]
    # the lead over the pivot, |x - pivot|^2 - |x - place|^2, is greatest at the cube's corner towards the candidate
    towards = np.where(place > pivot, high[cube], low[cube])
    lead = ((place - pivot) * (2 * towards - place - pivot)).sum(axis=1)
    possible = lead > -1e-9  # the margin is far above float64 rounding, so every possible nearest centre and tie stays
    return half, corners, np.bincount(cube[possible], minlength=len(corners)), candidates[possible]


def _fill_cubes(
    table: np.ndarray, corners: np.ndarray, counts: np.ndarray, candidates: np.ndarray, centers: np.ndarray, codes: np.ndarray
) -> None:
    """Compare every colour of each leaf cube with the cube's candidates and write the code of the nearest into `table` [256, 256, 256]."""
    order = np.argsort(-counts, kind="stable")  # so that the cubes with a j-th candidate are a prefix
    starts, counts, corners = (np.cumsum(counts) - counts)[order], counts[order], corners[order]
    blocks = table.reshape(256 // _LEAF, _LEAF, 256 // _LEAF, _LEAF, 256 // _LEAF, _LEAF)
    for begin in range(0, len(corners), 1024):  # 1024 cubes of 64 colours: the running minima, 512 kB, fit in the cache
        part = slice(begin, begin + 1024)
        nearest = _nearest_in_cubes(corners[part], starts[part], counts[part], candidates, centers)
        red, green, blue = (corners[part] // _LEAF).T
        blocks[red, :, green, :, blue, :] = codes[nearest]


def _nearest_in_cubes(corners: np.ndarray, starts: np.ndarray, counts: np.ndarray, candidates: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the index of the nearest candidate for each colour of n cubes sorted by falling `counts`, int [n, 4, 4, 4]."""
    places = _LEVELS[corners[:, :, None] + np.arange(_LEAF)]  # [n, 3, 4]
    best = np.full((len(corners), _LEAF, _LEAF, _LEAF), np.inf)
    nearest = np.zeros(best.shape, np.int32)
    for j in range(counts[0]):
        n = np.count_nonzero(counts > j)
        index = candidates[starts[:n] + j]  # candidates ascend, so with a strict < the lower code wins a tie
        red, green, blue = np.moveaxis(np.square(places[:n] - centers[index][:, :, None]), 1, 0)
        distance = (red[:, :, None] + green[:, None, :])[:, :, :, None] + blue[:, None, None, :]
        better = distance < best[:n]
        np.copyto(best[:n], distance, where=better)
        np.copyto(nearest[:n], index[:, None, None, None], where=better)
    return nearest


def _table_path(path: epath.Path | None) -> epath.Path | None:
    """Return the table's path beside the palette; None for a palette in no file, or in a bucket: to fetch 32 MB takes longer than to build the table."""
    return None if path is None or "://" in str(path) else path.with_name(f"{path.stem}.table.npy")


def _table_checksum(centers: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the SHA-256 of centres and table as uint16 [16]; a stored table with another checksum is stale or damaged and is not used."""
    digest = hashlib.sha256(b"igpt_jax palette table 1" + centers.tobytes())
    digest.update(table.data)
    return np.frombuffer(digest.digest(), "<u2")


def _read_table(path: epath.Path | None, centers: np.ndarray) -> np.ndarray | None:
    """Return the table stored beside the palette, or None if there is none for these centres."""
    path = _table_path(path)
    if path is None:
        return None
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(stored, np.ndarray) or stored.dtype != np.uint16 or stored.shape != (256**3 + 16,):
        return None
    table, checksum = stored[:-16], stored[-16:]
    return table if np.array_equal(checksum, _table_checksum(centers, table)) else None


def _store_table(path: epath.Path | None, centers: np.ndarray, table: np.ndarray) -> None:
    path = _table_path(path)
    if path is None:
        return
    try:
        write_atomically(path, _npy(np.concatenate([table, _table_checksum(centers, table)])))
    except OSError:
        pass  # the folder may not be writable; the next process then builds the table again


def _npy(array: np.ndarray) -> bytes:
    """Return the content of a .npy file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
