"""Tests whether MinorDPO's clip stops the chosen log-probs from falling, and how high each loss's learning rate may be.

    python benchmarks/minor_dpo_study.py --model "$(python recipes/quickstart/model.py)"

Trains dpo, minor_dpo, dpop and bounded_dpo at each learning rate on the same pairs (best and worst of each quickstart
ranking), in the same order and with the same seed, and tracks the log-ratios of held-out pairs. Writes
benchmarks/results/minor_dpo_study.json after every run, skipping runs that it already holds, and docs/minor_dpo.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

from datasets import load_dataset
from matplotlib.figure import Figure
from peft import LoraConfig
from side_by_side import RESULTS, ROOT

from trl_dpo_ext import PreferenceConfig, PreferenceTrainer
from trl_dpo_ext.record import hardware, versions, write_json

RESULT = RESULTS / "minor_dpo_study.json"
PICTURE = ROOT / "docs" / "minor_dpo.png"
COLUMNS = ["completions", "scores"]
LOSSES = ("dpo", "minor_dpo", "dpop", "bounded_dpo")
RATES = (1e-3, 3e-3, 1e-2)
SETTINGS = {"beta": 0.1, "steps": 24, "batch": 4, "eval_every": 6, "eval_prompts": 32, "lora_r": 16, "seed": 0}


def ends(row: dict) -> dict:
    """Keep the best and the worst response of a ranking."""
    order = sorted(range(len(row["scores"])), key=lambda i: -row["scores"][i])
    return {"chosen": row["completions"][order[0]], "rejected": row["completions"][order[-1]]}


def run(model: str, loss: str, rate: float) -> list[dict[str, float]]:
    """Train once; return the metrics of held-out pairs every few steps."""
    data = load_dataset(str(ROOT / "recipes" / "quickstart" / "data"))
    train = data["train"].select(range(SETTINGS["steps"] * SETTINGS["batch"])).map(ends, remove_columns=COLUMNS)
    test = data["test"].select(range(SETTINGS["eval_prompts"])).map(ends, remove_columns=COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PreferenceTrainer(
            model,
            args=PreferenceConfig(
                folder,
                loss_type=loss,
                beta=SETTINGS["beta"],
                learning_rate=rate,
                lr_scheduler_type="constant",
                max_steps=SETTINGS["steps"],
                per_device_train_batch_size=SETTINGS["batch"],
                per_device_eval_batch_size=16,
                eval_strategy="steps",
                eval_steps=SETTINGS["eval_every"],
                eval_on_start=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                max_length=64,
                precompute_ref_log_probs=True,
                seed=SETTINGS["seed"],
            ),
            train_dataset=train,
            eval_dataset=test,
            peft_config=LoraConfig(r=SETTINGS["lora_r"], target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.train()
    names = {
        "logps_chosen": "eval_logps/chosen",
        "logps_rejected": "eval_logps/rejected",
        "accuracy": "eval_rewards/accuracies",
        "loss": "eval_loss",
        "clipped": "eval_minor_dpo/clipped",
    }
    return [
        {"step": entry["step"], **{name: entry[key] for name, key in names.items() if key in entry}}
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    ]


def draw(runs: list[dict]) -> None:
    """Draw the change of held-out log-probs, chosen solid and rejected dashed, with one panel per learning rate."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axis, rate in zip(figure.subplots(1, len(RATES), sharey=True), RATES, strict=True):
        for loss, color in zip(LOSSES, ("C0", "C1", "C2", "C3"), strict=True):
            curve = next((r["curve"] for r in runs if r["loss"] == loss and r["learning_rate"] == rate), None)
            if curve is None:
                continue
            for key, style in (("logps_chosen", "-"), ("logps_rejected", "--")):
                change = [point[key] - curve[0][key] for point in curve]
                axis.plot([p["step"] for p in curve], change, style, color=color, label=loss if style == "-" else None)
        axis.axhline(0, color="gray", lw=0.8)
        axis.set(title=f"learning rate {rate:g}", xlabel="optimizer step", yscale="symlog")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("change of mean log-prob, nats")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle("Held-out pairs: chosen (solid) and rejected (dashed) response")
    figure.savefig(PICTURE, dpi=120)


def table(runs: list[dict]) -> str:
    """Return the last point of each run as a Markdown table."""
    lines = [
        "| learning rate | loss | change of chosen log-prob | change of rejected log-prob | accuracy | held-out loss |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in sorted(runs, key=lambda r: (r["learning_rate"], LOSSES.index(r["loss"]))):
        first, last = r["curve"][0], r["curve"][-1]
        lines.append(
            f"| {r['learning_rate']:g} | {r['loss']} | {last['logps_chosen'] - first['logps_chosen']:+.2f} | "
            f"{last['logps_rejected'] - first['logps_rejected']:+.2f} | {last['accuracy']:.2f} | {last['loss']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the missing runs, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="folder of SmolLM2-135M-Instruct, see recipes/quickstart/model.py"
    )
    model = parser.parse_args().model
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"settings": SETTINGS, "runs": []}
    if record["settings"] != SETTINGS:
        raise SystemExit(f"{RESULT} holds runs with other settings. Move it away to start again.")
    for rate in RATES:
        for loss in LOSSES:
            if any(r["loss"] == loss and r["learning_rate"] == rate for r in record["runs"]):
                continue
            started = time.time()
            curve = run(model, loss, rate)
            seconds = round(time.time() - started)
            record["runs"].append({"loss": loss, "learning_rate": rate, "seconds": seconds, "curve": curve})
            write_json(RESULT, {**record, "versions": versions(), "hardware": hardware()})
    draw(record["runs"])
    print(table(record["runs"]))


if __name__ == "__main__":
    main()
