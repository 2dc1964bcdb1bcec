"""Class names and colours: read from a file, checked against the network's outputs, made up."""

from __future__ import annotations

import colorsys
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from engines.errors import ConfigError

Color = tuple[int, int, int]  # RGB, 0..255

_MAX_BYTES = 1_000_000
_EXPECTED = (
    "one class name per line (a colour may follow: #RRGGBB or r,g,b), a JSON list of names, or "
    'JSON {"classes": [...], "palette": [[r, g, b], ...]}'
)
_HEX_COLOR = re.compile(r"(?P<name>.*?)\s*#(?P<hex>[0-9A-Fa-f]{6})")
_RGB_COLOR = re.compile(
    r"(?P<name>(?:.*?[\s,;:])?)(?P<r>[0-9]{1,3})\s*,\s*(?P<g>[0-9]{1,3})\s*,\s*(?P<b>[0-9]{1,3})"
)
# Okabe and Ito's colours without black, told apart with every common kind of colour blindness:
# https://jfly.uni-koeln.de/color/
_OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Steps of hue and lightness that spread points evenly: 1/p and 1/p^2 of the plastic number p, the
# counterpart of the golden ratio in two dimensions. 150 colours differ by 14 levels or more.
_HUE_STEP, _LIGHTNESS_STEP = 0.7548776662466927, 0.5698402909980532


@dataclass(frozen=True)
class ClassList:
    """Names in the order of the network's outputs; `palette` is RGB and as long as `names`."""

    names: tuple[str, ...]
    palette: tuple[Color, ...] | None
    notes: tuple[str, ...] = ()


def classes_from_file(path: Path) -> ClassList:
    """Reads a text or JSON file of class names, with colours or without.

    Text is UTF-8, with or without a byte-order mark; failing that CP949 (Korean), with a note.
    Empty lines and lines that begin with # are skipped. Raises ConfigError for no names, names
    twice, or colours for some of the names only.
    """
    text, notes = _text(path)
    names, palette = (
        _from_json(text, path) if text.lstrip()[:1] in ("[", "{") else _lines(text, path)
    )
    if not names:
        raise _error(path, "which names no class")
    for name in names:
        if not name or not name.isprintable():
            raise _error(path, f"with an empty or unprintable class name {name[:60]!r}")
    twice = _repeated(names)
    if twice:
        raise _error(path, f"where {', '.join(map(repr, twice[:3]))} is named more than once")
    if palette is not None and len(palette) != len(names):
        raise _error(path, f"with {len(names)} names and {len(palette)} colours")
    return ClassList(tuple(names), None if palette is None else tuple(palette), notes)


def palette_for(num_colors: int) -> tuple[Color, ...]:
    """That many distinct RGB colours, always the same: a longer palette begins as a shorter one.

    The first seven are Okabe and Ito's for colour-blind readers, without black. The others have
    evenly spread hue and lightness. Whoever knows that class 0 is the background may want black
    in its place; black is never among them.
    """
    colors = dict.fromkeys(_OKABE_ITO[:num_colors])
    for step in range(1, 4 * num_colors + 1):
        if len(colors) == num_colors:
            break
        lightness = 0.25 + 0.5 * (step * _LIGHTNESS_STEP % 1)
        red, green, blue = colorsys.hls_to_rgb(step * _HUE_STEP % 1, lightness, 0.9)
        colors[round(red * 255), round(green * 255), round(blue * 255)] = None
    return tuple(colors)


