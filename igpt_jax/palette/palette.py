"""The palette: RGB pixels to codes and back, exactly the nearest of V colours (paper 3.2; `color_quantize` in OpenAI's src/utils.py).

A palette of levels, centres [V, 1], codes red, green and blue one after the other, three codes to a pixel: with all 256 levels nothing is lost,
and the loss is in the unit of the density-estimation literature.

Distances are squared, between `x / 127.5 - 1` and the centre, in float64, the channels added in the order red, green, blue; a tie goes to
the lower code. A few pixels are compared with every centre; many are looked up in a table of all 256^3 colours that gives the same codes.
"""

import hashlib
import io
import itertools
import os
import threading

import numpy as np
from etils import epath

MAX_SIZE = 65536  # codes fit uint16
_LEVELS = np.arange(256) / 127.5 - 1  # float64: the place of every 8-bit value in palette space
_DIRECT_PAIRS, _DIRECT_PIXELS = 1 << 27, 1 << 14  # comparisons, plus pixels times V, after which a table costs no more than went before
_LEAF = 4  # side in 8-bit levels of the cubes in which the table is filled
_PAIR_LIMIT = 1 << 20  # cube-centre pairs held at once while building the table
_table_lock = threading.Lock()  # of the module, not of the palette, so that a palette pickles


