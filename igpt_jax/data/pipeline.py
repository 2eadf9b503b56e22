"""Image sources, their splits, and the batches of palette codes a model eats.

    source -> split -> (augment) -> codes -> {"codes": int32 [b, S], "label": int32 [b], "index": int32 [b]}

Two engines make the same stream. Sets whose views are fixed (digits, npz, codes, npy) are encoded once, and numpy alone makes batches.
Pictures that must be decoded or resized anew each time (tfds, folder, and any set under ImageNet's augmentation) go through Grain's
threads or worker processes. In both, what stands in a global step is a function of (seed, step) alone: not of the number of hosts,
workers, or interruptions.
"""
import concurrent.futures
import dataclasses
import functools
import os
import queue
import sys
import threading
import zlib

import numpy as np

from igpt_jax.data import images
from igpt_jax.data.codes import Codes, coded_parts, open_codes, open_openai_arrays, openai_parts
from igpt_jax.data.sampler import InOrder, Shuffled
from igpt_jax.data.tfds import Records, open_tfds, tfds_parts

SOURCES = {  # kind -> how it is written
    "digits": "digits",
    "tfds": "tfds:NAME",
    "folder": "folder:DIR",
    "npz": "npz:DIR or npz:FILE",
    "codes": "codes:DIR",
    "npy": "npy:DIR[/PREFIX]",
}
AUGMENTS = ("none", "cifar", "imagenet")
VIEWS = tuple(images.VIEWS)
SPLITS = ("train", "validation", "test", "all_train")
PAD = 4  # pixels of reflection around a small image before the random crop (paper 2.1)
SAMPLED = 64  # images looked at by `fingerprint`
ENCODE_AT_ONCE = 2048  # images in one call of the palette


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are seen; every field is required, because a recipe says it (configs/base.py)."""

    source: str  # digits | tfds:NAME | folder:DIR | npz:DIR | codes:DIR (quantize's) | npy:DIR[/PREFIX] (OpenAI's palette ids); ~ is the home folder
    image_size: int  # side in pixels after resizing
    augment: str  # of training. none; cifar: 4 px reflection, crop, flip; imagenet: resize, crop 224
    validation: float  # share of the training images held out (paper: 0.04 ImageNet, 0.10 others); 0: none; unused where the data have their own
    directory: str  # TFDS's data_dir; "": TFDS's own default
    workers: int  # Grain's worker processes for tfds and folder; 0: threads in this process
    seed: int  # of the train/validation split, and of a folder's train/test split
    # None in a recipe from before these keys: what it meant then
    view: str | None = None  # of evaluation, and of training where augment does not crop: center_square | imagenet | squash; then: that of augment
    split_by: str | None = None  # what draws a folder's validation and test pictures: name | position; then: position

    def __post_init__(self):
        kind, colon, place = self.source.partition(":")
        if self.view is None:
            object.__setattr__(self, "view", "imagenet" if self.augment == "imagenet" else "center_square")
        if self.split_by is None:  # other sources have no names: both are the same
            object.__setattr__(self, "split_by", "position" if kind == "folder" else "name")
        object.__setattr__(self, "source", expanded(self.source))
        object.__setattr__(self, "directory", os.path.expanduser(self.directory))
        if kind not in SOURCES or (kind == "digits") == bool(colon) or (colon and not place):
            raise ValueError(f"source {self.source!r} is unknown: one of {', '.join(SOURCES.values())}")
        if "://" in place and kind != "tfds":
            raise ValueError(f"source {self.source!r} must be a local directory: copy it to this machine, or mount the bucket")
        if self.augment not in AUGMENTS:
            raise ValueError(f"augment {self.augment!r} is unknown: one of {', '.join(AUGMENTS)}")
        for name, value, known in (("view", self.view, VIEWS), ("split_by", self.split_by, ("name", "position"))):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: one of {', '.join(known)}")
        if kind in ("codes", "npy") and self.augment == "imagenet":
            raise ValueError("augment imagenet resizes, which codes cannot: take the images as source, or augment none or cifar")
        for name, least in (("image_size", 1), ("workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is the share held out, from 0 to below 1, not {self.validation!r}")


class Dataset:
    """One split of a source: its images by number, `labels` int32 [N] (-1 unlabelled), `class_names`, `split`, and `palette`.

    `class_names` holds a str for each class, or its number where the source has no names. `palette` is the one stored beside a codes or npy source, for
    others None.
    """

    def __init__(self, config, split, source, numbers=None, class_numbers=None, class_names=None):
        self.config, self.split, self.source = config, split, source
        self._numbers = numbers  # of its images in the split; None: all of them
        self.class_numbers = class_numbers  # that its source's classes get, int [C], see `renumbered`; None: those they have
        self.class_names = source.class_names if class_numbers is None else tuple(class_names)
        self.palette = getattr(source, "palette", None)
        self._encoded = None  # (palette, codes uint16 [N, H, W]) of the sets held in memory

    def __len__(self):
        return len(self.source)

    def keep(self, rows):
        """The images of these rows alone, a Dataset."""
        return Dataset(self.config, self.split, self.source.keep(rows), self.numbers(rows), self.class_numbers, self.class_names)

    def numbers(self, rows):
        """The images' numbers in the whole split, which stay theirs in a part of it (`keep`, `draw`): by them masks are drawn."""
        return np.asarray(rows if self._numbers is None else self._numbers[rows])

    def renumbered(self, class_numbers, class_names):
        """The same images whose class c of the source has the number class_numbers[c] and the names are `class_names`, a Dataset."""
        return Dataset(self.config, self.split, self.source, self._numbers, np.asarray(class_numbers, np.int32), class_names)

    def draw(self, limit):
        """At most `limit` of the images, drawn at random, the same each time, in the order they have, a Dataset; 0: all. ValueError below 0."""
        if limit < 0:
            raise ValueError(f"a limit of {limit} images must not be negative (0: all)")
        if not 0 < limit < len(self):
            return self
        return self.keep(np.sort(np.random.RandomState([self.config.seed, 1]).permutation(len(self))[:limit]))

    @functools.cached_property
    def labels(self):
        """int32 [N]; a TFDS set is read through once for them."""
        return self._renumber(self.source.all_labels())

    def fingerprint(self):
        """A number that is another where images were added, removed, renamed, reordered or given other labels: crc32 of labels, the files' names, and
        the pixels (or stored codes) of SAMPLED images. An image replaced by another of the same name, among those not sampled, is not noticed."""
        rows = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64))
        place = len(self.config.source.partition(":")[2].rstrip("/"))
        names = "\n".join(str(path)[place:] for path in getattr(self.source, "paths", ()))
        pixels = self.source.stored(rows).astype(np.int32) if isinstance(self.source, Codes) else self._views(rows)
        return zlib.crc32(np.ascontiguousarray(pixels), zlib.crc32(names.encode("utf-8", "surrogateescape"), zlib.crc32(np.asarray(self.labels, np.int32))))

    @property
    def label_range(self):
        """(smallest, largest) label, -1 among them where images have none; of a TFDS set with named classes that of 100 images, with those that it declares."""
        if isinstance(self.source, Records) and self.class_names:
            found = self._renumber(self.source.some_labels())
            return int(found.min()), max(int(found.max()), len(self.class_names) - 1)
        return int(self.labels.min()), int(self.labels.max())

    def images(self, start, stop, palette=None):
        """Returns images start..stop as uint8 [n, H, W, 3] at `image_size`, as evaluation sees them.

        `palette` shows stored codes beside which none lies (OpenAI's palette ids); without any they are a ValueError.
        """
        rows, size = np.arange(len(self))[start:stop], self.config.image_size
        if isinstance(self.source, Codes):
            palette = palette if self.palette is None else self.palette
            if palette is None:
                raise ValueError(f"{self.config.source} holds palette ids but no colours: lay the kmeans_centers.npy they were made with beside them")
            return palette.decode(self.source.read_codes(rows, palette))
        if isinstance(self.source, images.Arrays) and self.source.images.shape[1:3] == (size, size) and self.config.view != "imagenet":
            return self.source.read_block(start, stop)
        return self._views(rows)

    def codes(self, indices, palette):
        """Returns the images at `indices` as int32 [n, S] codes of the palette, as evaluation sees them."""
        indices = np.asarray(indices, np.int64)
        self.check_palette(palette)
        if isinstance(self.source, Codes):
            codes = self.source.read_codes(indices, palette)
        elif isinstance(self.source, images.Arrays):
            codes = self._all_codes(palette)[indices]
        else:
            codes = palette.encode(self._views(indices))
        return np.asarray(codes, np.int32).reshape(len(indices), -1)

    def view(self, row, uniform=None):
        """Returns one decoded (image uint8 [size, size, 3], label): evaluation's view, or with `uniform` [3] ImageNet's training view."""
        image, label = self.source.read(row)
        label = self._renumber(label)
        if uniform is None or self.config.augment != "imagenet":
            return images.evaluation_view(image, self.config.view, self.config.image_size), label
        return images.imagenet_crop(image, uniform, self.config.image_size), label

    def check_palette(self, palette):
        """Raises ValueError when stored codes were made with another palette than the one given."""
        if self.palette is not None and not np.array_equal(self.palette.centers, palette.centers):
            raise ValueError(
                f"{self.config.source} was coded with another palette ({self.palette.size} colours) than the one given ({palette.size}): "
                "use the one that lies beside the codes, or code the images anew"
            )

    def _renumber(self, labels):
        return labels if self.class_numbers is None else np.where(np.asarray(labels) < 0, labels, self.class_numbers[labels])

    def _views(self, rows):
        with concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
            views = list(pool.map(lambda row: self.view(row)[0], rows))
        return np.stack(views) if views else np.zeros((0, self.config.image_size, self.config.image_size, 3), np.uint8)

    def _all_codes(self, palette):
        if self._encoded is None or self._encoded[0] is not palette:
            blocks = [self.images(start, start + ENCODE_AT_ONCE) for start in range(0, len(self), ENCODE_AT_ONCE)]
            self._encoded = palette, np.concatenate([np.asarray(palette.encode(block), np.uint16) for block in blocks])
        return self._encoded[1]


