"""What the key maps of all architectures share: renaming, outputs to keep, strict loading."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engines.errors import CheckpointError, ConfigError

# A pattern and what stands for it, as for re.sub.
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
LayerRules = Sequence[tuple[str, tuple[str, ...]]]

# ResNet-152's longest stage has 36 blocks. Names cost a file nothing, but 2000 layers take half a
# minute to build, whatever their shapes are.
_MAX_CHILDREN = 256


def renamed(key: str, rules: Rules) -> str:
    """`key` after every rule, in their order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def usable_tensors(
    tensors: Mapping[str, Tensor], *, dropped: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Floating-point tensors as float32; without those whose name begins with one of `dropped`.

    Auxiliary heads, which only training uses, are always left out. CheckpointError for a weight
    without numbers: then no axis is longer than what the file holds, whoever made it.
    """
    for key, tensor in tensors.items():
        if tensor.numel() == 0:
            raise CheckpointError(
                f"the tensor {key!r} of shape {tuple(tensor.shape)}, which holds no number",
                expected="weights",
                do="save the whole model's state dict again",
            )
    prefixes = ("auxiliary_head.", *dropped)
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
        if not key.startswith(prefixes)
    }


@contextmanager
def tensors_of(family: str, style: str) -> Iterator[None]:
    """A tensor that is missed while the shape is read becomes a CheckpointError."""
    try:
        yield
    except (KeyError, IndexError, ZeroDivisionError, ValueError) as error:
        raise CheckpointError(
            f"a {family} checkpoint ({style} names) without the expected tensor {error}",
            expected="the tensors of the whole backbone and of the decode head",
            do="save the whole model's state dict again",
        ) from error


def check_keep_outputs(count: int, available: int) -> None:
    """ConfigError unless 1 <= count <= available."""
    if not 1 <= count <= available:
        raise ConfigError(
            f"--keep-classes {count}",
            expected=f"1 to {available}, the outputs of this checkpoint",
            do="choose a number in that range or leave the option out",
        )


def with_first_outputs(named: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """`named` with only the first rows of the classifier, `decode_head.conv_seg`.

    Raises ConfigError unless it has that many.
    """
    keys = [f"decode_head.conv_seg.{kind}" for kind in ("weight", "bias")]
    check_keep_outputs(count, named[keys[0]].shape[0])
    return {**named, **{key: named[key][:count].clone() for key in keys}}


def count_children(named: Iterable[str], prefix: str) -> int:
    """How many different names come after `prefix`, up to the next point.

    CheckpointError for more than any network has.
    """
    count = len({key[len(prefix) :].split(".")[0] for key in named if key.startswith(prefix)})
    if count > _MAX_CHILDREN:
        raise CheckpointError(
            f"{count} layers called {prefix}*",
            expected=f"a network with at most {_MAX_CHILDREN} of a kind in a row",
            do="check that the checkpoint is not damaged",
        )
    return count


def load_strictly(model: nn.Module, named: dict[str, Tensor], family: str) -> None:
    """Gives `model` (made on the meta device) these tensors; CheckpointError unless all fit.

    A linear layer stored for a 1x1 convolution gains its two axes, and BatchNorm's counter, which
    files from before torch 0.4.1 lack and evaluation does not use, may be missing.
    """
    expected = model.state_dict()
    for key in expected.keys() - named.keys():
        if key.endswith(".num_batches_tracked"):
            named[key] = torch.tensor(0)
    missing = sorted(expected.keys() - named.keys())
    extra = sorted(named.keys() - expected.keys())
    for key in named.keys() & expected.keys():
        if named[key].dim() == 2 and tuple(expected[key].shape[2:]) == (1, 1):
            named[key] = named[key][:, :, None, None]
    wrong = sorted(
        f"{key} {_described(named[key])} instead of {_described(expected[key])}"
        for key in expected.keys() & named.keys()
        if _described(named[key]) != _described(expected[key])
    )
    if missing or extra or wrong:
        raise CheckpointError(
            f"a checkpoint whose closest match is {family}, with "
            f"{len(missing)} tensors missing, {len(extra)} left over, {len(wrong)} of another "
            f"shape or type; first ones: {', '.join((missing + extra + wrong)[:4])}",
            expected=f"exactly {family}'s tensors",
            do=f"check that the checkpoint is an unmodified {family}",
        )
    model.load_state_dict(named, strict=True, assign=True)


def _described(tensor: Tensor) -> str:
    """Its shape, and its type where that is not float32: whole numbers are no weights.

    Not that of a single number, for BatchNorm's counter is of every type.
    """
    shape = str(tuple(tensor.shape))
    if tensor.dtype is torch.float32 or tensor.dim() == 0:
        return shape
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def paths_after(path: str, rules: LayerRules) -> tuple[str, ...]:
    """A module's path after the rewrites, by the first of `rules` that fits.

    Several where it is split, none where what it reads is gone.
    """
    for pattern, targets in rules:
        if re.search(pattern, path):
            return tuple(re.sub(pattern, target, path) for target in targets)
    return (path,)


def weights_after(model: nn.Module, rules: LayerRules) -> dict[str, Tensor]:
    """The weight of each layer of `model` by its path after the rewrites; parts where it is split.

    That of a layer without such a path is left out.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith((".weight", ".in_proj_weight")):
            paths = paths_after(re.sub(r"\.(in_proj_)?weight$", "", name), rules)
            weights |= zip(paths, tensor.chunk(max(1, len(paths))), strict=False)
    return weights
