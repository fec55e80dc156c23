"""Real data: every format written small here, whole and broken, and read back; scikit-learn's sets."""

import gzip
import struct
import sys

import numpy as np
import pytest

import eosim.data
from eosim.data import from_cifar10, from_idx, from_npz

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (7, 3, 2), dtype=np.uint8)
LABELS = np.array([3, 0, 1, 3, 1, 0, 3], dtype=np.uint8)
RECORDS = np.hstack([[[4], [9], [4]], GENERATOR.integers(0, 256, (3, 3072))]).astype(np.uint8)
KINDS = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx_bytes(array, kind="u1"):
    """The format as it is specified: 0 0, type, number of dimensions, lengths, entries, big-endian."""
    lengths = b"".join(struct.pack(">I", length) for length in array.shape)
    return bytes([0, 0, KINDS[kind], array.ndim]) + lengths + array.astype(kind).tobytes()


@pytest.fixture
def write(tmp_path):
    def writer(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return writer


@pytest.fixture
def images(write):
    return write("images-idx3-ubyte", idx_bytes(IMAGES))


@pytest.fixture
def labels(write):
    return write("labels-idx1-ubyte", idx_bytes(LABELS))


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


# What comes back --------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_idx_files_of_every_type_come_back_as_they_were_written(write, zipped, kind):
    pack = gzip.compress if zipped else bytes
    values = (IMAGES % 100).astype(kind)
    dataset = from_idx(
        write("images", pack(idx_bytes(values, kind))), write("labels", pack(idx_bytes(LABELS)))
    )
    np.testing.assert_array_equal(dataset.inputs, values.reshape(7, 6).astype(float))
    np.testing.assert_array_equal(dataset.labels, LABELS)
    np.testing.assert_array_equal(dataset.targets[:3], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert dataset.inputs.dtype == dataset.targets.dtype == np.float64
    assert dataset.preprocessing == (
        "IDX file images: all 7 rows in file order; inputs as they are; targets one-hot, 3 classes."
    )


def test_npz_arrays_of_integers_are_classes_and_of_numbers_a_regression(tmp_path):
    path = npz(
        tmp_path / "a.npz", x_train=IMAGES, y_train=LABELS, height=LABELS / 2, pair=IMAGES[:, :2, 0]
    )
    classes = from_npz(path)
    np.testing.assert_array_equal(classes.inputs, IMAGES.reshape(7, 6))
    np.testing.assert_array_equal(classes.targets.argmax(axis=1), [2, 0, 1, 2, 1, 0, 2])
    heights = from_npz(path, targets="height")
    np.testing.assert_array_equal(heights.targets, LABELS[:, None] / 2)
    np.testing.assert_array_equal(heights.labels, LABELS / 2)
    np.testing.assert_array_equal(from_npz(path, targets="pair").targets, IMAGES[:, :2, 0])


def test_switches_are_the_numbers_0_and_1(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=np.eye(2) > 0, y_train=np.array([True, False]))
    dataset = from_npz(path)
    np.testing.assert_array_equal(dataset.inputs, np.eye(2))
    np.testing.assert_array_equal(dataset.targets, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(dataset.labels, [1, 0])


def test_cifar_files_are_read_one_after_the_other_with_ten_columns(write):
    one = write("data_batch_1.bin", RECORDS[:2].tobytes())
    two = write("data_batch_2.bin", RECORDS[2:].tobytes())
    dataset = from_cifar10([one, two])
    np.testing.assert_array_equal(dataset.inputs, RECORDS[:, 1:])
    np.testing.assert_array_equal(dataset.labels, [4, 9, 4])
    np.testing.assert_array_equal(dataset.targets, np.eye(10)[[4, 9, 4]])
    np.testing.assert_array_equal(from_cifar10(str(one)).inputs, RECORDS[:2, 1:])
    assert dataset.preprocessing.startswith("CIFAR-10 files data_batch_1.bin, data_batch_2.bin: ")


def test_two_classes_become_minus_one_and_one_in_the_order_given(images, labels):
    dataset = from_idx(images, labels, classes=(3, 1))
    np.testing.assert_array_equal(dataset.inputs, IMAGES[[0, 2, 3, 4, 6]].reshape(5, 6))
    np.testing.assert_array_equal(dataset.targets[:, 0], [-1, 1, -1, 1, -1])
    np.testing.assert_array_equal(dataset.labels, [-1, 1, -1, 1, -1])
    assert "rows with labels 3, 1 in file order" in dataset.preprocessing
    assert dataset.preprocessing.endswith("targets -1 for label 3 and +1 for label 1.")


def test_three_classes_are_one_hot_columns_in_the_order_given(images, labels):
    dataset = from_idx(images, labels, classes=[1, 3, 0], n_samples=3)
    np.testing.assert_array_equal(dataset.targets, [[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(dataset.labels, [3, 0, 1])


# Rows, centre and scale ---------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("scale", eosim.data.SCALES)
def test_held_out_rows_are_treated_with_the_numbers_of_the_training_rows(
    images, labels, centre, scale
):
    dataset = from_idx(images, labels, 4, centre=centre, scale=scale, n_held_out=2)
    raw = IMAGES.reshape(7, 6).astype(float)
    block = raw[:4]
    mean = block.sum(axis=0) / 4
    unit = {
        "none": 1,
        "block": np.sqrt(((block - block.sum() / 24) ** 2).sum() / 24),
        "features": np.sqrt(((block - mean) ** 2).sum(axis=0) / 4),
        "largest": block.max(),
    }[scale]
    for part, rows in ((dataset, slice(0, 4)), (dataset.held_out, slice(4, 6))):
        expected = (raw[rows] - (mean if centre else 0)) / unit
        np.testing.assert_allclose(part.inputs, expected, rtol=1e-14, atol=1e-15)
        np.testing.assert_array_equal(part.labels, LABELS[rows])
        assert part.targets.shape[1] == 3
    assert ("minus the feature means" in dataset.preprocessing) == centre
    assert "the first 4 of 7 rows" in dataset.preprocessing
    assert "the 2 after the first 4 of 7 rows" in dataset.held_out.preprocessing
    borrowed = "(means and scales of the training rows)" in dataset.held_out.preprocessing
    assert borrowed == (centre or scale != "none")


def test_a_seed_permutes_the_rows_and_loses_none(images, labels):
    shuffled = from_idx(images, labels, n_held_out=3, seed=5)
    order = np.random.default_rng(5).permutation(7)
    both = np.vstack([shuffled.inputs, shuffled.held_out.inputs])
    np.testing.assert_array_equal(both, IMAGES.reshape(7, 6)[order])
    assert "permuted by numpy.random.default_rng(5)" in shuffled.preprocessing
    assert len(shuffled.inputs) == 4


def test_a_constant_feature_is_not_divided_by_its_deviation(tmp_path):
    # 0.1 summed seven times rounds: the computed deviation is not exactly 0
    inputs = np.column_stack([np.full(7, 0.1), np.arange(7.0)])
    path = npz(tmp_path / "a.npz", x_train=inputs, y_train=np.arange(7.0))
    dataset = from_npz(path, scale="features", centre=True)
    assert np.abs(dataset.inputs[:, 0]).max() < 1e-16
    assert dataset.inputs[:, 1].std() == pytest.approx(1, abs=1e-15)
    assert "constant in 1, which are not divided" in dataset.preprocessing


def test_what_comes_back_cannot_be_changed_by_accident(images, labels):
    dataset = from_idx(images, labels, n_held_out=1)
    for part in (dataset, dataset.held_out):
        for array in (part.inputs, part.targets, part.labels):
            assert not array.flags.writeable


# Broken files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x08", "starts with 00 00 08"),
        (b"\x80\x04\x95\x00", "must be an IDX file.*starts with 80 04 95 00"),
        (b"\x00\x00\x0a\x03" + bytes(12), "must be an IDX file"),
        (b"\x00\x00\x08\x00", "must be an IDX file"),
        (idx_bytes(IMAGES)[:10], "ends inside its header of 3 dimensions"),
        (idx_bytes(IMAGES)[:-1], r"promises shape \(7, 3, 2\), 42 bytes; it has 41"),
        (idx_bytes(IMAGES) + b"\x00", "42 bytes; it has more"),
        (b"\x00\x00\x0e\x03" + b"\xff" * 12 + b"1234", "it has 4"),  # promises 6e29 bytes
        (gzip.compress(idx_bytes(IMAGES))[:-12], "gzip file .* is damaged"),
        (gzip.compress(idx_bytes(IMAGES))[:20] + bytes(30), "gzip file .* is damaged"),
        (gzip.compress(b"hello"), "must be an IDX file.*68 65 6c 6c"),
        (gzip.compress(idx_bytes(IMAGES)[:-5]), "42 bytes; it has 37"),
        (idx_bytes(IMAGES[:0]), "has no entries"),
        (idx_bytes(IMAGES[:6]), "one row per sample; IDX file images has 6 and 7"),
        (idx_bytes(LABELS), "images must have at least two dimensions, got shape .7,."),
    ],
)
def test_a_broken_idx_file_of_images_is_refused(write, content, words):
    labels = LABELS[:0] if "entries" in words else LABELS
    with pytest.raises(ValueError, match=words):
        from_idx(write("images", content), write("labels", idx_bytes(labels)))


@pytest.mark.parametrize("chunk", [1, 41, 42, 43])
def test_files_are_read_in_chunks_of_any_size(write, labels, chunk, monkeypatch):
    monkeypatch.setattr(eosim.data, "_CHUNK", chunk)
    whole = idx_bytes(IMAGES)
    dataset = from_idx(write("images", whole), labels)
    np.testing.assert_array_equal(dataset.inputs, IMAGES.reshape(7, 6))
    with pytest.raises(ValueError, match="it has more"):
        from_idx(write("long", whole + b"\x00"), labels)


def test_a_wrong_file_of_labels_is_refused(write, images):
    with pytest.raises(ValueError, match=r"labels must be one-dimensional integers.*images\?"):
        from_idx(images, images)
    with pytest.raises(ValueError, match="labels must be one-dimensional integers, got >f4"):
        from_idx(images, write("heights", idx_bytes(LABELS, ">f4")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        from_idx(images, "nowhere")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 bytes, no positive multiple of the 3073"),
        (RECORDS.tobytes()[:-1], "has 9218 bytes.*truncated"),
        (b"\x80\x04" + bytes(5000), "not the binary version"),
        (b"\x05" + bytes(3072) + b"\x0a" + bytes(3072), "the label 10 in record 1"),
    ],
)
def test_a_broken_cifar_file_is_refused(write, content, words):
    with pytest.raises(ValueError, match=words):
        from_cifar10(write("data_batch_1.bin", content))


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (lambda file: from_idx(3, file), "images"),
        (lambda file: from_idx(file, None), "labels"),
        (lambda file: from_npz(3.5), "path"),
        (lambda file: from_cifar10(3), "paths"),
        (lambda file: from_cifar10([3]), "paths"),
    ],
)
def test_what_is_no_path_is_named(images, load, name):
    with pytest.raises(TypeError, match=f"^{name} must be a path, got"):
        load(images)


def test_a_pickle_is_never_loaded(tmp_path, write):
    inputs = np.ones((2, 2))
    path = npz(tmp_path / "a.npz", x_train=inputs, y_train=np.array([{}, []], dtype=object))
    with pytest.raises(ValueError, match=r"targets: cannot read 'y_train'.*allow_pickle=False"):
        from_npz(path)
    with pytest.raises(ValueError, match="must be an npz file, which starts with the bytes PK"):
        from_npz(write("b.npz", b"\x80\x04\x95junk"))


def test_a_broken_npz_file_is_refused(tmp_path, write):
    whole = npz(tmp_path / "a.npz", x_train=np.ones((50, 2)), y_train=np.ones(50)).read_bytes()
    with pytest.raises(ValueError, match="is damaged"):
        from_npz(write("b.npz", whole[: len(whole) // 2]))
    flipped = bytearray(whole)
    flipped[300] ^= 255  # inside the entries of x_train: the checksum notices
    with pytest.raises(ValueError, match=r"inputs: cannot read 'x_train'.*CRC"):
        from_npz(write("c.npz", bytes(flipped)))
    secret = bytearray(whole)
    secret[6] |= 1  # the flag of the first member, and below its copy in the directory
    secret[whole.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ValueError, match=r"cannot read 'x_train'.*encrypted"):
        from_npz(write("secret.npz", bytes(secret)))
    np.save(tmp_path / "d.npy", np.ones(3))
    with pytest.raises(ValueError, match="must be an npz file"):
        from_npz(tmp_path / "d.npy")


@pytest.mark.parametrize(
    ("arrays", "exception", "words"),
    [
        ({"x_train": np.ones((3, 2))}, ValueError, "targets must name an array.*has 'x_train'"),
        ({}, ValueError, "inputs must name an array .* has none"),
        ({"x_train": np.ones((3, 2)), "y_train": np.ones(4)}, ValueError, "has 3 and 4"),
        ({"x_train": np.ones(3), "y_train": np.ones(3)}, ValueError, "inputs must have shape"),
        ({"x_train": np.ones((3, 2)), "y_train": np.ones((3, 2, 1))}, ValueError, "targets must"),
        ({"x_train": np.full((3, 2), "a"), "y_train": np.ones(3)}, TypeError, "must be numbers"),
        ({"x_train": np.ones((3, 2)), "y_train": 1j * np.ones(3)}, TypeError, "must be numbers"),
        ({"x_train": np.array([[1, np.nan]]), "y_train": np.ones(1)}, ValueError, "non-finite"),
        ({"x_train": np.ones((1, 2)), "y_train": np.array([np.inf])}, ValueError, "non-finite"),
        (
            {"x_train": np.ones((2, 2)), "y_train": np.array([1, 2**63], dtype=np.uint64)},
            ValueError,
            "labels must fit in 64 bits with a sign, got 9223372036854775808",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, exception, words):
    with pytest.raises(exception, match=words):
        from_npz(npz(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize(
    ("options", "exception", "words"),
    [
        ({"n_samples": 0}, ValueError, "n_samples must be an integer >= 1, got 0"),
        ({"n_samples": 6, "n_held_out": 2}, ValueError, "at most the 7 rows"),
        ({"n_held_out": 7}, ValueError, "with one row left to train on"),
        ({"n_held_out": -1}, ValueError, "n_held_out must be"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        ({"seed": "a"}, TypeError, "seed must be an integer >= 0, got 'a'"),
        ({"n_samples": 6, "classes": (0, 1)}, ValueError, "at most the 4 rows"),
        ({"scale": "max"}, ValueError, "scale must be one of 'none', 'block'"),
        ({"centre": "yes"}, TypeError, "centre must be True or False"),
        ({"classes": (0, 2)}, ValueError, "has the labels 0, 1, 3; got 2"),
        ({"classes": (0, 0)}, ValueError, "classes must be distinct"),
        ({"classes": (0,)}, ValueError, "at least two labels"),
        ({"classes": 3}, ValueError, "at least two labels"),
        ({"classes": {0, 1}}, ValueError, "at least two labels"),  # a set has no order
        ({"classes": (0, 1.5)}, TypeError, "classes must be integers"),
    ],
)
def test_wrong_options_are_refused(images, labels, options, exception, words):
    with pytest.raises(exception, match=words):
        from_idx(images, labels, **options)


@pytest.mark.parametrize("options", [{"centre": True}, {"scale": "features"}, {"scale": "block"}])
def test_numbers_too_large_to_average_are_refused(tmp_path, options):
    path = npz(tmp_path / "a.npz", x_train=np.array([[1e308], [1.1e308]]), y_train=np.ones(2))
    with pytest.raises(
        ValueError, match=r"inputs must be small enough to average.*a.npz.*1.1e\+308"
    ):
        from_npz(path, **options)


def test_a_generator_permutes_the_rows_as_its_seed_does(images, labels):
    one = from_idx(images, labels, seed=np.random.default_rng(5))
    np.testing.assert_array_equal(one.inputs, from_idx(images, labels, seed=5).inputs)
    assert "permuted by numpy.random.default_rng(the given generator)" in one.preprocessing


def test_a_regression_has_no_classes(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=np.ones((3, 2)), y_train=np.ones(3))
    with pytest.raises(ValueError, match="classes must be None for a regression"):
        from_npz(path, classes=(0, 1))


@pytest.mark.parametrize(("value", "scale"), [(0.1, "block"), (0.0, "largest"), (0.0, "block")])
def test_constant_data_cannot_be_scaled(tmp_path, value, scale):
    path = npz(tmp_path / "a.npz", x_train=np.full((3, 2), value), y_train=np.ones(3))
    with pytest.raises(
        ValueError, match=f"scale='{scale}' divides by 0: all raw inputs are {value:g}"
    ):
        from_npz(path, scale=scale)


# The bundled sets ---------------------------------------------------------------------------------


def test_the_digits_task_is_the_first_500_centred_over_the_raw_deviation():
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    raw = bunch.data[:500]
    dataset = eosim.data.digits(500, centre=True, scale="block")
    np.testing.assert_array_equal(dataset.inputs, (raw - raw.mean(axis=0)) / raw.std())
    np.testing.assert_array_equal(dataset.targets, np.eye(10)[bunch.target[:500]])
    np.testing.assert_array_equal(dataset.labels, bunch.target[:500])


@pytest.mark.parametrize(
    ("name", "inputs", "targets"),
    [
        ("digits", (1797, 64), (1797, 10)),
        ("breast_cancer", (569, 30), (569, 2)),
        ("diabetes", (442, 10), (442, 1)),
    ],
)
def test_the_bundled_sets_load_whole(name, inputs, targets):
    pytest.importorskip("sklearn.datasets")
    dataset = getattr(eosim.data, name)()
    assert dataset.inputs.shape == inputs
    assert dataset.targets.shape == targets
    assert dataset.labels.shape == targets[:1]
    assert dataset.held_out is None


def test_two_tumour_classes_are_signs_and_diabetes_keeps_its_raw_ages():
    pytest.importorskip("sklearn.datasets")
    tumours = eosim.data.breast_cancer(classes=(0, 1))
    assert (tumours.labels == -1).sum() == 212  # malignant
    assert (tumours.labels == 1).sum() == 357  # benign
    diabetes = eosim.data.diabetes()
    assert diabetes.inputs[:, 0].min() == 19
    assert diabetes.targets.max() == 346


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_missing_scikit_learn_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=rf"{name} needs scikit-learn.*eosim\[figures\]"):
        getattr(eosim.data, name)()
