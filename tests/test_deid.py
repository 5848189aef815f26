"De-identified files name nobody in any byte and stay valid and equal; the audit finds what is left."

import gzip
import io
import re
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, config, dcmread, dcmwrite
from pydicom._dicom_dict import DicomDictionary
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from medseg_nb.data.audit import CODINGS, action, audit, rare, rules, sources, spellings, text_boxes, walk
from medseg_nb.data.deid import Key, _shifted, deidentify

secret = 'a secret for the tests'
quiet = pytest.mark.filterwarnings('ignore')
pytestmark = quiet


def made(n=0, syntax=ExplicitVRLittleEndian, patient='Zwiebel^Quentin', number='QZ-77-3141', shape=(24, 20)):
    "A small CT slice of a patient who never lived"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SpecificCharacterSet = 'ISO_IR 192'
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f'1.2.826.77.{n + 1}.314159'
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
        f'1.2.826.77.{i}.27182' for i in '789'
    )
    ds.Modality, ds.PatientName, ds.PatientID, ds.PatientBirthDate = 'CT', patient, number, '19330517'
    ds.StudyDate, ds.StudyTime, ds.ContentDate, ds.AccessionNumber = (
        '20190822',
        '143059',
        '20190822',
        'ACC98231',
    )
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber, ds.ReferringPhysicianName = (
        'S1',
        3,
        n + 1,
        'Doktor^Ypsilon',
    )
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-100.0, -90.5, 2.5 * n], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = [0.7, 0.7], 2.5, 1, -1024
    ds.ConvolutionKernel, ds.RescaleType, ds.PatientPosition = 'B30f', 'HU', 'HFS'
    ds.Rows, ds.Columns = shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, 'MONOCHROME2', 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    pixels = (
        np.random.default_rng(n)
        .integers(0, 4000, shape)
        .astype('>u2' if syntax == ExplicitVRBigEndian else '<u2')
    )
    ds.PixelData = pixels.tobytes()
    return ds


def put(ds, path, preamble=bytes(128)):
    "Written with whatever preamble and values it has"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.preamble = preamble
    with config.disable_value_validation(): ds.save_as(path, enforce_file_format=True)
    return path


def back(folder):
    return [dcmread(p) for p in sources(folder)]


def clean(ds, tmp, name='a.dcm', **opts):
    "One data set, de-identified: what comes out, and the report"
    put(ds, tmp/'src' / name)
    report = deidentify(tmp/'src', tmp/'dst', key=secret, **opts)
    return back(tmp/'dst')[0], report


def inside(folder, token):
    "Files of a folder whose bytes or name hold a token: plain, inflated, in UTF-8, Latin-1 and UTF-16"
    out = []
    for p in Path(folder).rglob('*'):
        if not p.is_file(): continue
        raw = p.read_bytes() + p.name.encode() + str(p.parent).encode()
        if raw[:2] == b'\x1f\x8b': raw += gzip.decompress(p.read_bytes())
        else:
            try:
                plain = io.BytesIO()
                ds = dcmread(p)
                ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                if p.suffix == '.dcm' and DeflatedExplicitVRLittleEndian.encode() in raw[:600]:
                    dcmwrite(plain, ds)
                raw += plain.getvalue()
            except Exception: pass
        forms = {t.encode(c, 'ignore') for t in (token, token.upper(), token.lower()) for c in CODINGS}
        out += [p for f in forms if f and f in raw]
    return out


# ---- the table


def test_table_is_what_an_independent_program_lists():
    from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as other

    lists = {'X_Z_U_STAR_TAGS': 'X/Z/U*'} | {
        f'{c.replace("/", "_")}_TAGS': c for c in ('D', 'Z', 'X', 'U', 'Z/D', 'X/Z', 'X/D', 'X/Z/D')
    }
    theirs = {
        (g << 16) + e: code
        for name, code in lists.items()
        for t in getattr(other, name)
        if len(t) == 2
        for g, e in [t]
    }
    assert {tag: row['basic'] for tag, row in rules().items()} == theirs and len(theirs) == 652


def test_rules_outside_the_table():
    ds = Dataset()
    ds.add_new(0x00091001, 'LO', 'x')
    ds.add_new(0x60003000, 'OW', b'12')
    ds.add_new(0x50000005, 'US', 1)
    ds.add_new(0x00080000, 'UL', 1)
    ds.add_new(0x00285555, 'LO', 'nobody knows')
    ds.add_new(0x00280030, 'LT', 'wrong type')
    ds.add_new(0x00081150, 'UI', CTImageStorage)
    ds.Rows, ds.TextValue, ds.EvaluatorName = 7, 'free', 'A^B'
    got = {str(e.tag): action(ds, e) for e in ds}
    assert got == {
        '(0009,1001)': 'X',
        '(6000,3000)': 'X',
        '(5000,0005)': 'X',
        '(0008,0000)': 'X',
        '(0028,5555)': 'X',
        '(0028,0030)': 'X',
        '(0008,1150)': 'K',
        '(0028,0010)': 'K',
        '(0040,A160)': 'D',
        str(ds['EvaluatorName'].tag): 'D',
    }


def test_options_keep_what_the_table_says_and_no_more():
    ds = made()
    ds.StationName, ds.InstitutionName, ds.PatientAge = 'CT-EAST', 'St. Nowhere', '085Y'
    ds.SeriesDescription = 'chest'
    now = lambda word, *retain: action(ds, ds[word], retain)
    assert [
        now(w) for w in ('StationName', 'InstitutionName', 'PatientAge', 'StudyDate', 'SOPInstanceUID')
    ] == list('DDXZU')
    assert (
        now('StationName', 'device')
        == now('InstitutionName', 'institution')
        == now('PatientAge', 'patient')
        == 'K'
    )
    assert now('StudyDate', 'dates') == now('SOPInstanceUID', 'uids') == 'K'
    assert (
        now('StudyDate', 'modified dates') == 'S'
        and now('SeriesDescription', 'device', 'patient', 'uids') == 'X'
    )
    assert now('PatientName', 'device', 'institution', 'patient', 'dates', 'uids') == 'Z'


