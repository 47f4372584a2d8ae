"""The checks. Each takes a loss and raises an `AssertionError` that names it."""

from __future__ import annotations

import doctest
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..losses import HyperparameterError, LossSpec, get_loss, list_losses
from ..types import PROMPT_FIELDS, MissingInputError, MissingReferenceError, RankedResponses
from .loss_data import LossInput, loss_input, random_rankings


def _call(spec: LossSpec, data: LossInput) -> Tensor:
    return spec.fn(data, **spec.check({}))


def _trainable(data: LossInput) -> dict[str, Tensor]:
    """Return the inputs that receive the policy's gradient."""
    names = (
        ("logps", "token_logps")
        if isinstance(data, RankedResponses)
        else ("chosen_logps", "rejected_logps", "chosen_token_logps", "rejected_token_logps")
    )
    return {name: value for name in names if (value := getattr(data, name)) is not None}


def _with_gradient(spec: LossSpec, data: LossInput) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the value and the gradient of its sum; zeros for an input that isn't read."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in _trainable(data).items()}
    value = _call(spec, data.replace(**leaves))
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(leaves, gradients, strict=True))


def _same(spec: LossSpec, got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        got, expected, rtol=1e-9, atol=1e-12, msg=lambda message: f"{spec.name}: {what}\n{message}"
    )


def _take(data: LossInput, index: Tensor) -> LossInput:
    """Select pairs or prompts."""
    fields = {n: v for n, v in vars(data).items() if isinstance(v, Tensor) and v.dim() > 0}
    return data.replace(**{name: value[index] for name, value in fields.items()})


def check_form(spec: LossSpec) -> None:
    """The loss returns one finite value per pair (or prompt) in the input's dtype, and the policy gets a gradient."""
    for dtype in (torch.float32, torch.float64):
        data = loss_input(spec, random_rankings(dtype=dtype))
        value, gradients = _with_gradient(spec, data)
        kind = "prompt" if spec.listwise else "pair"
        assert value.shape == (len(data),), (
            f"{spec.name}: returns shape {tuple(value.shape)} for {len(data)} {kind}s. Return one value per {kind}; "
            "the trainer takes the mean."
        )
        assert value.dtype == dtype, f"{spec.name}: returns {value.dtype} for {dtype} log-probs."
        assert value.isfinite().all(), f"{spec.name}: not finite on ordinary data: {value.tolist()}."
        assert any(g.count_nonzero() for g in gradients.values()), f"{spec.name}: the policy gets no gradient."
    if spec.statistic is not None:
        values = spec.statistic(data, **spec.check({}))
        assert values.dim() == 1, f"{spec.name}: its statistic has shape {tuple(values.shape)}, expected one dimension."
    if spec.metrics is not None:
        for name, values in spec.metrics(data, **spec.check({})).items():
            assert values.shape == value.shape, f"{spec.name}: its metric {name!r} has shape {tuple(values.shape)}."


def check_gradient(spec: LossSpec) -> None:
    """The gradient is the derivative of the value, by finite differences in float64."""
    # Two responses a prompt: where a response stands in several pairs, values are equal, and sorting has a kink there.
    data = loss_input(spec, random_rankings(seed=1, prompts=4, responses=2 if spec.couples_batch else 3))
    names = list(_trainable(data))

    def value(*tensors: Tensor) -> Tensor:
        return _call(spec, data.replace(**dict(zip(names, tensors, strict=True))))

    leaves = tuple(v.detach().clone().requires_grad_() for v in _trainable(data).values())
    try:
        torch.autograd.gradcheck(value, leaves)
    except RuntimeError as error:
        raise AssertionError(f"{spec.name}: the gradient isn't the derivative of the value.\n{error}") from error


def check_direction(spec: LossSpec) -> None:
    """Raising the log-prob of the best response never raises the loss."""
    # Wide enough margins that a loss that turns round anywhere does so here.
    for seed in range(12):
        responses = random_rankings(seed, prompts=20)
        wide = {name: 2**seed * getattr(responses, name) for name in ("logps", "ref_logps", "token_logps")}
        data = loss_input(spec, responses.replace(**wide))
        _, gradients = _with_gradient(spec, data)
        if isinstance(data, RankedResponses):
            best = data.ranks == 0
            slope = gradients["logps"][best]
            if "token_logps" in gradients:
                slope = slope + gradients["token_logps"][best].sum(dim=1)
        else:
            slope = gradients["chosen_logps"]
            if "chosen_token_logps" in gradients:
                slope = slope + gradients["chosen_token_logps"].sum(dim=1)
        assert (slope <= 1e-12).all(), (
            f"{spec.name}: raising the log-prob of the better response raises the loss (slope {slope.max():.3g}). Is a "
            "sign wrong? If the paper intends this, call check_loss(..., monotone=False)."
        )


