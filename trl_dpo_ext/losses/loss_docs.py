"""The registry as text: rows of facts, docs/losses.md, and the generated blocks of README.md and other pages."""

import re
from collections.abc import Iterable
from pathlib import Path

from .loss_registry import list_losses
from .loss_spec import LossSpec

COLUMNS = ("name", "aliases", "K", "reference", "length-normalised", "reads", "paper", "summary")

_PAGE = """\
# The losses

This page is generated from the registry by `trl-dpo-ext losses --write-docs`. Edit the docstrings, not this file.

`loss_type` takes one or several of these names, or their aliases; TRL's names are among them. `loss_kwargs` sets
hyperparameters. A "pairs" loss works on any number of responses: `pairing` decides which pairs a ranking gives. A
"list" loss reads whole rankings. Other pages: [how to choose a loss](choosing_a_loss.md),
[how to add one](add_a_loss.md).

Notation: log-probs are in nats, summed over the completion's tokens. A log-ratio is policy minus reference.
"""


def row(spec: LossSpec) -> tuple[str, ...]:
    """Return the facts of a loss as text, in the order of `COLUMNS`."""
    return (
        spec.name,
        ", ".join(spec.aliases),
        "list" if spec.listwise else "pairs",
        "no" if spec.reference_free else "yes",
        "yes" if spec.length_normalized else "no",
        ", ".join(reads(spec)),
        spec.paper or "",
        spec.summary,
    )


def reads(spec: LossSpec) -> list[str]:
    """Return what a loss reads beyond log-probs, lengths and ranks: its needs, and "batch" if it couples its pairs."""
    batch = ["batch"] if spec.reads_batch else []
    return sorted(spec.needs) + batch


def requirements(spec: LossSpec) -> list[str]:
    """Return, as sentences, what a loss needs and which options it works with."""
    if spec.single_responses:
        found = ["One or more responses a prompt."]
    else:
        found = ["A ranking of two or more responses." if spec.listwise else "Pairs; any K, through `pairing`."]
    found.append("No reference model." if spec.reference_free else "A reference model, or its cached log-probs.")
    if "scores" in spec.needs:
        found.append("The data's scores.")
    if "labels" in spec.needs:
        found.append("Labels (desirable or not), or with `derive_labels` an order or scores.")
    if "reference_scores" in spec.needs:
        found.append("Scores of samples of the reference (`reference_scores`).")
    if "weight" in spec.needs:
        found.append("The weight of each row (`weight`), where the data have one.")
    if "ties" in spec.needs:
        found.append("Tied responses form pairs too.")
    if "token_logps" in spec.needs:
        found.append("Log-probs per token.")
    if spec.counters_displacement:
        found.append("Counters likelihood displacement: chosen responses that fall along with the rejected ones.")
    if spec.couples_batch:
        found.append("Couples the prompts of an optimizer step, whatever micro-batches and processes it is cut into.")
    if spec.statistic is not None:
        kind = "mean over training" if spec.momentum is None else f"moving average (momentum {spec.momentum:g})"
        found.append(f"A {kind}, which the trainer keeps equal on all processes and saves with checkpoints.")
    if spec.f_divergence:
        found.append("Works with any `f_divergence_type`.")
    for field, name in spec.trl_fields.items():
        found.append(f"TRL's `{field}` sets `{name}`.")
    return found


def arguments(spec: LossSpec) -> dict[str, str]:
    """Return the docstring's Args by argument name, each as one line."""
    found: dict[str, str] = {}
    name = ""
    for line in spec.sections.get("Args", "").splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
        found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def hyperparameters(spec: LossSpec) -> list[tuple[str, str, str, str, str]]:
    """Return name, type, default, bounds and meaning of each hyperparameter, as text."""
    meaning = arguments(spec)
    return [
        (
            name,
            h.type.__name__ + (" or null" if h.optional else ""),
            "null" if h.default is None else str(h.default),
            h.bounds_text,
            meaning.get(name, ""),
        )
        for name, h in spec.hyperparameters.items()
    ]


