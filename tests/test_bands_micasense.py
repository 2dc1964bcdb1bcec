"""A MicaSense capture is recognised by its names and by what its files say of themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from band_files import measured, saved_band, xmp

from engines.bands.composite import composite_from_bands
from engines.bands.files import bands_from_files, scene_of_band_file, scenes_in_folder
from engines.bands.micasense import band_name_in_file
from engines.bands.recipe import BandRecipe

NAMES = ("Blue", "Green", "Red", "NIR", "Red edge")
REDEDGE = Path(__file__).parent / "data" / "rededge"  # cropped, of a real camera


def capture(folder: Path, *names: str, capture: str = "IMG_0001") -> list[Path]:
    """Files 1, 2, ... of one capture; "" is a band without metadata."""
    files = []
    for number, name in enumerate(names, start=1):
        band = measured((8, 9), "uint16", seed=number)
        changed = {700: xmp(name)} if name else {}
        files.append(saved_band(folder / f"{capture}_{number}.tif", band, changed=changed))
    return files


@pytest.mark.parametrize("names", [NAMES, ("",) * 5, ("BLUE", "green", "Red", "Nir", "Rededge")])
def test_five_files_are_blue_green_red_infrared_red_edge(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    files = capture(tmp_path, *names)
    capture(tmp_path, *names, capture="IMG_0002")
    scenes, left_out = scenes_in_folder(tmp_path)
    assert [scene.name for scene in scenes] == ["IMG_0001", "IMG_0002"]
    assert scenes[0].files == dict(zip("BGRNE", files, strict=True))
    assert scene_of_band_file(files[3]) == scenes[0]
    assert left_out == ()


def test_another_order_is_seen_by_the_metadata(tmp_path: Path) -> None:
    files = capture(tmp_path, "Blue", "Green", "Red", "Red edge", "NIR")
    (scene,), _ = scenes_in_folder(tmp_path)
    assert scene.files == dict(zip("BGREN", files, strict=True))


def test_a_thermal_and_further_bands_are_left_out(tmp_path: Path) -> None:
    files = capture(tmp_path, *NAMES, "LWIR", "Blue-444", "")
    (scene,), left_out = scenes_in_folder(tmp_path)
    assert scene.files == dict(zip("BGRNE", files[:5], strict=True))
    assert left_out == tuple(
        f"IMG_0001_{number}.tif: none of the bands R, G, B, N, E" for number in (6, 7, 8)
    )


def test_two_files_that_claim_one_band_are_told(tmp_path: Path) -> None:
    files = capture(tmp_path, "Green", "Green", "Red")
    (scene,), left_out = scenes_in_folder(tmp_path)
    assert scene.files == {"G": files[0], "R": files[2]}
    assert left_out == ("IMG_0001_2.tif: band G again, after IMG_0001_1.tif",)


def test_a_damaged_file_is_taken_by_its_number_until_it_is_read(tmp_path: Path) -> None:
    files = capture(tmp_path, *NAMES)
    files[3].write_bytes(b"II*\0")
    (scene,), _ = scenes_in_folder(tmp_path)
    assert scene.files["N"] == files[3]
    assert bands_from_files(scene.files, "RGB").shape == (8, 9, 3)


def test_the_band_s_name_may_be_an_attribute(tmp_path: Path) -> None:
    packet = b'<rdf:Description Camera:BandName="Red edge" Camera:Yaw="1/2"/>'
    path = saved_band(tmp_path / "IMG_0001_1.tif", measured(), changed={700: (1, packet)})
    assert band_name_in_file(path) == "Red edge"


@pytest.mark.parametrize(
    "packet",
    [b"<Camera:BandName>" * 50_000, b"<Camera:BandName>" + b" " * 900_000, b"<" * 1_000_000,
     b":BandName=" * 90_000, b"<Camera:BandName></Camera:BandName>", b"\xff\xfe\x00" * 999],
)  # fmt: skip
def test_odd_metadata_costs_no_time(tmp_path: Path, packet: bytes) -> None:
    path = saved_band(tmp_path / "IMG_0001_1.tif", measured(), changed={700: (7, packet)})
    assert band_name_in_file(path) == ""


def test_a_real_capture_becomes_a_composite() -> None:
    (scene,), left_out = scenes_in_folder(REDEDGE)
    assert left_out == ()
    numbers = {letter: int(path.stem[-1]) for letter, path in scene.files.items()}
    assert numbers == {"B": 1, "G": 2, "R": 3, "N": 4, "E": 5}
    assert [band_name_in_file(scene.files[letter]) for letter in "BGRNE"] == list(NAMES)
    bands = bands_from_files(scene.files, "GNE")
    assert bands.dtype == np.uint16
    composite = composite_from_bands(bands, BandRecipe("GNE"))
    for channel, index in enumerate((2, 1, 0)):
        plane = bands[:, :, index].astype(np.float32)
        low, high = plane.min(), plane.max()
        expected = np.rint((plane - low) / (high - low) * np.float32(255))
        assert np.array_equal(composite[:, :, channel], expected)