def check_order(spec: LossSpec) -> None:
    """The order of prompts, pairs and responses has no influence."""
    responses = random_rankings(seed=2, prompts=4)
    data = loss_input(spec, responses)
    value = _call(spec, data)
    index = torch.arange(len(data)).flip(0)
    turned = _call(spec, _take(data, index))
    if spec.couples_batch:
        # A coupled loss may distribute shared terms among equal pairs in any way; only the sum is fixed.
        _same(spec, turned.sum(), value.sum(), "the order within the batch matters.")
    else:
        _same(spec, turned, value[index], "the order within the batch matters.")
    if spec.listwise:
        columns = torch.tensor([2, 0, 3, 1])
        fields = {n: v for n, v in vars(responses).items() if isinstance(v, Tensor) and v.dim() > 1}
        exchanged = responses.replace(**{n: t[:, columns] for n, t in fields.items() if n not in PROMPT_FIELDS})
        _same(spec, _call(spec, loss_input(spec, exchanged)), value, "the order of a prompt's responses matters.")


def check_shift(spec: LossSpec) -> None:
    """Adding a constant to all log-ratios of a prompt doesn't change a loss that declares f_divergence."""
    if not spec.f_divergence or spec.length_normalized or spec.reference_free:
        return
    responses = random_rankings(seed=3)
    shift = torch.tensor([[0.5], [-3.0], [7.0]], dtype=torch.float64)
    value = _call(spec, loss_input(spec, responses))
    shifted = _call(spec, loss_input(spec, responses.replace(logps=responses.logps + shift)))
    _same(spec, shifted, value, "declares f_divergence, but isn't a function of differences of log-ratios.")


def check_sizes(spec: LossSpec) -> None:
    """In a ragged batch of 2 to 6 responses, each prompt has the loss that it has alone."""
    responses = random_rankings(seed=4, prompts=6, responses=6, ragged=True)
    kept = torch.tensor([2, 3, 4, 5, 6, 2])
    responses = responses.replace(mask=torch.arange(6).expand(6, 6) < kept.unsqueeze(1))
    data = loss_input(spec, responses)
    value, gradients = _with_gradient(spec, data)
    assert value.isfinite().all(), f"{spec.name}: not finite with ragged K: {value.tolist()}."
    if spec.couples_batch:
        return
    for row, count in enumerate(kept.tolist()):
        index = torch.tensor([row])
        fields = {n: v for n, v in vars(responses).items() if isinstance(v, Tensor)}
        alone = responses.replace(
            **{n: tensor[index] if n in PROMPT_FIELDS else tensor[index, :count] for n, tensor in fields.items()}
        )
        means = {"batch_mean": data.batch_mean, "running_mean": data.running_mean}
        got, got_gradients = _with_gradient(spec, loss_input(spec, alone).replace(**means))
        rows = index if isinstance(data, RankedResponses) else torch.where(data.required("prompts") == row)[0]
        what = f"a prompt with {count} of 6 responses differs from the same prompt alone"
        _same(spec, got, value[rows], f"{what}.")
        for name, gradient in got_gradients.items():
            expected = gradients[name][rows]
            expected = expected[:, :count] if spec.listwise else expected
            _same(spec, gradient, expected, f"{what}, in the gradient of {name}.")


