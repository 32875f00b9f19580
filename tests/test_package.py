"The package as a whole: what it imports, what importing it does, and what it documents."
import ast, importlib, inspect, json, re, subprocess, sys, textwrap
from functools import partial
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from fastcore.docments import docments

import ebt_toy

package = Path(ebt_toy.__file__).parent
notebooks = sorted(p for p in (Path(__file__).parents[1]/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
parts = 'engine book listops explorer cli'.split()   # folders of nbs/; 'book' is the top. Each may import itself and those before it
never = dict(plots={'runner'}, checkpoints={'runner'})   # arrows that the parts would allow
modules = sorted(p.stem for p in package.glob('*.py') if not p.stem.startswith('_'))
each_module = pytest.mark.parametrize('name', modules)

def test_there_are_modules(): assert 'data' in modules

# What is imported

def imported(path):
    "Full names that a file imports, e.g. `torch.nn` or `ebt_toy.data`; names taken straight from the package count as its modules"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, ['ebt_toy' if node.level else '', node.module]))
            yield from ([f'{base}.{a.name}' for a in node.names] if base == 'ebt_toy' else [base])

def normal(name): return re.sub(r'[-_.]+', '-', name).lower()

extras = dict(page='explore')   # modules that only run where an extra is installed

def declared(extra=None):
    "Distributions that the installed package requires at run time, with an extra also those of the extra"
    return {normal(re.match(r'[\w.-]+', r)[0]) for r in requires('ebt_toy') if 'extra ==' not in r or extra and re.search(f'extra == .{extra}\\b', r)}

def distributions(top):
    "Distributions that provide a top-level module; its own name when it is not installed"
    return {normal(d) for d in packages_distributions().get(top, [top])}

@pytest.mark.parametrize('path', sorted(package.rglob('*.py')), ids=lambda p: p.stem)
def test_imports_are_declared(path):
    tops = {n.split('.')[0] for n in imported(path)} - set(sys.stdlib_module_names) - {'ebt_toy'}
    undeclared = {t for t in tops if not distributions(t) & declared(extras.get(path.stem))}
    assert not undeclared, f"{path.name} imports {undeclared}: add to `requirements` in settings.ini"

def part_of(name):
    "The part of the house that a module is in: the folder of its notebook"
    source = re.search(r'File to edit: \.\./nbs/(.+)\.ipynb', (package/f'{name}.py').read_text(encoding='utf-8'))[1]
    return 'cli' if source == 'cli' else source.split('/')[0] if '/' in source else 'book'

def uses(name):
    "Modules of the package that a module imports"
    return {n.split('.')[1] for n in imported(package/f'{name}.py') if n.startswith('ebt_toy.')} - {'_start'}

@each_module
def test_imports_go_down_the_house(name):
    own = parts.index(part_of(name))
    wrong = {u for u in uses(name) if parts.index(part_of(u)) > own} | uses(name) & never.get(name, set())
    assert not wrong, f"ebt_toy.{name}, in the part '{part_of(name)}', may not import {wrong}"

def test_imports_have_layers():
    rest,layers = {m: uses(m) for m in modules},[]
    while rest:
        layer = sorted(m for m,u in rest.items() if not u & rest.keys())
        assert layer, f"these import each other in a circle: {', '.join(rest)}"
        layers.append(layer)
        for m in layer: del rest[m]
    assert 'core' in layers[0] and not any('cli' in uses(m) for m in modules), layers

def defined(name):
    "Functions and classes at the top of a module"
    return {n.name for n in ast.parse((package/f'{name}.py').read_text(encoding='utf-8')).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}

def test_a_name_means_one_thing():
    where = {}
    for m in modules:
        for n in defined(m): where.setdefault(n, []).append(m)
    twice = {n: ms for n,ms in where.items() if len(ms) > 1}
    assert not twice, f"names for two things: {twice}"

# What importing does

