"""Checks files of weights before anything is made of them: that they are safetensors, whole, and hold numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..record import Record, read_record

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS = b"version https://git-lfs"
Failure = Callable[[str], Exception]


def tensor_shapes(path: Path, error: Failure) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file by name. Reads only the header, which has the file's size.

    Args:
        path: the file.
        error: makes the exception from a message.

    Raises:
        error: there is no such file, it is a Git LFS pointer, or it is damaged, truncated or empty.
    """
    try:
        with path.open("rb") as file:
            pointer = file.read(len(_LFS)) == _LFS
        if pointer:
            raise error(
                f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` in the repository that it came from."
            )
        with safe_open(path, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise error(f"{path}, which holds weights, is missing. Copy or download it again.") from None
    except (OSError, SafetensorError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        raise error(f"{path} is damaged or truncated ({reason}). Copy or download it again.") from None
    if not shapes:
        raise error(f"{path} holds no weights. Copy or download it again.")
    return shapes


class _Index(Record):
    weight_map: dict[str, str]


def weight_files(folder: Path, error: Failure) -> list[Path]:
    """Return the safetensors files of a model's folder: those of the index if it has one, else `model.safetensors`.

    Reads only their headers.

    Raises:
        error: a file is missing or damaged, or lacks a tensor that the index places there.
    """
    index = folder / INDEX
    if not index.is_file():
        tensor_shapes(folder / WEIGHTS, error)
        return [folder / WEIGHTS]
    places = read_record(index, _Index, error, "Copy or download it again.").weight_map
    paths = []
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise error(f"{index}, weight_map: {name!r} is not the name of a file in the same folder.")
        found = tensor_shapes(folder / name, error)
        if lost := next((tensor for tensor, place in places.items() if place == name and tensor not in found), None):
            raise error(f"{folder / name} lacks {lost}, which {INDEX} places there. Copy or download the folder again.")
        paths.append(folder / name)
    if not paths:
        raise error(f"{index}, weight_map names no file. Copy or download it again.")
    return paths


def check_values(path: Path, error: Failure) -> None:
    """Refuse a safetensors file with weights that aren't finite, or with nothing but zeros. Reads all of it.

    Raises:
        error: as `tensor_shapes`; the message names the tensor.
    """
    names = tensor_shapes(path, error)
    anything = False
    with safe_open(path, framework="pt") as opened:
        for name in names:
            tensor = opened.get_tensor(name)
            if tensor.is_floating_point() and tensor.element_size() == 1:
                tensor = tensor.float()  # for float8, torch has no isfinite
            if not torch.isfinite(tensor).all():
                raise error(f"{path}: {name} holds NaN or infinity. Copy or download it again, or train again.")
            anything = anything or bool(tensor.any())
    if not anything:
        raise error(f"{path} holds nothing but zeros. Copy or download it again, or train again.")
