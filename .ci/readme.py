"Make README.md and README_files/ from nbs/index.ipynb, and llms.txt from all notebooks: `python .ci/readme.py [FOLDER]` (default: the repository root)."
import posixpath, re, shutil, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

from export import root
from llms import make_llms

code_span = re.compile(r'(^(?P<fence>```+|~~~+).*?^(?P=fence)[ \t]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`))', re.M|re.S)
md_target = re.compile(r'(?P<before>\]\(\s*<?)(?P<target>[^)\s>]+)')
html_target = re.compile(r'(?P<before>\b(?:src|href)=["\'])(?P<target>[^"\'\s]+)')

def is_hidden(cell):
    "Is this cell for the notebook's readers only?"
    return cell.cell_type == 'raw' or bool(re.search(r'^#\s*\|\s*hide\s*$', cell.source, re.M))

def is_silent(cell):
    "Is only this cell's output shown?"
    return bool(re.search(r'^#\s*\|\s*echo:\s*false\s*$', cell.source, re.M))

def drop_directives(source):
    "Code without its `#|` lines"
    return '\n'.join(l for l in source.splitlines() if not re.match(r'#\s*\|', l)).strip('\n')

def from_root(target):
    "A link written for nbs/, as seen from the repository root; addresses and anchors stay as they are"
    if re.match(r'[a-zA-Z][\w+.-]*:|[/#]', target): return target
    return posixpath.normpath(posixpath.join('nbs', target))

def move_links(text):
    "Markdown with every link in `text`, outside of code, seen from the repository root"
    move = lambda m: m['before'] + from_root(m['target'])
    parts,last = [],0
    for m in [*code_span.finditer(text), None]:
        prose = text[last:m.start() if m else None]
        parts += [html_target.sub(move, md_target.sub(move, prose)), m[0] if m else '']
        last = m.end() if m else last
    return ''.join(parts)

def prepare(nb):
    "The notebook with only what README.md shows"
    nb.cells = [c for c in nb.cells if not is_hidden(c)]
    for c in nb.cells:
        if is_silent(c): c.metadata['transient'] = dict(remove_source=True)
    for data in (o.data for c in nb.cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})):
        data['text/markdown'] = move_links(data['text/markdown'])
    for c in nb.cells: c.source = (drop_directives if c.cell_type == 'code' else move_links)(c.source)
    nb.cells = [c for c in nb.cells if c.source or c.get('outputs')]
    nb.metadata.language_info = {'name': 'python'}   # colours the code
    return nb

def convert(path):
    "Text of README.md, and its pictures as `{relative path: bytes}`"
    resources = dict(unique_key='index', output_files_dir='README_files')
    text,resources = MarkdownExporter().from_notebook_node(prepare(nbformat.read(path, as_version=4)), resources)
    text = re.sub(r'^[ \t]+$', '', text, flags=re.M)
    return re.sub(r'\n{3,}', '\n\n', text).strip('\n') + '\n', resources.get('outputs') or {}

def make_readme(folder=root, index=root/'nbs'/'index.ipynb'):
    "Write README.md and README_files/ into `folder`, replacing older ones"
    text,pictures = convert(index)
    folder = Path(folder)
    shutil.rmtree(folder/'README_files', ignore_errors=True)
    for name,data in pictures.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'README.md').write_text(text, encoding='utf-8')

if __name__ == '__main__':
    make_readme(*sys.argv[1:2])
    make_llms(*sys.argv[1:2])
