"""Pictures: decoding, checking, cropping and resizing. The only module of this folder that imports Pillow.

An image is uint8 [H, W, 3] everywhere. Images are resized with Pillow's BILINEAR filter. Its support grows when an image shrinks, so the result is
antialiased. Hugging Face's image processor uses the same filter: a picture gives the same codes there and here with the view `squash`, and with
`center_square` if the picture is square. Evaluation's views decode every pixel; only training's crop decodes a JPEG at a fraction of its size.
"""

import contextlib
import io
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from igpt_jax.data.budget import Budget

CROP = 224  # side of ImageNet's crop in pixels (paper 2.1)
SHORTER_SIDES = (256, 384)  # training resizes the shorter side to a random length in this range, ends included (paper 2.1)
PIXELS_AT_ONCE = 90_000_000  # decoded at once by all threads, about 8 bytes each; a larger picture is decoded alone
STRIP = 4_000_000  # pixels converted at once
FRACTIONS = (8, 4, 2)  # a JPEG can be decoded at one of these fractions of its size: the decoder then omits the high frequencies of each block
DECODED_AT_LEAST = 2  # decoded pixels in a pixel of the view, in each direction; with 2 the view differs by less than 1 of 255 levels on average
ORIENTATION = 0x0112  # EXIF's tag; 1: upright
File: TypeAlias = str | os.PathLike[str] | IO[bytes]
Picture: TypeAlias = File | np.ndarray  # as a source stores it: a file, or an image
_PIXELS = Budget(PIXELS_AT_ONCE)


def read_image(file: File) -> np.ndarray:
    """Read a picture from a path or an open binary file as uint8 [H, W, 3], turned upright by its EXIF data, transparency over white.

    Raises ValueError, one line with the name and the reason, if it cannot be read.
    """
    with _open_picture(os.path.expanduser(file) if isinstance(file, str | os.PathLike) else file) as image, _loaded(image):
        return _to_rgb(image)


def decoded(picture: Picture) -> np.ndarray:
    """Return a stored picture as an image: `read_image` of a file; an image is returned unchanged."""
    return picture if isinstance(picture, np.ndarray) else read_image(picture)


def check_image(path: str | os.PathLike[str], decode: bool = True) -> str | None:
    """Return None for a readable picture, else the reason in one line; without `decode` only the header is read."""
    try:
        if decode:
            read_image(path)
        else:
            with _open_picture(path):
                pass
    except ValueError as error:
        return str(error)
    return None


def as_images(pictures: Any) -> list[np.ndarray]:
    """Return one picture or several as a list of uint8 [H, W, 3]: paths, open files, PIL images, arrays of NumPy, JAX, ..., or a list of them.

    An array is one picture, uint8 [H, W] or [H, W, 1, 3 or 4], or several, [N, H, W, 1, 3 or 4]; the fourth channel is transparency over white.
    Raises ValueError, one line, for anything else.
    """
    if isinstance(pictures, str | os.PathLike | Image.Image) or hasattr(pictures, "read"):
        return [_as_image(pictures)]
    if hasattr(pictures, "__array__") or isinstance(pictures, memoryview):
        array = np.asarray(pictures)
        return [_as_image(picture) for picture in (array if array.ndim == 4 or array.dtype.kind in "OU" else [array])]
    try:
        pictures = list(pictures)
    except TypeError:
        raise ValueError(f"an image is a path, an array or a PIL image, and several are a list of them, not {type(pictures).__name__}") from None
    return [_as_image(picture) for picture in pictures]


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return grey pixels [H, W] or [..., H, W, 1] as [..., H, W, 3], coloured ones unchanged."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def encode_png(image: np.ndarray) -> bytes:
    """Return an image uint8 [H, W, 3] as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png")
    return content.getvalue()


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize [H, W, 3] to uint8 [size, size, 3], bilinear and antialiased; the aspect is not kept. An image of that size is returned unchanged."""
    height, width = image.shape[:2]
    return image if height == width == size else resize_region(image, (0, 0, width, height), size)


