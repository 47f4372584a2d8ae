"""Estimates the peak memory of a training step on a card: all layers, CUDA context and allocator included."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from .allocation_ledger import Parts
from .step import Setup, decoder_layers, load_on_meta, run_step

GIB = 2**30
MIB = 2**20

CUDA_CONTEXT = 500 * MIB
"""Assumed: the CUDA context with its kernels, outside torch's allocator. 300 to 600 MiB, depending on the card."""
CUBLAS_WORKSPACE = 40 * MIB
"""Assumed: the workspaces of cuBLAS and cuBLASLt. torch gives them 32 MiB each from Hopper on, 8 MiB before."""
SLACK = 0.05
"""Assumed: what the allocator reserves beyond what is used, as a share of the bytes that each step allocates anew."""
DRIVER = 0.02
"""Share of a card's nominal size that no program gets: a 24 GB card shows about 23.5 GiB."""

CONTEXT_PART, WORKSPACE_PART, SLACK_PART = "CUDA context", "cuBLAS workspace", "allocator slack"
STATIC_PARTS = (
    "weights",
    "4-bit weights",
    "constants of the 4-bit weights",
    "adapters",
    "reference model",
    "optimizer state",
)


@dataclass(frozen=True)
class Estimate:
    """The peak of a training step.

    Attributes:
        parts: bytes of each part at the moment of the peak; they sum to `total`.
        phases: bytes of all tensors at the largest moment of each phase.
        peak_phase: the phase with the peak.
    """

    parts: Parts
    phases: dict[str, int]
    peak_phase: str

    @property
    def total(self) -> int:
        """Bytes that the card must offer."""
        return self.parts.total()

    @property
    def allocated(self) -> int:
        """Bytes that `torch.cuda.max_memory_allocated` should report."""
        return self.total - self.parts[CONTEXT_PART] - self.parts[SLACK_PART]

    @property
    def varying(self) -> int:
        """Bytes of the parts that grow with the micro-batch."""
        return self.total - sum(self.parts[part] for part in (*STATIC_PARTS, CONTEXT_PART, WORKSPACE_PART))


def estimate(setup: Setup, *, all_layers: bool = False) -> Estimate:
    """Estimate the peak memory of a training step without loading anything.

    The step runs on fake tensors with two and with three decoder layers. From there on each phase grows by the same
    bytes per layer. A model whose layers differ runs whole.

    Args:
        setup: the run.
        all_layers: run the whole model, which takes about ten times as long.
    """
    count: int = setup.config.get_text_config().num_hidden_layers
    if all_layers or count <= 3 or not _layers_alike(setup):
        peaks = run_step(setup)
    else:
        two, three = run_step(setup, 2), run_step(setup, 3)
        peaks = {phase: _extrapolated(two[phase], three[phase], count) for phase in three if phase in two}
    phases = {phase: parts.total() for phase, parts in peaks.items()}
    peak_phase = max(phases, key=phases.__getitem__)
    parts = Counter(peaks[peak_phase])
    if setup.device == "cuda":
        changing = sum(size for part, size in parts.items() if part not in STATIC_PARTS)
        parts[CONTEXT_PART] = CUDA_CONTEXT
        parts[WORKSPACE_PART] = CUBLAS_WORKSPACE
        parts[SLACK_PART] = int(SLACK * changing)
    return Estimate(parts, phases, peak_phase)


def usable(card_gib: float) -> int:
    """Return the bytes that a program gets of a card sold with this many GB (2^30 bytes each)."""
    return int(card_gib * GIB * (1 - DRIVER))


def _extrapolated(two: Parts, three: Parts, count: int) -> Parts:
    return Counter({part: two[part] + (three[part] - two[part]) * (count - 2) for part in {*two, *three}})


def _layers_alike(setup: Setup) -> bool:
    """Whether all decoder layers have the same kind of attention, and the first four the same weight shapes."""
    if len(set(getattr(setup.config.get_text_config(), "layer_types", None) or [""])) > 1:
        return False
    with torch.device("meta"):
        layers = decoder_layers(load_on_meta(setup, 4))
    shapes = [[(name, p.shape) for name, p in layer.named_parameters()] for layer in layers]
    return len(layers) == 4 and all(shape == shapes[0] for shape in shapes)
