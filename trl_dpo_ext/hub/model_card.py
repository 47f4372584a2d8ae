"""Makes the model card from the files of the run's folder alone, so it can be made again at any time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..record import atomic_file
from ..strict_yaml import dump_yaml
from .hub_metadata import datasets_of, model_index
from .pushed_files import CARD, hub_id
from .run_folder import Run, read_run
from .usage import describe_merge, loading, notes

TEMPLATE = Path(__file__).with_name("card_template.md")
_SAMPLES = 3


def make_card(
    run: Run | str | Path,
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    repo: str | None = None,
    license: Mapping[str, str] | None = None,
) -> str:
    """Return a run's card, Markdown with metadata.

    Args:
        run: the run's folder, or the result of `read_run`.
        base_model: Hub id of the base model; by default the recorded one, unless that is a path.
        base_revision: revision of the base model.
        repo: "owner/name" on the Hub, for the title and the code that loads the model.
        license: the base model's licence as metadata, from `license_of`.

    Raises:
        RunError: the folder holds no run, or a newer version wrote it.
    """
    run = run if isinstance(run, Run) else read_run(run)
    recorded = run.adapter.get("base_model_name_or_path") or run.recipe.get("model_name_or_path")
    recorded = run.merge.get("base_model") or recorded
    if base_model is None and recorded and hub_id(recorded):
        base_model = recorded
    # A local path means nothing to others; its last part usually names the model.
    base_name = base_model or (Path(recorded).name if recorded else "an unknown base model")
    name = repo.split("/")[-1] if repo else run.folder.resolve().name
    if base_model is not None:
        run = run.on(base_model, base_revision)
    result = run.result
    plots = sorted(path.name for path in run.folder.glob("*.png"))
    code = loading(run, base_model or base_name, base_revision, repo or f"OWNER/{name}")
    recipe = dump_yaml(dict(run.recipe)).strip() if run.recipe else None
    quoted = [
        *(loss.get("equation") for loss in _losses(run)),
        *(text for _, text in code),
        result.get("launch"),
        recipe,
    ]
    card = ModelCard.from_template(
        _metadata(run, name, base_model, license or {}),
        template_path=str(TEMPLATE),
        title=name,
        summary=_summary(run, base_name, base_revision),
        equations=[{**loss, "citation": _citation(loss)} for loss in _losses(run)],
        reference=_reference(run),
        loading=code,
        fence=_fence(quoted),
        notes=notes(run),
        evaluation=_evaluation(result.get("evaluation"), run.recipe.get("reward")),
        samples=_samples(result.get("evaluation")),
        facts=_facts(run),
        plots=plots,
        launch=result.get("launch"),
        recipe=recipe,
        versions=", ".join(f"{k} {v}" for k, v in (result.get("versions") or {}).items()),
        merge=_merge(run),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).strip() + "\n"


def write_card(folder: str | Path, **options: Any) -> None:
    """Write the card of a run as its README.md; options as for `make_card`."""
    text = make_card(folder, **options)
    with atomic_file(Path(folder) / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _fence(texts: Sequence[str | None]) -> str:
    """Return a code fence that none of the texts can end."""
    runs = [len(found) for text in texts for found in re.findall("`+", str(text or ""))]
    return "`" * max([3, *(length + 1 for length in runs)])


def _losses(run: Run) -> list[dict[str, Any]]:
    if run.result.get("losses"):
        return [dict(loss) for loss in run.result["losses"]]
    names = run.recipe.get("loss_type") or []
    return [{"name": name, "weight": None} for name in ([names] if isinstance(names, str) else names)]


def _metadata(run: Run, name: str, base_model: str | None, license: Mapping[str, Any]) -> ModelCardData:
    losses = [loss["name"] for loss in _losses(run)]
    kind = ["peft", "lora"] if run.adapter else []
    return ModelCardData(
        base_model=base_model,
        datasets=datasets_of(run) or None,
        library_name="peft" if run.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(["trl", "dpo", *kind, "trl-dpo-ext", "preference-optimization", *losses])),
        model_name=name,
        eval_results=model_index(run),
        **license,
    )


def _summary(run: Run, base: str, revision: str | None) -> str:
    named = f"[{base}](https://huggingface.co/{base})" if "/" in base else f"`{base}`"
    named += f" at revision `{revision}`" if revision else ""
    losses = " + ".join(f"`{loss['name']}`" for loss in _losses(run)) or "an unrecorded loss"
    what = f"A LoRA adapter on {named}" if run.adapter else f"{named}"
    if run.merge:
        return f"{named} with a preference-trained adapter merged into it."
    return f"{what}, trained on preferences with {losses}."


def _citation(loss: Mapping[str, Any]) -> str:
    paper, text = loss.get("paper") or "", " ".join((loss.get("reference") or "").split())
    if not re.fullmatch(r"\d{4}\.\d{4,5}", paper):
        return " ".join(part for part in (paper, text) if part)
    named, link = f"arXiv {paper}", f"[arXiv {paper}](https://arxiv.org/abs/{paper})"
    return text.replace(named, link, 1) if named in text else f"{link}. {text}".strip()


def _reference(run: Run) -> str:
    if run.reference:
        fingerprint = run.reference.get("fingerprint")
        text = str(run.reference["description"])
        weights = f" Fingerprint of its weights: `{fingerprint}`." if fingerprint else ""
        return f"{text[:1].upper()}{text[1:]} (`{run.reference['kind']}`).{weights}"
    return "Not recorded."


def _evaluation(evaluation: Mapping[str, Any] | None, reward: str | None) -> str | None:
    if not evaluation:
        return None
    before, after, difference = evaluation["before"], evaluation["after"], evaluation["difference"]

    def interval(values: Mapping[str, float], sign: str = "") -> str:
        return f"{values['mean']:{sign}.3f} [{values['low']:{sign}.3f}, {values['high']:{sign}.3f}]"

    lines = [
        f"{after['prompts']} held-out prompts, {after['max_new_tokens']} new tokens at temperature "
        f"{after['temperature']:g}, seed {after['seed']}; {100 * difference['level']:g} % bootstrap intervals over "
        f"prompts; the reward is `{reward}`.",
        "",
        "| | before | after | difference |",
        "| --- | --- | --- | --- |",
        f"| mean reward | {interval(before['reward'])} | {interval(after['reward'])} | {interval(difference, '+')} |",
    ]
    if wins := evaluation.get("win_rate"):
        lines.append(f"| win rate against before, ties count half (Wilson interval) | | {interval(wins['rate'])} | |")
    if kl := after.get("kl"):
        lines.append(f"| sequence KL to the reference, nats ± SE | | {kl['mean']:.2f} ± {kl['standard_error']:.2f} | |")
    return "\n".join(lines)


def _samples(evaluation: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if not evaluation:
        return []
    pairs = zip(evaluation["before"]["samples"], evaluation["after"]["samples"], strict=True)
    return [
        {"prompt": _cell(b["prompt"]), "before": _sample(b), "after": _sample(a)} for b, a in list(pairs)[:_SAMPLES]
    ]


def _sample(sample: Mapping[str, Any]) -> str:
    return f"{_cell(sample['completion'])} ({sample['reward']:+.3f})"


def _cell(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _facts(run: Run) -> list[tuple[str, str]]:
    result, metrics = run.result, run.result.get("metrics") or {}
    data, hardware = result.get("data") or {}, result.get("hardware") or {}
    parameters, memory = result.get("parameters") or {}, result.get("peak_memory_gib") or {}
    base = result.get("base") or {}
    gpus = ", ".join(hardware.get("gpus") or [])
    quantization = base.get("quantization") or {}
    bits = "4 bit" if quantization.get("load_in_4bit") else "8 bit" if quantization else "not quantized"
    kind = str(quantization.get("bnb_4bit_quant_type", "")).upper() if quantization.get("load_in_4bit") else ""
    found = [
        ("dataset", run.recipe.get("dataset_name")),
        ("rows", _joined(("training", data.get("train_rows")), ("evaluation", data.get("eval_rows")))),
        ("linter", _findings(data.get("lint"))),
        ("optimizer steps", metrics.get("step")),
        ("tokens seen", f"{metrics['num_tokens']:,.0f}" if metrics.get("num_tokens") else None),
        ("training loss", f"{metrics['train_loss']:.4f}" if "train_loss" in metrics else None),
        ("base model", f"{bits} {kind}".strip() + f", {base.get('dtype')}" if base else None),
        ("parameters", _joined(("trainable", parameters.get("trainable")), ("all", parameters.get("all")))),
        ("hardware", gpus or (f"{hardware.get('processor')}, no GPU" if hardware else None)),
        ("time", _duration(result.get("seconds"))),
        ("peak memory", _joined(("process GiB", memory.get("process")), ("GPU GiB", memory.get("gpu") or None))),
    ]
    return [
        (name, " ".join(str(value).split()).replace("|", "\\|")) for name, value in found if value not in (None, "")
    ]


def _joined(*parts: tuple[str, Any]) -> str:
    return ", ".join(f"{value:,} {name}" if isinstance(value, int | float) else "" for name, value in parts).strip(", ")


def _findings(findings: Any) -> str | None:
    if findings is None:
        return None
    counts: Sequence[tuple[str, Any]] = list(findings.items()) if isinstance(findings, Mapping) else []
    return ", ".join(f"{name}: {count}" for name, count in counts if count) or "no findings"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _merge(run: Run) -> str | None:
    if not run.merge:
        return None
    return describe_merge(dict(run.merge))