# An other program, where it does otherwise, and why
DIFFER = {
    'PatientName': 'a pseudonym in place of an empty value, both allowed by Z',
    'PatientID': 'a pseudonym in place of an empty value or a dummy',
}


def test_actions_agree_with_dicom_anonymizer(tmp_path):
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions

    plain = {
        'LO': 'something',
        'SH': 'something',
        'CS': 'SOMETHING',
        'PN': 'Some^One',
        'DA': '20190822',
        'TM': '143059',
        'DT': '20190822143059',
        'UI': '1.2.826.77.9',
        'LT': 'something',
        'ST': 'something',
        'UT': 'something',
        'AE': 'SOMETHING',
        'AS': '085Y',
        'DS': '17',
        'IS': '17',
        'UR': 'http://some.where',
        'UC': 'something',
        'OB': b'something!',
        'UN': b'something!',
        'FD': 1.5,
        'FL': 1.5,
        'US': 3,
        'UL': 3,
        'SL': 3,
        'SS': 3,
    }
    ours = made()
    for tag in rules():
        if tag >> 16 < 8 or not dictionary_has_tag(tag) or tag in ours or tag >> 16 >= 0xFFFA:
            continue
        vr = dictionary_VR(tag).split(' ')[0]
        if vr in plain: ours.add_new(tag, vr, plain[vr])
    theirs = Dataset()
    theirs.update(deepcopy(ours))
    anonymize_dataset(theirs, base_rules_gen=lambda: initialize_actions('dicomfields_2026c'))
    got, _ = clean(ours, tmp_path)

    def fate(ds, tag):
        if tag not in ds: return 'removed'
        if ds[tag].is_empty: return 'empty'
        return 'kept' if ds[tag].value == ours[tag].value else 'other'

    ours = dcmread(sources(tmp_path/'src')[0])
    unlike = {keyword_for_tag(t) for t in ours.keys() if fate(got, t) != fate(theirs, t)}
    explained = set()
    for word in unlike - set(DIFFER):
        row, vr = rules().get(Tag(word), {}), dictionary_VR(word)
        code, pair = row.get('basic', ''), (fate(got, Tag(word)), fate(theirs, Tag(word)))
        if vr in ('DA', 'DT', 'TM', 'DS', 'IS') or vr in ('FD', 'US', 'FL', 'UL', 'SL', 'SS'):
            # it never empties or deletes a date or number, we do what the letter says
            if pair in (('empty', 'other'), ('removed', 'other')): explained.add(word)
        if code == 'X/Z' and pair == ('empty', 'other'): explained.add(word)
    assert unlike - set(DIFFER) - explained == set()
    same = [t for t in ours.keys() if t in rules() and fate(got, t) == fate(theirs, t)]
    assert len(same) > 400


# ---- names in every corner

token = (
    st.text('bcdfghjklmnpqrstvwxz', min_size=7, max_size=12).filter(lambda t: len(set(t)) > 3).map(str.title)
)
LISTED = {
    vr: [t for t in rules() if t >> 16 >= 8 and dictionary_has_tag(t) and dictionary_VR(t) == vr]
    for vr in (
        'AE',
        'AS',
        'CS',
        'DA',
        'DS',
        'DT',
        'IS',
        'LO',
        'LT',
        'PN',
        'SH',
        'ST',
        'TM',
        'UC',
        'UI',
        'UR',
        'UT',
        'OB',
    )
}
FREE = {
    vr: [t for t, v in DicomDictionary.items() if v[0] == vr and t >> 16 >= 8 and t not in rules()]
    for vr in ('PN', 'LT', 'ST', 'UT', 'UC', 'UR')
}
KEPT = {
    vr: [
        t
        for t, v in DicomDictionary.items()
        if v[0] == vr and t >> 16 >= 8 and t not in rules() and v[4] not in dir(made())
    ]
    for vr in ('LO', 'SH', 'CS', 'AE')
}
SEQUENCES = [t for t, v in DicomDictionary.items() if v[0] == 'SQ' and t >> 16 >= 8]
TEXT = 'AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT UN OB'.split()


def raw(ds, tag, vr, word):
    "An element with these very bytes, fit for its type or not"
    value = word if isinstance(word, bytes) else word.encode()
    value += b'\0' * (len(value) % 2)
    ds[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)