def check_mask(spec: LossSpec) -> None:
    """Entries where the mask is False don't influence value or gradient; a fully masked prompt has loss 0."""
    clean = random_rankings(seed=5, prompts=4, ragged=True)
    clean = clean.replace(mask=clean.mask & torch.tensor([[True], [True], [True], [False]]))
    expected, expected_gradients = _masked(spec, clean)
    for garbage in (math.nan, math.inf, -1e30):
        dirty = clean.replace(
            **{
                name: tensor.clone().masked_fill_(~_fit(clean.mask, tensor), garbage)
                for name in ("logps", "ref_logps", "scores", "token_logps", "ref_token_logps")
                if (tensor := getattr(clean, name)) is not None
            },
            labels=None if clean.labels is None else clean.labels.masked_fill(~clean.mask, 0),
            lengths=clean.lengths.masked_fill(~clean.mask, 0),
            ranks=clean.ranks.masked_fill(~clean.mask, -7),
        )
        value, gradients = _masked(spec, dirty)
        _same(spec, value, expected, f"{garbage} in a masked response changes the loss.")
        for name, gradient in gradients.items():
            _same(spec, gradient, expected_gradients[name], f"{garbage} in a masked response reaches a gradient.")
    if spec.listwise:
        assert expected[3] == 0, f"{spec.name}: a fully masked prompt has loss {expected[3].item()}, expected 0."
    for name, gradient in expected_gradients.items():
        hidden = gradient[~_fit(clean.mask, gradient)]
        assert hidden.count_nonzero() == 0, f"{spec.name}: masked responses get a gradient in {name}."
    nothing = clean.replace(mask=torch.zeros_like(clean.mask))
    value, gradients = _masked(spec, nothing)
    assert value.count_nonzero() == 0, f"{spec.name}: a batch without responses has loss {value.tolist()}, expected 0."
    assert all(g.count_nonzero() == 0 for g in gradients.values()), (
        f"{spec.name}: a batch without any response gives a gradient."
    )


def _fit(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.unsqueeze(2).expand_as(tensor) if tensor.dim() == 3 else mask


def _masked(spec: LossSpec, responses: RankedResponses) -> tuple[Tensor, dict[str, Tensor]]:
    """Return value and gradient with respect to the rankings, for a pairwise loss too."""
    names = [n for n in ("logps", "token_logps") if n == "logps" or "token_logps" in spec.needs]
    leaves = {name: getattr(responses, name).detach().clone().requires_grad_() for name in names}
    data = loss_input(spec, responses.replace(**leaves))
    if spec.statistic is not None:  # the mean over no pair at all is not a number
        data = data.replace(batch_mean=torch.tensor(0.3).double(), running_mean=torch.tensor(0.2).double())
    value = _call(spec, data)
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(names, gradients, strict=True))


def check_extremes(spec: LossSpec) -> None:
    """Log-probs and margins of 0 and of +-10,000 give finite values and gradients in float32 and bfloat16."""
    values = torch.tensor([0.0, -1.0, -1e4])
    policy = torch.cartesian_prod(values, values, values, values)  # chosen, rejected, and both under the reference
    for dtype in (torch.float32, torch.bfloat16):
        for length in (1, 100):
            rows = policy.to(dtype)
            responses = RankedResponses(
                logps=rows[:, :2],
                ref_logps=rows[:, 2:],
                lengths=torch.full((len(rows), 2), length),
                ranks=torch.tensor([0, 1]).expand(len(rows), 2),
                mask=torch.ones(len(rows), 2, dtype=torch.bool),
                scores=torch.tensor([1.0, 0.0], dtype=dtype).expand(len(rows), 2),
                labels=torch.tensor([1, -1], dtype=torch.int8).expand(len(rows), 2),
                reference_scores=torch.tensor([0.5], dtype=dtype).expand(len(rows), 1),
                reference_scores_mask=torch.ones(len(rows), 1, dtype=torch.bool),
                prompt_weights=torch.ones(len(rows), dtype=dtype),
                mismatched_logps=rows[:, 1],
                ref_mismatched_logps=rows[:, 2],
                token_logps=(rows[:, :2] / length).unsqueeze(2).expand(-1, -1, length),
                ref_token_logps=(rows[:, 2:] / length).unsqueeze(2).expand(-1, -1, length),
            )
            value, gradients = _with_gradient(spec, loss_input(spec, responses))
            for what, tensor in {"value": value, **{f"gradient of {n}": g for n, g in gradients.items()}}.items():
                broken = (~tensor.isfinite()).reshape(len(rows), -1).any(dim=1)
                assert not broken.any(), (
                    f"{spec.name}: {what} not finite in {dtype} for log-probs {rows[broken][0].tolist()} (chosen, "
                    f"rejected, and both under the reference) of {length} tokens. Use logsigmoid, logsumexp, log1p."
                )


