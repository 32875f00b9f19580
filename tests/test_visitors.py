"What a visitor looks for: how to cite, what there is to read, types, links, and one address and version everywhere."
import importlib, json, re, runpy, sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import ebt_toy

root = Path(__file__).parents[1]
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']
address = settings['git_url']
pythons = ['3.10', '3.11', '3.12', '3.13']

def read(path): return (root/path).read_text(encoding='utf-8')

@pytest.fixture
def tools(monkeypatch):
    "A function that imports a script of .ci/"
    monkeypatch.syspath_prepend(root/'.ci')
    return importlib.import_module

@pytest.fixture
def metadata(monkeypatch):
    "What setup.py hands to setuptools"
    given = {}
    monkeypatch.setitem(sys.modules, 'setuptools', SimpleNamespace(setup=given.update, find_packages=lambda **_: ['ebt_toy']))
    runpy.run_path(str(root/'setup.py'))
    return given

# How to cite

citation = yaml.safe_load(read('CITATION.cff'))

def test_citation_is_valid():
    "What the schema of CFF 1.2.0 asks for, and no key that it does not know"
    assert citation['cff-version'] == '1.2.0' and citation['type'] == 'software' and citation['message'] and citation['title']
    assert not set(citation) - set('cff-version message type title authors version date-released license repository-code keywords references abstract doi url'.split())
    for r in [citation, *citation['references']]:
        assert r['authors'] and all(set(a) <= {'family-names', 'given-names'} or set(a) <= {'name', 'email'} for a in r['authors'])
    for r in citation['references']:
        assert r['type'] in ('article', 'conference-paper') and r['title'] and 1980 < r['year'] <= citation['date-released'].year
        assert not set(r) - set('type title authors year url doi notes collection-title start end'.split())
        assert r['url'].startswith('https://')

def test_citation_agrees_with_the_settings(metadata):
    assert citation['version'] == settings['version'] and citation['repository-code'] == address and citation['license'] == metadata['license']
    assert citation['authors'] == [dict(name=settings['author'], email=settings['author_email'])]

def test_arxiv_numbers_agree():
    for r in citation['references']:
        in_url,in_notes = (re.search(p, r.get(k, '')) for p,k in ((r'arxiv\.org/abs/(\S+)', 'url'), (r'arXiv:(\S+)', 'notes')))
        if in_url: assert in_notes and in_url[1] == in_notes[1], r['title']

# One version, one address

def test_one_version(metadata):
    newest = re.findall(r'^## \[(\d\S*)\] - (\S+)$', read('CHANGELOG.md'), re.M)[0]
    assert newest == (settings['version'], citation['date-released'].isoformat())
    assert ebt_toy.__version__ == metadata['version'] == settings['version']

def pages():
    "Text that visitors read, by its path: pages, and the cells of notebooks"
    for p in [root/'README.md', root/'llms.txt', root/'CONTRIBUTING.md', root/'CHANGELOG.md', root/'CITATION.cff']: yield p,p.read_text(encoding='utf-8')
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' not in p.parts: yield p,'\n'.join(''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'])

own = [r'https://colab\.research\.google\.com/github/(?!USER/)([\w.-]+/[\w.-]+)', r'git\+https://github\.com/([\w.-]+/[\w.-]+?)(?=\.git\b|[^\w.-]|$)',
       r'https://github\.com/([\w.-]+/[\w.-]+)/actions/', r'^repository-code: "https://github\.com/([^"]+)"']

def test_one_address():
    wrong = [(str(p.relative_to(root)), m[0]) for p,text in pages() for pattern in own for m in re.finditer(pattern, text, re.M) if f'https://github.com/{m[1]}' != address]
    assert not wrong, f"other addresses than `git_url` in settings.ini: {wrong}"

def test_colab_links_open_the_notebook_they_stand_in():
    for path,text in pages():
        for target in re.findall(r'https://colab\.research\.google\.com/github/(?!USER/)[\w.-]+/[\w.-]+/blob/([^)\s"]+)', text):
            branch,_,file = target.partition('/')
            assert branch == settings['branch'] and (root/file).is_file(), f"{path.name}: {target}"
            assert path.suffix != '.ipynb' or path.stem == 'index' or path == root/file, f"{path.name} links to {file}"

# What the package brings

