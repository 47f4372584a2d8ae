import io
import json

import numpy as np
import pytest
from rich.console import Console

from trl_dpo_ext.evaluation import agreement, agreement_table, agreements, wilson
from trl_dpo_ext.evaluation.judge_agreement import cohen_kappa


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [
        ([[20, 5], [10, 15]], 0.4),  # (0.7 - 0.5) / (1 - 0.5)
        ([[45, 15], [25, 15]], 0.1304),  # two tables of equal agreement and different margins
        ([[25, 35], [5, 35]], 0.2593),
        ([[5, 0], [0, 5]], 1.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[25, 25], [25, 25]], 0.0),
        ([[10, 0], [0, 0]], None),
    ],
)
def test_kappa_of_known_tables(counts, kappa):
    assert cohen_kappa(np.array(counts)) == pytest.approx(kappa, abs=5e-5)


def verdicts_of(counts):
    """Verdicts with the given table; categories 0, 0.5, 1."""
    pairs = [(i / 2, j / 2) for i in range(3) for j in range(3) for _ in range(counts[i][j])]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_agreement_of_a_table():
    counts = [[8, 2, 3], [1, 4, 2], [0, 3, 7]]
    found = agreement(*verdicts_of(counts))
    assert (found.rate, found.pairs) == (wilson(19, 30), 30)
    assert (found.decided, found.decided_pairs) == (wilson(15, 18), 18)
    chance = (13 * 9 + 7 * 9 + 10 * 12) / 900
    assert found.kappa.mean == pytest.approx((19 / 30 - chance) / (1 - chance))
    assert found.kappa.low < found.kappa.mean < found.kappa.high
    swapped = agreement(*reversed(verdicts_of(counts)))
    assert swapped.kappa.mean == pytest.approx(found.kappa.mean)


def test_missing_verdicts_are_left_out():
    found = agreement([1, None, 0, 1], [1, 1, None, 0])
    assert (found.pairs, found.rate.mean) == (2, 0.5)
    with pytest.raises(ValueError, match="No pair has a verdict from both"):
        agreement([None, 1], [1, None])
    with pytest.raises(ValueError, match="1 verdicts and 2"):
        agreement([1], [1, 0])


def test_no_kappa_where_both_always_say_the_same():
    found = agreement([0.5, 0.5], [0.5, 0.5])
    assert (found.kappa, found.decided, found.decided_pairs) == (None, None, 0)
    assert json.loads(json.dumps(found.as_dict()))["kappa"] is None


def test_the_intervals_cover():
    generator = np.random.default_rng(0)
    shares = np.array([[0.30, 0.05, 0.10], [0.03, 0.10, 0.02], [0.08, 0.02, 0.30]])
    truth = cohen_kappa(shares)
    rates, kappas = [], []
    for trial in range(300):
        counts = generator.multinomial(150, shares.ravel()).reshape(3, 3)
        found = agreement(*verdicts_of(counts), resamples=300, seed=trial)
        rates.append(found.rate.low <= 0.7 <= found.rate.high)
        kappas.append(found.kappa.low <= truth <= found.kappa.high)
    assert 0.90 <= np.mean(rates) <= 0.97
    assert 0.90 <= np.mean(kappas) <= 0.97


def test_each_two_judges_and_the_table():
    judges = {"annotator_1": [1, 0, 1, 0.5], "[b]": [1, 0, 0, 0.5], "c": [0.5] * 4}
    found = agreements(judges, resamples=50)
    assert list(found) == [("annotator_1", "[b]"), ("annotator_1", "c"), ("[b]", "c")]
    assert found["annotator_1", "[b]"].rate.mean == 0.75
    assert found["annotator_1", "c"].decided is None
    out = io.StringIO()
    Console(file=out, width=160).print(agreement_table(found))
    rows = [line.split("│") for line in out.getvalue().splitlines() if "annotator_1" in line]
    assert [row[2].strip() for row in rows] == ["[b]", "c"]
    assert rows[0][3].strip().startswith("0.750 [")
    assert [cell.strip() for cell in rows[1][5:7]] == ["-", "0"]
