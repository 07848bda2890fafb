"""What the scene remembers of the panel."""

from __future__ import annotations

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper

from .choices import Device, Modality, Models


@parameterNodeWrapper
class MedZeroSegParameterNode:
    """The parameters; segmentation None means a new one."""

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    prompts: str = ""
    modality: Modality = Modality.AUTO
    models: Models = Models.LITE
    device: Device = Device.AUTO
    stayOut: bool = False
    allFrames: bool = False
