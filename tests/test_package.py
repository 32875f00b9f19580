"The package as a whole: what it imports, what importing it does, and what it documents."
import ast, importlib, importlib.util, inspect, json, re, subprocess, sys, textwrap
from dataclasses import is_dataclass
from functools import partial
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from fastcore.docments import docments

import ebt_toy

package = Path(ebt_toy.__file__).parent
notebooks = sorted(p for p in (Path(__file__).parents[1]/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
parts = 'engine book methods listops sweeps studies explorer cli'.split()   # folders of nbs/; 'book' is the top. Each may import itself and those before it
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

# What `help` shows

spec = importlib.util.spec_from_file_location('export', Path(__file__).parents[1]/'.ci'/'export.py')
exporter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exporter)

def exported(path):
    "The code that a notebook exports, cell by cell"
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and re.search(r'^#\s*\|\s*export[is]?\b', source, re.M): yield source

def definitions(tree, prefix=''):
    "Functions, classes and methods of a syntax tree, by their full names"
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        yield prefix + node.name,node
        if isinstance(node, ast.ClassDef): yield from definitions(node, f'{prefix}{node.name}.')

def summaries(code):
    "Full name -> docstring of all that some code defines"
    return {n: ast.get_docstring(node) for n,node in definitions(ast.parse(code))}

def text_of(name): return (package/f'{name}.py').read_text(encoding='utf-8')

def notebook_of(name): return package/re.search(r'File to edit: (.+\.ipynb)', text_of(name))[1]

@each_module
def test_docstrings_begin_as_in_the_notebook(name):
    written = summaries('\n'.join(exported(notebook_of(name))))
    made = {n: d and exporter.section_start.split(d)[0] for n,d in summaries(text_of(name)).items()}
    assert made == written

@each_module
def test_filling_docstrings_changes_nothing_else(name):
    plain = '\n\n'.join(exported(notebook_of(name)))
    made = exporter.explain(plain)
    def code(source):
        tree = ast.parse(source)
        for _,node in definitions(tree):
            if ast.get_docstring(node) is not None: del node.body[0]
        return ast.dump(tree)
    assert code(made) == code(plain) and exporter.explain(made) == made

def said_of(obj):
    "Name -> comment of each parameter or field of `obj`; 'return' too, where the return has an annotation"
    if not inspect.isclass(obj): return docments(inspect.unwrap(obj), args_kwargs=True)
    if issubclass(obj, tuple): return dict(re.findall(r'^    (\w+):[^#\n]*#\s*(.+)$', inspect.getsource(obj), re.M))
    if is_dataclass(obj) or '__init__' in vars(obj): return {n: t for n,t in docments(obj, args_kwargs=True).items() if n != 'return'}
    return {}

def explained(name):
    "Functions and classes that a module makes public, and the public methods of the classes, where they have a docstring of their own"
    own = {n: o for n,o in public(name).items() if inspect.isclass(o) or inspect.isfunction(o)}
    methods = {f'{n}.{m}': f for n,o in own.items() if inspect.isclass(o) for m,f in vars(o).items() if inspect.isfunction(f) and not m.startswith('_')}
    return {n: o for n,o in (own | methods).items() if o.__doc__ and o.__module__ == f'ebt_toy.{name}' and n not in exporter.commands}

@each_module
def test_help_explains_parameters(name):
    for n,o in explained(name).items():
        doc = ' '.join(inspect.getdoc(o).split())
        said = {p: ' '.join(t.split()) for p,t in said_of(o).items() if t}
        missing = [p for p,t in said.items() if (f'Returns: {t}' if p == 'return' else f'{p}: {t}') not in doc]
        assert not missing, f"ebt_toy.{name}.{n}: its docstring lacks {missing}; run: python .ci/export.py"

def test_help_of_training_has_each_parameter():
    from ebt_toy import train_energy_model
    args = re.findall(r'^    ([\w*]+): ', inspect.getdoc(train_energy_model).split('Args:')[1].split('Returns:')[0], re.M)
    assert [a.strip('*') for a in args] == list(inspect.signature(train_energy_model).parameters)

def test_docstrings_of_commands_stay_short():
    "`anno_parser` puts a function's whole docstring above its options"
    calls = [n for m in modules for n in ast.walk(ast.parse(text_of(m))) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    given = {n.args[0].id for n in calls if n.func.id in ('_parser_of', 'run_command') and isinstance(n.args[0], ast.Name)}
    assert given == exporter.commands, "these become commands; `commands` in .ci/export.py has others"

filled = {   # as the notebook has it -> as the module has it
    # parameters on lines of their own, a long comment, a comment above, stars, a return
    """def f(
    a,         # First: "quoted", with a \\
    # Two lines
    # above
    b:int=1,
    *rest,     # Any more
    c,
    **options  # """ + 'long '*25 + """
) -> int:      # What it is
    "Do it"
    return a   # not this one
""": """Do it

Args:
    a: First: "quoted", with a \\
    b: Two lines above
    *rest: Any more
    **options: """ + ' '.join(['long']*17) + """
        """ + ' '.join(['long']*8) + """

Returns:
    What it is""",
    # the return alone, with and without an annotation
    'def f() -> int:   # A number\n    "Do it"\n': 'Do it\n\nReturns:\n    A number',
    'def f():   # A number\n    "Do it"\n': 'Do it\n\nReturns:\n    A number',
    # one line: the last parameter has the comment
    'def f(a, b):   # Second\n    "Do it"\n': 'Do it\n\nArgs:\n    b: Second',
    # a default with brackets, a colon and a number sign in it
    'def f(\n    a={":": "#"},   # Odd\n):\n    "Do it"\n': 'Do it\n\nArgs:\n    a: Odd',
    # fields; `__init__`, without `self`
    '@dataclass(frozen=True)\nclass A:\n    "Two"\n    x: int   # One\n    y: int = 2   # Other\n': 'Two\n\nAttributes:\n    x: One\n    y: Other',
    'class A(NamedTuple):\n    "Two"\n    x: int   # One\n': 'Two\n\nAttributes:\n    x: One',
    'class A(B):\n    "Makes"\n    z: int   # not this one\n    def __init__(self,\n        x,   # One\n    ): self.x = x\n': 'Makes\n\nArgs:\n    x: One',
    # nothing to add
    'def f(a): "Do it"   # not this one\n': 'Do it',
    'def f(a):\n    "Do it"\n    # not this one\n': 'Do it',
    'def _f(a):   # One\n    "Do it"\n': 'Do it',
    'class _A:\n    "Do it"\n    def f(self,\n        a   # One\n    ):\n        "Not this one"\n': 'Do it',
    'def command(a):   # One\n    "Do it"\n': 'Do it',
}

@pytest.mark.parametrize('source', filled)
def test_docstrings_are_filled_from_comments(source):
    made = exporter.explain(source)
    node = ast.parse(made).body[0]
    assert ast.get_docstring(node) == filled[source] and exporter.explain(made) == made
    if ast.get_docstring(ast.parse(source).body[0]) == filled[source]: assert made == source

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