@st.composite
def item(draw, words, depth=0):
    "Elements with secrets: listed by the table, free text, private, unknown, of a wrong type, kept labels"
    ds, pick = Dataset(), lambda *options: draw(st.sampled_from(options))
    for _ in range(draw(st.integers(1, 5))):
        word, where = pick(*words), pick('listed', 'free', 'kept', 'private', 'unknown', 'wrong')
        if where == 'private':
            tag = (0x0033, 0x1000 + draw(st.integers(0, 255)))
            raw(ds, (0x0033, 0x0010), 'LO', f'MAKER {word}')
            raw(ds, tag, pick('UN', 'LO', 'PN', 'OB'), word.encode(pick('utf-16-le', 'latin-1')))
        elif where == 'unknown':
            raw(ds, 0x00285550 + 2 * draw(st.integers(0, 9)), pick('LO', 'UN', 'UT', 'PN'), word)
        elif where == 'wrong':
            raw(ds, pick(0x00180088, 0x00181041, 0x00540081), pick('LO', 'UT', 'PN', 'DS'), word)
        else:
            kind = {'listed': LISTED, 'free': FREE, 'kept': KEPT}[where]
            vr = pick(*(v for v in kind if kind[v]))
            raw(ds, pick(*kind[vr]), vr, word)
    if depth < 3 and draw(st.booleans()):
        ds.add_new(pick(*SEQUENCES), 'SQ', [draw(item(words, depth + 1)) for _ in range(pick(1, 2))])
    return ds


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    words=st.lists(token, min_size=3, max_size=5, unique=True),
    syntax=st.sampled_from(
        (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    ),
)
def test_no_planted_identifier_comes_out(data, words, syntax, tmp_path_factory):
    tmp = tmp_path_factory.mktemp('planted')
    ds = made(syntax=syntax, patient='^'.join(words), number=words[0] + '77')
    keep = {e.tag: e.value for e in ds}
    planted = data.draw(item(words))
    for tag in planted.keys():
        if tag not in keep: ds[tag] = planted.get_item(tag)
    ds.file_meta.SourceApplicationEntityTitle = words[0][:16]
    ds.file_meta.PrivateInformationCreatorUID, ds.file_meta.PrivateInformation = (
        '1.2.3',
        words[1].encode() + b'\0',
    )
    path = put(ds, tmp/'src'/f'{words[2]}.dcm', f'{words[0]} was here'.encode().ljust(128, b'\0'))
    if syntax != DeflatedExplicitVRLittleEndian and data.draw(st.booleans()):
        path.write_bytes(path.read_bytes() + words[1].encode())
    before = dcmread(sources(tmp/'src')[0]).pixel_array
    report = deidentify(tmp/'src', tmp/'dst', key=secret, boxes=[])
    for word in words: assert not inside(tmp/'dst', word), f'{word} in the bytes'
    text = report.to_csv()
    assert not any(w in text for w in words)
    if (report.action == 'failed').any():
        assert not [p for p in (tmp/'dst').rglob('*') if p.is_file()]
        return
    (out,) = back(tmp/'dst')
    np.testing.assert_array_equal(out.pixel_array, before)
    assert out.PatientIdentityRemoved == 'YES' and out.preamble == bytes(128)
    assert (
        out.ImagePositionPatient == keep[Tag('ImagePositionPatient')]
        and out.PixelSpacing == keep[Tag('PixelSpacing')]
    )


def test_one_name_in_every_corner_at_once(tmp_path):
    ds, inner, deep = made(), Dataset(), Dataset()
    deep.CodeMeaning = deep.PatientName = 'Zwiebel^Quentin'
    inner.ReferencedSOPSequence = [deep]
    ds.ReferencedImageSequence, ds.FilterType = [inner], 'zwiebel Q.'
    ds.private_block(0x33, 'ZWIEBEL', create=True).add_new(1, 'UN', 'Zwiebel'.encode('utf-16-be'))
    ds.file_meta.SourceApplicationEntityTitle = 'ZWIEBEL'
    raw(ds, 'NumberOfSlices', 'US', 'Zwiebel')
    path = put(ds, tmp_path/'src'/'Zwiebel'/'Quentin.dcm', b'Zwiebel'.ljust(128, b'\0'))
    path.write_bytes(path.read_bytes() + b'Zwiebel')
    deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    assert len(back(tmp_path/'dst')) == 1 and not inside(tmp_path/'dst', 'Zwiebel')
    assert set(audit(tmp_path/'src', tmp_path/'dst').status) <= {'gone', 'not checked'}
    implicit = made(syntax=ImplicitVRLittleEndian)
    raw(implicit, 'NumberOfSlices', 'US', 'Zwiebel')
    clean(implicit, tmp_path/'implicit')
    assert not inside(tmp_path/'implicit'/'dst', 'Zwiebel')


# ---- one patient, one stranger


def test_uids_agree_across_files_references_and_runs(tmp_path):
    for n in range(3):
        ds = made(n)
        ref = Dataset()
        ref.ReferencedSOPClassUID, ref.ReferencedSOPInstanceUID = (
            CTImageStorage,
            made((n + 1) % 3).SOPInstanceUID,
        )
        ds.ReferencedImageSequence, ds.SourceImageSequence = [ref], [deepcopy(ref)]
        step = Dataset()
        step.ReferencedFrameOfReferenceUID, step.ReferencedImageSequence = (
            ds.FrameOfReferenceUID,
            [deepcopy(ref)],
        )
        ds.ReferencedFrameOfReferenceSequence = [step]
        put(ds, tmp_path / ('first' if n < 2 else 'second')/f'{n}.dcm')
    for part in ('first', 'second'): deidentify(tmp_path / part, tmp_path/'dst', key=secret)
    out = {int(ds.InstanceNumber) - 1: ds for ds in back(tmp_path/'dst')}
    assert len(out) == 3
    for n, ds in out.items():
        deep = ds.ReferencedFrameOfReferenceSequence[0]
        assert deep.ReferencedFrameOfReferenceUID == ds.FrameOfReferenceUID
        for ref in (
            ds.ReferencedImageSequence[0],
            ds.SourceImageSequence[0],
            deep.ReferencedImageSequence[0],
        ):
            assert ref.ReferencedSOPInstanceUID == out[(n + 1) % 3].SOPInstanceUID
            assert ref.ReferencedSOPClassUID == CTImageStorage
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        for u in (ds.SOPInstanceUID, ds.StudyInstanceUID):
            assert re.fullmatch(r'2\.25\.[1-9]\d{0,38}', u) and UID(u).is_valid
    for word in ('StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID', 'PatientID', 'PatientName'):
        assert len({ds[word].value for ds in out.values()}) == 1
    deidentify(tmp_path/'first', tmp_path/'other', key='another secret here')
    assert not {ds.StudyInstanceUID for ds in back(tmp_path/'other')} & {
        ds.StudyInstanceUID for ds in out.values()
    }