def markdown_row(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table.

    >>> markdown_row(["|w| > 0", "x"])
    '| \\\\|w\\\\| > 0 | x |'
    """
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    return "\n".join(markdown_row(line) for line in (header, ["---"] * len(header), *rows))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _paper(spec: LossSpec) -> str:
    paper = spec.paper or ""
    is_arxiv = paper.replace(".", "").isdigit()
    return f"[{paper}](https://arxiv.org/abs/{paper})" if is_arxiv else paper


def markdown_table(specs: Iterable[LossSpec]) -> str:
    """Return the table of the docs: one row per loss, each linked to its section."""
    header = [column.capitalize() for column in COLUMNS]
    rows = []
    for spec in specs:
        name, _, *middle, _, summary = row(spec)
        rows.append([f"[`{name}`](#{name})", _quoted(spec.aliases), *middle, _paper(spec), summary])
    return _table(header, rows)


def markdown_page(specs: Iterable[LossSpec]) -> str:
    """Return docs/losses.md: the table, and a section for each loss."""
    specs = list(specs)
    return "\n".join([_PAGE, markdown_table(specs), "", *(_section(spec) for spec in specs)])


def _section(spec: LossSpec) -> str:
    sections = spec.sections
    parts = [f"## {spec.name}", spec.summary]
    if spec.aliases:
        parts.append(f"Also called {_quoted(spec.aliases)}.")
    parts.append(f"```text\n{sections.get('Equation', '')}\n```")
    if rows := hyperparameters(spec):
        cells = [(f"`{name}`", *rest) for name, *rest in rows]
        parts.append(_table(("Hyperparameter", "Type", "Default", "Bounds", "Meaning"), cells))
    parts.append("\n".join(f"- {line}" for line in requirements(spec)))
    for heading in ("Returns", "Reference", "Departures"):
        parts.append(f"**{heading}.** {' '.join(sections.get(heading, '').split())}")
    parts.append("**Relations.**\n\n" + "\n".join(f"- {line}" for line in sections.get("Relations", "").splitlines()))
    parts.append(f"Defined in `{defined_in(spec)}`.\n")
    return "\n\n".join(parts)


def defined_in(spec: LossSpec) -> str:
    """Return the path of the module that defines a loss, relative to the checkout."""
    return "/".join(spec.fn.__module__.split(".")) + ".py"


def readme_table(specs: Iterable[LossSpec]) -> str:
    """Return the README's short table: the names, grouped by what they read, each group with its size."""
    specs = list(specs)
    kinds = [
        ("Pairs, with a reference", [s for s in specs if not s.listwise and not s.reference_free]),
        ("Pairs, no reference", [s for s in specs if not s.listwise and s.reference_free]),
        ("Rankings, with a reference", [s for s in specs if s.listwise and not s.reference_free]),
        ("Rankings, no reference", [s for s in specs if s.listwise and s.reference_free]),
    ]
    rows = [[f"{kind} ({len(found)})", _quoted(spec.name for spec in found)] for kind, found in kinds]
    return _table(("Reads", "Losses"), rows)


def without_advice(text: str, specs: Iterable[LossSpec]) -> str:
    """Return the section of docs/choosing_a_loss.md on the losses that its other sections don't name.

    Args:
        text: the page without this section.
        specs: the losses.
    """
    named = set(re.findall(r"`(\w+)`", text))
    rows = [[f"[`{s.name}`](losses.md#{s.name})", s.summary, _paper(s)] for s in specs if s.name not in named]
    return "## Not compared here yet\n\n" + _table(("loss", "what it does", "paper"), rows) if rows else ""


def split_block(text: str, block: str) -> tuple[str, str]:
    """Return the text before and after the block between `<!-- block:begin -->` and `<!-- block:end -->`.

    Raises:
        ValueError: the text doesn't hold the two markers once each, in this order.
    """
    first, last = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end) or first in rest or last in after:
        raise ValueError(f"The text must hold {first} and, after it, {last}, once each.")
    return before, after


def update_block(text: str, block: str, content: str) -> str:
    """Return a text with the block between `<!-- block:begin -->` and `<!-- block:end -->` replaced.

    Raises:
        ValueError: the text doesn't hold the two markers once each, in this order.
    """
    before, after = split_block(text, block)
    inner = f"\n\n{content}\n\n" if content else "\n"
    return f"{before}<!-- {block}:begin -->{inner}<!-- {block}:end -->{after}"


def built_in() -> list[LossSpec]:
    """Return the losses of this package, without those that plugins and the running program registered."""
    return [spec for spec in list_losses() if spec.fn.__module__.startswith(f"{__package__}.")]


def generated(root: Path) -> dict[Path, str]:
    """Return every file that holds generated text on losses, with the content it should have.

    Args:
        root: the root of a checkout.

    Raises:
        ValueError: a file lacks the markers of its generated block.
    """
    specs = built_in()
    readme, choosing = root / "README.md", root / "docs" / "choosing_a_loss.md"
    advice = choosing.read_text(encoding="utf-8")
    others = without_advice("".join(split_block(advice, "other losses")), specs)
    return {
        root / "docs" / "losses.md": markdown_page(specs),
        readme: update_block(readme.read_text(encoding="utf-8"), "losses", readme_table(specs)),
        choosing: update_block(advice, "other losses", others),
    }


def write_docs(root: Path) -> list[Path]:
    """Regenerate the text on losses in a checkout and return the files that changed.

    Args:
        root: the root of a checkout.
    """
    changed = []
    for path, text in generated(root).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
