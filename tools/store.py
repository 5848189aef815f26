"Run notebooks in a real kernel and keep their outputs, only where the whole notebook passed."
import io
import os
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
from kernel import LocalKernel
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from PIL import Image

root = Path(__file__).resolve().parents[1]
widget_view = 'application/vnd.jupyter.widget-view+json'


def run(path:Path):
    "Execute `path` in its own folder; headless, so that widgets leave their picture"
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=900, kernel_name='python3', kernel_manager_class=LocalKernel,
                   resources={'metadata': {'path': str(path.parent)}},
                   store_widget_state=False).execute()
    for cell in nb.cells:
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            data.pop(widget_view, None)
            if 'image/png' in data: data['image/png'] = smaller(data['image/png'])
        if 'outputs' in cell: cell.outputs = [o for o in cell.outputs if not quiet(o)]
    temp = path.with_suffix('.ipynb.part')
    nbformat.write(nb, temp)
    os.replace(temp, path)


def smaller(png:str):
    "The same picture in 256 colors: a third of the size, and no difference to the eye"
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(b64decode(png))).convert('RGB')
    picture.quantize(256, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
    return min(b64encode(out.getvalue()).decode(), png.strip(), key=len)


def quiet(out): return out.output_type == 'stream' and out.name == 'stderr' or out.get('data') == {}


def main(paths):
    "Store outputs of each notebook in `paths`; all of `nbs/` when none is named"
    os.environ.setdefault('MATPLOTLIBRC', str(root/'tools'/'matplotlibrc'))
    os.environ.setdefault('IN_TEST', '1')
    os.environ['PYTHONPATH'] = str(root)
    every = (p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    todo = [Path(p).resolve() for p in paths] or sorted(every)
    for path in todo:
        print(path.relative_to(root), flush=True)
        run(path)
        nbdev_clean(str(path))


if __name__ == '__main__': main(sys.argv[1:])
