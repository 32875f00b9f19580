"Package metadata comes from settings.ini, which nbdev reads too: one source for both."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
address = cfg['git_url']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    keywords=cfg['keywords'],
    license='Apache-2.0',
    url=address,
    project_urls={
        'Source': address,
        'Changelog': f"{address}/blob/{cfg['branch']}/CHANGELOG.md",
        'Issues': f'{address}/issues',
    },
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Education',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12, 13)),    # those of .github/workflows/test.yaml
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['ebt_toy', 'ebt_toy.*']),
    package_data={'ebt_toy': ['py.typed', 'weights/*.safetensors']},
    include_package_data=True,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={e: cfg[f'{e}_requirements'].split() for e in ('explore', 'distributed', 'dev')},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    zip_safe=False,
)
