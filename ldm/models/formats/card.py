"""A model card: the README.md of a page on the hub."""

from collections.abc import Iterator, Mapping


def model_card(name: str, facts: Mapping[str, str], repo: str = "OWNER/NAME", figures: str = "") -> str:
    """Markdown with the hub's header of YAML.

    facts: what is known of the weights (step, seed, edge_options, base_model, licence). figures: of an evaluation.
    """
    return "\n".join([*_yaml(facts), *_about(name, facts, repo), *([figures] if figures else [])]) + "\n"


def _yaml(facts: Mapping[str, str]) -> Iterator[str]:
    licence, _, name = facts.get("licence", "").partition(": ")
    yield "---"
    if licence:
        yield f"license: {licence}"
    if name:
        yield f"license_name: {name!r}"
    base = facts.get("base_model", "")
    if base.startswith("hf://"):
        yield f"base_model: {'/'.join(base.removeprefix('hf://').partition('@')[0].split('/')[:2])}"
    yield from (
        "library_name: stablesr-edge",
        "pipeline_tag: image-to-image",
        "tags: [super-resolution, stablesr]",
        "---",
    )


def _about(name: str, facts: Mapping[str, str], repo: str) -> Iterator[str]:
    yield from (f"# {name}", "", "A StableSR model for image super-resolution, trained with StableSR-Edge.", "")
    yield from ("```python", "from ldm.inference import Upscaler", "")
    yield from (f'large = Upscaler.from_pretrained("{repo}")(small)', "```", "")
    if facts:
        yield from ("| | |", "|---|---|", *(f"| {key} | {cell(value)} |" for key, value in facts.items()), "")


def cell(value: str) -> str:
    """Text as a table's cell."""
    return value.replace("|", r"\|").replace("\n", " ")