class Palette:
    """V colours, `centers` float32 [V, 3] in [-1, 1], or V levels [V, 1]; a code is an index into them. OpenAI's kmeans_centers.npy loads as it is."""

    def __init__(self, centers):
        self.centers = _checked(centers, "palette")
        self.size = len(self.centers)
        self.tokens_per_pixel = 3 // self.centers.shape[1]
        self._path = None  # the file this palette is known to be in; its table is kept beside it
        self._table = None
        self._table_looked_for = False
        self._pairs_compared = 0

    @classmethod
    def levels(cls, size=256):
        """The palette of `size` equally spaced levels of each channel."""
        return cls(np.linspace(-1, 1, size, dtype=np.float32)[:, None])

    @classmethod
    def load(cls, path):
        """Read float [V, 3] or [V, 1] from a .npy file; raises FileNotFoundError or ValueError, one line, naming the file."""
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
    def checksum(self):
        """SHA-256 of the colours, a string: what is stored beside codes to tell their palette from others of its size."""
        return hashlib.sha256(f"{self.centers.shape}".encode() + np.ascontiguousarray(self.centers, "<f4").tobytes()).hexdigest()

    def save(self, path):
        """Write the centres to a .npy file, whole or not at all."""
        path = epath.Path(path)
        write_whole(path, _npy(self.centers))
        self._path = path

    def encode(self, images):
        """uint8 [..., H, W, 3] -> int32 [..., H, W], the nearest centre of every pixel; of levels int32 [..., H, W, 3]."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim == 0 or images.shape[-1] != 3:
            raise ValueError(
                f"images must be uint8 [..., H, W, 3], got {images.dtype} {list(images.shape)}; give a grey image three equal channels"
            )
        if self.tokens_per_pixel == 3:
            return self._nearest_level()[images]
        pixels = images.reshape(-1, 3)
        if self._wants_table(len(pixels)):
            codes = _look_up(self._table, pixels)
        else:
            codes = _nearest(pixels, self.centers)
        return codes.reshape(images.shape[:-1])

    def decode(self, codes):
        """Integer [...] in [0, V) -> uint8 [..., 3], rint(127.5 (c + 1)); of levels [..., 3] -> [..., 3]. ValueError for a code outside the palette."""
        codes = np.asarray(codes)
        if codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be integers, got {codes.dtype}")
        if codes.size and (codes.min() < 0 or codes.max() >= self.size):
            raise ValueError(f"codes span {codes.min()} to {codes.max()}, outside the palette's 0 to {self.size - 1}")
        return self._colours()[codes] if self.tokens_per_pixel == 1 else self._colours()[codes, 0]

    def picture(self):
        """uint8 [h, w, 3]: every colour as a square, rows from dark to light and each row by hue; unused places are white."""
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

    def _colours(self):
        return np.rint(127.5 * (self.centers + 1)).astype(np.uint8)  # float32 throughout, as the original

    def _nearest_level(self):
        """int32 [256]: the code of every value of a channel."""
        return np.abs(_LEVELS[:, None] - self.centers[:, 0]).argmin(axis=1).astype(np.int32)

    def _wants_table(self, pixels):
        """True with the table in place, once the comparisons so far would have paid for it or a valid one lies beside the palette."""
        if self._table is not None:
            return True
        if not self._table_looked_for:
            self._table = _read_table(self._path, self.centers)
            self._table_looked_for = True
        self._pairs_compared += pixels * self.size
        if self._table is None and self._pairs_compared > _DIRECT_PAIRS + _DIRECT_PIXELS * self.size:
            with _table_lock:  # readers in threads wait for one table instead of building one each
                if self._table is None:
                    self._table = build_table(self.centers)
                    _keep_table(self._path, self.centers, self._table)
        return self._table is not None


def write_whole(path, content: bytes):
    """Write beside the target and rename, so that a reader sees the old file or the new one, never a part; in a bucket an object appears whole by itself."""
    if "://" in str(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def build_table(centers):
    """float32 [V, 3] -> uint16 [256^3]: the code of every colour red << 16 | green << 8 | blue, the same as by comparing with every centre.

    The colour cube is halved along each side again and again; a cube keeps only the centres that can win somewhere inside it. Such a centre
    beats, somewhere in the cube, the one nearest to the cube's middle; the difference of two squared distances is linear in the colour,
    so its greatest value over the cube lies at a corner.
    """
    distinct, first = np.unique(np.asarray(centers, np.float64), axis=0, return_index=True)
    order = np.argsort(first)  # equal centres: only the first can win a tie
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


def _checked(centers, name):
    centers = np.asarray(centers)
    if centers.ndim != 2 or centers.shape[1] not in (1, 3) or not 2 <= len(centers) <= MAX_SIZE:
        raise ValueError(f"{name}: expected centres [V, 3], or levels [V, 1], with V from 2 to {MAX_SIZE}, got {list(centers.shape)}")
    if centers.dtype.kind != "f":
        raise ValueError(f"{name}: expected floating-point centres in [-1, 1], got {centers.dtype}")
    if not np.isfinite(centers).all():
        raise ValueError(f"{name}: {(~np.isfinite(centers)).any(axis=1).sum()} of {len(centers)} centres are not finite")
    if centers.min() < -1 or centers.max() > 1:
        raise ValueError(f"{name}: centres span {centers.min():g} to {centers.max():g}, expected [-1, 1] (x / 127.5 - 1)")
    return centers.astype(np.float32)


def _nearest(pixels, centers):
    """uint8 [N, 3], [V, 3] -> int32 [N], by comparing with every centre, a block of pixels at a time."""
    codes = np.empty(len(pixels), np.int32)
    places, centers = _LEVELS[pixels], centers.astype(np.float64).T
    block = max(1, (1 << 16) // centers.shape[1])  # the block's distances, 512 kB, stay in the cache
    for start in range(0, len(pixels), block):
        red, green, blue = (places[start : start + block, channel, None] - centers[channel] for channel in range(3))
        distances = np.square(red, out=red)
        distances += np.square(green, out=green)
        distances += np.square(blue, out=blue)
        codes[start : start + block] = distances.argmin(axis=1)
    return codes


def _look_up(table, pixels):
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


def _split_cubes(side, corners, counts, candidates, centers):
    """Cubes of one side with their candidate centres (a flat list, `counts` each) -> the same for their eight halves, pruned."""
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
    # the greatest lead over the pivot inside the cube, |x - pivot|^2 - |x - place|^2, lies at the corner towards the candidate
    towards = np.where(place > pivot, high[cube], low[cube])
    lead = ((place - pivot) * (2 * towards - place - pivot)).sum(axis=1)
    keep = lead > -1e-9  # far above float64 rounding, so every possible winner and tie stays
    return half, corners, np.bincount(cube[keep], minlength=len(corners)), candidates[keep]


def _fill_cubes(table, corners, counts, candidates, centers, codes):
    """Compare every colour of each leaf cube with the cube's candidates and write the winners' codes into `table` [256, 256, 256]."""
    order = np.argsort(-counts, kind="stable")  # cubes that still have a j-th candidate are then a prefix
    starts, counts, corners = (np.cumsum(counts) - counts)[order], counts[order], corners[order]
    blocks = table.reshape(256 // _LEAF, _LEAF, 256 // _LEAF, _LEAF, 256 // _LEAF, _LEAF)
    for begin in range(0, len(corners), 1024):  # 1024 cubes of 64 colours: the running minima, 512 kB, stay in the cache
        part = slice(begin, begin + 1024)
        winner = _cube_winners(corners[part], starts[part], counts[part], candidates, centers)
        red, green, blue = (corners[part] // _LEAF).T
        blocks[red, :, green, :, blue, :] = codes[winner]


def _cube_winners(corners, starts, counts, candidates, centers):
    """int [n, 4, 4, 4]: the winning candidate's index for each colour of n cubes sorted by falling `counts`."""
    places = _LEVELS[corners[:, :, None] + np.arange(_LEAF)]  # [n, 3, 4]
    best = np.full((len(corners), _LEAF, _LEAF, _LEAF), np.inf)
    winner = np.zeros(best.shape, np.int32)
    for j in range(counts[0]):
        n = np.count_nonzero(counts > j)
        index = candidates[starts[:n] + j]  # candidates ascend, so a strict < leaves ties with the lower code
        red, green, blue = np.moveaxis(np.square(places[:n] - centers[index][:, :, None]), 1, 0)
        distance = (red[:, :, None] + green[:, None, :])[:, :, :, None] + blue[:, None, None, :]
        better = distance < best[:n]
        np.copyto(best[:n], distance, where=better)
        np.copyto(winner[:n], index[:, None, None, None], where=better)
    return winner


def _table_path(path):
    """Beside the palette; None where it is in no file, or in a bucket, from which 32 MB are fetched no sooner than built again."""
    return None if path is None or "://" in str(path) else path.with_name(f"{path.stem}.table.npy")


def _table_seal(centers, table):
    """uint16 [16]: SHA-256 over centres and table; a kept table with another seal is stale or damaged and is not used."""
    digest = hashlib.sha256(b"igpt_jax palette table 1" + centers.tobytes())
    digest.update(table)
    return np.frombuffer(digest.digest(), "<u2")


def _read_table(path, centers):
    """The table kept beside the palette, or None where there is none that fits."""
    path = _table_path(path)
    if path is None:
        return None
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(kept, np.ndarray) or kept.dtype != np.uint16 or kept.shape != (256**3 + 16,):
        return None
    table, seal = kept[:-16], kept[-16:]
    return table if np.array_equal(seal, _table_seal(centers, table)) else None


def _keep_table(path, centers, table):
    path = _table_path(path)
    if path is None:
        return
    try:
        write_whole(path, _npy(np.concatenate([table, _table_seal(centers, table)])))
    except OSError:
        pass  # a palette may lie where nobody can write; the table is then built again next time


def _npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