def config_for(recipe, image_size, source=None, view=None):
    """The DataConfig of a checkpoint's recipe (a dict), or of another source seen by a model of that image size, without augmentation.

    The `view` is the model's, whatever the source, unless another one is given.
    """
    known = recipe.get("data", {})
    if source is None and not known.get("source"):
        raise ValueError(f"this checkpoint names no data: say which by --data=..., one of {', '.join(SOURCES.values())}")
    base = {"augment": "none", "validation": 0.1, "directory": "", "workers": 0, "seed": 0}
    trained = DataConfig(**base | {"image_size": image_size} | known | {"source": known.get("source") or source})
    if source is not None and expanded(source) != trained.source:
        trained = dataclasses.replace(trained, source=source, image_size=image_size, augment="none")
    return dataclasses.replace(trained, view=view or trained.view)


def view_of(recipe, image_size):
    """The view of a checkpoint's recipe (a dict), also of a converted model's, which names no source."""
    return config_for(recipe, image_size, recipe.get("data", {}).get("source") or "digits").view


def expanded(source):
    """A data source with its ~ replaced by the home folder."""
    kind, colon, place = source.partition(":")
    return kind + colon + (os.path.expanduser(place) if kind != "tfds" else place)


def stored_parts(config):
    """Which of train, validation and test a source has of its own; an undivided folder's test pictures are drawn, and count."""
    kind, _, place = config.source.partition(":")
    match kind:
        case "npz":
            return set(images.npz_files(place))
        case "folder":
            return set(images.folder_splits(place)) or {"train", "test"}
        case "tfds":
            return tfds_parts(place, config.directory)
        case "codes":
            return coded_parts(place)
        case "npy":
            return openai_parts(place)
    return {"train", "test"}


