r"""Real data: scikit-learn's bundled sets, and loaders for your own IDX, npz and CIFAR-10 files.

Nothing is downloaded and no pickle is read. Every loader takes the same steps in the same order:
choose classes, put the rows in order, take the first ``n_samples`` to train on and the next
``n_held_out`` to test on, centre, scale. Means and scales come from the training rows alone. What was
done is said in one sentence, ``preprocessing``.
"""

from __future__ import annotations

import gzip
import math
import numbers
import operator
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from eosim._checks import Array, choice, float_array, integer

SCALES = ("none", "block", "features", "largest")

# The element types of an IDX file by the third byte of its magic number; all are big-endian
# (LeCun, Cortes & Burges, "The MNIST database", file format).
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# One label byte, then 32 x 32 red, green and blue bytes (Krizhevsky, "The CIFAR-10 dataset", binary
# version).
_CIFAR_RECORD, _CIFAR_CLASSES = 1 + 3 * 32 * 32, 10
# What zipfile and NumPy raise at damaged archives: RuntimeError for flags that say "encrypted" or name
# an unknown compression.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)
_CHUNK = 1 << 24  # bytes read at once, our choice: a wrong header never allocates what it promises


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and targets, ready for a problem, and what was done to them.

    Attributes
    ----------
    inputs : (n, d) array
        Images are flattened row by row, colours plane by plane.
    targets : (n, k) array
        One-hot rows; one column of -1 and +1 for two chosen classes; or the numbers of a regression.
    labels : (n,) array
        The class of every row as the file has it, -1 or +1 for two chosen classes; the first column
        of the targets for a regression.
    preprocessing : str
        What was done, in a sentence.
    held_out : Dataset or None
        The rows to test on, centred and scaled by the numbers of the training rows.
    """

    inputs: Array
    targets: Array
    labels: Array
    preprocessing: str
    held_out: Dataset | None = None


def digits(
    n_samples: int | None = None,
    *,
    classes: Sequence[int] | None = None,
    centre: bool = False,
    scale: str = "none",
    n_held_out: int = 0,
    seed: Any = None,
) -> Dataset:
    """The 1797 optical digits of scikit-learn, 8 x 8 pixels from 0 to 16, ten classes.

    Parameters
    ----------
    n_samples : int, optional
        Rows to train on; all that are not held out if None.
    classes : sequence of int, optional
        Labels to keep. Two labels (a, b) become the targets -1 and +1; three or more are the one-hot
        columns, in the order given. None keeps all.
    centre : bool
        Whether to subtract the mean of every feature.
    scale : str
        What to divide by. "none": 1. "block": the one standard deviation of all entries of the raw
        training block. "features": each feature's own (1 where it is constant). "largest": the
        largest absolute value in the raw training block.
    n_held_out : int
        Rows to test on, the next ones.
    seed : int or Generator, optional
        Permutes the rows first; None keeps the order of the file.

    Returns
    -------
    Dataset

    Raises
    ------
    ImportError
        If scikit-learn is missing.
    TypeError, ValueError
        If an option is wrong, or there are fewer rows than asked for.

    Examples
    --------
    >>> import eosim
    >>> digits = eosim.data.digits(500, centre=True, scale="block")
    >>> digits.inputs.shape, digits.targets.shape
    ((500, 64), (500, 10))
    >>> print(digits.preprocessing)
    scikit-learn's digits: the first 500 of 1797 rows in file order; inputs minus the feature means, over the one standard deviation 6.06491 of all entries of the raw block; targets one-hot, 10 classes.
    """  # noqa: E501
    bunch = _bundled("digits").load_digits()
    options = _Options(n_samples, classes, centre, scale, n_held_out, seed)
    return _prepare("scikit-learn's digits", bunch.data, bunch.target, options)


def breast_cancer(
    n_samples: int | None = None,
    *,
    classes: Sequence[int] | None = None,
    centre: bool = False,
    scale: str = "none",
    n_held_out: int = 0,
    seed: Any = None,
) -> Dataset:
    """The 569 Wisconsin tumours of scikit-learn: 30 features, 0 malignant, 1 benign.

    One-hot unless ``classes=(0, 1)`` asks for -1 and +1. The features differ in size by a factor of
    10^5: ``scale="features"`` is the usual choice. Options as for `digits`.
    """
    bunch = _bundled("breast_cancer").load_breast_cancer()
    options = _Options(n_samples, classes, centre, scale, n_held_out, seed)
    return _prepare("scikit-learn's breast cancer", bunch.data, bunch.target, options)


def diabetes(
    n_samples: int | None = None,
    *,
    centre: bool = False,
    scale: str = "none",
    n_held_out: int = 0,
    seed: Any = None,
) -> Dataset:
    """The 442 patients of scikit-learn: 10 raw features, disease progression from 25 to 346.

    A regression: the targets stay as they are. Options as for `digits`.
    """
    bunch = _bundled("diabetes").load_diabetes(scaled=False)
    options = _Options(n_samples, None, centre, scale, n_held_out, seed)
    return _prepare("scikit-learn's diabetes", bunch.data, bunch.target, options)


def from_idx(
    images: Any,
    labels: Any,
    n_samples: int | None = None,
    *,
    classes: Sequence[int] | None = None,
    centre: bool = False,
    scale: str = "none",
    n_held_out: int = 0,
    seed: Any = None,
) -> Dataset:
    """Your MNIST, Fashion-MNIST or other images in IDX files, plain or gzipped.

    Parameters
    ----------
    images, labels : path
        For example train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz.
    n_samples, classes, centre, scale, n_held_out, seed
        As for `digits`. Without ``classes`` the one-hot columns are the distinct labels of the whole
        file, ascending.

    Raises
    ------
    OSError
        If a file cannot be opened.
    TypeError, ValueError
        If a file is no IDX file, is truncated or too long, the two have different lengths, or an
        option is wrong.
    """
    images, labels = _path("images", images), _path("labels", labels)
    pixels, classification = _idx("images", images), _idx("labels", labels)
    if pixels.ndim < 2:
        raise ValueError(
            f"images must have at least two dimensions, got shape {pixels.shape} in "
            f"{images!r}: is it the file of labels?"
        )
    if classification.ndim != 1 or classification.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be one-dimensional integers, got {classification.dtype} of shape "
            f"{classification.shape} in {labels!r}: is it the file of images?"
        )
    options = _Options(n_samples, classes, centre, scale, n_held_out, seed)
    return _prepare(f"IDX file {os.path.basename(images)}", pixels, classification, options)


def from_npz(
    path: Any,
    n_samples: int | None = None,
    *,
    inputs: str = "x_train",
    targets: str = "y_train",
    classes: Sequence[int] | None = None,
    centre: bool = False,
    scale: str = "none",
    n_held_out: int = 0,
    seed: Any = None,
) -> Dataset:
    """Two arrays of your npz file; the names in Keras' mnist.npz by default.

    Parameters
    ----------
    path : path
    inputs, targets : str
        Names of the arrays: inputs (n, ...), flattened to (n, d), and targets. A one-dimensional
        array of integers holds class labels; any other (n,) or (n, k) array is a regression.
    n_samples, classes, centre, scale, n_held_out, seed
        As for `from_idx`.

    Raises
    ------
    OSError
        If the file cannot be opened.
    TypeError, ValueError
        If it is no npz file, is damaged, has no such arrays or object arrays (they would need
        pickle, which can run code), their lengths differ, or an option is wrong.
    """
    path = _path("path", path)
    where = repr(path)
    arrays = []
    with open(path, "rb") as stream:
        if stream.read(2) != b"PK":
            raise ValueError(
                f"path must be an npz file, which starts with the bytes PK; got {where}"
            )
        stream.seek(0)
        try:
            archive = np.load(stream, allow_pickle=False)
        except _DAMAGED as error:
            raise ValueError(f"path: the npz file {where} is damaged: {error}") from None
        for option, name in (("inputs", inputs), ("targets", targets)):
            if name not in archive.files:
                raise ValueError(
                    f"{option} must name an array of {where}, which has "
                    f"{', '.join(map(repr, archive.files)) or 'none'}; got {name!r}"
                )
            try:
                arrays.append(archive[name])
            except _DAMAGED as error:
                raise ValueError(f"{option}: cannot read {name!r} of {where}: {error}") from None
    for option, array in zip(("inputs", "targets"), arrays, strict=True):
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{option} must be numbers, got {array.dtype} in {where}")
    arrays = [array.astype(np.uint8) if array.dtype == bool else array for array in arrays]
    if arrays[0].ndim < 2:
        raise ValueError(f"inputs must have shape (n, ...), got {arrays[0].shape} in {where}")
    if arrays[1].ndim not in (1, 2):
        raise ValueError(
            f"targets must have shape (n,) or (n, k), got {arrays[1].shape} in {where}"
        )
    options = _Options(n_samples, classes, centre, scale, n_held_out, seed)
    return _prepare(f"npz file {os.path.basename(path)}", arrays[0], arrays[1], options)


def from_cifar10(
    paths: Any,
    n_samples: int | None = None,
    *,
    classes: Sequence[int] | None = None,
    centre: bool = False,
    scale: str = "none",
    n_held_out: int = 0,
    seed: Any = None,
) -> Dataset:
    """Your CIFAR-10 files in the binary version, ten classes.

    Parameters
    ----------
    paths : path or sequence of paths
        data_batch_1.bin and so on, read one after the other.
    n_samples, classes, centre, scale, n_held_out, seed
        As for `digits`.

    Raises
    ------
    OSError
        If a file cannot be opened.
    TypeError, ValueError
        If a file is empty or no whole number of records, a label is above 9, or an option is wrong.
    """
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
        paths = [paths]
    several = [_path("paths", path) for path in paths]
    if not several:
        raise ValueError("paths must name at least one file, got none")
    blocks = []
    for path in several:
        block = np.fromfile(path, dtype=np.uint8)
        if block.size == 0 or block.size % _CIFAR_RECORD:
            raise ValueError(
                f"paths: {path!r} has {block.size} bytes, no positive multiple of the "
                f"{_CIFAR_RECORD} of a record: it is truncated, or not the binary version of CIFAR-10"
            )
        block = block.reshape(-1, _CIFAR_RECORD)
        wrong = np.flatnonzero(block[:, 0] >= _CIFAR_CLASSES)
        if wrong.size:
            raise ValueError(
                f"paths: {path!r} has the label {block[wrong[0], 0]} in record {wrong[0]}; "
                "the labels of CIFAR-10 are 0 to 9"
            )
        blocks.append(block)
    records = np.concatenate(blocks)
    options = _Options(n_samples, classes, centre, scale, n_held_out, seed)
    names = ", ".join(map(os.path.basename, several))
    source = f"CIFAR-10 {'file' if len(several) == 1 else 'files'} {names}"
    return _prepare(source, records[:, 1:], records[:, 0], options, columns=range(_CIFAR_CLASSES))


@dataclass(frozen=True)
class _Options:
    n_samples: int | None
    classes: Sequence[int] | None
    centre: bool
    scale: str
    n_held_out: int
    seed: Any

    def __post_init__(self) -> None:
        if self.n_samples is not None:
            integer("n_samples", self.n_samples, minimum=1)
        integer("n_held_out", self.n_held_out, minimum=0)
        choice("scale", self.scale, SCALES)
        if not isinstance(self.centre, (bool, np.bool_)):
            raise TypeError(f"centre must be True or False, got {self.centre!r}")
        if self.seed is not None and not isinstance(self.seed, np.random.Generator):
            integer("seed", self.seed, minimum=0)


def _prepare(
    source: str,
    raw: Array,
    answers: Array,
    options: _Options,
    columns: Sequence[int] | None = None,
) -> Dataset:
    """The steps that all loaders share; only the chosen rows become float64."""
    if len(raw) != len(answers):
        raise ValueError(
            f"inputs and targets must have one row per sample; {source} has {len(raw)} and "
            f"{len(answers)}"
        )
    raw = raw.reshape(len(raw), math.prod(raw.shape[1:]))
    if raw.size == 0:
        raise ValueError(f"{source} has no entries: shape {raw.shape}")
    labels = _class_labels(source, answers, options.classes, columns)
    rows, kept = np.arange(len(raw)), ""
    if options.classes is not None:
        rows = np.flatnonzero(np.isin(answers, list(options.classes)))
        kept = f" with labels {', '.join(map(str, options.classes))}"
    train, held_out = _split(rows, options)

    block = float_array("inputs", raw[train])
    with np.errstate(over="ignore", invalid="ignore"):
        shift = block.mean(axis=0) if options.centre else 0.0
        unit, words = _unit(block, options.scale)
    if not (np.isfinite(shift).all() and np.isfinite(unit).all()):
        raise ValueError(
            f"inputs must be small enough to average; those of {source} overflow, the largest is "
            f"{np.abs(block).max():.3g}"
        )
    changed = ["minus the feature means"] * options.centre + words

    def part(chosen: Array, title: str, note: str = "", rest: Dataset | None = None) -> Dataset:
        inputs = float_array("inputs", (float_array("inputs", raw[chosen]) - shift) / unit)
        targets, own, coding = _coded(answers[chosen], labels, options.classes)
        done = f"inputs {', '.join(changed) or 'as they are'}{note}; targets {coding}."
        return Dataset(inputs, targets, own, f"{source}: {title}; {done}", rest)

    n, m, total = len(train), len(held_out), len(rows)
    order = "in file order"
    if options.seed is not None:
        shown = (
            options.seed if isinstance(options.seed, numbers.Integral) else "the given generator"
        )
        order = f"permuted by numpy.random.default_rng({shown})"
    rest = None
    if m:
        note = " (means and scales of the training rows)" if changed else ""
        rest = part(held_out, f"the {m} after the first {n} of {total} rows{kept} {order}", note)
    title = f"all {total}" if n == total else f"the first {n} of {total}"
    return part(train, f"{title} rows{kept} {order}", rest=rest)


def _class_labels(
    source: str, answers: Array, classes: Sequence[int] | None, columns: Sequence[int] | None
) -> Array | None:
    """The labels in the order of the one-hot columns; None for a regression."""
    if answers.ndim != 1 or answers.dtype.kind == "f":
        if classes is not None:
            raise ValueError(f"classes must be None for a regression, got {classes!r} for {source}")
        return None
    present = np.unique(answers)
    if present.size and present[-1] > np.iinfo(np.int64).max:
        raise ValueError(f"labels must fit in 64 bits with a sign, got {present[-1]} in {source}")
    present = present.astype(np.int64)
    if classes is not None:
        return _checked_classes(source, classes, present)
    return present if columns is None else np.array(columns)


def _coded(
    answers: Array, labels: Array | None, classes: Sequence[int] | None
) -> tuple[Array, Array, str]:
    """Targets and labels of the chosen rows, and the coding in words."""
    if labels is None:
        targets = float_array("targets", answers).reshape(len(answers), -1)
        return targets, targets[:, 0], "as they are"
    answers = answers.astype(np.int64)
    if classes is not None and len(labels) == 2:
        answers = np.where(answers == labels[1], 1, -1)
        targets, coding = answers[:, None], f"-1 for label {labels[0]} and +1 for label {labels[1]}"
    else:
        targets = np.equal.outer(answers, labels).astype(float)
        coding = f"one-hot, {len(labels)} classes"
    answers.flags.writeable = False
    return float_array("targets", targets), answers, coding


def _checked_classes(source: str, classes: Any, present: Array) -> Array:
    if isinstance(classes, (str, bytes)) or not hasattr(classes, "__getitem__") or len(classes) < 2:
        raise ValueError(f"classes must be at least two labels, e.g. (0, 1); got {classes!r}")
    try:
        labels = [operator.index(label) for label in classes]
    except TypeError:
        raise TypeError(f"classes must be integers, got {classes!r}") from None
    if len(set(labels)) < len(labels):
        raise ValueError(f"classes must be distinct, got {classes!r}")
    missing = [label for label in labels if label not in present]
    if missing:
        shown = ", ".join(map(str, present[:20])) + (", ..." if len(present) > 20 else "")
        raise ValueError(f"classes: {source} has the labels {shown}; got {missing[0]}")
    return np.array(labels)


def _split(rows: Array, options: _Options) -> tuple[Array, Array]:
    if options.seed is not None:
        rows = np.random.default_rng(options.seed).permutation(rows)
    n, m = options.n_samples, options.n_held_out
    if n is None:
        n = len(rows) - m
    if n < 1 or n + m > len(rows):
        raise ValueError(
            f"n_samples + n_held_out must be at most the {len(rows)} rows there are"
            f"{', with one row left to train on' if options.n_samples is None else ''}; got "
            f"n_samples = {options.n_samples}, n_held_out = {m}"
        )
    return rows[:n], rows[n : n + m]


def _unit(block: Array, scale: str) -> tuple[Any, list[str]]:
    """What to divide by, and that in words."""
    if scale == "none":
        return 1.0, []
    if scale == "features":
        # Not std == 0: the rounded mean of equal entries leaves deviations of about 1e-16.
        constant = np.ptp(block, axis=0) == 0
        unit = np.where(constant, 1.0, block.std(axis=0))
        words = "over the standard deviation of every feature"
        n = int(constant.sum())
        return unit, [f"{words} (constant in {n}, which are not divided)" if n else words]
    value = float(block.std() if scale == "block" else np.abs(block).max())
    if value == 0 or (scale == "block" and np.ptp(block) == 0):
        raise ValueError(f"scale={scale!r} divides by 0: all raw inputs are {block[0, 0]:g}")
    if scale == "block":
        return value, [
            f"over the one standard deviation {value:.6g} of all entries of the raw block"
        ]
    return value, [f"over the largest absolute value {value:.6g} of the raw block"]


def _idx(name: str, path: str) -> Array:
    """The array of an IDX file: magic number, lengths as unsigned 32-bit integers, entries."""
    where = repr(path)
    with open(path, "rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        try:
            if zipped:
                with gzip.open(plain) as stream:
                    return _idx_array(name, where, stream)
            return _idx_array(name, where, plain)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{name}: the gzip file {where} is damaged: {error}") from None


def _idx_array(name: str, where: str, stream: IO[bytes] | gzip.GzipFile) -> Array:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\x00\x00" or magic[2] not in _IDX_TYPES or not magic[3]:
        raise ValueError(
            f"{name} must be an IDX file: two zero bytes, a type and a number of dimensions; {where} "
            f"starts with {magic.hex(' ') or 'nothing'}"
        )
    n_dimensions = magic[3]
    lengths = stream.read(4 * n_dimensions)
    if len(lengths) < 4 * n_dimensions:
        raise ValueError(f"{name}: {where} ends inside its header of {n_dimensions} dimensions")
    shape = tuple(int(length) for length in np.frombuffer(lengths, ">u4"))
    dtype = np.dtype(_IDX_TYPES[magic[2]])
    promised = math.prod(shape) * dtype.itemsize
    content = bytearray()
    while len(content) <= promised:  # one byte more than promised shows that there are too many
        chunk = stream.read(min(_CHUNK, promised + 1 - len(content)))
        if not chunk:
            break
        content += chunk
    if len(content) != promised:
        found = "more" if len(content) > promised else f"{len(content)}"
        raise ValueError(
            f"{name}: the header of {where} promises shape {shape}, {promised} bytes; it has {found}"
        )
    return np.frombuffer(bytes(content), dtype).reshape(shape)


def _bundled(name: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError(
            f"eosim.data.{name} needs scikit-learn, which is not installed; "
            'run: pip install "eosim[figures]"'
        ) from None
    return datasets


def _path(name: str, value: Any) -> str:
    try:
        return os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {value!r}") from None
