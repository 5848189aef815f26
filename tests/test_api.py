"The names that other people's code relies on, and what importing them costs."
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
names = """
core.system: system systems card
core.run: seed device threads profile pick atomic cache_dir receipt
data.volume: Volume
data.case: Case split
data.phantom: phantom
data.files: load save
data.sets: sets cases
data.loaders: dataloaders prepare
view.show: show
view.viewer: Viewer
metrics.overlap: dice iou sensitivity specificity precision
metrics.evaluate: evaluate summary
train.loss: dice_ce cross_entropy soft_dice
train.learner: seg_learner
train.predict: Predictor
cnn.unet: unet
""".strip().splitlines()


@pytest.mark.parametrize('line', names, ids=[n.split(':')[0] for n in names])
def test_promised_names(line):
    module, promised = line.split(':')
    module = importlib.import_module(f'medseg_nb.{module}')
    for name in promised.split(): assert callable(getattr(module, name)) and name in module.__all__


def test_all_is_a_small_vocabulary():
    import medseg_nb.all as vocabulary
    from medseg_nb.core.system import systems
    assert len(vocabulary.__all__) <= 80 and len(set(vocabulary.__all__)) == len(vocabulary.__all__)
    for name in vocabulary.__all__: assert hasattr(vocabulary, name)
    nets = {s.name for s in systems() if s.kind != 'tool'}
    assert not nets & set(vocabulary.__all__), 'systems are imported by name, so that a reader sees which'


def loaded_by(modules):
    "Top-level packages in memory after a fresh Python imports `modules`"
    code = f'import sys, {", ".join(modules)}; print(*{{m.split(".")[0] for m in sys.modules}})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_light_chapters_stay_light():
    light = [f'medseg_nb.{p.parent.name}.{p.stem}' for c in ('core', 'data', 'view', 'metrics', 'cnn')
             for p in sorted((root/'medseg_nb'/c).glob('*.py'))
             if p.stem not in ('__init__', 'loaders', 'sampling', 'inside')]
    heavy = loaded_by(light) & {'fastai', 'monai', 'SimpleITK', 'segmentation_models_pytorch', 'spacy'}
    assert not heavy


def test_monai_is_never_imported():
    assert 'monai' not in loaded_by(['medseg_nb.all', 'medseg_nb.cnn.unet'])


def test_metadata_has_one_home():
    from configparser import ConfigParser
    from importlib.metadata import metadata
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini')
    got = metadata('medseg_nb')
    assert got['Version'] == ini['DEFAULT']['version']
    assert got['Requires-Python'] == '>=' + ini['DEFAULT']['min_python']
    assert {'lab', 'docs', 'test', 'dev'} <= set(got.get_all('Provides-Extra'))


def test_constraints_are_names_and_versions_only():
    import re
    lines = [x for x in (root/'constraints.txt').read_text().splitlines() if x and not x.startswith('#')]
    assert len(lines) > 100
    bad = [x for x in lines if not re.fullmatch(r'[\w.-]+==[\w.!+]+( ; .*)?', x)]
    assert not bad