def splits_of(config):
    """Those of train, validation and test that the data have, a validation share held out of training among them."""
    parts = stored_parts(config)
    return tuple(split for split in SPLITS[:3] if split in parts or (split == "validation" and config.validation and "train" in parts))


def open_dataset(config, split):
    """Opens a split: train, validation (held out of the training images, or the data's own), test, or all_train (train and validation)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: one of {', '.join(SPLITS)}")
    kind, _, place = config.source.partition(":")
    own = split != "test" and kind not in ("digits", "tfds") and "validation" in stored_parts(config)
    part = split if own or split == "test" else "train"
    match kind:
        case "digits":
            source = images.open_digits(part)
        case "npz":
            source = images.open_npz(place, part)
        case "folder":
            source = images.open_folder(place, part, config.seed, config.split_by)
        case "tfds":
            source = open_tfds(place, part, config.directory)
        case "codes":
            source = open_codes(place, part, config.image_size, config.view)
        case "npy":
            source = open_openai_arrays(place, split, config.image_size)
    if not len(source):
        raise ValueError(f"{config.source} has no images in its {split} split")
    if own and config.validation and kind != "npy":
        images.say(f"{config.source} has validation images of its own: config.data.validation {config.validation} draws none")
    if split in ("train", "validation") and not own:
        source = _without_or_with_held_out(config, source, split)
    dataset = Dataset(config, split, source)
    if kind == "folder":
        images.say(f"{config.source}, {split}: {images.counted(dataset.labels, dataset.class_names)}")
    if isinstance(source, images.Arrays) and config.view == "imagenet" and source.images.shape[1:3] == (config.image_size,) * 2:
        size = f"{config.image_size} x {config.image_size}"
        images.say(f"{config.source} has images of {size}, which view imagenet enlarges to {images.CROP} and shrinks: center_square takes them as they are")
    return dataset


def _without_or_with_held_out(config, source, split):
    """The training images without those held out, or those: a picture file's part depends on its name alone, an array's image's on how many there are."""
    if isinstance(source, images.Folder) and config.split_by == "name":
        held_out = source.draws(config.seed, "validation") < config.validation
    else:
        order = np.random.RandomState([config.seed, 0]).permutation(len(source))  # RandomState: its stream is frozen for ever by numpy
        held_out = np.isin(np.arange(len(source)), order[: round(len(source) * config.validation)])
    kept = source.keep(np.flatnonzero(held_out if split == "validation" else ~held_out))
    if not len(kept):
        raise ValueError(f"validation {config.validation} of {len(source)} images of {config.source} leaves none for {split}")
    return kept


