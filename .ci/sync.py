"""Check that the working tree is what the notebooks make: `python .ci/sync.py`.

Exports, cleans and renders in a temporary copy and compares; changes nothing here.
Prints a line for each problem with the command that mends it, and exits 1 if there is any."""
import json, re, shutil, sys
from pathlib import Path
from tempfile import TemporaryDirectory

from export import export, lib, nbdev, root
from llms import make_llms
from readme import make_readme

by_hand = {'__init__.py', '__main__.py', '_start.py'}
to_export, to_clean, to_render = 'run: python .ci/export.py', 'run: nbdev_clean', 'run: python .ci/readme.py'
machine_path = re.compile(r'(?<![\w.])/(?:tmp|home|root|work|Users)(?![\w-])')

def visible(folder, pattern):
    "Files below `folder` that match, without checkpoints and caches, as sorted relative paths"
    found = (p.relative_to(folder) for p in Path(folder).rglob(pattern) if p.is_file())
    return sorted(p for p in found if not any(part.startswith('.') or part == '__pycache__' for part in p.parts))

def same(a, b):
    "Are both files there, with the same bytes?"
    return a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()

def make_copy(folder):
    "In `folder`, everything as the notebooks make it"
    shutil.copy(root/'settings.ini', folder)
    shutil.copytree(root/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.*'))
    (folder/lib).mkdir()
    shutil.copy(root/lib/'__init__.py', folder/lib)
    export(folder)
    nbdev('nbdev_clean', folder)

def module_problems(made):
    "Modules that differ from their notebook or have none"
    here,there = visible(root/lib, '*.py'),visible(made/lib, '*.py')
    for p in there:
        if not same(root/lib/p, made/lib/p): yield f"{lib}/{p} is not what the notebooks export; {to_export}"
    for p in here:
        if p not in there and p.name not in by_hand: yield f"{lib}/{p} has no notebook; run: rm {lib}/{p}"

def clean_problems(made):
    "Notebooks that `nbdev_clean` would change"
    for p in visible(root/'nbs', '*.ipynb'):
        if not same(root/'nbs'/p, made/'nbs'/p): yield f"nbs/{p} is not clean; {to_clean}"

def readme_problems(made):
    "README.md and its pictures, against nbs/index.ipynb"
    index = made/'nbs'/'index.ipynb'
    if not index.exists():
        yield f"nbs/index.ipynb is missing, so README.md cannot be checked; write it, then {to_render}"
        return
    make_readme(made, index)
    pictures = {Path('README_files')/p for d in (root, made) for p in visible(d/'README_files', '*')}
    for p in [Path('README.md'), *sorted(pictures)]:
        if not same(root/p, made/p): yield f"{p} is not what nbs/index.ipynb makes; {to_render}"

def llms_problems(made):
    "llms.txt, against the first cells of the notebooks"
    if not (made/'nbs'/'index.ipynb').exists(): return     # which `readme_problems` reports
    make_llms(made)
    if not same(root/'llms.txt', made/'llms.txt'): yield f"llms.txt is not what the notebooks make; {to_render}"

def joined(value):
    "Text that a notebook stores as a string, a list of lines or JSON"
    if isinstance(value, str): return value
    return ''.join(value) if isinstance(value, list) else str(value)

def shown(output):
    "The text of one output; pictures are left out"
    data = [v for k,v in output.get('data', {}).items() if not k.startswith('image/') or k == 'image/svg+xml']
    return '\n'.join(map(joined, [*data, output.get('text', '')]))

def output_problems(path):
    "What is wrong with the stored outputs of one notebook"
    cells = json.loads((root/path).read_text(encoding='utf-8'))['cells']
    outputs = [(i,o) for i,c in enumerate(cells) for o in c.get('outputs', [])]
    again = f"run: jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.coalesce_streams=True --ExecutePreprocessor.store_widget_state=False {path} && nbdev_clean"
    if not outputs: yield f"{path} has no outputs; {again}"
    for i,o in outputs:
        if o['output_type'] == 'error': yield f"{path}, cell {i}: its output is an error ({o['ename']}); mend the cell, then {again}"
        found = machine_path.search(shown(o))
        if found: yield f"{path}, cell {i}: its output names a path of one machine ({found[0]}); mend the cell, then {again}"

def problems():
    "Everything that is out of step, one line each"
    with TemporaryDirectory() as tmp:
        made = Path(tmp).resolve()
        make_copy(made)
        for check in module_problems, clean_problems, readme_problems, llms_problems: yield from check(made)
    for p in visible(root/'nbs', '*.ipynb'): yield from output_problems(Path('nbs')/p)

if __name__ == '__main__':
    found = list(problems())
    print('\n'.join(found) or "In step: modules, notebooks, README.md and llms.txt.")
    sys.exit(bool(found))