def checked_classes(
    names: Sequence[str] | None, palette: Sequence[Color] | None, num_outputs: int
) -> tuple[tuple[str, ...], tuple[Color, ...], tuple[str, ...]]:
    """(names, palette, warnings), the first two as long as the network has outputs.

    Outputs without a name are called "class 6" and so on, with a warning: a network may well have
    more outputs than its training data had classes. A name that comes again gets its number.
    Raises ConfigError for more names than outputs, and for a palette of another length.
    """
    given = list(names or ())
    if len(given) > num_outputs:
        raise ConfigError(
            f"{len(given)} class names for a network with {num_outputs} outputs",
            expected=f"at most {num_outputs} names",
            do="give the class names this checkpoint was trained with",
        )
    if palette is not None and len(palette) != len(given):
        raise ConfigError(
            f"{len(palette)} colours for {len(given)} class names",
            expected="one colour per class name",
            do="correct the palette, or leave it out",
        )
    warnings = _missing_names(len(given), num_outputs)
    twice = _repeated(given)
    if twice:
        warnings.append(f"class names that come again were numbered: {', '.join(twice[:4])}")
    fillers = [f"class {index}" for index in range(len(given), num_outputs)]
    colors = list(palette or ())
    for color in palette_for(num_outputs + len(colors)):
        if len(colors) < num_outputs and color not in colors:
            colors.append(color)
    return _distinct([*given, *fillers]), tuple(colors), tuple(warnings)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The first of several equal names stays as it is, the others get a number behind."""
    made: list[str] = []
    taken = set(names)
    for index, name in enumerate(names):
        numbered = (f"{name} ({number})" for number in count(index))
        made.append(next(n for n in numbered if n not in taken) if name in made else name)
        taken.add(made[-1])
    return tuple(made)


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)


def _missing_names(given: int, num_outputs: int) -> list[str]:
    if given == num_outputs:
        return []
    if not given and num_outputs == 1:
        return ["no class name: the only output is called class 0"]
    if not given:
        return [f"no class names: the {num_outputs} outputs are called class 0, class 1, ..."]
    return [
        f"{given} class names for {num_outputs} outputs: the others are called class {given}, ..."
    ]


def _text(path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _error(path, f"which cannot be read ({error.strerror or error})") from error
    if len(data) > _MAX_BYTES:
        raise _error(path, f"of more than {_MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp949")
    except UnicodeDecodeError as error:
        raise _error(path, "which is neither UTF-8 nor CP949 text") from error
    return text, (f"{path.name} is not UTF-8 and was read as CP949 (Korean)",)


def _from_json(text: str, path: Path) -> tuple[list[str], list[Color] | None]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _error(path, f"which is not valid JSON ({error})") from error
    classes, rows = (record, None) if isinstance(record, list) else _members(record, path)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _error(path, "whose classes are not a list of names")
    if rows is None:
        return classes, None
    if not isinstance(rows, list):
        raise _error(path, "whose palette is not a list of colours")
    return classes, [_color(row, path) for row in rows]


def _members(record: dict[str, object], path: Path) -> tuple[object, object]:
    unknown = sorted(record.keys() - {"classes", "palette"})
    if unknown or "classes" not in record:
        found = ", ".join(map(repr, sorted(record)[:4])) or "nothing"
        raise _error(path, f"a JSON object with {found}")
    return record["classes"], record.get("palette")


def _color(row: object, path: Path) -> Color:
    if isinstance(row, list) and len(row) == 3 and all(type(v) is int for v in row):
        red, green, blue = row
        if all(0 <= v <= 255 for v in row):
            return red, green, blue
    raise _error(path, f"with a colour {str(row)[:40]}, which is not three numbers 0..255")


def _lines(text: str, path: Path) -> tuple[list[str], list[Color] | None]:
    names, colors = list[str](), list[Color]()
    for line in map(str.strip, re.split(r"[\r\n]+", text)):
        hexadecimal, decimal = _HEX_COLOR.fullmatch(line), _RGB_COLOR.fullmatch(line)
        if hexadecimal is not None:
            line = hexadecimal["name"]
            red, green, blue = bytes.fromhex(hexadecimal["hex"])
            colors.append((red, green, blue))
        elif decimal is not None:
            line = decimal["name"]
            colors.append(_color([int(decimal[part]) for part in "rgb"], path))
        elif not line or line.startswith("#"):  # an empty line, a comment
            continue
        names.append(line.strip(" \t,;:"))
    return names, colors or None


def _error(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path.name}, {what}", expected=_EXPECTED, do="correct the file of class names"
    )
