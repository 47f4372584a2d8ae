"""The undocumented torch names used here. A failure says what torch changed and what breaks without it."""

import gc
import inspect
import re

import pytest
import torch
from torch import nn

from tests.helpers import ROOT
from trl_dpo_ext._compat import torch as compat

VERSION = f"torch {torch.__version__}"


def test_fake_tensors_have_sizes_and_no_memory():
    with compat.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = torch.empty(1 << 50)
        converted = mode.from_tensor(torch.ones(3))
    for fake in (made, converted):
        assert isinstance(fake, compat.FakeTensor), (
            f"{VERSION}: FakeTensorMode makes no FakeTensor: no memory estimate."
        )
    assert made.untyped_storage().nbytes() == 4 << 50, f"{VERSION}: fake storages have no size: no memory estimate."
    made.known_value = 1  # the estimate keeps the real tensor of a small fake one in an attribute
    assert made.known_value == 1


def test_a_dispatch_mode_sees_every_operation():
    seen = []

    class Watching(compat.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Watching():
        x + x
        x.add_(1)
    assert seen == [torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor], (
        f"{VERSION}: the estimate misses operations."
    )
    assert [compat.changes_its_input(func) for func in seen] == [False, True], (
        f"{VERSION}: a schema doesn't say whether it writes into its input, so known values would go stale."
    )


def test_a_fake_tensor_is_asked_for_its_device():
    """Most calls of a dispatch mode are such questions; answering them at once halves the time of an estimate."""
    asked = []

    class Watching(compat.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if (device := compat.asked_device(func, args)) is not None:
                asked.append(device)
                return device
            return func(*args, **(kwargs or {}))

    with compat.FakeTensorMode(), Watching():
        x = torch.empty(2, 2, requires_grad=True)
        torch.nn.functional.linear(x, x).sum().backward()
    assert set(asked) == {torch.device("cpu")}, (
        f"{VERSION}: asked_device answers {set(asked)}; without questions it can go."
    )
    assert compat.asked_device(torch.ops.aten.add.Tensor, (x, x)) is None
    assert "__wrapped__" not in vars(Watching.__torch_dispatch__), (
        f"{VERSION}: torch.compile's wrapper is back; the estimate takes longer."
    )


def test_no_dispatch_runs_real_tensors_inside_a_fake_mode():
    real = torch.ones(2)
    with compat.FakeTensorMode(allow_non_fake_inputs=True), compat.no_dispatch():
        out = real + real
    assert not isinstance(out, compat.FakeTensor), (
        f"{VERSION}: no_dispatch no longer switches modes off: no known values."
    )
    assert out.tolist() == [2, 2]


def test_trees():
    assert compat.tree_leaves({"a": [1, 2], "b": 3}) == [1, 2, 3], f"{VERSION}: tree_leaves: no memory estimate."
    assert compat.tree_map_only(int, str, ([1, "x"], {"k": 2.0})) == (["1", "x"], {"k": 2.0}), (
        f"{VERSION}: tree_map_only: no known values, so no memory estimate."
    )


def test_a_storage_key_belongs_to_the_storage():
    x = torch.zeros(6)
    assert compat.storage_key(x) == compat.storage_key(x.view(2, 3)[1]), f"{VERSION}: views would be counted twice."
    assert compat.storage_key(x) != compat.storage_key(torch.zeros(6))


def test_a_storage_lives_as_long_as_its_tensors():
    """The ledger drops a storage when a weak reference to it dies."""
    import weakref

    died = []
    x = torch.zeros(3)
    reference = weakref.ref(x.untyped_storage(), lambda _: died.append(1))
    view = x[1:]
    del x
    gc.collect()
    assert not died, f"{VERSION}: a storage's Python object dies before its tensors; the ledger would count too little."
    del view
    gc.collect()
    assert died, f"{VERSION}: a storage's Python object outlives its tensors; the ledger would count too much."
    assert reference() is None


def test_own_parameters_and_buffers_take_what_setattr_refuses():
    layer = nn.BatchNorm1d(2)
    assert set(compat.own_parameters(layer)) == {"weight", "bias"}, (
        f"{VERSION}: weights can't be replaced by fake ones."
    )
    compat.own_parameters(layer)["weight"] = new = nn.Parameter(torch.zeros(2))
    assert layer.weight is new
    assert "running_mean" in compat.own_buffers(layer)


def test_own_state_has_no_children():
    block = nn.Sequential(nn.Linear(2, 2))
    block.register_buffer("kept", torch.ones(1))
    block.register_buffer("not_kept", torch.ones(1), persistent=False)
    assert set(compat.own_state(block, "x.")) == {"x.kept"}, f"{VERSION}: fingerprints would change or be refused."


@pytest.mark.parametrize("kernel", ["flash_attention", "memory_efficient_attention"])
def test_attention_kernels_run_on_fake_tensors(kernel):
    with compat.FakeTensorMode(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        q = torch.empty(2, 4, 32, 16, dtype=torch.bfloat16)
        if kernel == "flash_attention":
            out = compat.flash_attention(q, q, q, dropout_p=0.0, is_causal=True, scale=None)
        else:
            bias = torch.empty(2, 4, 32, 32, dtype=torch.bfloat16)
            options = {"compute_log_sumexp": True, "dropout_p": 0.0, "is_causal": False, "scale": None}
            out = compat.memory_efficient_attention(q, q, q, bias, **options)
    assert out.shape == q.shape, f"{VERSION}: {kernel} has another signature: no memory estimate for GPUs."


def test_the_memory_estimate_lists_its_private_names():
    """docs/memory.md says which undocumented names of torch the estimate stands on."""
    used = set()
    for path in (ROOT / "trl_dpo_ext" / "memory").glob("*.py"):
        for names in re.findall(r"^from \.\._compat\.torch import (?:\(([^)]*)\)|(.*))$", path.read_text(), re.M):
            used |= set(re.findall(r"\w+", "".join(names)))
    page = (ROOT / "docs" / "memory.md").read_text()
    assert used
    assert not {name for name in used if f"`{name}`" not in page}
    assert used <= {name for name, _ in inspect.getmembers(compat)}
