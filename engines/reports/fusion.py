"""One line about what fused in an engine, for a build and for a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Mapping, Optional

if TYPE_CHECKING:
    from engines.trt.engine_header import FusionCounts


def fusion_line(fusion: Mapping[str, Any]) -> Optional[str]:
    """ "8 of 8 attention blocks and 17 of 17 LayerNorms fused, 12 reformat layers (0.41 ms, 6 %)".

    `fusion` is a report's, from anywhere: what does not fit is left out, None if nothing is left.
    """
    known: List[str] = []
    unknown: List[str] = []
    for key, name in (("attention", "attention blocks"), ("layer_norms", "LayerNorms")):
        counts = _mapping(fusion.get(key))
        found, fused = _number(counts.get("found")), _number(counts.get("fused"))
        if found and fused is not None:
            known.append(f"{fused:.0f} of {found:.0f} {name}")
        elif found:
            unknown.append(f"{found:.0f} {name}")
    parts = [f"{' and '.join(known)} fused"] if known else []
    parts += [f"how many of {' and of '.join(unknown)} fused is not told"] if unknown else []
    reformats = _mapping(fusion.get("reformats"))
    count = _number(reformats.get("count"))
    if count is not None:
        spent, percent = _number(reformats.get("time_ms")), _number(reformats.get("percent"))
        figures = "" if spent is None else f" ({spent:.2f} ms"
        figures += "" if not figures else ")" if percent is None else f", {percent:.0f} %)"
        parts.append(f"{count:.0f} reformat layer{'' if count == 1 else 's'}{figures}")
    return ", ".join(parts) or None


def fusion_notes(fusion: Mapping[str, Any]) -> List[str]:
    """The notes of a report's `fusion`."""
    notes = fusion.get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def built_line(counts: Optional[FusionCounts]) -> Optional[str]:
    """ "attention: 6 of 8 blocks fused (8 recognised); LayerNorm: 18 of 30 fused", as built."""
    if counts is None:
        return None
    parts = []
    if counts.attention_blocks:
        total, recognised = counts.attention_blocks, counts.attention_recognised
        if counts.attention_fused is not None:
            text = f"{counts.attention_fused} of {total} blocks fused"
            text += "" if recognised is None else f" ({recognised} recognised)"
        elif recognised is not None:
            text = f"{recognised} of {total} blocks recognised"
        else:
            text = f"{total} blocks, not told how many are fused"
        parts.append(f"attention: {text}")
    if counts.layer_norms:
        fused = counts.layer_norms_fused
        told = "not told how many are fused" if fused is None else f"{fused} fused"
        text = f"{fused} of {counts.layer_norms} fused"
        parts.append(f"LayerNorm: {f'{counts.layer_norms}, {told}' if fused is None else text}")
    return "; ".join(parts) or None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> Optional[float]:
    return float(value) if type(value) in (int, float) else None
