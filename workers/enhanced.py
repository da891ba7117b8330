"""Write a volume as one Enhanced MR instance (PS3.3 A.36), for the benchmark and the tests; beside `workers.series`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage

from node.records import derived_uid
from workers.series import DATE, PLAIN, TIME, Storage, Stored, decimals, header, lay_out, window, write_file


def write_enhanced(
    path: Path, image: NDArray[np.uint16], spacing: Sequence[float], *, seed: int = 0, storage: Storage = PLAIN
) -> Path:
    """Write `image` (Z, Y, X) uint16 on the model's axes, `spacing` mm, as one Enhanced MR instance (PS3.3 A.36)."""
    planes = lay_out(image, spacing, storage)
    if storage.reverse:
        planes = Stored(planes.voxels[::-1], planes.directions, planes.spacing, planes.positions[::-1])
    dataset = header(seed, storage, str(EnhancedMRImageStorage), 1)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "T2", "NONE"]
    dataset.InstanceNumber = 1
    dataset.update(
        _group(
            NumberOfFrames=len(planes.voxels),
            PixelPresentation="MONOCHROME",
            VolumetricProperties="VOLUME",
            VolumeBasedCalculationTechnique="NONE",
            ComplexImageComponent="MAGNITUDE",
            AcquisitionContrast="T2",
            AcquisitionDateTime=DATE + TIME,
            AcquisitionDuration=180.0,
            ContentQualification="RESEARCH",
            ResonantNucleus="1H",
            KSpaceFiltering="NONE",
            ApplicableSafetyStandardAgency="IEC",
            BurnedInAnnotation="NO",
            LossyImageCompression="00",
            PresentationLUTShape="IDENTITY",
            AcquisitionNumber=1,
            PulseSequenceName="phantom",
            MRAcquisitionType="3D",
            EchoPulseSequence="SPIN",
            MultipleSpinEcho="NO",
            MultiPlanarExcitation="NO",
            PhaseContrast="NO",
            TimeOfFlightContrast="NO",
            SteadyStatePulseSequence="NONE",
            EchoPlanarPulseSequence="NO",
            SaturationRecovery="NO",
            SpectrallySelectedSuppression="NONE",
            OversamplingPhase="NONE",
            GeometryOfKSpaceTraversal="RECTILINEAR",
            RectilinearPhaseEncodeReordering="LINEAR",
            SegmentedKSpaceTraversal="SINGLE",
            CoverageOfKSpace="FULL",
            NumberOfKSpaceTrajectories=1,
            DeviceSerialNumber="1",
            SoftwareVersions="1",
        )
    )
    organization = derived_uid("phantom", "dimensions", dataset.SeriesInstanceUID)
    dataset.DimensionOrganizationSequence = [_group(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        _group(
            DimensionOrganizationUID=organization, DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111
        )
    ]
    dataset.AcquisitionContextSequence = []
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(planes, storage, image)]
    dataset.PerFrameFunctionalGroupsSequence = [
        _group(
            FrameContentSequence=[
                _group(
                    FrameAcquisitionNumber=1,
                    FrameReferenceDateTime=DATE + TIME,
                    FrameAcquisitionDateTime=DATE + TIME,
                    FrameAcquisitionDuration=180.0,
                    DimensionIndexValues=[number],
                    StackID="1",
                    InStackPositionNumber=number,
                )
            ],
            PlanePositionSequence=[_group(ImagePositionPatient=decimals(position))],
        )
        for number, position in enumerate(planes.positions, 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, dataset, planes.voxels, storage.transfer_syntax_uid)
    return path


def _group(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _shared_groups(planes: Stored, storage: Storage, image: NDArray[np.uint16]) -> Dataset:
    centre, width = window(image)
    thickness = decimals([planes.spacing[0]])[0]
    return _group(
        PixelMeasuresSequence=[
            _group(PixelSpacing=decimals(planes.spacing[1:]), SliceThickness=thickness, SpacingBetweenSlices=thickness)
        ],
        PlaneOrientationSequence=[
            _group(ImageOrientationPatient=decimals([*planes.directions[2], *planes.directions[1]]))
        ],
        FrameAnatomySequence=[
            _group(
                FrameLaterality="U",
                AnatomicRegionSequence=[
                    _group(CodeValue="122496007", CodingSchemeDesignator="SCT", CodeMeaning="Lumbar spine")
                ],
            )
        ],
        PixelValueTransformationSequence=[
            _group(RescaleSlope=storage.slope, RescaleIntercept=storage.intercept, RescaleType="US")
        ],
        FrameVOILUTSequence=[_group(WindowCenter=centre, WindowWidth=width)],
        MRImageFrameTypeSequence=[
            _group(
                FrameType=["ORIGINAL", "PRIMARY", "T2", "NONE"],
                PixelPresentation="MONOCHROME",
                VolumetricProperties="VOLUME",
                VolumeBasedCalculationTechnique="NONE",
                ComplexImageComponent="MAGNITUDE",
                AcquisitionContrast="T2",
            )
        ],
        MREchoSequence=[_group(EffectiveEchoTime=120.0)],
        MRTimingAndRelatedParametersSequence=[
            _group(
                RepetitionTime=1500,
                FlipAngle=90,
                EchoTrainLength=60,
                RFEchoTrainLength=60,
                GradientEchoTrainLength=0,
                GradientOutputType="DB_DT",
                GradientOutput=50.0,
                SpecificAbsorptionRateSequence=[
                    _group(SpecificAbsorptionRateDefinition="IEC_WHOLE_BODY", SpecificAbsorptionRateValue=1.0)
                ],
                OperatingModeSequence=[
                    _group(OperatingModeType=kind, OperatingMode="IEC_NORMAL")
                    for kind in ("STATIC FIELD", "RF", "GRADIENT")
                ],
            )
        ],
        MRFOVGeometrySequence=[
            _group(
                InPlanePhaseEncodingDirection="ROW",
                MRAcquisitionFrequencyEncodingSteps=planes.voxels.shape[1],
                MRAcquisitionPhaseEncodingStepsInPlane=planes.voxels.shape[2],
                MRAcquisitionPhaseEncodingStepsOutOfPlane=len(planes.voxels),
                PercentSampling=100,
                PercentPhaseFieldOfView=100,
            )
        ],
        MRModifierSequence=[
            _group(
                InversionRecovery="NO",
                FlowCompensation="NONE",
                Spoiling="NONE",
                T2Preparation="NO",
                SpectrallySelectedExcitation="NONE",
                SpatialPresaturation="NONE",
                PartialFourier="NO",
                ParallelAcquisition="NO",
            )
        ],
        MRImagingModifierSequence=[
            _group(
                MagnetizationTransfer="NONE",
                BloodSignalNulling="NO",
                Tagging="NONE",
                TransmitterFrequency=63.9,
                PixelBandwidth=200,
            )
        ],
        MRReceiveCoilSequence=[
            _group(
                ReceiveCoilName="SPINE",
                ReceiveCoilManufacturerName="",
                ReceiveCoilType="VOLUME",
                QuadratureReceiveCoil="NO",
            )
        ],
        MRTransmitCoilSequence=[
            _group(TransmitCoilName="BODY", TransmitCoilManufacturerName="", TransmitCoilType="BODY")
        ],
        MRAveragesSequence=[_group(NumberOfAverages=1)],
    )