def test_names_do_not_depend_on_how_the_number_is_typed_and_patients_stay_apart(tmp_path):
    for n, number in enumerate(('QZ-77', ' qz-77 ', 'QZ-78')):
        put(made(n, number=number), tmp_path/'src'/f'{n}.dcm')
    deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    who = {int(ds.InstanceNumber): ds.PatientID for ds in back(tmp_path/'dst')}
    assert who[1] == who[2] != who[3]
    assert {p.parts[len((tmp_path/'dst').parts)] for p in sources(tmp_path/'dst')} == set(who.values())


def test_a_lost_key_is_said_and_a_short_one_refused(tmp_path):
    put(made(), tmp_path/'src'/'a.dcm')
    with pytest.warns(UserWarning, match='lost'): deidentify(tmp_path/'src', tmp_path/'a')
    with pytest.warns(UserWarning, match='lost'): deidentify(tmp_path/'src', tmp_path/'b')
    assert back(tmp_path/'a')[0].PatientID != back(tmp_path/'b')[0].PatientID
    for short in ('secret', b'', ''):
        with pytest.raises(ValueError, match='16'):
            deidentify(tmp_path/'src', tmp_path/'c', key=short)
    assert not (tmp_path/'c').exists()


@settings(max_examples=200, deadline=None)
@given(
    when=st.datetimes(datetime(1000, 1, 1), datetime(9990, 1, 1)),
    days=st.integers(0, 5000),
    seconds=st.integers(0, 86399),
)
def test_dates_move_as_datetimes_do(when, days, seconds):
    ds, shift = Dataset(), timedelta(days=days, seconds=seconds)
    if when - datetime(1, 1, 1) < shift: return
    stamp, then = when.replace(microsecond=0), when.replace(microsecond=0) - shift
    text = lambda t: f'{t.year:04}{t:%m%d%H%M%S}'
    ds.StudyDate, ds.StudyTime, ds.AcquisitionDateTime = (
        text(stamp)[:8],
        text(stamp)[8:] + '.123',
        text(stamp) + '.5+0100',
    )
    ds.ContentDate, ds.SeriesTime = text(stamp)[:8], text(stamp)[8:12]
    got = {keyword_for_tag(t): v for t, v in _shifted(ds, shift).items()}
    assert got['StudyDate'] + got['StudyTime'] == text(then) + '.123'
    assert got['AcquisitionDateTime'] == text(then) + '.5+0100'
    assert got['ContentDate'] == text(stamp.replace(hour=0, minute=0, second=0) - shift)[:8]
    assert got['SeriesTime'] == text(stamp.replace(second=0) - timedelta(seconds=seconds))[8:12]


def test_modified_dates_keep_intervals_and_lose_the_dates(tmp_path):
    for n, (day, clock) in enumerate([('20190822', '003000'), ('20200229', '235959')]):
        ds = made(n)
        ds.StudyDate, ds.StudyTime = day, clock
        ds.AcquisitionDateTime, ds.SeriesDate, ds.SeriesTime = day + clock, 'last May', ''
        put(ds, tmp_path/'src'/f'{n}.dcm')
    deidentify(tmp_path/'src', tmp_path/'dst', key=secret, retain=['modified dates'])
    a, b = sorted(back(tmp_path/'dst'), key=lambda ds: ds.InstanceNumber)
    full = lambda ds: datetime.strptime(ds.StudyDate + ds.StudyTime, '%Y%m%d%H%M%S')
    assert full(b) - full(a) == datetime(2020, 2, 29, 23, 59, 59) - datetime(2019, 8, 22, 0, 30)
    assert timedelta(days=365) <= datetime(2019, 8, 22, 0, 30) - full(a) <= timedelta(days=4100)
    assert a.AcquisitionDateTime == a.StudyDate + a.StudyTime and 'last' not in str(a)
    assert a.LongitudinalTemporalInformationModified == 'MODIFIED' and a.PatientBirthDate == ''
    assert [i.CodeValue for i in a.DeidentificationMethodCodeSequence] == ['113100', '113107']
    assert set(audit(tmp_path/'src', tmp_path/'dst', retain=['modified dates']).status) <= {
        'gone',
        'not checked',
    }


def test_default_follows_the_letters_for_dates(tmp_path):
    ds = made()
    ds.AcquisitionDate, ds.InstanceCreationDate, ds.OverlayDate = '20190822', '20190822', '20190822'
    out, _ = clean(ds, tmp_path)
    assert (out.StudyDate, out.AcquisitionDate, out.ContentDate, out.InstanceCreationDate) == (
        '',
        '',
        '19000101',
        '19000101',
    )
    assert 'OverlayDate' not in out and out.LongitudinalTemporalInformationModified == 'REMOVED'


# ---- what stays


@pytest.mark.parametrize(
    'syntax',
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=str,
)
def test_image_and_geometry_stay(syntax, tmp_path):
    ds = made(syntax=syntax)
    out, _ = clean(ds, tmp_path)
    ds = dcmread(sources(tmp_path/'src')[0])
    np.testing.assert_array_equal(out.pixel_array, ds.pixel_array)
    kept = (
        'ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness RescaleSlope '
        'RescaleIntercept Rows Columns BitsStored PixelRepresentation ConvolutionKernel RescaleType '
        'PatientPosition Modality SOPClassUID SeriesNumber InstanceNumber'
    )
    for word in kept.split():
        assert out[word].value == ds[word].value, word
    assert out.file_meta.TransferSyntaxUID == syntax


def test_what_the_result_says_of_itself(tmp_path):
    out, report = clean(made(), tmp_path)
    assert out.PatientIdentityRemoved == 'YES' and 'PS3.15' in out.DeidentificationMethod
    (code,) = out.DeidentificationMethodCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ('113100', 'DCM')
    assert set(report.action) <= set('XZDU') and list(report.source.unique()) == [0]
    assert (tmp_path/'dst' / report.file[0]).exists()


