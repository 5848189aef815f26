"The site: the notebooks under nbs/ with their stored outputs. Build it with: make docs"
import json
import re
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'tools'))
from navigation import chapters  # noqa: E402
from page import page  # noqa: E402

project = 'medseg_nb'
author = copyright = 'the medseg_nb authors, Apache-2.0'
extensions = ['myst_nb']
exclude_patterns = ['**.ipynb_checkpoints']
nb_execution_mode = 'off'
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_render_markdown_format = 'gfm'
myst_enable_extensions = ['amsmath', 'dollarmath', 'linkify']
myst_heading_anchors = 3
suppress_warnings = ['mystnb.unknown_mime_type']
pygments_style = 'friendly'

html_theme = 'sphinx_book_theme'
html_title = 'medseg_nb'
html_static_path = ['static']
templates_path = ['templates']
html_css_files = ['site.css']
html_math_renderer = 'mathml'
html_context = {'default_mode': 'auto'}
html_theme_options = {
    'home_page_in_toc': True, 'show_toc_level': 2, 'show_navbar_depth': 2,
    'use_download_button': True, 'use_fullscreen_button': False, 'footer_content_items': ['copyright.html'],
    'pygments_light_style': 'friendly', 'pygments_dark_style': 'github-dark',
}


def toctree(nbs)->str:
    "The navigation as hidden toctrees, one for each chapter; texts (.md) come after the pages at the top"
    extra = {'': [p.stem for p in sorted(Path(nbs).glob('*.md'))]}
    return '\n'.join('\n'.join(['```{toctree}', ':hidden:', *([f':caption: {title}'] if title else []), '',
                                *[f'/{p}' for p in pages + extra.get(title, []) if p != 'index'],
                                '```', ''])
                     for title, pages in chapters(Path(nbs)))


def read(app, docname, source):
    "Show each notebook as `page` makes it, and hang the navigation on the first"
    if str(app.env.doc2path(docname)).endswith('.md'): return
    nb = page(json.loads(source[0]))
    for cell in nb['cells']:
        if cell['cell_type'] == 'markdown':   # a page outside nbs/ comes along as a file
            text = ''.join(cell['source']).replace('](../../benchmarks/README.md', '](/benchmarks.md')
            cell['source'] = re.sub(r'\]\((?=\.\./[^)]+\.md\))', '](path:', text)
        for data in (out.get('data', {}) for out in cell.get('outputs', [])):
            if 'text/markdown' not in data: continue
            text = ''.join(data['text/markdown'])
            data['text/markdown'] = re.sub(r'\]\((?!\w+:)([^)#]+)\.ipynb', r'](\1.html', text)
    navigation = {'cell_type': 'markdown', 'id': 'toctree', 'metadata': {}, 'source': toctree(app.srcdir)}
    if docname == app.config.root_doc: nb['cells'].append(navigation)
    source[0] = json.dumps(nb)


def mathml(tex, block):
    "TeX as MathML, which browsers draw by themselves: no script, no font, no network"
    known = re.sub(r'\\(begin|end)\{(?:align|gather|split)\*?\}', r'\\\1{aligned}', tex)
    known = re.sub(r'\\(big+|Big+)(?![a-z])\s*(?=([)\]]|\\rbrace|\\rvert)?)',
                   lambda m: rf'\{m[1]}{"r" if m[2] else "l"}', known)
    try: return str(tex2mathml(known, as_block=block))
    except MathError as e:
        logging.getLogger(__name__).warning('cannot set %r: %s', tex, e)
        return f'<code>{tex}</code>'


def inline_math(self, node):
    self.body.append(mathml(node.astext(), False))
    raise SkipNode


def block_math(self, node):
    self.body.append(f'<div class="formula">{mathml(node.astext(), True)}</div>')
    raise SkipNode


def setup(app):
    app.connect('source-read', read)
    app.add_html_math_renderer('mathml', (inline_math, None), (block_math, None))
