"README.md from nbs/index.ipynb, its pictures in docs/images/; --check compares instead of writing."
import json
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from page import page

root = Path(__file__).resolve().parents[1]
images = Path('docs/images')


def plain(html:str)->str:
    "A pandas table without its style sheet, which GitHub would print as text"
    return re.sub(r'<style.*?</style>\n?|</?div>\n?| (?:border|class|style)="[^"]*"', '', html, flags=re.S).strip() if 'dataframe' in html else html


def readme(index:Path)->tuple:
    "(text, {path: bytes}): the README and its pictures"
    nb = nbformat.reads(json.dumps(page(json.loads(index.read_text(encoding='utf-8')))), as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}
    for cell in nb.cells:
        if cell.cell_type == 'markdown': cell.source = re.sub(r'(\]\(|(?:src|href)=")(?!\w+:|[#/])', r'\1nbs/', cell.source)
        for out in cell.get('outputs', []):
            if 'text/html' in out.get('data', {}): out.data['text/html'] = plain(out.data['text/html'])
    text, more = MarkdownExporter().from_notebook_node(nb, resources={'unique_key': 'index', 'output_files_dir': images.as_posix()})
    note = f'<!-- Made from {index.name} by tools/readme.py: change the notebook, then run it. -->\n'
    text = re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+\n', '\n', text.replace('![png](', '![Output of the code above](')))
    return note + text.strip() + '\n', more['outputs']


def main(check:bool):
    text, pictures = readme(root/'nbs'/'index.ipynb')
    wanted = {Path('README.md'): text.encode()} | {Path(k): v for k, v in pictures.items()}
    stale = {p.relative_to(root) for p in (root/images).glob('index_*')} - set(wanted)
    wrong = [p for p, b in wanted.items() if not (root/p).exists() or (root/p).read_bytes() != b] + sorted(stale)
    if check: sys.exit(f'Not as nbs/index.ipynb says: {", ".join(map(str, wrong))}. Run: python tools/readme.py' if wrong else 0)
    for p in stale: (root/p).unlink()
    for p, b in wanted.items():
        (root/p).parent.mkdir(parents=True, exist_ok=True)
        (root/p).write_bytes(b)


if __name__ == '__main__': main('--check' in sys.argv)
