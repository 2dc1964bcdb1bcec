"""A checkpoint file or folder -> tensors and what was stored beside them. Runs no pickle code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engines.errors import CheckpointError
from engines.images import sha256_of_file
from exporter.architectures.augreg import is_augreg, tensors_from_augreg
from exporter.file_kind import EXPECTED, file_kind
from exporter.npz_file import arrays_from_npz
from exporter.pickle_records import NumpyArray, Placeholder
from exporter.qat.trained_scales import TrainedScales, without_quantizers
from exporter.state_dict import (
    check_finite,
    cleaned_names,
    tensors_from_torch_file,
    unwrapped_state_dict,
)
from exporter.torch_file import damaged, tensor_from_array, torch_file_from_path

MAX_TEXT = 4 * 2**20  # a training configuration has about 10 000 characters
_HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# mmengine and mmcv
_CLASS_KEYS = (("classes", "palette"), ("CLASSES", "PALETTE"))
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".pkl")
_SHARD = re.compile(r".*-[0-9]{5}-of-[0-9]{5}\.(safetensors|bin)")

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one model.

    `tensors` have the file's dtypes and finite values; names are without wrapper prefixes.
    Tensors that share a storage in the file may share memory. `source` says which program wrote
    the file, as far as that can be told. `classes` are the names stored with the weights: their
    number may differ from the number of outputs. `palette` is RGB and as long as `classes`.
    `config_text` is the training configuration as text and must not be executed. `notes` say
    what was unwrapped, ignored or left out. `path` is the file that holds the tensors, `sha256`
    its hash. `trained_scales` are those of quantization-aware training, None without it.
    """

    tensors: dict[str, Tensor]
    source: str
    classes: tuple[str, ...] | None
    palette: tuple[Color, ...] | None
    config_text: str | None
    hf_config: dict[str, Any] | None
    hf_preprocessor: dict[str, Any] | None
    notes: tuple[str, ...]
    sha256: str
    path: Path
    trained_scales: TrainedScales | None = None


def state_dict_from_checkpoint(path: Path) -> Checkpoint:
    """Reads a file of torch.save (zip or legacy), .safetensors, .npz, a pickle of arrays as
    detectron2 writes it, or a Hugging Face folder.

    Raises CheckpointError for everything that cannot be used; no other exception gets out,
    whatever the bytes are.
    """
    try:
        if path.is_dir():
            return _from_folder(path)
        checkpoint = _from_file(path)
        config = path.parent / "config.json"
        if checkpoint.source.startswith(("mm", "detectron2")) or not config.is_file():
            return checkpoint
        return _with_neighbour(checkpoint, config)
    except OSError as error:
        raise CheckpointError(
            f"{path}, which cannot be read ({error.strerror or error})",
            expected=EXPECTED,
            do="check the path and the permissions",
        ) from error
    except MemoryError as error:
        raise CheckpointError(
            f"{path}, which does not fit into this machine's memory",
            expected="free memory of about the size of the weights",
            do="close other programs or use a machine with more memory",
        ) from error


def _from_file(path: Path) -> Checkpoint:
    kind = file_kind(path)
    if _SHARD.fullmatch(path.name):
        raise _sharded(path.name)
    readers = {"safetensors": _from_safetensors, "npz": _from_npz, "torch": _from_torch}
    checkpoint = readers[kind](path)
    # First, for observers that never saw a value hold infinities.
    tensors, scales = without_quantizers(checkpoint.tensors, path)
    check_finite(tensors, path)
    return replace(checkpoint, tensors=tensors, trained_scales=scales, sha256=sha256_of_file(path))


def _from_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names, notes = cleaned_names(file.keys(), path)
            # A copy, since the library's tensors are views of the mapped file.
            tensors = {new: file.get_tensor(old).clone() for new, old in names.items()}
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise damaged(path, f"safetensors says: {error}") from error
    if not tensors:
        raise damaged(path, "it holds no tensor")
    return _checkpoint(tensors, "bare state dict", notes, path)


def _from_npz(path: Path) -> Checkpoint:
    """A ViT as Google published it, or a state dict that numpy.savez wrote."""
    arrays, source, notes = arrays_from_npz(path), "bare state dict", tuple[str, ...]()
    if is_augreg(frozenset(arrays)):
        arrays, notes = tensors_from_augreg(arrays)
        source = "ViT-AugReg"
    names, more = cleaned_names(arrays, path)
    tensors = {new: tensor_from_array(arrays[old]) for new, old in names.items()}
    return _checkpoint(tensors, source, (*notes, *more), path)


def _from_torch(path: Path) -> Checkpoint:
    file = torch_file_from_path(path)
    found = unwrapped_state_dict(file.root, path)
    tensors, notes = tensors_from_torch_file(file, found.values)
    stored = found.top.get("meta")
    meta = stored if type(stored) is dict and found.wrappers else {}
    classes, palette, more = _classes_from_meta(meta)
    text = next((meta[k] for k in ("config", "cfg") if type(meta.get(k)) is str), None)
    if text is not None and len(text) > MAX_TEXT:
        text, more = None, [*more, f"a configuration text of more than {MAX_TEXT} was ignored"]
    if text is not None:
        text = text.encode("utf-8", "replace").decode("utf-8")
    source = _source(found.top, meta, found.wrappers, tensors)
    checkpoint = _checkpoint(tensors, source, (*found.notes, *notes, *more), path)
    return replace(checkpoint, classes=classes, palette=palette, config_text=text)


