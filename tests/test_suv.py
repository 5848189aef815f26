"SUV, against numbers computed by hand after QIBA's pseudo-code."
import numpy as np
import pytest
from pydicom import Dataset
from test_dicom import write

from medseg_nb.data.dicom import read_series
from medseg_nb.data.suv import suv_factor

half_life = 6586.2


def pet(dose=370e6, kg=70, given='091500', drug=(), **elements):
    "A scan at 10:00:00 on the first of March of a leap year"
    h, d = Dataset(), Dataset()
    d.RadionuclideTotalDose, d.RadionuclideHalfLife, d.RadiopharmaceuticalStartTime = dose, half_life, given
    d.update(dict(drug))
    h.Units, h.DecayCorrection, h.PatientWeight = 'BQML', 'START', kg
    h.CorrectedImage = ['DECY', 'ATTN', 'SCAT']
    h.SeriesDate = h.AcquisitionDate = '20240301'
    h.SeriesTime = h.AcquisitionTime = '100000.00'
    h.RadiopharmaceuticalInformationSequence = [d]
    h.update(elements)
    return h


def by_hand(seconds, dose=370e6, kg=70): return 1000*kg/(dose*np.exp(-np.log(2)*seconds/half_life))


def test_to_the_start_of_the_scan():
    assert suv_factor(pet()) == pytest.approx(0.000251364, rel=2e-6)
    assert suv_factor(pet()) == pytest.approx(by_hand(2700), rel=1e-12)
    assert suv_factor(pet(dose=200e6, kg=60.5,
                          given='085959.500')) == pytest.approx(by_hand(3600.5, 200e6, 60.5), rel=1e-12)


def test_to_the_injection():
    assert suv_factor(pet(DecayCorrection='ADMIN')) == pytest.approx(70000/370e6, rel=1e-12)


def test_over_midnight():
    assert suv_factor(pet(given='233000')) == pytest.approx(by_hand(10.5*3600), rel=1e-12)
    dated = dict(RadiopharmaceuticalStartDateTime='20240229233000.00+0100')
    assert suv_factor(pet(drug=dated)) == pytest.approx(by_hand(10.5*3600), rel=1e-12)


def test_the_acquisition_of_a_later_bed_is_not_the_start():
    assert suv_factor(pet(AcquisitionTime='102000')) == pytest.approx(by_hand(2700), rel=1e-12)


def test_a_series_made_later():
    late = pet(SeriesTime='150000')
    with pytest.raises(ValueError, match='SeriesTime is after AcquisitionTime'): suv_factor(late)
    late.private_block(0x0009, 'GEMS_PETD_01', create=True).add_new(0x0d, 'DT', '20240301095000.00')
    assert suv_factor(late) == pytest.approx(by_hand(2100), rel=1e-12)


def test_units():
    assert suv_factor(pet(Units='GML', PatientWeight=None)) == 1
    with pytest.raises(ValueError, match='factor of Philips; the header has CNTS'):
        suv_factor(pet(Units='CNTS'))
    with pytest.raises(ValueError, match='the header has PROPCNTS'): suv_factor(pet(Units='PROPCNTS'))
    philips = pet(Units='CNTS')
    block = philips.private_block(0x7053, 'Philips PET Private Group', create=True)
    block.add_new(0x09, 'DS', '1.5')
    assert suv_factor(philips) == pytest.approx(1.5*by_hand(2700), rel=1e-12)
    block.add_new(0x00, 'DS', '0.000551')
    assert suv_factor(philips) == .000551
    block[0x00].value = '0'
    assert suv_factor(philips) == pytest.approx(1.5*by_hand(2700), rel=1e-12)
    assert suv_factor(pet(Units='BQML')) == pytest.approx(by_hand(2700), rel=1e-12)


@pytest.mark.parametrize('keyword', ['Units', 'DecayCorrection', 'CorrectedImage', 'PatientWeight',
                                     'SeriesDate', 'SeriesTime',
                                     'AcquisitionDate', 'AcquisitionTime',
                                     'RadiopharmaceuticalInformationSequence'])
def test_what_is_missing_is_named(keyword):
    for value in (None, ''):
        h = pet()
        setattr(h, keyword, value if keyword != 'RadiopharmaceuticalInformationSequence' else [])
        with pytest.raises(ValueError, match=f'SUV needs {keyword}'): suv_factor(h)
    del h[keyword]
    with pytest.raises(ValueError, match=f'SUV needs {keyword}'): suv_factor(h)


@pytest.mark.parametrize('keyword',
                         ['RadionuclideTotalDose', 'RadionuclideHalfLife', 'RadiopharmaceuticalStartTime'])
def test_what_is_missing_of_the_drug_is_named(keyword):
    with pytest.raises(ValueError, match=f'SUV needs {keyword}'): suv_factor(pet(drug={keyword: None}))
    if keyword != 'RadiopharmaceuticalStartTime':
        with pytest.raises(ValueError, match=f'SUV needs {keyword}'): suv_factor(pet(drug={keyword: 0}))


def test_zero_weight_is_missing():
    with pytest.raises(ValueError, match='SUV needs PatientWeight'): suv_factor(pet(kg=0))


@pytest.mark.parametrize('elements', [dict(CorrectedImage=['ATTN']), dict(CorrectedImage='DECY'),
                                      dict(DecayCorrection='NONE')])
def test_what_was_not_corrected(elements):
    with pytest.raises(ValueError, match='SUV needs'): suv_factor(pet(**elements))


def test_a_series_in_suv(tmp_path):
    rng = np.random.default_rng(0)
    x, slopes = rng.integers(0, 30000, (3, 4, 6)).astype(np.int16), (.5, 1.25, 2)
    for k in range(3):
        path = write(tmp_path/f'{k}.dcm', x[k], Modality='PT', ImagePositionPatient=[0, 0, 3*k],
                     RescaleSlope=slopes[k],
                     RescaleIntercept=0, **{e.keyword: e.value for e in pet()})
    bq = read_series(tmp_path)
    suv = read_series(tmp_path, suv=True)
    want = x*np.array(slopes)[:, None, None]*by_hand(2700)
    np.testing.assert_allclose(suv.numpy()[0], want.transpose(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(bq.numpy()[0]*suv_factor(pet()), suv.numpy()[0], rtol=1e-6)
    assert path.exists()


def test_a_ct_has_no_suv(tmp_path):
    write(tmp_path/'a.dcm', np.zeros((4, 6), np.int16))
    with pytest.raises(ValueError, match='SUV needs Units'): read_series(tmp_path, suv=True)
