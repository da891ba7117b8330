"""From files to a checked bundle: resampling, the whole path with a formula, with the real model, and its errors."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from node import settings
from node.errors import ConfigurationError, DeviceLost, EngineFailure, Unsuitable
from node.records import input_digest
from trt.engine import EngineError
from trt.manifest import MAX_OVERLAP
from trt.phantom import spine_phantom
from trt.serving import Serving
from workers import pipeline as pipelines
from workers.enhanced import write_enhanced
from workers.grid import Canonical, resampling, to_canonical, to_model, to_native
from workers.identity import digest_of
from workers.pipeline import Pipeline, open_pipeline
from workers.prediction import predict_mask
from workers.readback import read_segmentation
from workers.series import write_phantom, write_series
from workers.volume import read_series


def canonical(shape, spacing):
    return Canonical(np.zeros(shape, np.float32), spacing, (0, 1, 2), ())


# --- resampling -----------------------------------------------------------------------------------------------------


def test_pixels_of_the_models_size_are_not_touched():
    weights = resampling(canonical((2, 7, 9), (3.0, 0.93749, 0.9376)), (0.9375, 0.9375))
    voxels = np.random.default_rng(0).random((2, 7, 9), np.float32)
    assert to_model(voxels, weights) is voxels
    assert to_native(voxels, weights) is voxels


@pytest.mark.parametrize("spacing", [(0.4, 0.5), (0.9375, 2.5), (3.0, 0.1)])
def test_a_constant_and_a_slope_survive_resampling(spacing):
    weights = resampling(canonical((1, 90, 80), (1.0, *spacing)), (0.9375, 0.9375))
    ones = np.ones((1, 90, 80), np.float32)
    there = to_model(ones, weights)
    np.testing.assert_allclose(there, 1, rtol=1e-5)
    np.testing.assert_allclose(to_native(there, weights), 1, rtol=1e-5)
    assert there.shape[1:] == (round(90 * spacing[0] / 0.9375), round(80 * spacing[1] / 0.9375))
    y = ((np.arange(90) - 44.5) * spacing[0]).astype(np.float32)  # mm from the middle
    slope = to_model(np.tile(y[None, :, None], (1, 1, 80)), weights)[0]
    expected = (np.arange(slope.shape[0]) - (slope.shape[0] - 1) / 2) * 0.9375
    inner = np.abs(expected) < 0.4 * 90 * spacing[0]
    np.testing.assert_allclose(slope[inner, 0], expected[inner], atol=0.02)


def test_shrinking_does_not_alias():
    """Stripes finer than the model's pixels become grey, not other stripes."""
    stripes = np.tile(np.array([0, 1], np.float32), 100)[None, None, :].repeat(64, axis=1)
    weights = resampling(canonical((1, 64, 200), (1.0, 0.3, 0.3)), (0.9375, 0.9375))
    inner = to_model(stripes, weights)[0, 4:-4, 4:-4]
    assert inner.std() < 0.03
    assert inner.mean() == pytest.approx(0.5, abs=0.01)


def test_an_absurd_grid_is_refused():
    with pytest.raises(Unsuitable, match="too many"):
        resampling(canonical((100, 1000, 1000), (1.0, 20.0, 20.0)), (0.9375, 0.9375))


def test_a_mask_on_a_finer_grid_fits_the_coarse_one(manifest, small, tmp_path):
    """The same anatomy at twice the resolution gives the same volume within a few per cent."""
    image = small.lopsided((4, 40, 32))
    fine = np.kron(image, np.ones((1, 2, 2), np.uint16))
    found = []
    for folder, pixels, spacing in (("a", image, 0.9375), ("b", fine, 0.9375 / 2)):
        volume = read_series(write_series(tmp_path / folder, pixels, (3.0, spacing, spacing)))
        mask = predict_mask(volume, small.formula, manifest, overlap=0.5, batch=4).mask
        assert mask.shape == volume.voxels.shape
        found.append((mask == 1).sum() * np.prod(volume.spacing))
    assert found[1] == pytest.approx(found[0], rel=0.1)


# --- the whole path -------------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path, small):
    return write_series(tmp_path / "in", small.lopsided(), small.SPACING)


def run(paths, manifest, engine, worker=None, progress=None, **options):
    pipeline = Pipeline(engine, manifest, worker or settings.Worker(), settings.Seg(), **options)
    return pipeline.segment(paths, digest_of(paths), progress=progress)


