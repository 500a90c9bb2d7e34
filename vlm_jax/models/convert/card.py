"""A model card: what the next person must know of weights that leave the house."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Kind = Literal["two towers", "image tower", "language model", "vision-language model"]
_KINDS: dict[Kind, tuple[str, str]] = {
    "two towers": ("zero-shot-image-classification", "Image and text towers with a common space, trained with vlm_jax."),
    "image tower": ("image-feature-extraction", "An image tower, written by vlm_jax."),
    "language model": ("text-generation", "A language model, written by vlm_jax."),
    "vision-language model": ("image-text-to-text", "A language model that looks at images through gated cross-attention (Flamingo)."),
}

_LIMITS = (
    "It was trained to match images and texts, and repeats the associations of its data, among them those about people. It is no basis "
    "for decisions about persons, and was not tested for languages, subjects or image types that its data lack."
)


def text(
    name: str,
    *,
    library: str,
    usage: str,
    facts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
    limits: str = _LIMITS,
    kind: Kind = "two towers",
) -> str:
    """The card as Markdown with the header that model hubs read.

    Args:
      library: the name that hubs know, such as "transformers".
      usage: Python that loads the model.
      facts: data, steps, recipe and so on, by what to call them; nested ones become a list.
      results: records of evaluation.json.
      notes: what was decided in the conversion.
    """
    task, about = _KINDS[kind]
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {task}", "---", f"# {name}", ""]
    lines += [about, "", "```python", usage.strip(), "```", ""]
    lines += ["## Training", "", *(f"- {_cell(key)}: {_cell(value)}" for key, value in facts.items()), ""]
    lines += ["## Evaluation", ""]
    if results:
        lines += ["| data | task | metric | value | chance |", "|---|---|---|---|---|"]
        for record in results:
            for metric, value in record["metrics"].items():
                chance = record.get("chance", {}).get(metric)
                cells = (record["dataset"], record["task"], metric, _number(value), _number(chance))
                lines.append(f"| {' | '.join(map(_cell, cells))} |")
    else:
        lines.append("None was recorded with this checkpoint.")
    lines += ["", "## Limits", "", limits, ""]
    if notes:
        lines += ["## Conversion", "", *(f"- {_cell(note)}" for note in notes), ""]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
