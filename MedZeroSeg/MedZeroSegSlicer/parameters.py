"""What the scene remembers of the panel."""

from __future__ import annotations

from typing import Annotated

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from .choices import Device, Modality, Models


@parameterNodeWrapper
class MedZeroSegParameterNode:
    """The parameters; segmentation None means a new one, region None the whole image."""

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    prompts: str = ""
    modality: Modality = Modality.AUTO
    models: Models = Models.LITE
    device: Device = Device.AUTO
    stayOut: bool = False
    allFrames: bool = False
    region: vtkMRMLMarkupsROINode
    sensitivity: Annotated[float, WithinRange(0, 1)] = 0.5