def resize_region(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Resize the `box` (left, top, right, bottom in pixels, fractions allowed) of an image to uint8 [size, size, 3].

    Pillow's filter also uses the pixels around the box, so the result equals resizing the whole image and cropping afterwards. The whole resized image
    is never made: for a strip of 1 x 10,000 pixels and a shorter side of 224 it would have 500 million pixels.
    """
    return _resize_region(Image.fromarray(np.ascontiguousarray(image)), box, size)


def center_crop_square(image: np.ndarray) -> np.ndarray:
    """Crop [H, W, 3] to the central square of its shorter side; an odd pixel is lost at the bottom or right."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def center_square(image: np.ndarray, size: int) -> np.ndarray:
    """Crop to the central square, then resize to uint8 [size, size, 3]: the view of the small data sets."""
    return resize(center_crop_square(image), size)


def evaluation_view(picture: Picture, view: str, size: int) -> np.ndarray:
    """Return the view of a picture that evaluation uses, uint8 [size, size, 3]; `view` is one of VIEWS. Raises ValueError as `read_image` does."""
    return VIEWS[view](decoded(picture), size)


def given_view(image: np.ndarray, view: str, size: int) -> np.ndarray:
    """Return evaluation's view of a user's picture, uint8 [size, size, 3]; a picture of that size already is a view, and is returned unchanged."""
    return image if image.shape[:2] == (size, size) else evaluation_view(image, view, size)


def imagenet_center(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the shorter side to 224, crop the centre of 224, resize to uint8 [size, size, 3]: ImageNet's evaluation view (paper 2.1)."""
    return resize(resize(center_crop_square(image), CROP), size)


def imagenet_crop(picture: Picture, uniform: np.ndarray | Sequence[float], size: int) -> np.ndarray:
    """Crop the square that is a random 224 x 224 once the shorter side is a random length in 256..384; resize to uint8 [size, size, 3]; no flip (paper 2.1).

    `uniform` holds three numbers in [0, 1): for the length, the row and the column. The crop is resized once, straight from the picture: the paper's 224
    pixels between are never made. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop keeps DECODED_AT_LEAST times `size` pixels a side.
    Raises ValueError as `read_image` does.
    """
    if isinstance(picture, np.ndarray):
        return resize_region(picture, imagenet_box(picture.shape[1], picture.shape[0], uniform), size)
    with _open_picture(picture) as image:
        left, top, right, _ = imagenet_box(image.width, image.height, uniform)
        turned, width, height = _is_turned(image), image.width, image.height
        fraction = _decode_fraction(image, (right - left) / (DECODED_AT_LEAST * size), turned)
        with _loaded(image):
            if turned:
                width, height = image.width * fraction, image.height * fraction
            box = imagenet_box(width, height, uniform)
            rgb = image if image.mode == "RGB" and not image.has_transparency_data else Image.fromarray(_to_rgb(image))
            return _resize_region(rgb, (box[0] / fraction, box[1] / fraction, box[2] / fraction, box[3] / fraction), size)


def imagenet_box(width: int, height: int, uniform: np.ndarray | Sequence[float]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom), in pixels of the picture, of the square that `imagenet_crop` takes."""
    low, high = SHORTER_SIDES
    scale = min(height, width) / (low + int(uniform[0] * (high - low + 1)))  # pixels of the source in one resized pixel
    side = CROP * scale
    rows, columns = round(height / scale) - CROP, round(width / scale) - CROP
    top = min(int(uniform[1] * (rows + 1)) * scale, height - side)  # the longer side may have been rounded up, past the end of the source
    left = min(int(uniform[2] * (columns + 1)) * scale, width - side)
    return left, top, left + side, top + side


VIEWS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {  # config.data.view -> (image, size)
    "center_square": center_square,
    "imagenet": imagenet_center,
    "squash": resize,
}


@contextlib.contextmanager
def _open_picture(file: File) -> Iterator[Image.Image]:
    """Open a picture and refuse decompression bombs; whatever Pillow raises in the block becomes one line with the name."""
    try:
        if isinstance(file, str | os.PathLike) and os.path.isdir(file):
            raise ValueError(f"it is a folder: give picture files, such as {os.path.join(file, '*.png')}")
        if isinstance(file, str | os.PathLike) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("not a regular file")  # opening a pipe would wait for ever, and a device may never end
        with Image.open(file) as image:
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:  # Pillow itself only warns, up to twice the limit
                raise ValueError(f"{pixels:,} pixels are over Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}")
            if image.format == "EPS":
                raise ValueError("PostScript is a program, which is not run")
            yield image
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError and more
        name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "image")
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "no format that Pillow knows, or a broken header"
        raise _unreadable(name, reason.strip() or type(error).__name__) from error


def _decode_fraction(image: Image.Image, most: float, turned: bool) -> int:
    """Have an open JPEG decoded at the smallest of 1/8, 1/4 and 1/2 of its size that is not below 1 / `most`; return 8, 4 or 2, or 1 for its whole size.

    Sides that do not divide are rounded up: the last decoded pixel then stands for fewer pixels of the picture. In a picture that will be turned upright it
    would become the first one, so there the sides must divide.
    """
    if image.format not in ("JPEG", "MPO"):
        return 1
    for fraction in FRACTIONS:
        fits = fraction <= most and not (turned and (image.width % fraction or image.height % fraction))
        if fits and image.draft(None, (image.width // fraction, image.height // fraction)):
            return fraction
    return 1


def _is_turned(image: Image.Image) -> bool:
    """Return whether EXIF data say that an open picture is not stored upright."""
    with _broken_exif_ignored():
        return image.getexif().get(ORIENTATION, 1) != 1
    return False


@contextlib.contextmanager
def _loaded(image: Image.Image) -> Iterator[None]:
    """Decode an open picture and turn it upright, within the limit of pixels decoded at once."""
    with _PIXELS.taken(image.width * image.height):
        image.load()
        with _broken_exif_ignored():
            ImageOps.exif_transpose(image, in_place=True)
        yield


def _broken_exif_ignored() -> contextlib.AbstractContextManager[None]:
    """Suppress the errors of broken EXIF data: the picture is then used as it is stored."""
    return contextlib.suppress(SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)


def _resize_region(picture: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Do `resize_region` for a Pillow image of mode RGB."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _unreadable(name: Any, reason: str) -> ValueError:
    return ValueError(" ".join(f"{name} is not a readable image: {reason}".split()))


def _as_image(picture: Any) -> np.ndarray:
    """Return one picture of `as_images` as uint8 [H, W, 3]."""
    if isinstance(picture, Image.Image):
        try:
            return _to_rgb(ImageOps.exif_transpose(picture))
        except Exception as error:  # a file that was opened and not yet read: see `_open_picture`
            raise _unreadable(getattr(picture, "filename", "") or "a PIL image", str(error) or type(error).__name__) from error
    if isinstance(picture, str | os.PathLike) or hasattr(picture, "read"):
        return read_image(picture)
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)) or not array.size:
        several = "several are a list of such, or [N, H, W, C]"
        is_array = isinstance(picture, np.ndarray) or hasattr(picture, "__array__")
        kind = f"{array.dtype} {list(array.shape)}" if is_array else type(picture).__name__
        raise ValueError(f"an image is uint8 from 0 to 255, [H, W] or [H, W, C] of C = 1, 3 or 4 channels, and {several}, not {kind}")
    if array.shape[2:] == (4,):
        return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
    return np.ascontiguousarray(as_rgb(array))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return a Pillow image of any mode as uint8 [H, W, 3]; a large one is converted strip by strip, because each conversion is a copy."""
    width, height = image.size
    if width * height <= STRIP:
        return _convert(image)
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, STRIP // width)
    for top in range(0, height, rows):
        pixels[top : top + rows] = _convert(image.crop((0, top, width, min(top + rows, height))))
    return pixels


def _convert(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image of any mode to uint8 [H, W, 3]."""
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip them at 255
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        return np.array(as_rgb(((wide + 128) // 257).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
