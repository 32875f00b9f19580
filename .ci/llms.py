"The text of llms.txt (https://llmstxt.org): what there is to read here, from the first lines of the notebooks. `.ci/readme.py` writes it."
import json, re
from pathlib import Path

from export import root

parts = {   # notebooks, as a pattern below nbs/ -> heading
    '[0-9]*.ipynb': "The book",
    'studies/*.ipynb': "Studies: one question each",
    'methods/*.ipynb': "Part: more of the method",
    'listops/*.ipynb': "Part: ListOps at scale",
    'sweeps/*.ipynb': "Part: sweeps",
    'engine/*.ipynb': "Part: the engine",
    'explorer/*.ipynb': "Part: the explorer",
    'cli.ipynb': "Part: the command line",
}
pages = {   # file -> note
    'README.md': "how to install it, what it does and how well",
    'CONTRIBUTING.md': "how the notebooks become the package, and the rules for both",
    'CHANGELOG.md': "what changed, with a table of old and new names",
    'CITATION.cff': "how to cite it, and the papers it builds on",
}

def first_lines(path):
    "A notebook's title and the line below it that says what its reader can do at the end"
    cell = json.loads(path.read_text(encoding='utf-8'))['cells'][0]
    found = re.match(r'# (?P<title>.+)\n+> (?P<line>.+)', ''.join(cell['source']))
    if not found: raise SystemExit(f"{path}: expected a first cell with `# title` and a line that begins with `> `, got {''.join(cell['source'])!r}")
    return found['title'].strip(),found['line'].strip()

def llms_text(folder):
    "Text of llms.txt for the notebooks in `folder`/nbs"
    folder = Path(folder)
    nbs = folder/'nbs'
    found = {heading: sorted(nbs.glob(pattern)) for pattern,heading in parts.items()}
    everything = {p for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    missing = everything - {nbs/'index.ipynb'}.union(*found.values())
    if missing: raise SystemExit(f".ci/llms.py: expected a heading in `parts` for each notebook, got none for {', '.join(sorted(map(str, missing)))}")
    name,line = first_lines(nbs/'index.ipynb')
    entry = lambda path,title,note: f"- [{title}]({path}): {note}"
    sections = {h: [entry(p.relative_to(folder).as_posix(), *first_lines(p)) for p in ps] for h,ps in found.items()}
    sections["About the project"] = [entry(p, p, note) for p,note in pages.items()]
    intro = ("The notebooks are the source of the package of the same name. A module has the name of its notebook without the number: "
             "`nbs/03_ebt.ipynb` is `ebt_toy/ebt.py`, whose docstrings explain every parameter.")
    return '\n'.join([f"# {name}", '', f"> {line}", '', intro, *(l for h,ls in sections.items() if ls for l in ('', f"## {h}", '', *ls))]) + '\n'

def make_llms(folder=root):
    "Write llms.txt into `folder`"
    (Path(folder)/'llms.txt').write_text(llms_text(folder), encoding='utf-8', newline='\n')