def test_private_blocks_stay_only_by_name_and_without_identifiers(tmp_path):
    ds = made()
    safe_block = ds.private_block(0x7053, 'Philips PET Private Group', create=True)
    safe_block.add_new(0, 'DS', '0.000587')
    safe_block.add_new(9, 'LO', 'of Mr. Zwiebel')
    ds.private_block(0x7053, 'SOMEBODY ELSE', create=True).add_new(1, 'LO', 'whatever')
    out, _ = clean(ds, tmp_path, private=['Philips PET Private Group'])
    block = out.private_block(0x7053, 'Philips PET Private Group')
    assert block[0].value == 0.000587 and 9 not in block
    assert out.private_creators(0x7053) == ['Philips PET Private Group']
    assert '113111' in [i.CodeValue for i in out.DeidentificationMethodCodeSequence]
    deidentify(tmp_path/'src', tmp_path/'none', key=secret)
    assert not [e for e in back(tmp_path/'none')[0] if e.tag.is_private]


def test_retained_uids_are_the_old_ones(tmp_path):
    out, _ = clean(made(), tmp_path, retain=['uids', 'dates', 'patient'])
    assert out.SOPInstanceUID == made().SOPInstanceUID and out.StudyDate == '20190822'
    assert [i.CodeValue for i in out.DeidentificationMethodCodeSequence] == [
        '113100',
        '113110',
        '113106',
        '113108',
    ]


# ---- corners


def test_names_in_other_alphabets(tmp_path):
    ds = made(patient='Yamada^Tarou=山田^太郎=やまだ^たろう')
    ds.StudyComments = ds.FilterType = '山田 太郎'
    out, _ = clean(ds, tmp_path)
    raw = sources(tmp_path/'dst')[0].read_bytes()
    for coding in ('utf-8', 'shift_jis', 'euc_jp'): assert '山田'.encode(coding) not in raw
    latin = made(patient='Müßig^Jörg')
    latin.SpecificCharacterSet, latin.FilterType = 'ISO_IR 100', 'Müßig'
    put(latin, tmp_path/'latin'/'a.dcm')
    deidentify(tmp_path/'latin', tmp_path/'out', key=secret)
    assert 'Müßig'.encode('latin-1') not in sources(tmp_path/'out')[0].read_bytes()


def test_overlays_curves_icons_and_what_stands_behind_the_pixels(tmp_path):
    ds = made(shape=(5, 3))
    ds.add_new(0x60020010, 'US', 5)
    ds.add_new(0x60023000, 'OW', b'ZWIEBEL!')
    ds.add_new(0x50003000, 'OW', b'ZWIEBEL!')
    icon = made(5)
    ds.IconImageSequence, icon.file_meta = [icon], None
    ds.PixelData = ds.PixelData + b'ZWIEBEL QUENTIN!'
    ds.DataSetTrailingPadding = b'Zwiebel!'
    out, _ = clean(ds, tmp_path)
    assert not [e for e in out if e.tag.group >> 8 in (0x50, 0x60)] and 'IconImageSequence' not in out
    assert len(out.PixelData) == 30 and not inside(tmp_path/'dst', 'Zwiebel')


def test_an_overlay_inside_the_pixels_is_refused(tmp_path):
    ds = made()
    ds.add_new(0x60000102, 'US', 12)
    put(ds, tmp_path/'src'/'a.dcm')
    report = deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    assert (
        list(report.action) == ['failed'] and 'overlay' in report.path[0] and not (tmp_path/'dst').exists()
    )


def test_report_text_becomes_a_hollow_frame(tmp_path):
    def node(kind, **values):
        ds, name = Dataset(), Dataset()
        name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = '121071', 'DCM', 'Finding'
        ds.RelationshipType, ds.ValueType, ds.ConceptNameCodeSequence = 'CONTAINS', kind, [name]
        for k, v in values.items(): setattr(ds, k, v)
        return ds

    own = Dataset()
    own.CodeValue, own.CodingSchemeDesignator, own.CodeMeaning = 'Z1', '99LOCAL', 'Mr. Quentins finding'
    measured = Dataset()
    measured.NumericValue = '31.4'
    ds = made()
    ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.88.22'
    ds.ContentSequence = [
        node('TEXT', TextValue='Zwiebel has a nodule'),
        node('PNAME', PersonName='Zwiebel^Q'),
        node('NUM', MeasuredValueSequence=[measured]),
        node('CODE', ConceptCodeSequence=[own]),
    ]
    del ds.PixelData
    out, _ = clean(ds, tmp_path)
    text, name, number, code = out.ContentSequence
    assert text.TextValue == name.PersonName == code.ConceptCodeSequence[0].CodeMeaning == 'REMOVED'
    assert number.MeasuredValueSequence[0].NumericValue == 0
    assert text.ConceptNameCodeSequence[0].CodeMeaning == 'Finding' and text.ValueType == 'TEXT'


def test_documents_are_replaced(tmp_path):
    ds = made()
    del ds.PixelData
    ds.SOPClassUID, ds.EncapsulatedDocument = '1.2.840.10008.5.1.4.1.1.104.1', b'%PDF-1.4 ' + b'word ' * 3000
    out, _ = clean(ds, tmp_path)
    assert 0 < len(out.EncapsulatedDocument) < 100 and not inside(tmp_path/'dst', '%PDF')


def test_comments_in_compressed_pixels_go_and_pixels_stay(tmp_path):
    from PIL import Image

    gray = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    for comment in (b'', b'Zwiebel Quentin'):
        data = io.BytesIO()
        Image.fromarray(gray).save(data, 'JPEG', comment=comment) if comment else Image.fromarray(gray).save(
            data, 'JPEG'
        )
        ds = made(shape=gray.shape, syntax=JPEGBaseline8Bit)
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = encapsulate([data.getvalue()])
        ds['PixelData'].is_undefined_length = True
        here = tmp_path / ('with' if comment else 'without')
        out, _ = clean(ds, here)
        assert not inside(here/'dst', 'Zwiebel')
        np.testing.assert_array_equal(out.pixel_array, ds.pixel_array)
        assert out.file_meta.TransferSyntaxUID == (ExplicitVRLittleEndian if comment else JPEGBaseline8Bit)