def _checkpoint(
    tensors: dict[str, Tensor], source: str, notes: tuple[str, ...], path: Path
) -> Checkpoint:
    return Checkpoint(tensors, source, None, None, None, None, None, notes, "", path)


def _source(
    top: Mapping[Any, object],
    meta: Mapping[Any, object],
    wrappers: tuple[str, ...],
    names: Mapping[str, object],
) -> str:
    version = meta.get("mmseg_version")
    if type(version) is str and version[:2] in ("0.", "1."):
        return f"mmsegmentation {version[0]}.x"
    if {"dataset_meta", "mmengine_version", "cfg"} & meta.keys():
        return "mmsegmentation 1.x"
    if {"mmcv_version", "CLASSES", "config"} & meta.keys():
        return "mmcv 0.x"
    of_detectron = any(name.startswith(("sem_seg_head.", "backbone.res2.")) for name in names)
    if wrappers == ("model",) and (of_detectron or "__author__" in top):
        return "detectron2"
    return f"state dict under {wrappers[0]!r}" if wrappers else "bare state dict"


def _classes_from_meta(
    meta: Mapping[Any, Any],
) -> tuple[tuple[str, ...] | None, tuple[Color, ...] | None, list[str]]:
    """meta['dataset_meta'] of mmengine, meta['CLASSES'] and ['PALETTE'] of mmcv."""
    stored = meta.get("dataset_meta")
    places = [stored if type(stored) is dict else {}, meta]
    found = [(m.get(c), m.get(p)) for m in places for c, p in _CLASS_KEYS if m.get(c) is not None]
    names, colors = found[0] if found else (None, None)
    names, colors = _plain(names), _plain(colors)
    if not isinstance(names, list) or not names or not all(type(n) is str for n in names):
        unread = bool(found) or isinstance(stored, Placeholder)
        return None, None, ["class names of an unreadable kind were ignored"] if unread else []
    classes = tuple("".join(c if c.isprintable() else "?" for c in name) for name in names)
    if colors is None or colors == []:
        return classes, None, []
    palette = _palette(colors)
    if palette is None or len(palette) != len(classes):
        return classes, None, ["a stored palette that does not fit the class names was ignored"]
    return classes, palette, []


def _plain(value: object) -> object:
    """Lists for tuples and arrays, one level deep; everything else as it is."""
    if isinstance(value, NumpyArray):
        value = value.value
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= 3 * 65536 else value
    return list(value) if isinstance(value, tuple | list) else value


def _palette(colors: object) -> tuple[Color, ...] | None:
    if not isinstance(colors, list):
        return None
    palette = []
    for row in map(_plain, colors):
        if not isinstance(row, list) or len(row) != 3:
            return None
        if any(type(part) is not int or not 0 <= part <= 255 for part in row):
            return None
        palette.append((row[0], row[1], row[2]))
    return tuple(palette)


def _from_folder(folder: Path) -> Checkpoint:
    """A folder as `save_pretrained` of transformers writes it."""
    config = folder / "config.json"
    weights = [folder / name for name in _HF_WEIGHTS if (folder / name).is_file()]
    if config.is_file() and weights:
        return _with_config(_from_file(weights[0]), _json_object(config), folder)
    if any((folder / f"{name}.index.json").is_file() for name in _HF_WEIGHTS):
        raise _sharded(folder.name)
    files = sorted(p.name for p in folder.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
    missing = "config.json" if not config.is_file() else " and ".join(_HF_WEIGHTS)
    raise CheckpointError(
        f"{folder}, a folder without {missing}",
        expected=EXPECTED,
        do=f"give the file itself: {folder / files[0]}" if files else "give the checkpoint file",
    )


def _with_neighbour(checkpoint: Checkpoint, config: Path) -> Checkpoint:
    """A single file may lie beside the config.json of its Hugging Face folder, or of anything."""
    try:
        record = _json_object(config)
    except CheckpointError:
        record = {}
    if "model_type" in record or "architectures" in record:
        return _with_config(checkpoint, record, config.parent)
    note = "config.json beside the file is not a Hugging Face configuration and was ignored"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _with_config(checkpoint: Checkpoint, config: dict[str, Any], folder: Path) -> Checkpoint:
    preprocessor = folder / "preprocessor_config.json"
    classes = _classes_from_labels(config.get("id2label"))
    notes = checkpoint.notes
    if classes is None and "id2label" in config:
        notes = (*notes, "id2label of config.json is not a numbering from 0 and was ignored")
    return replace(
        checkpoint,
        source="Hugging Face",
        classes=classes,
        hf_config=config,
        hf_preprocessor=_json_object(preprocessor) if preprocessor.is_file() else None,
        notes=notes,
    )


def _classes_from_labels(labels: object) -> tuple[str, ...] | None:
    """{"0": name, "1": name, ...} in the order of the numbers."""
    if not isinstance(labels, dict) or not labels:
        return None
    by_number = {int(k): v for k, v in labels.items() if k.isascii() and k.isdigit() and len(k) < 9}
    names = [by_number.get(number) for number in range(len(labels))]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        return None
    return tuple(str(name) for name in names)


def _json_object(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        data = stream.read(MAX_TEXT + 1)
    try:
        record = json.loads(data) if len(data) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise CheckpointError(
            f"{path}, which is not a JSON object",
            expected=f"{path.name} as Hugging Face transformers writes it",
            do="download the folder again",
        )
    return record


def _sharded(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name}, whose weights are split into several files",
        expected="one file: " + " or ".join(_HF_WEIGHTS),
        do="load it with transformers and call save_pretrained(FOLDER, max_shard_size='50GB')",
    )
