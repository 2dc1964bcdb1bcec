"""The forms of one model that are measured beside each other: which file, run by what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from engines.board import package_versions
from engines.bundle import FileInfo, bundle_from_folder, bundle_path
from engines.bundle_fields import FILE_NAME
from engines.errors import ConfigError, EngineError, UserError
from engines.fused_graphs import graph_key
from engines.images import sha256_of_file
from engines.speed.benchmark import Benchmark

FORM_NAMES = {
    "fp32": "ONNX FP32",
    "fp16": "ONNX FP16",
    "int8": "ONNX INT8",
    "int8_fp16": "ONNX INT8+FP16",
}
ENGINE_SUFFIX = ".engine"


@dataclass(frozen=True)
class Form:
    """One row of the comparison: where it lies and how it is run."""

    name: str
    precision: str
    runtime: str
    path: Path
    info: FileInfo


def onnx_forms(folder: Path, files: Mapping[str, FileInfo]) -> List[Form]:
    """The ONNX files of a bundle, as ONNX Runtime runs them."""
    return [
        Form(FORM_NAMES[key], key, _onnx_runtime(), folder / files[key].file, files[key])
        for key in FORM_NAMES
        if key in files
    ]


def fused_forms(folder: Path, files: Mapping[str, FileInfo]) -> List[Form]:
    """Those that take bands and compose by themselves."""
    return [
        Form(f"{FORM_NAMES[key]} bands", key, _onnx_runtime(), folder / info.file, info)
        for key, info in ((key, files.get(graph_key(key, fused=True))) for key in FORM_NAMES)
        if info is not None
    ]


def engine_form(path: Path) -> Form:
    """An engine file as its header describes it. Raises EngineError for anything else."""
    from engines.trt.engine_file import header_from_engine

    header = header_from_engine(path)
    dla = "" if header.dla is None else f" DLA {header.dla}"
    dla += " bands" if header.takes_bands else ""
    return Form(
        name=f"{header.runtime} {header.precision.upper()}{dla}",
        precision=header.precision,
        runtime=f"{header.runtime} {header.runtime_version}",
        path=path,
        info=_file_info(path),
    )


def engine_made_for(path: Path) -> Optional[Tuple[str, str, Optional[str]]]:
    """Runtime, its version and the GPU of an engine; None for any other or a damaged file."""
    from engines.trt.engine_file import header_from_engine

    if path.suffix != ENGINE_SUFFIX:
        return None
    try:
        header = header_from_engine(path)
    except EngineError:
        return None
    return header.runtime, header.runtime_version, header.gpu_name


def forms_from_target(path: Path, precision: Optional[str] = None) -> List[Form]:
    """What can be timed of a bundle (ONNX files, then engines), an ONNX file or an engine.

    `precision` keeps the forms of a bundle that have it. Raises BundleError, EngineError, or
    ConfigError where nothing is left.
    """
    if is_bundle(path):
        return _of_precision(_bundle_forms(path), path, precision)
    if path.is_file() and path.suffix == ENGINE_SUFFIX:
        return _of_precision([engine_form(path)], path, precision)
    if path.is_file() and path.suffix == ".onnx":
        if precision is not None:
            raise ConfigError(
                f"precision {precision!r} for an ONNX file",
                expected="a bundle, which knows the precision of its files",
                do="leave --precision out",
            )
        return [Form(path.name, "as stored", _onnx_runtime(), path, _file_info(path))]
    raise ConfigError(
        f"{path}, {'which does not exist' if not path.exists() else 'which is none of these'}",
        expected=f"a bundle, an .onnx file or an {ENGINE_SUFFIX} file",
        do="check the path",
    )


def is_bundle(path: Path) -> bool:
    return path.is_dir() and (path / FILE_NAME).is_file()


def form_row(form: Form, measure: Callable[[], Benchmark]) -> Dict[str, Any]:
    """A report row without scores; a benchmark that fails is kept as the row's error."""
    row: Dict[str, Any] = {
        "form": form.name,
        "precision": form.precision,
        "runtime": form.runtime,
        "file": form.info.file,
        "sha256": form.info.sha256,
        "file_mb": form.info.bytes / 1e6,
        "error": None,
    }
    try:
        result = measure()
    except UserError as error:
        return {**row, "error": str(error)}
    return {**row, **asdict(result)}


def _bundle_forms(folder: Path) -> List[Form]:
    bundle = bundle_from_folder(folder)
    for info in bundle.files.values():
        bundle_path(folder, info.file)
    engines = sorted((folder / "engines").glob(f"*{ENGINE_SUFFIX}"))
    forms = [*onnx_forms(folder, bundle.files), *fused_forms(folder, bundle.files)]
    return [*forms, *map(_engine_form_or_unknown, engines)]


def _engine_form_or_unknown(path: Path) -> Form:
    """A damaged engine beside good ones is a row that fails, and does not hide the others."""
    try:
        return engine_form(path)
    except EngineError:
        return Form(path.name, "not known", "not known", path, _file_info(path))


def _of_precision(forms: List[Form], path: Path, precision: Optional[str]) -> List[Form]:
    found = [form for form in forms if precision in (None, form.precision)]
    if not found:
        there = ", ".join(dict.fromkeys(form.precision for form in forms)) or "it has none"
        raise ConfigError(
            f"precision {precision!r} of {path}" if precision else f"{path} without a form to run",
            expected=f"one that is there: {there}",
            do="choose one of these, or export or build the model with it",
        )
    return found


def _file_info(path: Path) -> FileInfo:
    return FileInfo(path.name, sha256_of_file(path), path.stat().st_size)


def _onnx_runtime() -> str:
    return f"ONNX Runtime {package_versions()['onnxruntime']}"
