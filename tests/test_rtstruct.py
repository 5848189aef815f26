"Outlines in millimeters become masks, against matplotlib, the shoelace formula and hand-made files."
import warnings

import numpy as np
import pydicom
import pytest
from grids import affine, seeds, tilt
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from medseg_nb.data.rtstruct import inside, read_rtstruct, rois
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medseg_nb.data.volume import Volume

often = settings(max_examples=80, deadline=None, derandomize=True)


def structure_set(path, structures, modality='RTSTRUCT'):
    "Write {name: [(kind, corners in mm RAS)]} as an RTSTRUCT file"
    ds, sop = Dataset(), '1.2.840.10008.5.1.4.1.1.481.3'
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop, generate_uid(), modality
    ds.StructureSetROISequence, ds.ROIContourSequence = Sequence(), Sequence()
    for number, (name, outlines) in enumerate(structures, 1):
        roi, contours = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contours.ReferencedROINumber, contours.ROIDisplayColor = number, [255, 0, 16]
        contours.ContourSequence = Sequence()
        for kind, points in outlines:
            item = Dataset()
            item.ContourGeometricType = kind
            item.ContourData = [f'{x:.10g}'[:16] for x in (np.asarray(points)*(-1, -1, 1)).ravel()]
            contours.ContourSequence.append(item)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(contours)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = sop, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def square(v, k, low, high, kind='CLOSED_PLANAR'):
    "An outline in slice k of `v`, its corners between voxels"
    a, b = low - .5, high - .5
    return kind, v.to_world([(a, a, k), (b, a, k), (b, b, k), (a, b, k)])


image = Volume(np.zeros((1, 12, 11, 6), dtype=np.int16), np.diag([.8, .8, 2.5, 1]) + 30*np.eye(4, k=3))


@often
@given(seeds, st.integers(3, 12))
def test_like_matplotlib(seed, n):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 30, 2))
    corners = rng.uniform(-5, 30, (n, 2))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1).reshape(-1, 2)
    angle = np.linspace(0, 2*np.pi, n, endpoint=False)
    convex = np.c_[np.cos(angle), np.sin(angle)]*rng.uniform(1, 15) + corners[0]
    assert (inside(convex, shape).ravel() == Outline(convex).contains_points(grid)).all()


@often
@given(seeds, st.integers(3, 9))
def test_like_walking_to_the_left(seed, n):
    rng = np.random.default_rng(seed)
    corners, shape = rng.integers(-2, 12, (n, 2))/rng.choice([1., 2, 3]), (8, 9)
    def odd(i, j):
        crossed = 0
        for (u, v), (x, y) in zip(corners, np.roll(corners, -1, axis=0)):
            if v > y: u, v, x, y = x, y, u, v
            crossed += v <= j < y and u + (j - v)*(x - u)/(y - v) <= i
        return crossed % 2
    assert (inside(corners, shape) == [[odd(i, j) for j in range(9)] for i in range(8)]).all()


@often
@given(seeds)
def test_a_cut_polygon_is_filled_once(seed):
    rng = np.random.default_rng(seed)
    quad = np.array([(0, 0), (20, 0), (20, 20), (0, 20)]) + rng.integers(-3, 3, (4, 2))
    halves = [inside(quad[[0, 1, 2]], (24, 24)), inside(quad[[0, 2, 3]], (24, 24))]
    whole = inside(quad, (24, 24))
    assert not (halves[0] & halves[1]).any() and ((halves[0] | halves[1]) == whole).all()


def test_corners_beyond_the_slice():
    assert inside([(-9, -9), (50, -9), (50, 50), (-9, 50)], (4, 5)).all()
    assert not inside([(-9, -9), (-2, -9), (-2, 50), (-9, 50)], (4, 5)).any()
    assert not inside([(1, 1), (1, 1), (1, 1)], (4, 5)).any()


@pytest.mark.parametrize('codes', ['RAS', 'LPS', 'SRA', 'PIL'])
def test_any_order_of_axes(tmp_path, codes):
    path = structure_set(tmp_path/'a.dcm', [('liver', [square(image, k, 3, 8) for k in (2, 3)])])
    want = np.zeros(image.shape, dtype=np.uint8)
    want[3:8, 3:8, 2:4] = 1
    got = read_rtstruct(path, image.reorient(codes))['liver']
    assert got.data.dtype.is_floating_point is False and (got.reorient('RAS').numpy()[0] == want).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seeds)
