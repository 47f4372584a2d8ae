"""Where each loss stands: rewards within KL budgets over seeds, and differences to a baseline, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.stats import Interval
from ..evaluation.student_t import benjamini_hochberg, t_interval, t_test
from ..losses import get_loss
from .plan import SEEDS, Trial, picked_setting, readable_kinds
from .trial import BUDGETS

MAIN_BUDGET = 4.0  # nats, of the verdict
BASELINES = {"thumbs": "kto"}  # dpo reads no labels


@dataclass(frozen=True)
class Standing:
    """A loss on one kind of data, with the setting that was chosen for it.

    Attributes:
        loss: registered name.
        kind: of data.
        setting: as text.
        rewards: budget in nats -> mean over seeds with its t interval.
        baseline: the loss it is compared with.
        differences: budget -> reward minus the baseline's, paired by seed. Empty for the baseline, or if it is missing.
        clear: budgets whose difference is not 0 by Benjamini-Hochberg at 5 %, over all losses and budgets of the kind.
        length, distinct_bigrams, kl: of samples after the last step, means over seeds.
        chosen_shift: change of the better responses' log-prob, nats, mean over seeds.
        label_reward, reward: after the last step: by what labels were made from, and by what counts.
        trials: the trials of the seeds, in the order of `SEEDS`.
    """

    loss: str
    kind: str
    setting: str
    rewards: Mapping[float, Interval]
    baseline: str
    differences: Mapping[float, Interval]
    clear: frozenset[float]
    length: float
    distinct_bigrams: float
    kl: float
    chosen_shift: float
    label_reward: float
    reward: float
    trials: Sequence[Mapping[str, Any]]

    def verdict(self, budget: float = MAIN_BUDGET) -> str:
        """Return "better", "worse", "can't be told apart" or, for the baseline, ""."""
        if budget not in self.differences:
            return ""
        if budget not in self.clear:
            return "can't be told apart"
        return "better" if self.differences[budget].mean > 0 else "worse"


def standings(
    losses: Sequence[str], kinds: Sequence[str], reward: str, records: Mapping[str, dict[str, Any]]
) -> list[Standing]:
    """Return the losses whose trials are all known and finite, kind by kind, best first at the main budget.

    Args:
        losses: registered names.
        kinds: of data.
        reward: name of the truth.
        records: all known trials by key.
    """
    found: list[Standing] = []
    for kind in kinds:
        measured = {loss: rows for loss in losses if (rows := _measured(loss, kind, reward, records)) is not None}
        baseline = BASELINES.get(kind, "dpo")
        differences = {
            (loss, budget): [a["within"][f"{budget:g}"] - b["within"][f"{budget:g}"] for a, b in pairs]
            for loss, rows in measured.items()
            if baseline in measured and loss != baseline
            for pairs in [list(zip(rows, measured[baseline], strict=True))]
            for budget in BUDGETS
        }
        clear = benjamini_hochberg([t_test(values) for values in differences.values()]) if differences else []
        by_key = dict(zip(differences, clear, strict=True))
        of_kind = [_standing(loss, kind, rows, baseline, differences, by_key) for loss, rows in measured.items()]
        found += sorted(of_kind, key=lambda one: -one.rewards[MAIN_BUDGET].mean)
    return found


def _measured(loss: str, kind: str, reward: str, records: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]] | None:
    if kind not in readable_kinds(get_loss(loss), [kind]):
        return None
    setting = picked_setting(loss, kind, reward, dict(records))
    if setting is None:
        return None
    rows = [records.get(Trial(loss, kind, reward, setting, seed, "measure").key) for seed in SEEDS]
    found = [row for row in rows if row is not None and not row["diverged"]]
    return found if len(found) == len(SEEDS) else None


def _standing(
    loss: str,
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    baseline: str,
    differences: Mapping[tuple[str, float], Sequence[float]],
    clear: Mapping[tuple[str, float], bool],
) -> Standing:
    def mean(of: Any) -> float:
        return float(sum(map(of, rows)) / len(rows))

    last = {name: mean(lambda row, name=name: row["points"][-1][name]) for name in rows[0]["points"][-1]}
    return Standing(
        loss=loss,
        kind=kind,
        setting=str(rows[0]["tried"]),
        rewards={budget: t_interval([row["within"][f"{budget:g}"] for row in rows]) for budget in BUDGETS},
        baseline=baseline,
        differences={
            budget: t_interval(differences[loss, budget]) for budget in BUDGETS if (loss, budget) in differences
        },
        clear=frozenset(budget for budget in BUDGETS if clear.get((loss, budget))),
        length=last["length"],
        distinct_bigrams=last["distinct_bigrams"],
        kl=last["kl"],
        chosen_shift=mean(lambda row: row["chosen_shift"]),
        label_reward=last["label_reward"],
        reward=last["reward"],
        trials=rows,
    )


def verdicts(found: Sequence[Standing], losses: Sequence[str], budget: float = MAIN_BUDGET) -> list[str]:
    """Return a sentence for each loss that was compared, for example "simpo: at 4 nats worse than dpo on pairs; ...".

    Args:
        found: from `standings`.
        losses: those to speak of.
        budget: nats.
    """
    sentences = []
    for loss in losses:
        own = [one for one in found if one.loss == loss and one.differences]
        if not own:
            continue
        parts = []
        for word in ("better", "worse", "can't be told apart"):
            kinds = [one.kind for one in own if one.verdict(budget) == word]
            if kinds:
                than = " from" if word.startswith("can't") else " than"
                baselines = " or ".join(sorted({one.baseline for one in own if one.kind in kinds}))
                parts.append(
                    f"{word}{than} {baselines} in {len(kinds)} of {len(own)} kinds of data ({', '.join(kinds)})"
                )
        sentences.append(f"{loss}: at {budget:g} nats {'; '.join(parts)}.")
    return sentences
