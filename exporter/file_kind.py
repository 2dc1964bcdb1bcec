"""Tells a checkpoint file from what is taken for one: by its first bytes, then by its suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from engines.errors import CheckpointError
from exporter.npz_file import looks_like_npz

FileKind = Literal["torch", "safetensors", "npz"]

EXPECTED = (
    "a checkpoint: a file of torch.save (.pth, .pt, .bin), .safetensors, detectron2's .pkl, .npz, "
    "or a Hugging Face folder"
)

_HEAD_BYTES = 512
_PICKLE_PROTOCOL = 0x80  # every pickle of protocol 2 and above starts with it

# First bytes -> what it is, what to do about it.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer (the text that stands in for a large file)",
        "fetch the file itself: run 'git lfs pull' in that repository, or download it",
    ),
    (b"\x1f\x8b", "gzip-compressed", "unpack it and give the file inside"),
    (b"\xfd7zXZ", "xz-compressed", "unpack it and give the file inside"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it and give the file inside"),
    (b"Rar!", "a RAR archive", "unpack it and give the file inside"),
    (b"\x89HDF", "an HDF5 file (Keras)", "give a PyTorch checkpoint"),
    (b"\x93NUMPY", "a numpy array", "give the checkpoint that torch.save wrote"),
)


def file_kind(path: Path) -> FileKind:
    """Which reader the file needs. Raises CheckpointError that says what the file is instead."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}, which {'is not a regular file' if path.exists() else 'does not exist'}",
            expected=EXPECTED,
            do="check the path",
        )
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        raise CheckpointError(
            f"{path.name}, an empty file", expected=EXPECTED, do="copy or download it again"
        )
    if _is_safetensors(path, head, size):
        return "safetensors"
    _refuse_known_kinds(path, head)
    if looks_like_npz(head):
        return "npz"
    if head[0] == _PICKLE_PROTOCOL or head.startswith(b"PK"):
        return "torch"
    raise CheckpointError(
        f"{path.name}, whose first bytes are of no known kind ({head[:8].hex(' ')})",
        expected=EXPECTED,
        do="check that the download is complete and that this is the right file",
    )


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    if path.suffix == ".safetensors" and not head.startswith((b"version ", b"<")):
        return True
    header = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and header <= size - 8


def _refuse_known_kinds(path: Path, head: bytes) -> None:
    for start, what, do in _SIGNATURES:
        if head.startswith(start):
            raise CheckpointError(f"{path.name}, {what}", expected=EXPECTED, do=do)
    if head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path.name}, a tar archive",
            expected=EXPECTED,
            do="unpack it; a checkpoint of PyTorch 0.1 must be saved again with a newer PyTorch",
        )
    if path.suffix == ".onnx" or _looks_like_onnx(head):
        raise CheckpointError(
            f"{path.name}, an ONNX file",
            expected=EXPECTED,
            do="give the checkpoint that it was made from; only `riceseg export` takes a quantized "
            "graph, under a name that ends in .onnx",
        )
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path.name}, a web page and not a checkpoint (it starts with '<')",
            expected=EXPECTED,
            do="download it again: the server answered with a page, often a login or an error",
        )
    if _is_text(head):
        raise CheckpointError(
            f"{path.name}, a text file",
            expected=EXPECTED,
            do="give the file with the weights, usually a .pth of several megabytes",
        )


def _looks_like_onnx(head: bytes) -> bool:
    """Field 1 (ir_version, a small number), then producer_name, domain or the graph."""
    return head[0] == 0x08 and len(head) > 2 and 0 < head[1] < 32 and head[2] in b"\x12\x1a\x22\x3a"


def _is_text(head: bytes) -> bool:
    try:
        text = head[: _HEAD_BYTES - 4].decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t\f" for character in text)
