"""The image to try the module with, in Slicer's Sample Data module: a chest radiograph, fetched when the user asks."""

from __future__ import annotations

from pathlib import Path

CATEGORY, NAME = "MedZeroSeg", "Chest radiograph (pydicom-data)"
# One revision of https://github.com/pydicom/pydicom-data (MIT licence), the same file as in the package pydicom-data.
ADDRESS = "https://github.com/pydicom/pydicom-data/raw/39a2eb31815eec435dc26c322c27aec5cfcbddb6/data/RG1_UNCR.dcm"
FILE_NAME = "RG1_UNCR.dcm"
SHA256 = "946f28f48b9fbf360196a9b835c8fce83b0c654bf85a5107663c8a61df02e498"
THUMBNAIL = Path(__file__).parents[1] / "Resources" / "Screenshots" / "lungs.png"


def register_sample_data() -> None:
    """Tell Slicer's Sample Data module of the image; nothing is fetched, and nothing happens without that module."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        return
    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=NAME,
        uris=ADDRESS,
        fileNames=FILE_NAME,
        checksums=f"SHA256:{SHA256}",
        nodeNames="Chest radiograph",
        thumbnailFileName=str(THUMBNAIL),
        loadFileProperties={"singleFile": True},  # else other DICOM files in the folder might be taken for its slices
    )
