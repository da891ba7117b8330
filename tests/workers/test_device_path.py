"""Series through an engine that keeps them on its device, here torch's CPU: the same masks, and what is told of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom import dcmread

from node import settings
from node.errors import EngineFailure
from trt.engine import open_engine
from trt.manifest import load
from trt.phantom import spine_phantom
from workers.benchmark import device_shares
from workers.identity import digest_of
from workers.pipeline import Pipeline, open_pipeline
from workers.prediction import predict_mask
from workers.series import write_series
from workers.volume import read_series

torch = pytest.importorskip("torch")


@pytest.fixture
def on_torch(small):
    """The formula on torch's CPU; numpy lends it a hand, but nothing is asked of it patch by patch on the host."""

    class Engine(small.FormulaEngine):
        device, stream, seen = torch.device("cpu"), None, []

        def on_device(self, patches):
            self.seen.append(len(patches))
            return torch.from_numpy(np.ascontiguousarray(small.formula(patches.numpy())))

    return Engine()


@pytest.fixture
def paths(tmp_path, small):
    return write_series(tmp_path / "in", small.lopsided((9, 61, 45)), small.SPACING)


@pytest.mark.parametrize("spacing", [(0.9, 0.9375, 0.9375), (4.0, 0.6, 1.3)])
@pytest.mark.parametrize("extraction", ["all", "tissue"])
def test_masks_are_those_of_the_host(spacing, extraction, on_torch, manifest, small, tmp_path):
    volume = read_series(write_series(tmp_path / "in", small.lopsided((9, 61, 45)), spacing))
    told = []
    options = {"overlap": 0.5, "batch": 4, "extraction": extraction}
    found = predict_mask(
        volume, on_torch, manifest, progress=lambda done, total: told.append((done, total)), slab_mb=16, **options
    )
    wanted = predict_mask(volume, small.formula, manifest, **options)
    assert set(on_torch.seen) == {4}
    assert told[-1] == (found.patches, found.patches)
    assert (found.patches, found.extraction) == (wanted.patches, wanted.extraction)
    assert (found.mask != wanted.mask).mean() < 1e-3
    if spacing[1:] == manifest.spacing_mm:
        np.testing.assert_array_equal(found.mask, wanted.mask)


def test_the_shipped_model_gives_the_mask_that_openvino_gives(tmp_path):
    phantom = spine_phantom((3, 200, 160), (4.0, 0.9375, 0.9375), 1)
    volume = read_series(write_series(tmp_path / "in", phantom.image, (4.0, 0.9375, 0.9375)))
    masks = []
    for backend in ("openvino", "torch"):
        with open_engine(load(), backend, batch=4, device="cpu") as engine:
            masks.append(predict_mask(volume, engine, load(), overlap=0.25, batch=4, extraction="tissue").mask)
    assert len(np.unique(masks[0])) > 3
    assert (masks[0] != masks[1]).mean() < 1e-4


def test_the_bench_tells_what_each_stage_takes_of_the_device():
    with open_engine(load(), "torch", batch=2, device="cpu") as engine:
        shares = device_shares(engine, load(), 2, (2, 160, 144))
    assert list(shares) == ["gather", "network", "blend", "label"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["network"] > 0.5


def test_out_of_memory_fails_the_job_after_one_more_try(paths, on_torch, manifest, caplog):
    def hungry(patches):
        raise torch.OutOfMemoryError("CUDA out of memory")

    on_torch.on_device = hungry
    with pytest.raises(EngineFailure, match="no device memory left, not even at a batch of 2") as caught:
        predict_mask(read_series(paths), on_torch, manifest, overlap=0, batch=4)
    assert "worker.batch" in str(caught.value)
    assert sum("once more with 2" in record.getMessage() for record in caplog.records) == 1


def test_nan_on_the_device_fails_the_job(paths, on_torch, manifest):
    on_torch.on_device = lambda patches: torch.full((len(patches), 5, 32, 32), torch.nan)
    with pytest.raises(EngineFailure, match="NaN or infinity"):
        predict_mask(read_series(paths), on_torch, manifest, overlap=0, batch=4)


def test_what_the_gate_found_is_in_the_object_and_no_part_of_its_identity(paths, on_torch, manifest):
    def segment(facts):
        pipeline = Pipeline(on_torch, manifest, settings.Worker(), settings.Seg(), facts=facts)
        bundle = pipeline.segment(paths, digest_of(paths))
        item = dcmread(io.BytesIO(bundle.objects[0].data)).SegmentSequence[0]
        return bundle, item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters.split(",")

    gate = {"gate_agreement": "0.999870", "gate_difference": "0.021", "gate_reference": "openvino 1 f32"}
    bundle, told = segment({"backend": "torch", "fallback_from": "tensorrt", "device": "some card", **gate})
    assert {"gate_agreement=0.999870", "gate_difference=0.021", "fallback_from=tensorrt", "backend=torch"} <= set(told)
    assert not any("some card" in text for text in told)
    assert bundle.engine["gate_agreement"] == "0.999870"
    other, _ = segment({"backend": "torch", **gate, "gate_agreement": "0.999860"})
    assert other.objects[0].sop_uid == bundle.objects[0].sop_uid
    third, _ = segment({"backend": "openvino"})
    assert third.objects[0].sop_uid != bundle.objects[0].sop_uid


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_pipeline_falls_back_only_where_the_settings_say_so(tmp_path, caplog):
    worker = {"backend": "torch", "precision": "f16", "threads": 1, "extraction": "tissue"}
    with pytest.raises(EngineFailure, match="openvino"):
        open_pipeline(settings.Worker(**worker), settings.Seg(), tmp_path)
    with open_pipeline(settings.Worker(**worker, fallback=["openvino"]), settings.Seg(), tmp_path) as pipeline:
        assert pipeline.engine.backend == "openvino"
        assert pipeline.facts["fallback_from"] == "torch"
        assert pipeline.facts["precision"] == "f32"
    assert any(record.levelname == "ERROR" and "falling back" in record.getMessage() for record in caplog.records)