def test_a_bundle_tells_all_about_its_object(paths, manifest, small):
    told = []
    bundle = run(paths, manifest, small.FormulaEngine(), progress=lambda done, total: told.append((done, total)))
    result, report = bundle.objects
    dataset = dcmread(io.BytesIO(result.data))
    assert (result.sop_uid, result.form) == (dataset.SOPInstanceUID, "SEG")
    assert (report.form, report.name) == ("SR:SEG", f"{dcmread(io.BytesIO(report.data)).SeriesNumber}.sr.dcm")
    assert result.sha256 == hashlib.sha256(result.data).hexdigest()
    assert result.name == f"{dataset.SeriesNumber}.seg.dcm"
    assert set(bundle.timings_s) == {"read", "prepare", "select", "predict", "write", "check"}
    assert bundle.engine["backend"] == "formula"
    assert told[-1][0] == told[-1][1] > 1
    volume = read_series(paths)
    mask, segments = read_segmentation(result.data, volume)
    assert list(bundle.volumes_ml) == [label.name for label in manifest.labels]
    values = small.as_labels(mask, segments, manifest)
    for label in manifest.labels:
        ml = bundle.volumes_ml[label.name]
        assert ml == pytest.approx((values == label.value).sum() * 0.9 * 0.9375**2 / 1000)


def test_done_twice_it_gives_the_same_bytes(paths, manifest, small):
    again = run(paths[::-1], manifest, small.FormulaEngine()).objects
    assert run(paths, manifest, small.FormulaEngine()).objects == again


def test_the_digest_covers_uids_and_data_sets_but_not_the_file_meta_information(paths, tmp_path):
    def expected(path):
        data = path.read_bytes()
        start = 132 + 12 + int.from_bytes(data[140:144], "little")
        return str(dcmread(path).SOPInstanceUID), hashlib.sha256(data[start:]).hexdigest()

    assert digest_of(paths) == input_digest(expected(path) for path in paths)
    dataset = dcmread(paths[0])
    dataset.file_meta.ImplementationVersionName = "ANOTHER_SENDER"
    dataset.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    assert digest_of([tmp_path / "other.dcm", *paths[1:]]) == digest_of(paths)


@pytest.mark.parametrize(("setting", "expected"), [(None, "0.125"), (0.0, "0"), (0.75, "0.75")])
def test_overlap_is_the_models_unless_a_setting_says_otherwise(setting, expected, paths, manifest, small):
    manifest, counts = dataclasses.replace(manifest, overlap=0.125), []
    worker = settings.Worker(overlap=setting)
    bundle = run(paths, manifest, small.FormulaEngine(), worker, progress=lambda _, total: counts.append(total))
    item = dcmread(io.BytesIO(bundle.objects[0].data)).SegmentSequence[0]
    parameters = item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert f"overlap={expected}" in parameters.split(",")


def test_settings_and_manifests_take_the_same_overlaps():
    for value in (0, MAX_OVERLAP):
        assert settings.Worker(overlap=value).overlap == value
    for value in (-0.01, MAX_OVERLAP + 0.01):
        with pytest.raises(ValueError, match="overlap"):
            settings.Worker(overlap=value)
    assert settings.Worker().overlap is None


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("folder", ["real_rle", "real_jpegls", "real_enhanced_mr"])
def test_real_compressed_and_enhanced_series_with_a_frame_of_reference_are_segmented(
    folder, real, manifest, small, tmp_path, dciodvfy
):
    """De-identification took that UID out of the samples; a site that keeps or replaces it gets a result."""
    paths = []
    for number, path in enumerate(real(folder)):
        dataset = dcmread(path)
        dataset.FrameOfReferenceUID = "1.2.3"
        paths.append(tmp_path / f"{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    volume = read_series(paths)
    data = run(paths, manifest, small.FormulaEngine()).objects[0].data
    mask = small.as_labels(*read_segmentation(data, volume), manifest)
    expected = predict_mask(volume, small.formula, manifest, overlap=manifest.overlap, batch=8).mask
    np.testing.assert_array_equal(mask, expected)
    (tmp_path / "seg.dcm").write_bytes(data)
    # The samples' own age, "0Y", is no valid value; whatever a source says of its patient is passed on.
    assert [line for line in dciodvfy(tmp_path / "seg.dcm") if "Error" in line and "PatientAge" not in line] == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_returns_no_numbers_fails_the_job(value, paths, manifest, small):
    volume = read_series(paths)
    with pytest.raises(EngineFailure, match="NaN or infinity") as caught:
        predict_mask(volume, lambda p: np.full_like(small.formula(p), value), manifest, overlap=0, batch=2)
    assert "f32" in caught.value.next_step


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (lambda logits: logits[:, :4], "4 classes, and its manifest has 5"),
        (lambda logits: np.concatenate([logits, logits], axis=1), "10 classes, and its manifest has 5"),
        (lambda logits: logits[..., :-1], "wanted"),
        (lambda logits: logits[:-1], "wanted"),
        (lambda logits: logits.argmax(axis=1), "wanted"),
    ],
)
def test_a_network_that_returns_another_shape_fails_the_job(odd, expected, paths, manifest, small):
    volume = read_series(paths)
    with pytest.raises(EngineFailure, match=expected) as caught:
        predict_mask(volume, lambda p: odd(small.formula(p)), manifest, overlap=0, batch=2)
    assert "export the model again" in caught.value.next_step


