"""From what a checkpoint file holds to the names and values of one model's state dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engines.errors import CheckpointError
from exporter.pickle_records import LazyTensor, NumpyArray, Placeholder
from exporter.torch_file import TorchFile, damaged, tensor_from_array

# The keys under which training programs store the state dict, the likelier first.
_WRAPPERS = (
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "state_dict_ema",
    "module",
)
_EMA = "ema_state_dict"
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_PARAMETER_ENDINGS = ("weight", "bias")
_SHOWN = 4


@dataclass(frozen=True)
class Unwrapped:
    """`values` is the state dict as it lies in the file, `top` the dictionary around it."""

    values: dict[str, object]
    top: dict[object, object]
    wrappers: tuple[str, ...]
    notes: tuple[str, ...]


def unwrapped_state_dict(root: object, path: Path) -> Unwrapped:
    """Finds the state dict in the object of a checkpoint, under at most two known keys.

    Raises CheckpointError when there is none, naming the keys or the class that is there.
    """
    if type(root) is not dict:
        raise _no_state_dict(path, _described(root))
    inner, wrappers, notes = root, list[str](), list[str]()
    for _ in range(2):
        key = next((key for key in (*_WRAPPERS, _EMA) if _filled(inner.get(key))), None)
        if key is None:
            break
        if key != _EMA and _filled(inner.get(_EMA)):
            notes.append(f"the averaged weights under {_EMA!r} were ignored")
        if key != "state_dict_ema" and _filled(inner.get("state_dict_ema")):
            notes.append("the averaged weights under 'state_dict_ema' were ignored")
        wrappers.append(key)
        inner = inner[key]
    if wrappers:
        notes.insert(0, "state dict found under " + " / ".join(map(repr, wrappers)))
    values = {key: value for key, value in inner.items() if isinstance(key, str)}
    if not any(_is_tensor(value) for value in values.values()):
        whole = next((v for v in values.values() if isinstance(v, Placeholder)), None)
        told = f"keys {_names(map(repr, values))}" if values else "no named entry"
        raise _no_state_dict(path, told + (f" ({whole.name})" if whole is not None else ""))
    if wrappers[-1:] == [_EMA]:
        values.pop("steps", None)
    return Unwrapped(values, root, tuple(wrappers), tuple(notes))


def tensors_from_torch_file(
    file: TorchFile, values: Mapping[str, object]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Reads the tensors of a state dict under cleaned names; what was left out is in the notes.

    Raises CheckpointError for a parameter that is no tensor or that was built by something which
    is not on the allow-list.
    """
    skipped = [name for name, value in values.items() if not _is_tensor(value)]
    out = set(skipped)
    for name in skipped:
        _refuse_missing_parameter(name, values[name], file.path)
    notes = []
    if skipped:
        notes.append(f"left out {len(skipped)} entries that are no tensors: {_names(skipped)}")
    names, more = cleaned_names([name for name in values if name not in out], file.path)
    chosen = {new: values[old] for new, old in names.items()}
    read = file.tensors({name: v for name, v in chosen.items() if isinstance(v, LazyTensor)})
    read |= _tensors_from_arrays(chosen, file)
    return {name: read[name] for name in chosen}, (*notes, *more)


def _tensors_from_arrays(chosen: Mapping[str, object], file: TorchFile) -> dict[str, Tensor]:
    """The values that are numpy arrays. Each array is copied once, however many names it has."""
    arrays = {id(v): v.value for v in chosen.values() if isinstance(v, NumpyArray)}
    numeric = {key: array for key, array in arrays.items() if isinstance(array, np.ndarray)}
    total = sum(array.nbytes for array in numeric.values())
    if total > file.size:
        raise damaged(file.path, f"its arrays would fill {total} bytes, more than the file has")
    copies = {key: tensor_from_array(array) for key, array in numeric.items()}
    return {name: copies[id(value)] for name, value in chosen.items() if id(value) in copies}


def cleaned_names(names: Iterable[str], path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """New name -> name in the file, without wrapper prefixes and without mmcv's EMA copies."""
    cleaned = {name: name for name in names}
    notes = []
    unprintable = next((name for name in cleaned if not name.isprintable() or not name), None)
    if unprintable is not None:
        raise CheckpointError(
            f"{path.name} with a tensor called {unprintable[:60]!r}",
            expected="printable tensor names",
            do="check that the file is not damaged",
        )
    for prefix in (*_PREFIXES, *_PREFIXES):
        if cleaned and all(name.startswith(prefix) for name in cleaned):
            cleaned = {name.removeprefix(prefix): old for name, old in cleaned.items()}
            notes.append(f"prefix {prefix!r} removed from all {len(cleaned)} names")
    flat = {name.replace(".", "_") for name in cleaned}
    copies = [n for n in cleaned if n.startswith("ema_") and n.removeprefix("ema_") in flat]
    for name in copies:
        del cleaned[name]
    if copies:
        notes.append(f"left out {len(copies)} averaged copies (ema_...) of the weights")
    return cleaned, tuple(notes)


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError naming the first tensor with a NaN or an infinity."""
    bad = {name: count for name, tensor in tensors.items() if (count := _not_finite(tensor))}
    if bad:
        first, count = next(iter(bad.items()))
        others = f", and {len(bad) - 1} more tensors like it" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{path.name}, where {first!r} has {count} NaN or infinite values{others}",
            expected="finite weights",
            do="take an earlier checkpoint: this training diverged, or the file is damaged",
        )


def _not_finite(tensor: Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    finite = torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
    return 0 if finite.all() else int((~finite).sum())


def _filled(value: object) -> bool:
    return type(value) is dict and len(value) > 0


def _is_tensor(value: object) -> bool:
    return isinstance(value, LazyTensor) or (
        isinstance(value, NumpyArray) and isinstance(value.value, np.ndarray)
    )


def _refuse_missing_parameter(name: str, value: object, path: Path) -> None:
    refused = isinstance(value, Placeholder) and value.name.startswith("torch")
    if not refused and not name.endswith(_PARAMETER_ENDINGS) and type(value) is not dict:
        return
    what = _described(value)
    if isinstance(value, Placeholder):
        what = f"built by {value.name!r}, which is never run"
    elif isinstance(value, NumpyArray):
        what = "an array of something else than numbers"
    raise CheckpointError(
        f"{path.name}, where {name[:100]!r} is {what}",
        expected="plain tensors",
        do="save {name: tensor.detach().cpu().clone()} of the state dict with torch.save",
    )


def _no_state_dict(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} with no state dict in it, but {what}",
        expected="tensors by name, plain or under " + ", ".join(map(repr, _WRAPPERS)),
        do="save the weights with torch.save(model.state_dict(), FILE)",
    )


def _described(value: object) -> str:
    if isinstance(value, Placeholder):
        return f"a pickled object of {value.name!r}"
    if isinstance(value, LazyTensor | NumpyArray):
        return "a single array"
    return f"a {type(value).__name__}"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(name[:80] for name in names[:_SHOWN]) + more
