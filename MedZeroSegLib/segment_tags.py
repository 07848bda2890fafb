"""What a segment carries besides voxels, name and color: terminology, status and provenance, as tags of Slicer.
Written alike by the command line into .seg.nrrd files and by the Slicer module into the scene."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .extent import crop, mask_extent, mask_sha256
from .vocabulary import Code

if TYPE_CHECKING:
    from .segment import Segment, Segmentation

FOUND_TAG, PROVENANCE_TAG = "MedZeroSeg.Found", "MedZeroSeg.Provenance"
STATUS_TAG, TERMINOLOGY_TAG = "Segmentation.Status", "TerminologyEntry"  # Slicer's own
# vtkSlicerSegmentationsModuleLogic's words. Only the user calls a segment completed.
STATUS_UNREVIEWED, STATUS_NOTHING_YET = "inprogress", "notstarted"

# Lists in which Slicer looks first; the codes themselves travel in the entry, so it opens without the lists too.
TERMINOLOGY_CONTEXT = "MedZeroSeg"  # of MedZeroSeg/Resources/MedZeroSeg.term.json
REGION_CONTEXT = "Anatomic codes - DICOM master list"


def provenance_record(segment: Segment, segmentation: Segmentation) -> dict[str, Any]:
    """How a segment came about; JSON-able.

    ``volume_fingerprint`` and ``mask_sha256`` tell later whether it is still what was made, of the same image. It holds
    no date, so that the same image, names and weights give the same file, byte for byte.
    """
    extent, region = mask_extent(segment.mask), segmentation.volume.region
    return {
        "typed": segment.typed,
        "name": segment.name,
        "found": segment.found,
        "score": segment.score,
        "warnings": list(segment.warnings),
        **segment.provenance,
        "version": segmentation.version,
        "preset": segmentation.preset,
        "settings": segmentation.settings,
        "weights": segmentation.weights,
        "device": segmentation.device,
        "volume_fingerprint": segmentation.volume.fingerprint,
        "region": region and region.record(),
        "mask_sha256": mask_sha256(crop(segment.mask, extent), extent),
    }


def segment_tags(
    record: Mapping[str, Any], found: bool, category: Code | None, code: Code | None, modifier: Code | None
) -> dict[str, str]:
    """Tags of a segment that nobody has reviewed yet; ``record`` as ``provenance_record`` makes it."""
    tags = {
        FOUND_TAG: "true" if found else "false",
        PROVENANCE_TAG: provenance_text(record),
        STATUS_TAG: STATUS_UNREVIEWED if found else STATUS_NOTHING_YET,
    }
    if category and code:
        tags[TERMINOLOGY_TAG] = terminology_entry(category, code, modifier)
    return tags


def provenance_text(record: Mapping[str, Any]) -> str:
    """A record as the text of its tag: JSON without ``|``, which ends a tag in the file."""
    return json.dumps(record, ensure_ascii=False).replace("|", "\\u007c")


def terminology_entry(category: Code, code: Code, modifier: Code | None) -> str:
    """Slicer's serialised terminology: context~category~type~modifier~region context~region~region modifier."""
    codes = [_serialised(category), _serialised(code), _serialised(modifier)]
    return "~".join([TERMINOLOGY_CONTEXT, *codes, REGION_CONTEXT, _serialised(None), _serialised(None)])


def _serialised(code: Code | None) -> str:
    if code is None:
        return "^^"
    return "^".join(re.sub(r"[~^|]", " ", part) for part in (code.scheme, code.value, code.meaning))
