"""The values of a configuration written as Python text, worked out without executing it.

Only assignments of the form NAME = EXPRESSION at the left margin are looked at. Expressions may
use literals, dict(...), lists, tuples, names assigned before, + - * / on numbers and + on lists;
everything else has the value UNKNOWN.
"""

from __future__ import annotations

import ast
import io
import operator
import token
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Final


class Unknown(Enum):
    """The value of what this module does not work out."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN

MAX_TEXT = 1_000_000  # characters; a resolved configuration has about 10 000
_MAX_LINE = 20_000  # Python 3.12's tokenizer copies the whole line into every token
_MAX_BRACKETS = 60
_MAX_CHAIN = 300  # tokens between two commas
_MAX_OPEN = 1000  # tokens before the current one that are still open on some level
_MAX_DEPTH = 100
_MAX_ITEMS = 10_000
_MAX_WHOLE = 2**63

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ConfigSyntaxError(Exception):
    """The text is not Python, or is nested deeper than any configuration."""


def values_from_text(text: str) -> dict[str, object]:
    """Name -> value of every assignment at the left margin; the last one of a name counts.

    Values are None, bool, int, float, str, list, tuple, dict with str keys, or UNKNOWN. Raises
    ConfigSyntaxError.
    """
    if len(text) > MAX_TEXT:
        raise ConfigSyntaxError(f"more than {MAX_TEXT} characters")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if max(map(len, text.split("\n"))) > _MAX_LINE:
        raise ConfigSyntaxError(f"a line of more than {_MAX_LINE} characters")
    values: dict[str, object] = {}
    try:
        with warnings.catch_warnings():  # of the parser, about escapes in strings
            warnings.simplefilter("ignore")
            for name, expression in _assignments(text):
                known = expression is not None
                values[name] = _value(_parsed(expression), values, 0) if known else UNKNOWN
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ConfigSyntaxError(str(error)[:200]) from error
    return values


def _parsed(expression: str | None) -> ast.expr:
    return ast.parse((expression or "").strip(), mode="eval").body


def _assignments(text: str) -> Iterator[tuple[str, str | None]]:
    """(name, text of the value); None where the value uses what needs Python to work it out."""
    lines = text.split("\n")
    line: list[tokenize.TokenInfo] = []
    margin = 0
    for item in _tokens(text):
        if item.type == token.INDENT:
            margin += 1
        elif item.type == token.DEDENT:
            margin -= 1
        elif item.type != token.NEWLINE:
            line.append(item)
        else:
            if margin == 0 and len(line) > 2 and line[0].type == token.NAME and line[1][1] == "=":
                plain = not any(map(_needs_python, line))
                yield line[0].string, _between(lines, line[1].end, item.start) if plain else None
            line = []


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """The tokens without comments, after checks that keep the parser's own stack shallow.

    CPython's parser is written in C and recursive: text nested deep enough ends the interpreter
    in some versions, with nothing to catch.
    """
    levels = [0]
    for item in tokenize.generate_tokens(io.StringIO(text).readline):
        if item.type in (token.COMMENT, token.NL, token.ENDMARKER):
            continue
        if item.type == token.ERRORTOKEN and not item.string.isspace():
            raise ConfigSyntaxError(f"line {item.start[0]}: {item.string[:20]!r}")
        if item.type == token.NEWLINE:
            levels = [0]
        elif item.string in (",", "=", ":") and item.type == token.OP:
            levels[-1] = 0
        else:
            levels[-1] += 1
            if item.string in ("(", "[", "{") and item.type == token.OP:
                levels.append(0)
            elif item.string in (")", "]", "}") and item.type == token.OP and len(levels) > 1:
                levels.pop()
        if len(levels) > _MAX_BRACKETS or levels[-1] > _MAX_CHAIN or sum(levels) > _MAX_OPEN:
            raise ConfigSyntaxError(f"line {item.start[0]}: nested too deeply")
        yield item


def _needs_python(item: tokenize.TokenInfo) -> bool:
    """What nests outside of what `_tokens` counts, and statements separated by a semicolon."""
    if item.type == token.NAME:
        return item.string in ("lambda", "await", "yield")
    if item.type == token.STRING:
        return "f" in item.string[: item.string.find(item.string[-1])].lower()
    return item.string == ";" or token.tok_name[item.type] in ("FSTRING_START", "TSTRING_START")


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text from `start` to `end`, both (line from 1, column)."""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    middle = lines[start[0] : end[0] - 1]
    return "\n".join([lines[start[0] - 1][start[1] :], *middle, lines[end[0] - 1][: end[1]]])


def _value(node: ast.expr, names: dict[str, object], depth: int) -> object:
    if depth > _MAX_DEPTH:
        return UNKNOWN
    match node:
        case ast.Constant(value=int() as whole):
            return whole if abs(whole) < _MAX_WHOLE else UNKNOWN
        case ast.Constant(value=None | float() | str() as plain):
            return plain
        case ast.Name():
            return names.get(node.id, UNKNOWN)
        case ast.List():
            return [_value(item, names, depth + 1) for item in node.elts]
        case ast.Tuple():
            return tuple(_value(item, names, depth + 1) for item in node.elts)
        case ast.Dict():
            return _dictionary(list(zip(node.keys, node.values, strict=True)), names, depth)
        case ast.Call(func=ast.Name(id="dict"), args=[] | [_]):
            first = [(None, part) for part in node.args]  # dict({...}, name=...) is dict(**{...})
            rest = [(k.arg and ast.Constant(k.arg), k.value) for k in node.keywords]
            return _dictionary([*first, *rest], names, depth)
        case ast.UnaryOp(op=ast.USub()):
            return _negative(_value(node.operand, names, depth + 1))
        case ast.BinOp():
            left = _value(node.left, names, depth + 1)
            return _combined(type(node.op), left, _value(node.right, names, depth + 1))
    return UNKNOWN


def _dictionary(
    pairs: Sequence[tuple[ast.expr | str | None, ast.expr]], names: dict[str, object], depth: int
) -> object:
    """A key None stands for **value."""
    made: dict[str, object] = {}
    for key_node, value_node in pairs:
        value = _value(value_node, names, depth + 1)
        if isinstance(key_node, ast.expr):
            key = _value(key_node, names, depth + 1)
            if isinstance(key, str):
                made[key] = value
        elif isinstance(value, dict):
            made.update(value)
        else:
            return UNKNOWN
        if len(made) > _MAX_ITEMS:
            return UNKNOWN
    return made


def _negative(value: object) -> object:
    return -value if isinstance(value, int | float) else UNKNOWN


def _combined(kind: type[ast.operator], left: object, right: object) -> object:
    if kind is ast.Add and isinstance(left, list) and isinstance(right, list):
        return [*left, *right] if len(left) + len(right) <= _MAX_ITEMS else UNKNOWN
    if kind is ast.Add and isinstance(left, tuple) and isinstance(right, tuple):
        return (*left, *right) if len(left) + len(right) <= _MAX_ITEMS else UNKNOWN
    work = _ARITHMETIC.get(kind)
    if work is None or not isinstance(left, int | float) or not isinstance(right, int | float):
        return UNKNOWN
    try:
        result = work(left, right)
    except (ZeroDivisionError, OverflowError):
        return UNKNOWN
    return result if isinstance(result, float) or abs(result) < _MAX_WHOLE else UNKNOWN
