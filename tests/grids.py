"Random volumes on random grids, and the same in the words of nibabel and ITK."

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from hypothesis import settings
from hypothesis import strategies as st

from medseg_nb.data.volume import Volume

often = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
orders = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear}
ras_lps = {2: np.eye(2), 3: np.diag([-1., -1, 1])}


def tilt(rng, n, most=np.pi):
    "A rotation by up to `most` about a random axis"
    plane = np.linalg.qr(rng.standard_normal((n, n)))[0]
    turn, angle = np.eye(n), rng.uniform(-most, most)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return plane@turn@plane.T


def affine(rng, n, shape=None, center=None, most=np.pi):
    "Oblique, anisotropic, and left-handed as often as not; with its middle at `center` if that is given"
    out = np.eye(n + 1)
    ends = np.eye(n)[rng.permutation(n)]*rng.choice((-1, 1), n)
    out[:n, :n] = tilt(rng, n, most)@ends*rng.uniform(.4, 4, n)
    out[:n, n] = rng.uniform(-200, 200, n) if center is None else center - out[:n, :n]@(np.array(shape) - 1)/2
    return out


@st.composite
def volumes(draw, dims=(2, 3), least=1, most=np.pi):
    "Random voxels on a random grid, and the random numbers to go on with"
    rng, n = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dims))
    shape = tuple(rng.integers(least, 8, n).tolist())
    return Volume(rng.standard_normal((draw(st.integers(1, 2)), *shape)), affine(rng, n, most=most)), rng


def indices(v): return np.stack(np.meshgrid(*map(np.arange, v.shape), indexing='ij'), -1)


def atlas(v):
    "A volume whose voxels hold their own place"
    return v.new(np.moveaxis(v.to_world(indices(v)), -1, 0))


def astray(v): return abs(np.moveaxis(v.to_world(indices(v)), -1, 0) - v.numpy()).max()


def nifti(v): return nib.Nifti1Image(np.moveaxis(v.numpy(), 0, -1), v.affine)


def itk(v):
    n = v.ndim
    out = sitk.GetImageFromArray(np.ascontiguousarray(v.numpy()[0].T))
    out.SetSpacing(v.spacing)
    out.SetOrigin((ras_lps[n]@v.affine[:n, n]).tolist())
    out.SetDirection((ras_lps[n]@v.affine[:n, :n]/v.spacing).ravel().tolist())
    return out


def affine_of(img):
    n = img.GetDimension()
    out = np.eye(n + 1)
    out[:n, :n] = ras_lps[n]@np.reshape(img.GetDirection(), (n, n))*img.GetSpacing()
    out[:n, n] = ras_lps[n]@img.GetOrigin()
    return out


def some_slices(rng, shape):
    "A slice that is not empty for each axis, of any sign, step and spelling"
    out = []
    for size in shape:
        a, b = np.sort(rng.integers(0, size, 2)).tolist()
        step = int(rng.integers(1, 4))
        back = slice(b, a - 1 if a else None, -step)
        ways = slice(a, b + 1, step), back, slice(a - size, None), slice(None, None, -step)
        out.append(ways[rng.integers(4)])
    return tuple(out)


every_dtype = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
               torch.int64, torch.uint64, torch.float32, torch.float64]
image = Volume(torch.rand(1, 6, 5, 4), np.diag([.9, .9, 3, 1]) + np.eye(4, k=3)*-20)