@pytest.mark.parametrize("kind", [EngineError, RuntimeError])
def test_an_engine_that_raises_fails_the_job(kind, paths, manifest):
    def broken(patches):
        raise kind("out of device memory")

    with pytest.raises(EngineFailure, match="out of device memory"):
        predict_mask(read_series(paths), broken, manifest, overlap=0, batch=2)


def test_a_series_without_a_spine_is_unsuitable(paths, manifest, small):
    class Blind(small.FormulaEngine):
        def __call__(self, patches):
            return small.formula(patches) * [[[[1]], [[0]], [[0]], [[0]], [[0]]]]

    with pytest.raises(Unsuitable, match="no spine structure was found"):
        run(paths, manifest, Blind())


def test_settings_that_name_no_model_or_no_engine(tmp_path):
    with pytest.raises(ConfigurationError, match="no model"):
        open_pipeline(settings.Worker(model="no-such-model"), settings.Seg())
    with pytest.raises(EngineFailure):
        open_pipeline(settings.Worker(backend="tensorrt"), settings.Seg())


def test_the_model_is_closed_where_its_finder_cannot_be_opened(monkeypatch, small):
    closed = []

    class Engine(small.FormulaEngine):
        def close(self):
            closed.append(self)

    def opens(model, *_, **__):
        if model.name.endswith("-finder"):
            raise EngineError("no memory left")
        return Serving(Engine(), None, ())

    monkeypatch.setattr(pipelines, "open_serving", opens)
    with pytest.raises(EngineFailure, match="no memory left"):
        open_pipeline(settings.Worker(), settings.Seg())
    assert len(closed) == 1


# --- the real model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline():
    with open_pipeline(settings.Worker(threads=2), settings.Seg()) as opened:
        yield opened


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_the_model_finds_the_phantoms_spine_in_classic_and_enhanced_alike(pipeline, tmp_path):
    phantom = spine_phantom((5, 320, 256), (4.0, 0.9375, 0.9375), 1)
    classic = write_series(tmp_path / "c", phantom.image, (4.0, 0.9375, 0.9375))
    enhanced = [write_enhanced(tmp_path / "e.dcm", phantom.image, (4.0, 0.9375, 0.9375))]
    masks = []
    for paths in (classic, enhanced):
        volume = read_series(paths)
        bundle = pipeline.segment(paths, digest_of(paths))
        mask, segments = read_segmentation(bundle.objects[0].data, volume)
        names = [s.label for s in segments]
        assert names[:3] == ["Vertebra", "Spinal canal", "Intervertebral disc"]
        assert {name.split(" ")[0].rstrip(",") for name in names[3:]} <= {"Neoplasm"}
        # The phantom has no tumour: what is marked as one is false, 2.5 ml here, and must not become more.
        assert sum(list(bundle.volumes_ml.values())[3:]) <= 2.9
        masks.append(mask)
    np.testing.assert_array_equal(masks[0], masks[1])
    canonical = to_canonical(volume)
    assert canonical.flips == (0,)
    for value in (1, 2, 3):
        assert dice(masks[0][::-1] == value, phantom.mask == value) > 0.6


def test_a_real_spine_in_a_valid_object(pipeline, real, tmp_path, dciodvfy):
    paths = real("spine_t2_pt041")
    bundle = pipeline.segment(paths, digest_of(paths))
    path = tmp_path / "seg.dcm"
    path.write_bytes(bundle.objects[0].data)
    assert dciodvfy(path) == []
    assert bundle.volumes_ml["vertebra"] > 50


