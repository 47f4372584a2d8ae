"""Seeded damage to files: what a bad disk, a bad copy, another program or an enemy makes of them."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 10**30, 10**400, -0.0, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "x", "0", "nan", "../../etc/passwd", "a" * 5000, "\ud800", "\0", "\n\n# heading\n```", "{{ 7 * 7 }}",
    "<script>", "hf.co/x", [], [[]], [None], [0], {}, {"": {}}, {"a": [1]}, [{}], ["\u202e", "é"],
]  # fmt: skip


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside JSON content."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def change_values(content: Any, draw: random.Random) -> str:
    """Damage the values or keys of JSON content, and return its text."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        found = list(places(content))
        if not found:
            break
        *parents, key = draw.choice(found)
        parent = at(content, tuple(parents))
        action = draw.randrange(7)
        if action == 0:
            del parent[key]
        elif action <= 3:
            parent[key] = copy.deepcopy(draw.choice(STRANGE))
        elif action == 4:  # another value of the same file
            parent[key] = copy.deepcopy(at(content, draw.choice(found)))
        elif action == 5 and isinstance(parent, dict):
            parent[str(key) + draw.choice(["_", " ", "\u0301"])] = parent.pop(key)
        elif action == 6:
            parent[key] = [parent[key]] if draw.random() < 0.5 else {"value": parent[key]}
    return json.dumps(content, ensure_ascii=draw.random() < 0.5, skipkeys=True)


def duplicate_key(text: str, draw: random.Random) -> str:
    keys = list(json.loads(text)) if text.startswith("{") else []
    return f"{{{json.dumps(draw.choice(keys))}: null, {text[1:]}" if keys else text


def write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def tamper_bytes(path: Path, draw: random.Random) -> str:
    """Damage a file's bytes, whatever it holds."""
    contents = path.read_bytes()
    kinds: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "truncated": lambda: contents[: draw.randrange(max(1, len(contents)))],
        "zeroed": lambda: bytes(len(contents)),
        "random bytes": lambda: draw.randbytes(min(len(contents), 4096)),
        "a flipped bit": lambda: _flipped(contents, draw),
        "appended": lambda: contents + draw.randbytes(9),
        "UTF-16": lambda: contents.decode("utf-8", "replace").encode("utf-16"),
        "a byte order mark": lambda: b"\xef\xbb\xbf" + contents,
        "an LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "a web page": lambda: b"<!doctype html><title>404</title>",
        "twice": lambda: contents + contents,
    }
    kind = draw.choice([*kinds, "a folder", "a link to itself", "a dead link", "gone"])
    if kind in kinds:
        path.write_bytes(kinds[kind]())
        return kind
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind != "gone":
        path.symlink_to(path if kind == "a link to itself" else path.with_name("nothing"))
    return kind


def _flipped(contents: bytes, draw: random.Random) -> bytes:
    changed = bytearray(contents)
    for _ in range(draw.choice([1, 3, 20])):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def tamper_json(path: Path, draw: random.Random) -> str:
    """Damage a JSON file: mostly its values, sometimes its text or bytes."""
    text, way = path.read_text(), draw.random()
    if way < 0.75:
        write_text(path, change_values(json.loads(text), draw))
        return "values"
    if way < 0.8:
        write_text(path, duplicate_key(text, draw))
        return "a key twice"
    if way < 0.85:
        deep = draw.choice([50, 200, 5000, 100_000])
        write_text(path, draw.choice(["[" * deep, "[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep]))
        return "deep"
    if way < 0.88:
        write_text(path, json.dumps(draw.choice(STRANGE), skipkeys=True))
        return "another value"
    return tamper_bytes(path, draw)


def tamper_yaml(path: Path, draw: random.Random) -> str:
    """Damage a YAML file."""
    import yaml

    way = draw.random()
    if way < 0.6:  # JSON is YAML, nearly
        write_text(path, change_values(yaml.safe_load(path.read_text()), draw))
        return "values"
    if way < 0.8:
        odd = [
            "a: &a [*a]", "&a {b: *a}", "? [1]\n: 2", "!!python/object/apply:os.system [ls]", "a: 2024-99-99",
            "{1: 2}", "a: !!binary x", "!!set {a}", "a: b: c", "- - - -", "a: .nan", "load_in_4bit: maybe",
            "\n".join(["a0: &a0 [x,x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
            "dtype: torch.load", "load_in_4bit: true\nbnb_4bit_quant_type: x", "9: 010", "a: \"\\ud800\"",
        ]  # fmt: skip
        write_text(path, path.read_text() + "\n" + draw.choice(odd) if draw.random() < 0.5 else draw.choice(odd))
        return "odd YAML"
    return tamper_bytes(path, draw)


def tamper_weights(path: Path, draw: random.Random) -> str:
    """Damage a safetensors file: its tensors, its header, or its bytes."""
    import torch
    from safetensors.torch import load_file, save_file

    way = draw.random()
    if way < 0.5:
        tensors = load_file(path)
        names = draw.sample(sorted(tensors), min(len(tensors), draw.choice([1, 2, 8, len(tensors)])))
        action = draw.randrange(8)
        for name in names:
            tensor = tensors.pop(name)
            if action == 0:
                tensors[f"x.{name}"] = tensor
            elif action == 1:
                tensors[name] = tensor[..., :-1].contiguous()
            elif action == 2:
                tensors[name] = torch.full_like(tensor, draw.choice([float("nan"), float("inf")]))
            elif action == 3:
                tensors[name] = tensor.T.contiguous()
            elif action == 4:
                tensors[name] = tensor.reshape(-1).clone()
            elif action == 5:
                tensors[name.replace("lora_A", "lora_C")] = tensor
            elif action == 6:
                tensors[name] = tensor.to(torch.int64)
        save_file(tensors, path, metadata={"format": draw.choice(["pt", "pt", "tf"])})
        return "tensors"
    if way < 0.65:
        contents = path.read_bytes()
        size = int.from_bytes(contents[:8], "little")
        header = json.loads(contents[8 : 8 + size])
        text = change_values(header, draw).encode("utf-8", "surrogatepass")
        length = draw.choice([len(text), len(text), 2**63 - 1, 0]).to_bytes(8, "little")
        path.write_bytes(length + text + contents[8 + size :])
        return "header"
    return tamper_bytes(path, draw)


def restore(folder: Path, backup: Path) -> None:
    """Put a folder back as it was."""
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
