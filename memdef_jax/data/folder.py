"""Image folders: train/<class>/* and test/<class>/*, PNG or JPEG."""

from __future__ import annotations

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from memdef_jax.checks import InputError
from memdef_jax.data.dataset import Dataset, Split, make_dataset
from memdef_jax.data.images import Size, image_size_pair

_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_MODES = ("1", "L", "LA")
_CHUNK = 256  # images handed to a thread at once: one at a time costs more than the decoding


def image_folder(path: str | os.PathLike[str], image_size: Size | None = None) -> Dataset:
    """Load a folder of images into memory.

    Classes are the sorted folder names below train/; images come sorted by name within them. If
    all images are grey there is one channel, else three. Transparency is dropped.

    Args:
      path: holds train/<class>/ and test/<class>/.
      image_size: resize every image (bilinearly) to this; by default all must have one size.

    Raises:
      InputError: when train/ or test/ is missing, a class is empty, or known to test/ alone, a
        file is no readable PNG or JPEG (it is named), or sizes differ and no image_size is given.
    """
    root = pathlib.Path(path).expanduser().resolve()
    size = None if image_size is None else image_size_pair(image_size)
    files = {part: _list(root, part) for part in ("train", "test")}
    classes = sorted({name for name, _ in files["train"]})
    unknown = sorted({name for name, _ in files["test"]} - set(classes))
    if unknown:
        raise InputError(
            f"{root / 'test' / unknown[0]} is a class that {root / 'train'} does not have; "
            f"its classes are {', '.join(classes)}."
        )
    paths = [file for part in ("train", "test") for _, file in files[part]]
    first = None if size else (paths[0], _decode(paths[0], None, None).shape)

    def chunk(start: int) -> np.ndarray:
        images = [_decode(file, size, first) for file in paths[start : start + _CHUNK]]
        if all(image.ndim == 2 for image in images):
            return np.stack(images)[..., None]
        return np.stack([_coloured(image) for image in images])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        chunks = list(pool.map(chunk, range(0, len(paths), _CHUNK)))
    channels = max(part.shape[3] for part in chunks)
    images = np.concatenate([np.broadcast_to(part, (*part.shape[:3], channels)) for part in chunks])
    count = len(files["train"])
    labels = np.array([classes.index(n) for part in files.values() for n, _ in part], np.int32)
    train, test = (Split(images[s], labels[s]) for s in (slice(count), slice(count, None)))
    return make_dataset(f"folder:{root.name}", tuple(classes), train, test, f"image folder {root}")


def _list(root: pathlib.Path, part: str) -> list[tuple[str, str]]:
    """(class, path) of every image of a split, sorted; names that begin with a dot are skipped."""
    folder = root / part
    if not folder.is_dir():
        raise InputError(
            f"{root} has no folder {part}/; an image folder holds train/<class>/ and test/<class>/."
        )
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    if not classes:
        raise InputError(f"{folder} holds no class folder; put images into {part}/<class>/.")
    found = []
    for name in classes:
        files = sorted(e.path for e in os.scandir(folder / name) if e.name[0] != ".")
        if not files:
            raise InputError(f"class folder {folder / name} is empty; add images or remove it.")
        for file in files:
            if not file.lower().endswith(_SUFFIXES):
                raise InputError(f"{file} is neither PNG nor JPEG; convert or remove it.")
            found.append((name, file))
    return found


def _decode(
    path: str, size: tuple[int, int] | None, first: tuple[str, tuple[int, ...]] | None
) -> np.ndarray:
    """One image as uint8 [H, W] if grey, else [H, W, 3].

    Resized to `size` if given; else it must have the size of `first`, a path and a shape.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            picture: Image.Image = opened
            if picture.mode.startswith(("I", "F")):
                raise ValueError("it has 16 bits a channel; 8 are needed")
            mode = "L" if picture.mode in _GREY_MODES else "RGB"
            if picture.mode == mode:
                picture.load()
            else:
                picture = picture.convert(mode)
            if first is not None and (picture.height, picture.width) != first[1][:2]:
                raise InputError(
                    f"images differ in size: {first[0]} is {first[1][1]}x{first[1][0]} and {path} "
                    f"is {picture.width}x{picture.height}; give an image_size, for example 32."
                )
            if size is not None and (picture.height, picture.width) != size:
                picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(picture)
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} is not a readable PNG or JPEG image ({error}); mend or remove it."
        ) from None


def _coloured(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
