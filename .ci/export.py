"""Export the notebooks to `ebt_toy/`: `python .ci/export.py [FOLDER]` (default: the repository root).

nbdev writes the modules. Then each public docstring is filled from the comments beside the parameters, fields and return,
because `help()`, Shift-Tab and the hovers of an editor show docstrings, not comments. So each meaning is written once, in the notebook."""
import ast, io, re, subprocess, sys, textwrap, tokenize
from inspect import cleandoc
from pathlib import Path

root = Path(__file__).resolve().parents[1]
lib = 'ebt_toy'
commands = {'command', 'sweep_command', 'study_command', 'listops_command', 'explore_command'}   # the whole docstring heads their `--help`, which has the comments too
section_start = re.compile(r'\n\s*\n(?:Args|Attributes|Returns):\n')
width = 100   # of the lines that are added

def nbdev(command, folder):
    "Run one of nbdev's commands in `folder`"
    done = subprocess.run([Path(sys.executable).with_name(command)], cwd=folder, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")

def is_public(node):
    "Is this the definition of a function or class that users see?"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith('_')

def has_fields(node):
    "Is this class a dataclass or a named tuple?"
    of = {n.id for d in [*node.decorator_list, *node.bases] for n in [getattr(d, 'func', d)] if isinstance(n, ast.Name)}
    return bool(of & {'dataclass', 'NamedTuple'})

class Comments:
    "What the comments of a module explain"
    def __init__(self, source):
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        self.at = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}   # line -> text
        self.ends = [t.start[0] for t in tokens if t.type == tokenize.NEWLINE]                      # last lines of statements and headers

    def find(self, owners, first):
        "Name -> comment on its line, else in the lines above it; `owners` maps lines to names, none above the line `first`"
        found = {}
        for line,name in owners.items():
            above = line - 1
            while above >= first and above in self.at and above not in owners: above -= 1
            text = self.at.get(line) or ' '.join(self.at[l] for l in range(above + 1, line) if l >= first)
            if text: found[name] = text
        return found

    def fields(self, node):
        "Those of a dataclass or a named tuple"
        return self.find({n.lineno: n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}, node.lineno + 1)

    def parameters(self, node):
        "Those of a function, `self` left out, and under 'return' that of what it returns"
        a,stars = node.args,lambda s,arg: [(arg.lineno, s + arg.arg)] if arg else []
        owners = dict([*((p.lineno, p.arg) for p in a.posonlyargs + a.args), *stars('*', a.vararg),
                       *((p.lineno, p.arg) for p in a.kwonlyargs), *stars('**', a.kwarg)])
        end = next(l for l in self.ends if l >= node.lineno)
        if node.returns or end not in owners: owners[end] = 'return'
        return {n: t for n,t in self.find(owners, node.lineno + 1).items() if n not in ('self', 'cls')}

def section(title, entries):
    "One section of a docstring, in Google's style"
    wrap = lambda text: textwrap.wrap(text, width, initial_indent=' '*4, subsequent_indent=' '*8, break_long_words=False, break_on_hyphens=False)
    return '\n'.join([f'{title}:', *(l for e in entries for l in wrap(e))])

def sections(node, comments):
    "What the docstring of a function or class is to say after its summary"
    is_class = isinstance(node, ast.ClassDef)
    called = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'), None) if is_class else node
    title,said = ('Attributes', comments.fields(node)) if is_class and has_fields(node) else ('Args', comments.parameters(called) if called else {})
    given = said.pop('return', None)
    if said: yield section(title, [f'{n}: {t}' for n,t in said.items()])
    if given and not is_class: yield section('Returns', [given])

def documented(body):
    "Public functions, classes and their methods, with the node of the docstring where there is one on a line of its own"
    for node in filter(is_public, body):
        first = node.body[0]
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        if is_text and first.lineno > node.lineno: yield node,first.value
        if isinstance(node, ast.ClassDef): yield from documented(node.body)

def literal(text, indent):
    "A docstring as it stands in a file"
    text = text.replace('\\', r'\\').replace('"""', r'\"\"\"')
    return '"""' + '\n'.join(f'{indent if i and l else ""}{l}' for i,l in enumerate(text.split('\n'))) + f'\n{indent}"""'

def explain(source):
    "A module's text with its public docstrings filled from the comments; filling them again changes nothing"
    comments,lines = Comments(source),source.encode().split(b'\n')     # columns count bytes
    for node,doc in sorted(documented(ast.parse(source).body), key=lambda nd: -nd[1].lineno):
        added = [] if node.name in commands else list(sections(node, comments))
        if not added: continue
        new = literal('\n\n'.join([section_start.split(cleandoc(doc.value))[0], *added]), ' '*doc.col_offset)
        first,last = lines[doc.lineno - 1],lines[doc.end_lineno - 1]
        lines[doc.lineno - 1:doc.end_lineno] = [first[:doc.col_offset] + new.encode() + last[doc.end_col_offset:]]
    return b'\n'.join(lines).decode()

def export(folder=root):
    "Write the modules of the notebooks in `folder`"
    folder = Path(folder)
    nbdev('nbdev_export', folder)
    for path in sorted((folder/lib).rglob('*.py')):
        if not path.name.startswith('_'): path.write_text(explain(path.read_text(encoding='utf-8')), encoding='utf-8', newline='\n')

if __name__ == '__main__': export(*sys.argv[1:2])
