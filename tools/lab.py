"Run a lab headless by papermill; leave the executed notebook, a page with every picture, and what it wrote."
import argparse
import os
import re
import sys
import time
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def page(nb):
    "One HTML page that needs nothing else: pictures inside, no scripts, nothing from the network"
    from nbconvert import HTMLExporter
    html, _ = HTMLExporter(template_name='lab', embed_images=True).from_notebook_node(nb)
    return re.sub(r'<script\b.*?</script>', '', html, flags=re.S)


def run(lab:Path, out:Path, **parameters):
    "Execute `lab` with `out` as its folder; the executed notebook is kept also when a cell fails"
    import papermill
    from kernel import LocalKernel
    from medseg_nb.core.run import atomic
    os.environ.setdefault('MATPLOTLIBRC', str(root/'tools'/'matplotlibrc'))
    # threads that wait must not spin: two on shared cores were 12x slower than one
    os.environ['PYTHONPATH'] = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    out.mkdir(parents=True, exist_ok=True)
    done = out/lab.name
    nb = papermill.execute_notebook(str(lab), str(done), parameters=dict(out=str(out), **parameters),
                                    kernel_name='python3', kernel_manager_class=LocalKernel,
                                    cwd=str(lab.parent))
    with atomic(done.with_suffix('.html')) as tmp: tmp.write_text(page(nb), encoding='utf-8')
    return nb


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument('lab', type=Path, help='a notebook of nbs/13_labs')
    args.add_argument('out', type=Path, help='the folder for what it leaves')
    args = args.parse_args()
    start, out = time.perf_counter(), args.out.resolve()
    try: run(args.lab.resolve(), out)
    except KeyboardInterrupt: sys.exit(130)
    import pandas as pd
    for table in sorted(out.glob('summary*.csv')):
        print('\n' + pd.read_csv(table).round(3).to_string(index=False))
    print(f'\nEverything it left is in {args.out}/ ; open {args.out/args.lab.with_suffix(".html").name}')
    print(f'{time.perf_counter() - start:.0f} s')


if __name__ == '__main__': main()
