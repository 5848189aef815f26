"Notebooks in reading order, from the folders alone. As a script: writes _quarto.yml; --check compares it."
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def chapters(nbs:Path=root/'nbs')->list:
    "[(title, [paths under nbs, without .ipynb])]: the pages at the top, titled '', then a chapter per folder"
    paths = [p for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    found = sorted((p.relative_to(nbs).with_suffix('') for p in paths), key=lambda p: (p.name != 'index', p))
    return [(title(folder.name), [p.as_posix() for p in found if p.parent == folder])
            for folder in sorted({p.parent for p in found})]


def title(folder:str)->str:
    "'03_metrics' -> '3 Metrics', '06_cnn' -> '6 CNN'"
    number, _, word = folder.partition('_')
    return f'{int(number)} {word.upper() if len(word) < 4 else word.capitalize()}' if word else ''


def quarto()->str:
    "The Quarto project over nbs/ with this navigation"
    lines = []
    for name, pages in chapters():
        if name: lines += [f'      - section: "{name}"', '        contents:']
        lines += [f'{"          " if name else "      "}- nbs/{p}.ipynb' for p in pages]
    return f'''# Made by tools/navigation.py from the folders under nbs/. Render it with: quarto render
project:
  type: website
  output-dir: site
  render:
    - "nbs/**/*.ipynb"
website:
  title: medseg_nb
  search: true
  page-navigation: true
  sidebar:
    style: docked
    search: true
    contents:
{chr(10).join(lines)}
format:
  html:
    theme: cosmo
    toc: true
    html-math-method: mathml
execute:
  enabled: false
ipynb-filters:
  - tools/page.py
'''


def main(check:bool):
    path, text = root/'_quarto.yml', quarto()
    if not check: path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        sys.exit('_quarto.yml is not what the folders say. Run: python tools/navigation.py')


if __name__ == '__main__': main('--check' in sys.argv)
