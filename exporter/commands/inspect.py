"""`riceseg inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from exporter.commands.options import PATH
from exporter.commands.show import show_facts


@click.command()
@click.argument("target", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def inspect(target: Path, as_json: bool) -> None:
    """Say what a checkpoint, an ONNX file, an engine or a bundle is."""
    from exporter.inspection import facts_about

    facts = facts_about(target)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        show_facts(facts)