def check_reference(spec: LossSpec) -> None:
    """A reference-free loss ignores the reference; any other raises an error without it."""
    responses = random_rankings(seed=6)
    data = loss_input(spec, responses)
    names = ("ref_logps",) if spec.listwise else ("ref_chosen_logps", "ref_rejected_logps")
    if spec.reference_free:
        nan = torch.full_like(responses.logps if spec.listwise else data.chosen_logps, math.nan)  # type: ignore[union-attr]
        value = _call(spec, data.replace(**dict.fromkeys(names, nan)))
        _same(spec, value, _call(spec, data), "declares reference_free=True, but NaN reference log-probs change it.")
        return
    with suppress(MissingReferenceError):
        _call(spec, data.replace(**dict.fromkeys(names)))
        raise AssertionError(f"{spec.name}: doesn't read the reference. Register it with reference_free=True.")


def check_needs(spec: LossSpec) -> None:
    """Each declared need is read, and raises `MissingInputError` when it is missing."""
    data = loss_input(spec, random_rankings(seed=7))
    prefixes = ("",) if spec.listwise else ("chosen_", "rejected_")
    fields = {
        "scores": [f"{p}scores" for p in prefixes],
        "ties": ["ties"],
        "token_logps": [f"{p}token_logps" for p in prefixes],
        "labels": ["labels"],
        "reference_scores": ["reference_scores"],
        "mismatched": ["mismatched_logps"],
    }
    missing = {need: fields[need] for need in sorted(spec.needs - {"weight"})}  # a weight may be missing
    if spec.statistic is not None:
        missing["statistic"] = ["batch_mean", "running_mean"]
    for need, names in missing.items():
        with suppress(MissingInputError):
            _call(spec, data.replace(**dict.fromkeys(names)))
            raise AssertionError(f"{spec.name}: declares {need!r}, but doesn't read it. Drop the declaration.")


def check_bounds(spec: LossSpec) -> None:
    """Every default is allowed; values outside the bounds, not finite, or of another type raise."""
    spec.check({name: h.default for name, h in spec.hyperparameters.items()})
    for name, hyperparameter in spec.hyperparameters.items():
        wrong: list[Any] = [[], math.nan] if hyperparameter.type is float else [[]]
        for sign, limit in hyperparameter.bounds:
            step = 1 if hyperparameter.type is int else 1e-9
            outside = limit - step if sign in (">", ">=") else limit + step
            wrong += [outside, limit] if sign in (">", "<") else [outside]
            if sign in (">=", "<="):
                spec.check({name: limit})
        for value in wrong:
            with suppress(HyperparameterError):
                spec.check({name: value})
                raise AssertionError(f"{spec.name}: {name}={value!r} is accepted.")


def check_example(spec: LossSpec) -> None:
    """The examples in the docstring, if any, give the stated results."""
    module = inspect.getmodule(spec.fn)
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(spec.fn, spec.name, globs=dict(vars(module or object))):
        runner.run(test, out=report.append)
    assert not runner.failures, f"{spec.name}: the example in its docstring is wrong.\n{''.join(report)}"


CHECKS: tuple[Callable[[LossSpec], None], ...] = (
    check_form,
    check_gradient,
    check_order,
    check_shift,
    check_sizes,
    check_mask,
    check_extremes,
    check_reference,
    check_needs,
    check_bounds,
    check_example,
)


def check_loss(loss: str | Callable[..., Tensor], *, monotone: bool = True) -> None:
    """Check a registered loss: form, gradient, order, masks, extremes, declared needs, bounds and example.

    Args:
        loss: its registered name, or the registered function.
        monotone: require that raising the log-prob of the better response never raises the loss. Set it to False for
            a loss that turns round on purpose (a regression on a target, smoothed labels).

    Raises:
        AssertionError: a check failed; the message names the loss and says what is wrong.
        UnknownNameError: no such loss.
        ValueError: the function isn't registered.

    >>> check_loss("dpo")
    """
    if isinstance(loss, str):
        spec = get_loss(loss)
    else:
        found = [s for s in list_losses() if s.fn is loss]
        if not found:
            raise ValueError(f"{loss!r} is not registered. Put @register_loss(...) on it first.")
        spec = found[0]
    for check in CHECKS:
        check(spec)
    if monotone:
        check_direction(spec)