MEMORY = """
import json, sys
from pathlib import Path
from node import settings
from workers.pipeline import open_pipeline
from workers.identity import digest_of

paths = sorted(Path(sys.argv[1]).iterdir())
with open_pipeline(settings.Worker(threads=2), settings.Seg()) as pipeline:
    volumes = pipeline.segment(paths, digest_of(paths)).volumes_ml
print(json.dumps([volumes, Path("/proc/self/status").read_text()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_small(tmp_path):
    """20 x 320 x 256 takes a worker's libraries, the open model and the series through in 700 MB.

    VmHWM is the peak of the child alone; its ru_maxrss would begin with that of the process that started it.
    """
    write_phantom(tmp_path, seed=3)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path], cwd=root, check=True, capture_output=True, text=True, timeout=240
    )
    volumes, status = json.loads(done.stdout)
    assert volumes["vertebra"] > 50
    (peak,) = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    assert 100 < peak < 700


def test_a_model_whose_labels_have_no_code_is_refused_at_the_start(pipeline, tmp_path):
    model = shutil.copytree(pipeline.manifest.path.parent, tmp_path / "model")
    fields = json.loads((model / "manifest.json").read_text())
    fields["labels"][0] = {"value": 1, "name": "tail"}
    (model / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigurationError, match="'tail'"):
        open_pipeline(settings.Worker(model=str(model)), settings.Seg())


# --- where the model runs -------------------------------------------------------------------------------------------


def test_the_spine_takes_fewer_patches_than_everything_and_gives_the_same_mask(pipeline, tmp_path, caplog):
    paths = write_phantom(tmp_path, seed=3)
    found = {}
    for extraction in ("spine", "all"):
        other = dataclasses.replace(pipeline, worker=settings.Worker(extraction=extraction, threads=2))
        with caplog.at_level("INFO", "workers.pipeline"):
            bundle = other.segment(paths, digest_of(paths))
        height, width = bundle.patch
        found[extraction] = bundle, read_segmentation(bundle.objects[0].data, read_series(paths))[0]
        assert f"extraction={extraction} patches={bundle.patches} of={height}x{width} " in caplog.text
        item = dcmread(io.BytesIO(bundle.objects[0].data)).SegmentSequence[0]
        parameters = item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters.split(",")
        assert f"extraction={extraction}" in parameters
        digest = f"finder_sha256={pipeline.manifest.finder.digest}"
        assert (digest in parameters) == (extraction == "spine")
    (spine, mask), (everything, whole) = found["spine"], found["all"]
    assert everything.share == 1
    assert spine.share <= 0.75
    assert spine.patch[0] == everything.patch[0] > pipeline.manifest.patch[0]
    assert set(spine.timings_s) == set(everything.timings_s)
    for value in (1, 2, 3):
        assert dice(mask == value, whole == value) > 0.97


def algorithm_parameters(bundle):
    item = dcmread(io.BytesIO(bundle.objects[0].data)).SegmentSequence[0]
    return item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters.split(",")


def test_eight_bits_and_the_finder_that_served_are_told_and_make_another_object(tmp_path):
    paths = write_phantom(tmp_path, shape=(4, 192, 160), seed=3)
    worker = settings.Worker(precision="int8", threads=2)
    with open_pipeline(worker, settings.Seg()) as opened:
        bundle = opened.segment(paths, digest_of(paths))
        parameters = algorithm_parameters(bundle)
        assert f"int8_sha256={opened.manifest.quantised.digest}" in parameters
        assert "precision=int8" in parameters
        assert "finder_precision=f32" in parameters
        assert "finder_backend=openvino" in parameters
        assert any(text.startswith("gate_agreement=0.99") for text in parameters)
        others = dataclasses.replace(opened.manifest.quantised, digest="0" * 64)
        anew = dataclasses.replace(opened, manifest=dataclasses.replace(opened.manifest, quantised=others))
        assert anew.segment(paths, digest_of(paths)).objects[0].sop_uid != bundle.objects[0].sop_uid


def test_one_batch_and_another_give_the_same_object(tmp_path):
    paths = write_phantom(tmp_path, shape=(5, 320, 256), seed=3)
    found = []
    for batch in (1, 8):
        with open_pipeline(settings.Worker(batch=batch, threads=2), settings.Seg()) as opened:
            found.append(opened.segment(paths, digest_of(paths)).objects[0])
    assert found[0].sop_uid == found[1].sop_uid
    assert found[0].sha256 == found[1].sha256


def test_a_gpu_that_failed_leaves_the_job_to_another_process(tall, manifest, small):
    import torch

    class Failing(small.FormulaEngine):
        device = torch.device("cpu")
        stream = None

        def on_device(self, patches):
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    with pytest.raises(DeviceLost, match="the GPU failed: CUDA error: an illegal memory access"):
        run(tall, manifest, Failing())


@pytest.fixture
def tall(tmp_path, small):
    """High enough a field of view for a finder to be asked."""
    return write_series(tmp_path / "tall", small.lopsided((3, 176, 24)), small.SPACING)


def test_a_finder_that_sees_no_spine_lets_everything_run_and_says_so(tall, manifest, small, caplog):
    def blind(patches):
        return np.stack([np.full_like(patches[:, 0], 9), np.zeros_like(patches[:, 0])], axis=1)

    with caplog.at_level("INFO", "workers.pipeline"):
        bundle = run(tall, manifest, small.FormulaEngine(), finder=blind)
    assert bundle.share == 1
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "all patches run: the finder saw 0 cm2 of spine" in warning.getMessage()
    assert "extraction=all" in caplog.text


def test_a_finder_that_raises_fails_the_job(tall, manifest, small):
    def broken(patches):
        raise EngineError("out of memory")

    with pytest.raises(EngineFailure, match="out of memory"):
        run(tall, manifest, small.FormulaEngine(), finder=broken)