def test_oblique_grids(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    v = Volume(np.zeros((1, 12, 12, 5)), affine(rng, 3))
    path = structure_set(tmp_path_factory.mktemp('rt')/'a.dcm', [('x', [square(v, 2, 3, 9)])])
    got = read_rtstruct(path, v)['x'].numpy()[0]
    assert got.sum() == 36 and got[3:9, 3:9, 2].all()


def test_nested_outlines(tmp_path):
    nest = [square(image, 1, 2, 10), square(image, 1, 4, 7)]
    path = structure_set(tmp_path/'a.dcm', [('wall', nest)])
    assert read_rtstruct(path, image)['wall'].data.sum() == 64 - 9
    assert read_rtstruct(path, image, nested='filled')['wall'].data.sum() == 64
    nest = [square(image, 1, a, b, 'CLOSEDPLANAR_XOR') for a, b in ((2, 10), (4, 7))]
    marked = structure_set(tmp_path/'b.dcm', [('wall', nest)])
    assert read_rtstruct(marked, image, nested='filled')['wall'].data.sum() == 64 - 9
    with pytest.raises(ValueError, match="nested='holes'"): read_rtstruct(path, image, nested='holes')


def test_islands_add_up(tmp_path):
    path = structure_set(tmp_path/'a.dcm', [('two', [square(image, 0, 1, 3), square(image, 0, 6, 9)])])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert read_rtstruct(path, image)['two'].data.sum() == 4 + 9


def test_what_is_doubtful_is_said(tmp_path):
    path = structure_set(tmp_path/'a.dcm', [('crossing', [square(image, 0, 1, 5), square(image, 0, 3, 8)]),
                                            ('gaps', [square(image, k, 1, 5) for k in (0, 3)]),
                                            ('beyond', [square(image, k, 1, 5) for k in (4, 5, 6, 7)])])
    with pytest.warns(UserWarning, match='cross in slice 0; the 4 voxels'):
        assert read_rtstruct(path, image, ['crossing'])['crossing'].data.sum() == 16 + 25 - 8
    with pytest.warns(UserWarning, match='2 slices between have no'): read_rtstruct(path, image, ['gaps'])
    with pytest.warns(UserWarning, match='2 slices lie beyond'):
        assert read_rtstruct(path, image, ['beyond'])['beyond'].data.sum() == 32


def test_another_grid_is_refused(tmp_path):
    path = structure_set(tmp_path/'a.dcm', [('x', [square(image, k, 3, 8) for k in (2, 3)])])
    between = Volume(image.data, image.affine + 1.25*np.eye(4, k=1)*[[0], [0], [1], [0]])
    with pytest.raises(ValueError, match="ROI 'x'.*0.5 slices between slices"): read_rtstruct(path, between)
    turn = np.eye(4)
    turn[:3, :3] = tilt(np.random.default_rng(0), 3, .4)
    turned = Volume(image.data, turn@image.affine)
    with pytest.raises(ValueError, match='cross .* slices'): read_rtstruct(path, turned)
    away = Volume(image.data, image.affine + 500*np.eye(4, k=3))
    with pytest.raises(ValueError, match='no voxel of this grid'): read_rtstruct(path, away)
    with pytest.raises(ValueError, match='2 axes of space'): read_rtstruct(path, Volume(np.zeros((1, 4, 4))))


def test_names(tmp_path):
    square_1 = [square(image, 1, 3, 8)]
    path = structure_set(tmp_path/'a.dcm', [('PTV', square_1), ('PTV', square_1), ('', square_1),
                                            ('marker', [('POINT', [(0, 0, 0)])]), ('empty', [])])
    assert list(rois(path).name) == ['PTV #1', 'PTV #2', 'ROI 3', 'marker', 'empty']
    assert rois(path).outlines.tolist() == [1, 1, 1, 1, 0] and rois(path).color[1] == '#ff0010'
    assert list(read_rtstruct(path, image)) == ['PTV #1', 'PTV #2', 'ROI 3']
    with pytest.raises(ValueError, match="no structure 'liver'; it has 'PTV #1', 'PTV #2'"):
        read_rtstruct(path, image, ['liver'])
    with pytest.raises(ValueError, match="'marker' has no closed outline"):
        read_rtstruct(path, image, ['marker'])


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError): rois(tmp_path/'none.dcm')
    (tmp_path/'text.dcm').write_text('not DICOM')
    with pytest.raises(ValueError, match='text.dcm cannot be read: '): rois(tmp_path/'text.dcm')
    with pytest.raises(ValueError, match="modality 'CT'; wanted an RTSTRUCT"):
        rois(structure_set(tmp_path/'ct.dcm', [], modality='CT'))
    assert read_rtstruct(structure_set(tmp_path/'none.dcm', []), image) == {}
    whole = structure_set(tmp_path/'a.dcm', [('x', [square(image, 1, 3, 8)])]).read_bytes()
    for n in range(0, len(whole), 7):
        (tmp_path/'cut.dcm').write_bytes(whole[:n])
        try: read_rtstruct(tmp_path/'cut.dcm', image)
        except ValueError as e: assert 'cut.dcm' in str(e) or 'ROI' in str(e)


def test_broken_corners(tmp_path):
    kind, corners = square(image, 1, 3, 8)
    odd = structure_set(tmp_path/'odd.dcm', [('x', [(kind, corners)])])

    ds = pydicom.dcmread(odd)
    ds.ROIContourSequence[0].ContourSequence[0].ContourData.pop()
    ds.save_as(odd)
    with pytest.raises(ValueError, match="ROI 'x': 11 numbers"): read_rtstruct(odd, image)
    line = structure_set(tmp_path/'line.dcm', [('x', [(kind, corners[:2])])])
    assert read_rtstruct(line, image) == {}