import_all = '''
import importlib, pickle, random, sys
import matplotlib, numpy, torch
def state():
    return dict(torch_rng=torch.get_rng_state().tolist(), numpy_rng=pickle.dumps(numpy.random.get_state()), random_rng=random.getstate(),
        dtype=torch.get_default_dtype(), device=torch.get_default_device(), grad=torch.is_grad_enabled(), threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled(), matmul=torch.get_float32_matmul_precision(),
        matplotlib={k: dict.__getitem__(matplotlib.rcParams, k) for k in matplotlib.rcParams})
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = state()
    changed = [k for k in before if before[k] != after[k]]
    assert not changed, f"importing {name} changes {changed}"
'''

def test_import_changes_nothing(tmp_path):
    names = ['ebt_toy', *(f'ebt_toy.{m}' for m in modules)]
    done = subprocess.run([sys.executable, '-c', import_all, *names], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert not list(tmp_path.iterdir())

# What is documented

def public(name):
    "Each name that a module makes public, and its value"
    module = importlib.import_module(f'ebt_toy.{name}')
    return {n: getattr(module, n) for n in module.__all__ if hasattr(module, n)}

def has_docstring(obj):
    "Does `obj` have a docstring of its own, not the one that Python makes for a dataclass or a named tuple?"
    doc = vars(obj).get('__doc__') if inspect.isclass(obj) else inspect.getdoc(obj)
    return bool(doc and doc.strip()) and not doc.startswith(f'{obj.__name__}(')

@each_module
def test_public_names_exist(name):
    missing = set(importlib.import_module(f'ebt_toy.{name}').__all__) - set(public(name))
    assert public(name) and not missing, f"ebt_toy.{name} lists {missing} in __all__ but does not have them"

@each_module
def test_public_names_have_docstrings(name):
    bare = [n for n,o in public(name).items() if (inspect.isclass(o) or inspect.isroutine(o)) and not has_docstring(o)]
    assert not bare, f"ebt_toy.{name}: no docstring on {bare}"

def own_nodes(node):
    "A function's syntax tree without the functions and classes inside it"
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)): yield from own_nodes(child)

def gives_nothing(f):
    "Does `f` neither return nor yield a value?"
    tree = ast.parse(textwrap.dedent(inspect.getsource(f)))
    return not any(isinstance(n, (ast.Return, ast.Yield, ast.YieldFrom)) and n.value for n in own_nodes(tree.body[0]))

def has_return_comment(f):
    "Is there a comment after the parameters' closing bracket? `docments` sees it only where the return has an annotation"
    return bool(re.search(r'^\s*\)[^#\n]*:\s*#\s*\S', inspect.getsource(f), re.M))

def undocumented(f):
    "Parameters of `f`, and 'return', that have no comment of their own"
    said = docments(f, args_kwargs=True)
    missing = [p for p in inspect.signature(f).parameters if not said.get(p)]
    return missing if said.get('return') or has_return_comment(f) or gives_nothing(f) else [*missing, 'return']

@each_module
def test_public_functions_have_docments(name):
    functions = {n: inspect.unwrap(o) for n,o in public(name).items() if not inspect.isclass(o) and callable(o) and not isinstance(o, partial)}
    missing = {n: undocumented(f) for n,f in functions.items() if inspect.isfunction(f) and undocumented(f)}
    assert not missing, f"ebt_toy.{name}: no docment for {missing}"

# What the notebooks hold

machine_path = re.compile(r'(?<![\w.])/(?:tmp|home|root|work|Users)(?![\w-])')

def texts(value):
    "All the text in a piece of a notebook, but for pictures"
    if isinstance(value, str): yield value
    if isinstance(value, list): yield from ([''.join(value)] if all(isinstance(v, str) for v in value) else (t for v in value for t in texts(v)))
    if isinstance(value, dict): yield from (t for k,v in value.items() if k not in ('image/png', 'image/jpeg') for t in texts(v))

def test_there_are_notebooks(): assert notebooks

@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.stem)
def test_notebooks_name_no_machine_paths(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    found = {i: m[0] for i,c in enumerate(cells) for t in texts(c) for m in [machine_path.search(t)] if m}
    assert not found, f"{path.name}: paths of one machine in cells {found}"
