"Package metadata: `settings.ini` is its one home."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
meta = ini['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in meta.items() if k.endswith('_requirements')}

setup(name=meta['name'], version=meta['version'], description=meta['description'], author=meta['author'],
      license=meta['license'], keywords=meta['keywords'], python_requires='>=' + meta['min_python'],
      long_description=(here/'README.md').read_text(encoding='utf-8'),
      long_description_content_type='text/markdown',
      packages=find_packages(include=['medseg_nb', 'medseg_nb.*']),
      package_data={'medseg_nb': ['view/static/*', 'data/static/*', 'core/static/*']},
      install_requires=meta['requirements'].split(), extras_require=extras)