def test_run_length_coding_stays(tmp_path):
    ds = made()
    ds.compress(RLELossless, generate_instance_uid=False)
    out, _ = clean(ds, tmp_path)
    assert out.file_meta.TransferSyntaxUID == RLELossless
    np.testing.assert_array_equal(out.pixel_array, ds.pixel_array)


# ---- letters in the picture


def written(image, text='ZWIEBEL 1933', at=(8, 6), value=None):
    from PIL import Image, ImageDraw, ImageFont

    ink = Image.new('1', image.shape[::-1])
    ImageDraw.Draw(ink).text(at, text, fill=1, font=ImageFont.load_default(size=16))
    mask = np.array(ink)
    return np.where(mask, image.max() if value is None else value, image), mask


def picture(shape=(160, 200)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (1000 + 800 * np.exp(-((y - 80) ** 2 + (x - 100) ** 2) / 3000)).astype(np.uint16)


def test_letters_are_found_at_the_border_and_nothing_elsewhere():
    image, mask = written(picture(), value=3000)
    ((top, bottom, left, right),) = text_boxes(image)
    assert (
        mask[top:bottom, left:right].sum() == mask.sum()
        and (bottom - top) * (right - left) < 4 * mask.sum() + 2000
    )
    assert text_boxes(picture()) == [] == text_boxes(np.full((50, 60), 7))
    assert text_boxes(np.random.default_rng(0).integers(0, 4096, (128, 128))) == []


@pytest.mark.parametrize('frames', [1, 3])
@pytest.mark.parametrize('color', [False, True])
def test_boxes_are_blanked_and_nothing_else(frames, color, tmp_path):
    image = np.stack([picture() // 16] * frames).astype(np.uint8)
    image = np.stack([written(f, value=255)[0] for f in image])
    if color: image = np.stack([image, image, image // 2], -1)
    ds = made(shape=picture().shape)
    ds.Modality, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 'US', 8, 8, 7
    if frames > 1: ds.NumberOfFrames = frames
    if color: ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, 'RGB', 0
    ds.PixelData = image.tobytes()
    box = text_boxes(image.max(-1)[0] if color else image[0])[0]
    for boxes in (text_boxes, [box]):
        out, _ = clean(ds, tmp_path, boxes=boxes)
        got = out.pixel_array.reshape(image.shape)
        top, bottom, left, right = box
        assert (got[:, top:bottom, left:right] == image.min()).all()
        same = got == image
        same[:, top:bottom, left:right] = True
        assert same.all() and out.BurnedInAnnotation == 'NO'
        assert '113101' in [i.CodeValue for i in out.DeidentificationMethodCodeSequence]


@pytest.mark.parametrize(
    'change',
    [
        dict(Modality='US'),
        dict(BurnedInAnnotation='YES'),
        dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.7'),
        dict(ImageType=['DERIVED', 'SECONDARY', 'SCREEN SAVE']),
    ],
    ids=str,
)
def test_images_with_text_wait_for_a_word(change, tmp_path):
    ds = made()
    for k, v in change.items(): setattr(ds, k, v)
    put(ds, tmp_path/'src'/'a.dcm')
    report = deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    assert (
        list(report.action) == ['failed']
        and 'text_boxes' in report.path[0]
        and not (tmp_path/'dst').exists()
    )
    deidentify(tmp_path/'src', tmp_path/'dst', key=secret, boxes=[])
    np.testing.assert_array_equal(back(tmp_path/'dst')[0].pixel_array, ds.pixel_array)


@pytest.mark.parametrize('box', [(0, 0, 1, 2), (-1, 4, 0, 4), (0, 25, 0, 4), (0, 4, 5, 4)], ids=str)
def test_boxes_outside_the_image_are_refused(box, tmp_path):
    put(made(), tmp_path/'src'/'a.dcm')
    report = deidentify(tmp_path/'src', tmp_path/'dst', key=secret, boxes=[box])
    assert (
        list(report.action) == ['failed'] and '24 x 20' in report.path[0] and not (tmp_path/'dst').exists()
    )


# ---- NIfTI


@pytest.mark.parametrize('kind', [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize('packed', [True, False])
def test_nifti_keeps_voxels_and_geometry_and_no_text(kind, packed, tmp_path):
    affine = np.array([[-0.7, 0.1, 0, 12], [0, 0.8, 0, -40], [0.1, 0, 2.5, 9], [0, 0, 0, 1]])
    image = kind(np.random.default_rng(0).integers(-500, 500, (7, 6, 5)).astype(np.int16), affine)
    header = image.header
    header.set_slope_inter(2.5, -3)
    header['descrip'], header['aux_file'], header['intent_name'] = 'Zwiebel 1933', 'zwiebel.txt', 'Zwiebel'
    if 'db_name' in header: header['db_name'], header['data_type'] = 'ZWIEBEL', 'Zwiebel'
    if 'unused_str' in header: header['unused_str'] = 'Zwiebel'
    for code, content in ((4, b'<n>Zwiebel</n>'), (6, b'Quentin Zwiebel')):
        header.extensions.append(nib.nifti1.Nifti1Extension(code, content))
    (tmp_path/'src').mkdir()
    path = tmp_path/'src' / ('Zwiebel_Quentin.nii' + '.gz' * packed)
    raw = image.to_bytes() + b'Zwiebel Quentin'
    if packed:
        with open(path, 'wb') as f, gzip.GzipFile('Zwiebel_before.nii', 'wb', fileobj=f) as g:
            g.write(raw)
    else: path.write_bytes(raw)
    report = deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    (out,) = sources(tmp_path/'dst')
    got, want = nib.load(out), nib.load(path)
    np.testing.assert_array_equal(got.get_fdata(), want.get_fdata())
    np.testing.assert_array_equal(got.affine, want.affine)
    assert (
        type(got) is kind
        and got.header['sform_code'] == want.header['sform_code']
        and not got.header.extensions
    )
    assert not inside(tmp_path/'dst', 'Zwiebel') and 'Zwiebel' not in report.to_csv()
    assert {'descrip', 'extension'} <= set(report.path)
    result = audit(tmp_path/'src', tmp_path/'dst')
    assert set(result.status) == {'gone'} and {'descrip', 'extension', 'file name'} <= set(result.origin)
    assert ('gzip' in set(result.origin)) == packed


# ---- bad input: a clear word, and nothing left behind


def rubbish(folder):
    folder.mkdir(parents=True)
    whole = put(made(7), folder/'good.dcm').read_bytes()
    (folder/'notes_Zwiebel.txt').write_text('Zwiebel')
    (folder/'empty.dcm').write_bytes(b'')
    (folder/'short.dcm').write_bytes(whole[:200])
    (folder/'cut.dcm').write_bytes(whole[:-300])
    (folder/'broken.nii.gz').write_bytes(b'\x1f\x8bZwiebel')
    no_uid = made(8)
    del no_uid.SOPInstanceUID
    no_uid.preamble = bytes(128)
    dcmwrite(folder/'nouid.dcm', no_uid)
    own = made(9)
    own.SOPClassUID = '1.3.12.2.1107.5.9.1'
    put(own, folder/'private.dcm')
    (folder/'twin.dcm').write_bytes(whole)


def test_files_that_fail_leave_nothing_and_the_others_go_on(tmp_path):
    rubbish(tmp_path/'src')
    before = {p: p.read_bytes() for p in sources(tmp_path/'src')}
    with pytest.warns(UserWarning, match='8 of 9 files failed'):
        report = deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    assert {p: p.read_bytes() for p in sources(tmp_path/'src')} == before
    failed = report[report.action == 'failed']
    names = [p.name for p in sources(tmp_path/'src')]
    assert {names[i] for i in failed.source} == set(names) - {'good.dcm'}
    assert [p.suffix for p in (tmp_path/'dst').rglob('*') if p.is_file()] == ['.dcm']
    assert 'Zwiebel' not in report.to_csv() and not inside(tmp_path/'dst', 'Zwiebel')
    words = 'private SOP Class', 'earlier file', '660 bytes of pixels'
    assert [int(failed.path.str.contains(w).sum()) for w in words] == [3, 1, 1]


def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch):
    put(made(), tmp_path/'src'/'a.dcm')

    def half(self, path, **_):
        Path(path).write_bytes(b'half of Zwiebel')
        raise OSError('disk full of Zwiebel')

    monkeypatch.setattr('pydicom.dataset.FileDataset.save_as', half)
    report = deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    assert list(report.path) == ['OSError'] and not [p for p in (tmp_path/'dst').rglob('*') if p.is_file()]


def test_the_source_is_out_of_reach(tmp_path):
    path = put(made(), tmp_path/'src'/'deep'/'a.dcm')
    raw = path.read_bytes()
    for src, dst in (
        (tmp_path/'src', tmp_path/'src'),
        (tmp_path/'src', tmp_path/'src'/'out'),
        (tmp_path/'src', tmp_path),
        (path, path),
        (path, tmp_path/'src'/'deep'),
        (tmp_path/'src', tmp_path/'src'/'..'/'src'),
    ):
        with pytest.raises(ValueError, match='apart'): deidentify(src, dst, key=secret)
    (tmp_path/'link').symlink_to(tmp_path/'src')
    with pytest.raises(ValueError, match='apart'):
        deidentify(tmp_path/'src', tmp_path/'link', key=secret)
    with pytest.raises(FileNotFoundError):
        deidentify(tmp_path/'nowhere', tmp_path/'dst', key=secret)
    for wrong in ('uids', ['everything'], ['dates', 'modified dates']):
        with pytest.raises(ValueError, match='institution'):
            deidentify(tmp_path/'src', tmp_path/'dst', key=secret, retain=wrong)
    assert path.read_bytes() == raw and not (tmp_path/'dst').exists()


def test_links_are_not_followed(tmp_path):
    put(made(), tmp_path/'elsewhere'/'a.dcm')
    put(made(1), tmp_path/'src'/'b.dcm')
    (tmp_path/'src'/'c.dcm').symlink_to(tmp_path/'elsewhere'/'a.dcm')
    deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    assert len(sources(tmp_path/'dst')) == 1


def test_a_single_file(tmp_path):
    path = put(made(), tmp_path/'src'/'Zwiebel.dcm')
    deidentify(path, tmp_path/'dst', key=secret)
    assert len(sources(tmp_path/'dst')) == 1 and set(audit(path, tmp_path/'dst').status) <= {
        'gone',
        'not checked',
    }


def test_report_holds_no_value(tmp_path):
    ds = made()
    ds.private_block(0x0033, 'ZWIEBEL', create=True).add_new(1, 'LO', 'Zwiebel')
    _, report = clean(ds, tmp_path, name='Zwiebel.dcm')
    text = report.to_csv().lower()
    values = {
        t.lower()
        for _, _, e, _ in walk(ds)
        if e is not None and e.VR in ('PN', 'LO', 'DA', 'UI', 'SH') and rare(str(e.value))
        for t in [str(e.value)]
    }
    assert 'zwiebel' not in text and not [v for v in values if v in text and v not in ('hu',)]
    a, b = (report[report.keyword == k].trace.item() for k in ('StudyDate', 'ContentDate'))
    assert a == b != report[report.keyword == 'PatientBirthDate'].trace.item()


# ---- the audit

LEAKS = {
    'element': lambda ds: setattr(ds, 'FilterType', 'for zwiebel'),
    'nested': lambda ds: setattr(ds, 'ReferencedImageSequence', [item_with('Zwiebel')]),
    'private': lambda ds: ds.private_block(0x33, 'X', create=True).add_new(
        1, 'UN', 'Zwiebel'.encode('utf-16-le')
    ),
    'date': lambda ds: setattr(ds, 'FilterType', '17.05.1933'),
    'words': lambda ds: setattr(ds, 'FilterType', '17 May 1933'),
    'uid': lambda ds: setattr(ds, 'FilterType', '1.2.826.77.7.27182'),
    'meta': lambda ds: setattr(ds.file_meta, 'SourceApplicationEntityTitle', 'ZWIEBEL'),
    'pixels': lambda ds: setattr(ds, 'PixelData', b'zwiebel^quentin!' + ds.PixelData[16:]),
}


def item_with(text):
    ds = Dataset()
    ds.PurposeOfReferenceCodeSequence = [Dataset()]
    ds.PurposeOfReferenceCodeSequence[0].CodeMeaning = text
    return ds


@pytest.mark.parametrize('leak', LEAKS)
@pytest.mark.parametrize(
    'syntax', [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=['plain', 'deflated']
)
def test_audit_sees_each_leak(leak, syntax, tmp_path):
    out, _ = clean(made(), tmp_path)
    assert set(audit(tmp_path/'src', tmp_path/'dst').status) == {'gone', 'not checked'}
    LEAKS[leak](out)
    out.file_meta.TransferSyntaxUID = syntax
    put(out, tmp_path/'bad'/'a.dcm')
    result = audit(tmp_path/'src', tmp_path/'bad')
    found = result[result.status == 'found']
    assert len(found) and not found['where'].str.contains('wiebel').any()
    if syntax == ImplicitVRLittleEndian:
        part = {
            'nested': 'ReferencedImageSequence',
            'private': '(0033,1001)',
            'meta': 'file meta',
            'pixels': 'PixelData',
        }
        assert part.get(leak, 'FilterType') in ' '.join(found['where'])


def test_audit_sees_names_of_files_preambles_and_letters(tmp_path):
    ds = made(shape=picture().shape)
    ds.PixelData = written(picture(), value=3000)[0].tobytes()
    put(ds, tmp_path/'src'/'a.dcm')
    deidentify(tmp_path/'src', tmp_path/'dst', key=secret)
    result = audit(tmp_path/'src', tmp_path/'dst')
    assert set(result.origin[result.status == 'look']) == {'pixels'}
    (path,) = sources(tmp_path/'dst')
    raw = b'Zwiebel'.ljust(128, b'\0') + path.read_bytes()[128:]
    (tmp_path/'bad'/'Quentin').mkdir(parents=True)
    (tmp_path/'bad'/'Quentin'/'x.dcm').write_bytes(raw)
    where = ' '.join(audit(tmp_path/'src', tmp_path/'bad')['where'])
    assert 'preamble' in where and ': name' in where


def test_audit_says_what_it_did_not_check(tmp_path):
    ds = made(patient='Li^Q')
    ds.PatientSex = 'M'
    clean(ds, tmp_path)
    (tmp_path/'src'/'unreadable.dcm').write_bytes(b'?')
    result = audit(tmp_path/'src', tmp_path/'dst').set_index('origin').status
    assert (
        result['PatientSex'] == result['a file that cannot be read'] == 'not checked'
        and result['PatientID'] == 'gone'
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.text('abcdefghijklmnopqrstuvwxyzäöüéß', min_size=4, max_size=9).filter(rare),
    pad=st.binary(max_size=40),
    coding=st.sampled_from(CODINGS[:4]),
)
def test_finder_finds_what_in_finds(name, pad, coding):
    from medseg_nb.data.audit import _finder

    hay = pad + b'|' + name.encode(coding) + b'|' + pad
    assert name in {t for _, t in _finder([name, 'something else'])(hay)}
    assert list(_finder(['qqzzxx'])(hay)) == []


def test_spellings_of_dates_against_strftime():
    day = datetime(1933, 5, 17)
    assert {
        day.strftime(f) for f in ('%Y-%m-%d', '%d.%m.%Y', '%m/%d/%Y', '%d/%m/%Y', '%Y%m%d', '%Y.%m.%d')
    } <= spellings('19330517', 'DA')
    assert {'17 may 1933', 'may 17, 1933'} <= spellings('19330517120000', 'DT')
    assert spellings('19330517', 'LO') == {'19330517'} and spellings('143059', 'TM') == {'143059'}


# ---- real files


@pytest.mark.parametrize(
    'name',
    [
        'CT_small.dcm',
        'MR_small.dcm',
        'rtplan.dcm',
        'rtdose.dcm',
        'test-SR.dcm',
        'US1_UNCR.dcm',
        'JPEG2000.dcm',
        'liver_1frame.dcm',
        'image_dfl.dcm',
        'ExplVR_BigEnd.dcm',
        'reportsi.dcm',
    ],
)
def test_real_files_of_pydicom(name, tmp_path):
    path = Path(get_testdata_file(name, download=False) or pytest.skip('not in this pydicom'))
    report = deidentify(path, tmp_path/'dst', key=secret, boxes=[])
    assert 'failed' not in set(report.action)
    result = audit(path, tmp_path/'dst')
    bad = result[result.status == 'found']
    assert bad.empty, bad.to_string()
    old, new = dcmread(path), back(tmp_path/'dst')[0]
    if 'PixelData' in old: np.testing.assert_array_equal(old.pixel_array, new.pixel_array)


def test_key_of_bytes_and_text_are_one():
    assert Key('k' * 16).uid('1.2') == Key(b'k' * 16).uid('1.2') != Key('k' * 17).uid('1.2')
    assert Key('k' * 16).digest('uid', 'a') != Key('k' * 16).digest('name', 'a')