def train_batches(dataset, palette, batch_size, seed, step=0, part=...):
    """Yields for ever, from global step `step` on, this process's share of the augmented batches.

    A batch is {"codes": int32 [b, S], "label": int32 [b], "index": int32 [b], the image's number in the split}. `batch_size` is
    global; `part`, int [b], says which places in it this process supplies (`sharding.part_of_batch`). The order is drawn anew each epoch, and
    an epoch may end inside a batch.
    Raises ValueError for sizes that do not fit, before anything is read.
    """
    _check_batches(dataset, palette, batch_size)
    if batch_size > len(dataset):
        raise ValueError(f"batch size {batch_size} is more than the {len(dataset)} images of {dataset.config.source} ({dataset.split})")
    if seed < 0 or step < 0:
        raise ValueError(f"seed {seed} and step {step} must not be negative")
    plan = Shuffled(len(dataset), batch_size, seed, part)
    return _augmented_batches(dataset, palette, plan, step)


def evaluation_batches(dataset, palette, batch_size, part=..., start=0, stop=None):
    """Yields images start..stop in order, as evaluation sees them, each exactly once in the global batches.

    A batch is {"codes": int32 [b, S], "label": int32 [b], "weight": float32 [b], 1 an image, 0 padding, "index": int32 [b], the
    image's number in the split}; `part` as in `train_batches`. Every process yields the same number of batches; padding has codes 0,
    label -1 and index 0.
    """
    _check_batches(dataset, palette, batch_size)
    start, stop, _ = slice(start, stop).indices(len(dataset))
    plan = InOrder(start, stop, batch_size, part)
    return _weighted_batches(dataset, palette, plan, range(-(-max(stop - start, 0) // batch_size)))


def labelled(batches, source):
    """The batches, for a loss of classes; ValueError with the image's number where one has no label: of a TFDS set only some labels are read before."""
    for batch in batches:
        bare = (batch["label"] < 0) & (batch.get("weight", 1) > 0)
        if bare.any():
            raise ValueError(f"image {batch['index'][bare][0]} of {source} has no label, which the class head needs")
        yield batch


def prefetch(iterator, put, depth=2):
    """Yields put(batch) for each batch, made by a thread that keeps `depth` of them ready; close() ends the thread and closes the iterator.

    An error of the iterator or of `put` is raised here, after the batches before it.
    """
    if depth < 1:
        raise ValueError(f"depth {depth} must be at least 1")
    iterator, ready, free, stopped = iter(iterator), queue.SimpleQueue(), threading.Semaphore(depth), threading.Event()

    def work():
        try:
            while free.acquire() and not stopped.is_set():
                ready.put((put(next(iterator)), None))
        except BaseException as error:  # StopIteration among them: the end is passed on like an error
            ready.put((None, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            free.release()
            yield batch
    finally:
        stopped.set()
        free.release()
        thread.join()


def shift_and_flip(images_BHW, uniform):
    """CIFAR's augmentation (paper 2.1) of square images or codes [B, H, W, ...]: 4 px of reflection, a random crop, half of them mirrored.

    `uniform` [B, 3] in [0, 1) holds row, column and flip. It only moves pixels: it commutes with encoding, and codes are cheaper to move.
    """
    side = images_BHW.shape[1]
    reflected = np.pad(np.arange(side), PAD, "reflect")
    window = np.arange(side)
    offsets = (uniform[:, :2] * (2 * PAD + 1)).astype(np.int64)
    rows = reflected[offsets[:, :1] + window]
    columns = reflected[offsets[:, 1:] + np.where(uniform[:, 2:] < 0.5, window[::-1], window)]
    return images_BHW[np.arange(len(images_BHW))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _check_batches(dataset, palette, batch_size):
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1")
    dataset.check_palette(palette)


def _augmented_batches(dataset, palette, plan, first):
    steps, side = range(first, sys.maxsize), dataset.config.image_size
    fixed_views = dataset.config.augment != "imagenet"
    for step, (codes, labels) in zip(steps, _coded_batches(dataset, palette, plan, steps, fixed_views), strict=True):
        rows, uniform = plan(step)
        if dataset.config.augment == "cifar":
            codes = shift_and_flip(codes.reshape(len(codes), side, side, -1), uniform).reshape(codes.shape)
        yield {"codes": codes, "label": labels, "index": dataset.numbers(rows).astype(np.int32)}


def _weighted_batches(dataset, palette, plan, steps):
    for step, (codes, labels) in zip(steps, _coded_batches(dataset, palette, plan, steps, fixed_views=True), strict=True):
        real = plan(step)[0] >= 0
        codes, labels, index = np.where(real[:, None], codes, 0), np.where(real, labels, -1), np.where(real, dataset.numbers(plan(step)[0]), 0)
        yield {"codes": codes, "label": labels, "weight": real.astype(np.float32), "index": index.astype(np.int32)}


def _coded_batches(dataset, palette, plan, steps, fixed_views):
    """Chooses the engine: yields (codes int32 [b, S], labels int32 [b]) for each step of the plan."""
    stored = isinstance(dataset.source, images.Arrays | Codes) and fixed_views
    return (_stored_codes if stored else _decoded_codes)(dataset, palette, plan, steps)


def _stored_codes(dataset, palette, plan, steps):
    """The engine of sets whose views are fixed: their codes are at hand."""
    for step in steps:
        rows = plan(step)[0]
        yield dataset.codes(rows, palette), dataset.labels[rows]


def _decoded_codes(dataset, palette, plan, steps):
    """The engine of pictures decoded anew: Grain's threads or processes make whole batches of pixels, encoded here.

    One element is one global step, and to resume is to begin the range later: Grain's own state depends on the number of workers.
    """
    try:
        import grain
    except ImportError as error:
        raise ValueError(f"{dataset.config.source} needs Grain to decode images: pip install grain") from error
    from absl import flags

    in_memory = isinstance(dataset.source, images.Arrays)  # not worth a copy in each worker
    workers = 0 if in_memory else dataset.config.workers
    if workers and not flags.FLAGS.is_parsed():  # Grain reads its flags, which absl refuses outside of absl.app.run
        flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else _threads()
    elements = grain.MapDataset.range(steps.start, steps.stop).map(functools.partial(_decode_batch, dataset, plan))
    pixels = elements.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        pixels = pixels.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    iterator = iter(pixels)
    try:
        for pixels_bHWC, labels, failed in iterator:
            if failed:
                dataset.source.failures.count(failed)
            yield np.asarray(palette.encode(pixels_bHWC), np.int32).reshape(len(labels), -1), labels
    finally:
        iterator.close()


def _decode_batch(dataset, plan, step):
    """Returns (uint8 [b, H, W, 3], labels int32 [b], {row: reason} newly unreadable) of a step; runs in Grain's threads and workers."""
    rows, uniform = plan(step)
    size, failures = dataset.config.image_size, getattr(dataset.source, "failures", None)
    known = len(failures.reasons) if failures else 0
    pixels, labels = np.zeros((len(rows), size, size, 3), np.uint8), np.full(len(rows), -1, np.int32)
    for i, row in enumerate(rows):
        if row >= 0:
            pixels[i], labels[i] = dataset.view(row, None if uniform is None else uniform[i])
    return pixels, labels, dict(list(failures.reasons.items())[known:]) if failures else {}


def _threads():
    return min(16, os.cpu_count() or 1)
