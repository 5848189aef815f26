"The site, the Quarto project and the README follow the notebooks; no page fetches anything from elsewhere."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

root = Path(__file__).resolve().parents[1]
nbs = root/'nbs'
sys.path.insert(0, str(root/'tools'))
import navigation  # noqa: E402
import readme  # noqa: E402
from page import page  # noqa: E402

paths = [p for p in sorted(nbs.rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
notebooks = [p.relative_to(nbs).with_suffix('').as_posix() for p in paths]
top = [p for p in notebooks if '/' not in p]
home, rooms = sorted(top, key=lambda p: p != 'index'), [p for p in notebooks if '/' in p]
order, texts = home + rooms, [p.stem for p in sorted(nbs.glob('*.md'))]


def cell(kind, source):
    more = {} if kind == 'markdown' else dict(outputs=[], execution_count=None)
    return dict(cell_type=kind, metadata={}, source=source, **more)


def notebook(*cells):
    cells = [c | {'id': f'c{i}'} for i, c in enumerate(cells)]
    return dict(cells=cells, metadata={'language_info': {'name': 'python'}}, nbformat=4, nbformat_minor=5)


def build(source, out):
    "Build a site; warnings are errors"
    flags = '-q -W --keep-going -b html -c'.split()
    command = [sys.executable, '-m', 'sphinx', *flags, root/'docs', source, out]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert run.returncode == 0, run.stderr[-2000:]
    return out


def sidebar(html):
    "[(caption, [links])] of the navigation on the home page"
    nav = html.split('<nav class="bd-links', 1)[1].split('</nav>', 1)[0]
    parts = re.split(r'class="caption-text">([^<]*)</span>', nav)
    link = r'class="toctree-l1[^"]*">\s*<a class="[^"]*" href="([^"]*)"'
    return list(zip(['', *parts[1::2]], [re.findall(link, p) for p in parts[::2]]))


def pages(site): return [p for p in site.rglob('*.html') if '_static' not in p.parts]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    if not (nbs/'index.ipynb').exists(): pytest.skip('there is no nbs/index.ipynb yet')
    return build(nbs, tmp_path_factory.mktemp('site'))


# navigation

def test_every_notebook_once_in_order():
    assert [p for _, pages in navigation.chapters() for p in pages] == order
    folders = sorted({p.split('/')[0] for p in order if '/' in p})
    assert [t for t, _ in navigation.chapters() if t] == [navigation.title(f) for f in folders]


def test_titles_come_from_folders():
    folders = '00_core', '06_cnn', '10_explain', ''
    assert [navigation.title(f) for f in folders] == ['0 Core', '6 CNN', '10 Explain', '']


def test_a_new_chapter_needs_no_list(tmp_path):
    for p in ('index', 'about', '12_deploy/01_prune', '02_view/02_b', '02_view/01_a', '.ipynb_checkpoints/x'):
        (tmp_path/p).parent.mkdir(exist_ok=True)
        (tmp_path/f'{p}.ipynb').touch()
    assert navigation.chapters(tmp_path) == [
        ('', ['index', 'about']), ('2 View', ['02_view/01_a', '02_view/02_b']),
        ('12 Deploy', ['12_deploy/01_prune'])]


def test_quarto_is_up_to_date():
    assert (root/'_quarto.yml').read_text() == navigation.quarto(), 'run: python tools/navigation.py'


def test_quarto_project():
    project = yaml.safe_load((root/'_quarto.yml').read_text())
    assert project['project'] == {'type': 'website', 'output-dir': 'site', 'render': ['nbs/**/*.ipynb']}
    contents = project['website']['sidebar']['contents']
    listed = sum([[item] if isinstance(item, str) else item['contents'] for item in contents], [])
    assert listed == [f'nbs/{p}.ipynb' for p in order]
    assert all((root/p).is_file() for p in listed + project['ipynb-filters'])
    sections = [item['section'] for item in contents if isinstance(item, dict)]
    assert sections == [t for t, _ in navigation.chapters() if t]
    assert project['execute'] == {'enabled': False}


def test_quarto_check_notices(monkeypatch, tmp_path):
    monkeypatch.setattr(navigation, 'root', tmp_path)
    with pytest.raises(SystemExit, match='not what the folders say'): navigation.main(check=True)
    navigation.main(check=False)
    navigation.main(check=True)
    (tmp_path/'_quarto.yml').write_text('project: {}')
    with pytest.raises(SystemExit): navigation.main(check=True)


# what a reader sees

def test_page_hides_and_strips():
    seen = page(notebook(
        cell('code', '#| default_exp core.x'), cell('code', '#| hide\nsecret = 1'),
        cell('code', ['#| export\n', 'x = 1\n', '# kept\n', 'y = 2']), cell('code', '#| hide_input\nplot()'),
        cell('markdown', '#| hide is a word of nbdev'), cell('code', '#| export\n#| eval: false\nz'),
    ))['cells']
    sources = [''.join(c['source']) for c in seen]
    assert sources == ['x = 1\n# kept\ny = 2', 'plot()', '#| hide is a word of nbdev', 'z']
    assert [c['metadata'].get('tags', []) for c in seen] == [['export'], ['remove-input'], [], ['export']]


def test_page_is_a_quarto_filter():
    path = next(nbs.glob('*/*.ipynb'))
    run = subprocess.run([sys.executable, root/'tools/page.py'], input=path.read_text(), capture_output=True,
                         text=True, cwd=path.parent, check=True)
    assert json.loads(run.stdout) == page(json.loads(path.read_text()))


# the site

def test_sidebar_is_the_tree(site):
    shown = sidebar((site/'index.html').read_text())
    assert [t for t, _ in shown] == [t for t, _ in navigation.chapters()]
    links = [link.removesuffix('.html') for _, part in shown for link in part]
    assert ['index' if link == '#' else link for link in links] == home + texts + rooms


def test_nothing_is_fetched(site):
    for path in [*pages(site), *site.rglob('*.css')]:
        text = path.read_text()
        loads = re.findall(r'<(?:script|link|img|iframe|source|video|object|embed)\b[^>]*?'
                           r'(?:src|href|data)="((?:https?:)?//[^"]*)"', text)
        styles = re.findall(r'(?:url\(|@import)\s*["\']?((?:https?:)?//[^);]*)', text)
        assert not loads + styles, (path.name, loads + styles)
        wants = re.findall(r'<(?:script|link|img)\b[^>]*?(?:src|href)="([^":?#]+)', text)
        missing = [a for a in wants if not (path.parent/a).exists()]
        assert path.suffix == '.css' or not missing, (path.name, missing[:3])


def test_pages_have_their_pictures(site):
    for p in order:
        nb = page(json.loads((nbs/f'{p}.ipynb').read_text()))
        shown = [o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', [])]
        pictures = sum('image/png' in d and 'text/html' not in d for d in shown)
        text = (site/f'{p}.html').read_text()
        assert len(re.findall(r'<img [^>]*src="[^"]*_images/', text)) >= pictures, p
        assert '#| ' not in re.sub(r'<[^>]+>', '', text).replace('nbdev', ''), p


def test_formulas_are_mathml(site):
    assert not any(re.search(r'mathjax[^"]*\.js', p.read_text(), re.I) for p in pages(site))
    text = (site/'03_metrics/01_overlap.html').read_text()
    assert '<mfrac>' in text and '\\frac' not in text


def test_links_lead_to_pages(site):
    for path in pages(site):
        for link in re.findall(r'<a [^>]*href="([^":]+)"', path.read_text()):
            target, _, anchor = link.partition('#')
            there = (path.parent/target) if target else path
            assert there.exists(), (path.name, link)
            if anchor and there.suffix == '.html':
                assert f'id="{anchor}"' in there.read_text(), (path.name, link)


def test_benchmarks_are_a_page(site):
    text, script = (site/'benchmarks.html').read_text(), [p.name for p in (root/'benchmarks').glob('*.py')]
    assert len(script) == 7 and all(f'{p}</span>' in text for p in script) and text.count('<table') == 7
    for p in '01_data/14_dicom', '01_data/32_sampling', '03_metrics/09_conventions', '00_core/04_many':
        assert f'href="{p}.html"' in text
    for p in '01_data/14_dicom', '01_data/30_store':
        article = (site/f'{p}.html').read_text().split('<article', 1)[1].split('</article>', 1)[0]
        assert 'href="../benchmarks.html"' in article, p


def test_search_knows_the_words(site):
    index = (site/'searchindex.js').read_text()
    assert 'bootstrap' in index and '03_metrics/10_evaluate' in index


def test_an_odd_notebook_builds(tmp_path):
    "Hidden cells, every kind of link and formula, and a formula that cannot be set"
    chapter = tmp_path/'nbs'/'01_data'
    chapter.mkdir(parents=True)
    (chapter/'01_a.ipynb').write_text(json.dumps(notebook(
        cell('markdown', '# A\n\n> claim'), cell('markdown', '## The idea'),
        cell('code', '#| hide\nsecret = 1'))))
    home = notebook(
        cell('markdown', '# Home\n\n> claim'),
        cell('markdown', 'See [A](01_data/01_a.ipynb) and [its idea](01_data/01_a.ipynb#the-idea).'),
        cell('markdown', r'Inline $x_i^2$ and $D\big(x\big)$.'),
        cell('markdown', '$$\\sum_i \\begin{bmatrix}1&0\\\\0&1\\end{bmatrix}$$'),
        cell('markdown', '\\begin{align}a &= b\\end{align}'),
        cell('markdown', 'Read [how](../HOW.md).'), cell('code', 'links'))
    home['cells'][-1]['outputs'] = [dict(output_type='execute_result', metadata={}, execution_count=1,
                                         data={'text/markdown': '[A, once more](01_data/01_a.ipynb)'})]
    (tmp_path/'HOW.md').write_text('# How')
    (tmp_path/'nbs'/'index.ipynb').write_text(json.dumps(home))
    out = build(tmp_path/'nbs', tmp_path/'site')
    text = (out/'index.html').read_text()
    assert 'href="01_data/01_a.html#the-idea"' in text and text.count('<math') == 4
    assert 'secret' not in (out/'01_data/01_a.html').read_text()
    assert re.search('href="01_data/01_a.html">(<[^>]*>)*A, once more', text)
    assert len(list(out.glob('_downloads/*/HOW.md'))) == 1
    home['cells'].append(cell('markdown', r'$\nosuchthing$') | {'id': 'bad'})
    (tmp_path/'nbs'/'index.ipynb').write_text(json.dumps(home))
    with pytest.raises(AssertionError, match='cannot set'): build(tmp_path/'nbs', tmp_path/'site')


@pytest.mark.skipif('MEDSEG_NO_BROWSER' in os.environ, reason='MEDSEG_NO_BROWSER is set')
def test_in_a_browser(site, chromium):
    "No request leaves the machine, nothing fails, formulas have a size, and a narrow page has its menu"
    view, wrong = chromium.new_page(viewport=dict(width=390, height=844)), []
    view.on('request', lambda r: r.url.startswith(('file:', 'data:')) or wrong.append(r.url))
    view.on('console', lambda m: m.type == 'error' and wrong.append(m.text))
    for name in ('index', '06_cnn/04_unet', '03_metrics/01_overlap'):
        view.goto(f'file://{site}/{name}.html')
        assert view.evaluate('document.documentElement.scrollWidth') <= 390, name
    assert view.locator('div.formula math').first.bounding_box()['width'] > 100
    view.locator('button.primary-toggle').click()
    view.locator('dialog[open] >> text=Glossary').click()
    view.wait_for_url('**/glossary.html')
    view.keyboard.press('Control+k')
    view.keyboard.type('bootstrap')
    view.keyboard.press('Enter')
    view.wait_for_selector('#search-results li >> text=Evaluate')
    view.close()
    assert not [w for w in wrong if 'CORS' not in w and 'ERR_FAILED' not in w], wrong


# README

def test_readme_is_up_to_date():
    if not (nbs/'index.ipynb').exists(): pytest.skip('there is no nbs/index.ipynb yet')
    with pytest.raises(SystemExit) as end: readme.main(check=True)
    assert not end.value.code, end.value.code


def test_readme(tmp_path, monkeypatch):
    import base64
    dot = base64.b64encode(b'\x89PNG\r\n\x1a\n dot').decode()
    frame = ('<div>\n<style scoped>\n.dataframe {}\n</style>\n'
             '<table border="1" class="dataframe"><tr><td>1</td></tr></table>\n</div>')
    plot = cell('code', '#| export\nplot()')
    plot['outputs'] = [dict(output_type='display_data', data={'image/png': dot}, metadata={})]
    table = cell('code', 'table')
    result = dict(output_type='execute_result', metadata={}, execution_count=1)
    table['outputs'] = [result | dict(data={'text/html': frame, 'text/plain': '1'})]
    links = cell('code', 'links')
    links['outputs'] = [result | dict(data={'text/markdown': '| x |\n|---|\n| [e](e.ipynb#f) |'})]
    (tmp_path/'nbs').mkdir()
    (tmp_path/'nbs/index.ipynb').write_text(json.dumps(notebook(
        cell('markdown', '# Home [a](01_data/01_a.ipynb) [b](https://b.org) [c](#c) ![d](../docs/d.png)'),
        cell('code', '#| hide\nsecret'), plot, table, links)))
    monkeypatch.setattr(readme, 'root', tmp_path)
    with pytest.raises(SystemExit, match='README.md'): readme.main(check=True)
    (tmp_path/'docs/images').mkdir(parents=True)
    (tmp_path/'docs/images/index_9_9.png').touch()
    readme.main(check=False)
    text = (tmp_path/'README.md').read_text()
    assert '[a](nbs/01_data/01_a.ipynb) [b](https://b.org) [c](#c) ![d](docs/d.png)' in text
    assert '| [e](nbs/e.ipynb#f) |' in text
    assert '```python\nplot()\n```' in text and 'secret' not in text and '#|' not in text
    assert '<table><tr><td>1</td></tr></table>' in text and 'style' not in text
    picture, = re.findall(r'!\[[^\]]+\]\((docs/images/[^)]+)\)', text)
    assert (tmp_path/picture).read_bytes() == base64.b64decode(dot)
    assert not (tmp_path/'docs/images/index_9_9.png').exists()
    with pytest.raises(SystemExit) as end: readme.main(check=True)
    assert not end.value.code
    (tmp_path/picture).write_bytes(b'')
    with pytest.raises(SystemExit, match='index_1_0.png'): readme.main(check=True)
