"README.md from nbs/index.ipynb, its pictures in docs/images/; --check compares instead of writing."
import json
import re
import sys
from pathlib import Path
from posixpath import normpath

import nbformat
from nbconvert import MarkdownExporter
from page import page

root = Path(__file__).resolve().parents[1]
images = Path('docs/images')


def moved(text:str)->str:
    "Links of a page in nbs/ as they read from the folder above"
    link = r'(\]\(|(?:src|href)=")(?!\w+:|[#/])([^)"\s]+)'
    return re.sub(link, lambda m: m[1] + normpath(f'nbs/{m[2]}'), text)


def plain(html:str)->str:
    "A pandas table without its style sheet, which GitHub would print as text"
    if 'dataframe' not in html: return html
    dress = r'<style.*?</style>\n?|</?div>\n?| (?:border|class|style)="[^"]*"'
    return re.sub(dress, '', html, flags=re.S).strip()


def readme(index:Path)->tuple:
    "(text, {path: bytes}): the README and its pictures"
    nb = nbformat.reads(json.dumps(page(json.loads(index.read_text(encoding='utf-8')))), as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}
    for cell in nb.cells:
        if cell.cell_type == 'markdown': cell.source = moved(cell.source)
        for data in (out.data for out in cell.get('outputs', []) if 'data' in out):
            if 'text/html' in data: data['text/html'] = plain(data['text/html'])
            if 'text/markdown' in data: data['text/markdown'] = moved(data['text/markdown'])
    where = {'unique_key': 'index', 'output_files_dir': images.as_posix()}
    text, more = MarkdownExporter().from_notebook_node(nb, resources=where)
    text = re.sub(r'[ \t]+\n', '\n', text.replace('![png](', '![Output of the code above]('))
    note = f'<!-- Made from {index.name} by tools/readme.py: change the notebook, then run it. -->\n'
    return note + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', more['outputs']


def main(check:bool):
    text, pictures = readme(root/'nbs'/'index.ipynb')
    wanted = {Path('README.md'): text.encode()} | {Path(k): v for k, v in pictures.items()}
    stale = {p.relative_to(root) for p in (root/images).glob('index_*')} - set(wanted)
    wrong = [p for p, b in wanted.items() if not (root/p).exists() or (root/p).read_bytes() != b]
    names = ', '.join(map(str, wrong + sorted(stale)))
    if check: sys.exit(f'Not as nbs/index.ipynb says: {names}. Run: python tools/readme.py' if names else 0)
    for p in stale: (root/p).unlink()
    for p, b in wanted.items():
        (root/p).parent.mkdir(parents=True, exist_ok=True)
        (root/p).write_bytes(b)


if __name__ == '__main__': main('--check' in sys.argv)
