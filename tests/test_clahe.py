"CLAHE against OpenCV's, pixel by pixel."
import cv2
import numpy as np
import pytest
import torch

from medseg_nb.data.clahe import clahe
from medseg_nb.data.sets import cases


def by_opencv(img, clip, tiles): return cv2.createCLAHE(clip, (tiles, tiles)).apply(img)


@pytest.mark.parametrize('clip', [.5, 1., 2., 4., 40., 1e5])
@pytest.mark.parametrize('shape', [(64, 64), (64, 48), (61, 83), (224, 224)])
@pytest.mark.parametrize('tiles', [1, 3, 8])
def test_like_opencv(clip, shape, tiles):
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, shape).astype(np.uint8), (0, 0), 3)
    for img in (rng.integers(0, 256, shape).astype(np.uint8), smooth,
                rng.integers(60, 70, shape).astype(np.uint8)):
        got = clahe(torch.from_numpy(img)[None, None].float()/255, clip, tiles)[0, 0]*255
        assert np.abs(got.numpy() - by_opencv(img, clip, tiles)).max() < 1.5


def test_real_films_like_opencv():
    film = torch.stack([c.image.data for c in cases('chest', 12)])
    got = (clahe(film.float()/255, 2.)*255).round().numpy()
    want = np.stack([by_opencv(f[0].numpy(), 2., 8)[None] for f in film])
    assert np.abs(got - want).max() <= 1 and (got == want).mean() > .99


def test_images_and_channels_are_apart():
    x = torch.rand(3, 2, 40, 40)
    whole = clahe(x)
    assert all(torch.equal(whole[i:i+1, j:j+1], clahe(x[i:i+1, j:j+1])) for i in range(3) for j in range(2))
    assert whole.dtype == x.dtype and clahe(x.double()).dtype == torch.float64


def test_bad_input():
    for x, words in ((torch.rand(1, 1, 8, 8, 8), 'slice by slice'),
                     (torch.rand(1, 1, 8, 8)*2 + 1, 'wanted 0 to 1'),
                     (torch.rand(1, 1, 4, 8), '8 tiles')):
        with pytest.raises(ValueError, match=words): clahe(x)
    assert torch.isfinite(clahe(torch.zeros(1, 1, 16, 16))).all()