def test_metadata_has_links(metadata):
    assert set(metadata['project_urls']) == {'Source', 'Changelog', 'Issues'} and all(u.startswith(address) for u in metadata['project_urls'].values())
    branch,_,file = metadata['project_urls']['Changelog'].removeprefix(f'{address}/blob/').partition('/')
    assert branch == settings['branch'] and (root/file).is_file()

def test_types_are_packaged(metadata):
    for pattern in metadata['package_data']['ebt_toy']: assert list((root/'ebt_toy').glob(pattern)), pattern
    assert 'py.typed' in metadata['package_data']['ebt_toy'] and 'Typing :: Typed' in metadata['classifiers']

def test_python_versions_are_those_that_are_tested(metadata):
    matrix = yaml.safe_load(read('.github/workflows/test.yaml'))['jobs']['test']['strategy']['matrix']['python']
    declared = [c.rsplit(' ', 1)[1] for c in metadata['classifiers'] if re.search(r':: 3\.\d+$', c)]
    assert matrix == declared == pythons and metadata['python_requires'] == f'>={pythons[0]}'
    assert f'Python {pythons[0]} to {pythons[-1]}' in read('CONTRIBUTING.md')
    assert f'{sys.version_info[0]}.{sys.version_info[1]}' in pythons

def test_badges_are_true():
    badges = dict(re.findall(r'!\[([^]]*)\]\(https://img\.shields\.io/badge/([^)]+)\)', read('README.md')))
    for label,badge in badges.items():
        if 'ython' in label: assert pythons[0] in badge and pythons[-1] in badge
        if 'icen' in label: assert settings['license'] == 'apache2' and 'Apache--2.0' in badge and 'Apache License' in read('LICENSE')

# What there is to read

def test_llms_txt_is_in_step(tools):
    assert read('llms.txt') == tools('llms').llms_text(root), "llms.txt is not what the notebooks make; run: python .ci/readme.py"

def test_llms_txt_has_the_form_of_llms_txt():
    lines = read('llms.txt').splitlines()
    assert lines[0].startswith('# ') and lines[2].startswith('> ')
    assert all(re.fullmatch(r'- \[[^]]+\]\(\S+\): .+', l) for l in lines if l.startswith('-')) and any(l.startswith('## ') for l in lines)

def test_llms_txt_lists_each_notebook_once():
    listed = sorted(re.findall(r'\]\((nbs/[^)]+)\)', read('llms.txt')))
    there = sorted(p.relative_to(root).as_posix() for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    assert ['nbs/index.ipynb', *listed] == sorted(there, key=lambda p: p != 'nbs/index.ipynb')

@pytest.mark.parametrize('path', ['README.md', 'llms.txt', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_links_to_files_lead_somewhere(path):
    prose = re.sub(r'^```.*?^```|`[^`\n]+`', '', read(path), flags=re.M|re.S)
    targets = re.findall(r'\]\(\s*<?([^)\s>]+)', prose) + re.findall(r'\b(?:src|href)=["\']([^"\']+)', prose)
    missing = [t for t in targets if not re.match(r'[a-z]+:|#', t) and not (root/t.split('#')[0]).exists()]
    assert not missing, f"{path} links to files that are not there: {missing}"

# What is out of step is named, with the command that mends it

def test_a_plain_export_is_out_of_step(tools, monkeypatch, tmp_path):
    sync,export = tools('sync'),tools('export')
    plain = 'def f(\n    a   # First\n):\n    "Do it"\n'
    for folder,text in (('here', plain), ('made', export.explain(plain))):
        (tmp_path/folder/'ebt_toy').mkdir(parents=True)
        (tmp_path/folder/'ebt_toy'/'m.py').write_text(text, encoding='utf-8')
    monkeypatch.setattr(sync, 'root', tmp_path/'here')
    assert list(sync.module_problems(tmp_path/'made')) == ["ebt_toy/m.py is not what the notebooks export; run: python .ci/export.py"]
    monkeypatch.setattr(sync, 'root', tmp_path/'made')
    assert not list(sync.module_problems(tmp_path/'made'))

def test_a_notebook_without_a_first_line_is_named(tools, tmp_path):
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=[dict(cell_type='markdown', source=['# Title'])])), encoding='utf-8')
    with pytest.raises(SystemExit, match=r'a\.ipynb: expected a first cell'): tools('llms').first_lines(tmp_path/'a.ipynb')
