"The explorer as its users meet it: in JupyterLab and as a page (`ebt_toy explore`), in a real Chromium at 1280×800, by keyboard and mouse."
import json, os, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ebt_toy.scene import RULES
from ebt_toy.serve import choose_port, served
from test_explore_command import ask, kernel_in, kernels, upset, until as soon

chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
if not chromium and not os.environ.get('CI'): pytest.skip("no Chromium on this machine", allow_module_level=True)
sync_api = pytest.importorskip('playwright.sync_api') if not os.environ.get('CI') else __import__('playwright.sync_api').sync_api

FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
SLIDERS = 'x0 x1 x2 x3 start0 start1 starts steps step_size noise updates'.split()
notebook = Path(__file__).parents[1]/'nbs'/'explorer'/'05_explorer.ipynb'
HARMLESS = re.compile('favicon|Notebook .* is not trusted|WebSocket connection to .* failed: Close received|ResizeObserver')   # of Jupyter's own

@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    "Where screenshots go"
    folder = Path(os.environ.get('EBT_SCREENSHOTS') or tmp_path_factory.mktemp('screenshots')).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "An environment that reads and writes no one's settings"
    folder = tmp_path_factory.mktemp('home')
    settings = folder/'lab'/'user-settings'/'@jupyterlab'/'apputils-extension'
    settings.mkdir(parents=True)
    (settings/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = dict(HOME=folder, JUPYTER_CONFIG_DIR=folder/'config', JUPYTER_DATA_DIR=folder/'data', JUPYTER_RUNTIME_DIR=folder/'run', IPYTHONDIR=folder/'ipython',
               JUPYTERLAB_SETTINGS_DIR=folder/'lab'/'user-settings', JUPYTERLAB_WORKSPACES_DIR=folder/'lab'/'workspaces', OMP_NUM_THREADS=1)
    return os.environ | {k: str(v) for k,v in own.items()}

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield b
        b.close()

@contextmanager
def opened(browser, link):
    "A page that may talk to this machine only; at the end nothing may have gone wrong in it"
    page,errors,outside = browser.new_page(viewport=dict(width=1280, height=800)),[],[]
    page.set_default_timeout(60_000)
    page.on('console', lambda m: errors.append(f'{m.text} {m.location}') if m.type == 'error' and not HARMLESS.search(m.text + str(m.location)) else None)
    page.on('pageerror', lambda e: errors.append(str(e)) if not HARMLESS.search(str(e)) else None)
    def route(r):
        if re.match(r'(http|ws)://(127\.0\.0\.1|localhost)[:/]|data:|blob:', r.request.url): return r.continue_()
        outside.append(r.request.url)
        r.abort()
    page.route('**/*', route)
    page.goto(link, wait_until='domcontentloaded')
    yield page
    page.close()
    assert not errors and not outside, (errors, outside)

@contextmanager
def exploring(home, *args):
    "The command `ebt_toy explore` and its link"
    process = subprocess.Popen([sys.executable, '-m', 'ebt_toy', 'explore', '--port', '0', *args], env=home, stdout=subprocess.PIPE, text=True)
    try: yield process,re.search(r'http://\S+', process.stdout.readline())[0]
    finally:
        process.terminate()
        try: process.wait(30)
        except subprocess.TimeoutExpired: process.kill()

@pytest.fixture(scope='module')
def voila(browser, home, shots):
    "The page of `ebt_toy explore`"
    with exploring(home) as (_,link), opened(browser, link) as page: yield ready(page)

@pytest.fixture(scope='module')
def lab(browser, home, shots, tmp_path_factory):
    "JupyterLab with the notebook of the explorer, all cells run"
    folder,port = tmp_path_factory.mktemp('lab'),choose_port(0)
    (folder/'explorer').mkdir()
    shutil.copy(notebook, folder/'explorer')
    shutil.copytree(notebook.parents[1]/'images', folder/'images')
    args = [sys.executable, '-m', 'jupyterlab', '--no-browser', f'--port={port}', '--ip=127.0.0.1', '--IdentityProvider.token=', '--LabApp.expose_app_in_browser=True', '--allow-root', f'--ServerApp.root_dir={folder}']
    with served(args, port, folder, home), opened(browser, f'http://127.0.0.1:{port}/lab/tree/explorer/05_explorer.ipynb') as page:
        page.wait_for_function("""() => { const w = window.jupyterapp?.shell.currentWidget; return w?.sessionContext?.session?.kernel?.status == 'idle' }""")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")      # resolves when all have run, at the last cell
        page.evaluate("""() => { const notebook = window.jupyterapp.shell.currentWidget.content
            notebook.activeCellIndex = notebook.widgets.findIndex(c => c.model.sharedModel.getSource().endsWith('Explorer()'))
            return notebook.scrollToItem(notebook.activeCellIndex, 'start') }""")
        yield ready(page)

def ready(page):
    "Wait for the explorer with its first words and picture"
    page.wait_for_function("() => document.querySelector('.ebt-words')?.innerText.includes('settled') && document.querySelector('.ebt-picture')?.naturalWidth > 0", timeout=120_000)
    page.locator('.ebt-picture').last.scroll_into_view_if_needed()
    return page

# What the page shows: the picture as bytes, the words as text

LOOK = """async ([picture, words]) => { const all = s => [...document.querySelectorAll(s)].at(-1);
    const bytes = new Uint8Array(await (await fetch(all(picture).src)).arrayBuffer());
    return [[...new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))].join(), all(words).innerText, bytes.length] }"""
def look(page, live=''): return page.evaluate(LOOK, [f'.ebt-{live}picture', f'.ebt-{live}words'])

def until(page, change, live='', seconds=20):
    "Look until `change(picture, words)`; what is seen then"
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        try: seen = look(page, live)
        except sync_api.Error: continue          # the picture was just being replaced
        if change(*seen[:2]): return seen
        page.wait_for_timeout(15)
    raise AssertionError(f"nothing changed in {seconds} s; the words are: {seen[1]}")

def control(page, name): return page.locator(f'.ebt-{name}').last
def handle(page, name): return control(page, name).locator('[role=slider]')

def press(page, name, key, times=1):
    handle(page, name).focus()
    for _ in range(times): page.keyboard.press(key)

WATCH = """() => { const picture = [...document.querySelectorAll('.ebt-picture')].at(-1)
    addEventListener('keydown', () => window.pressed = performance.now(), true)
    picture.addEventListener('load', () => window.shown = performance.now()) }"""

def move_each(page, shots, where):
    "Move every slider by keyboard: picture and words follow, and Reset brings the first ones back; milliseconds from key to picture are kept"
    page.locator('.ebt-reset').last.click()
    first,felt = look(page),{}
    page.evaluate(WATCH)
    for name in SLIDERS:
        key = dict(updates='ArrowLeft', x1='ArrowLeft').get(name, 'ArrowRight')
        page.wait_for_timeout(300)           # no hand is faster
        press(page, name, key)
        page.wait_for_function('window.shown > window.pressed', polling=50)
        seen = until(page, lambda picture,words: picture != first[0] and words != first[1])
        felt[name] = page.evaluate('Math.round(window.shown - window.pressed)')
        assert seen[2] > 5000
        page.locator('.ebt-reset').last.click()
        until(page, lambda picture,words: [picture, words] == first[:2])
    (shots/f'latency_{where}.json').write_text(json.dumps(felt))

def no_errors(page):
    assert page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type*=stderr]').count() == 0

def fits(page, *names):
    "Nothing reaches beyond the window, and pages have no horizontal bar"
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for n in names:
        box = control(page, n).bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= 1280, (n, box)

def test_page_moves(voila, shots):
    fits(voila, 'picture', 'words', *SLIDERS)
    for n in ('picture', 'words', 'reset'):
        box = control(voila, n).bounding_box()
        assert box['y'] + box['height'] <= 800, (n, box)          # all of it without scrolling
    voila.screenshot(path=shots/'voila.png')
    move_each(voila, shots, 'voila')
    no_errors(voila)

def test_lab_moves(lab, shots):
    no_errors(lab)
    fits(lab, 'picture', 'words', *SLIDERS)
    lab.screenshot(path=shots/'lab.png')
    move_each(lab, shots, 'lab')
    no_errors(lab)

def test_tab_key_reaches_every_slider(voila):
    handle(voila, SLIDERS[0]).focus()
    reached = []
    for _ in range(60):
        reached.append(voila.evaluate("[...document.activeElement.closest('[class*=ebt-]')?.classList ?? []].find(c => c.startsWith('ebt-'))?.slice(4)"))
        voila.keyboard.press('Tab')
    order = [n for i,n in enumerate(reached) if n in SLIDERS and n not in reached[:i]]
    assert order == SLIDERS

def test_task_and_examples(voila, shots):
    voila.locator('.ebt-reset').last.click()
    first = until(voila, lambda picture,words: 'settled' in words)
    control(voila, 'task').get_by_text('multiply').click()
    until(voila, lambda picture,words: picture != first[0] and '(0.100, −0.480)' in words)     # 0.5·0.2 and −0.6·0.8
    control(voila, 'task').get_by_text('add').click()
    until(voila, lambda picture,words: [picture, words] == first[:2])
    for i,text in enumerate(['outside the training range', 'Thinking longer', 'zigzag', 'untrained']):
        control(voila, f'example{i}').click()
        until(voila, lambda picture,words: picture != first[0] and text in words)
        voila.screenshot(path=shots/f'voila_example{i}.png')
        control(voila, 'reset').click()
        until(voila, lambda picture,words: [picture, words] == first[:2])
    for i in (0, 1): control(voila, f'example{i}').click()         # the question stays
    until(voila, lambda picture,words: 'outside the training range' in words and 'Thinking longer' in words)
    press(voila, 'step_size', 'End')
    until(voila, lambda picture,words: '8 of 8 paths diverged' in words)
    voila.screenshot(path=shots/'voila_diverged.png')
    control(voila, 'reset').click()
    until(voila, lambda picture,words: [picture, words] == first[:2])
    no_errors(voila)

def test_a_divisor_dragged_towards_zero(voila, shots):
    control(voila, 'reset').click()
    control(voila, 'example4').click()
    until(voila, lambda picture,words: '8 of 8 paths are still on the way' in words and '÷ (0.15, 0.80)' in words)
    assert '|b| 0.5 to 1' in voila.locator('body').inner_text()
    voila.screenshot(path=shots/'voila_divide.png')
    menu = control(voila, 'rule').locator('select')
    for rule,text in dict(newton='All 8 paths have settled', barzilai_borwein='Barzilai–Borwein takes', fixed='about 75 steps').items():
        menu.select_option(index=list(RULES).index(rule))
        until(voila, lambda picture,words: text in words)
        voila.screenshot(path=shots/f'voila_divide_{rule}.png')
    control(voila, 'example1').click()
    until(voila, lambda picture,words: 'lowest energy, 200 steps' in words and 'Thinking longer' in words)
    press(voila, 'steps', 'ArrowLeft', 2)           # the slider reaches that far
    until(voila, lambda picture,words: 'lowest energy, 198 steps' in words)
    press(voila, 'x2', 'ArrowLeft', 3)
    until(voila, lambda picture,words: 'There is no right answer' in words and 'b₁ = 0.00' in words)
    voila.screenshot(path=shots/'voila_divide_zero.png')
    control(voila, 'task').get_by_text('add').click()
    control(voila, 'reset').click()
    until(voila, lambda picture,words: 'inside the training range, from −1 to 1' in words and 'settled' in words)
    no_errors(voila)

def test_dragging_an_operand_out_of_the_range(voila):
    control(voila, 'reset').click()
    until(voila, lambda picture,words: 'inside the training range' in words)
    press(voila, 'x0', 'ArrowRight', 12)
    until(voila, lambda picture,words: 'outside the training range' in words and 'a₁ = 1.10' in words)
    control(voila, 'reset').click()
    until(voila, lambda picture,words: 'inside the training range' in words)

OBSERVE = """() => { const words = [...document.querySelectorAll('.ebt-words')].at(-1)
    window.said = [words.innerText]
    new MutationObserver(() => window.said.push(words.innerText)).observe(words, {childList: true, subtree: true, characterData: true}) }"""

def test_guesses_roll_step_by_step(voila):
    "The browser notes every text that it shows; a slow machine leaves steps out, so the guesses may roll three times"
    control(voila, 'reset').click()
    first = until(voila, lambda picture,words: 'lowest energy, 10 steps' in words)
    voila.evaluate(OBSERVE)
    def shown(): return [int(m[1]) for w in voila.evaluate('window.said') if (m := re.search(r'lowest energy, (\d+) step', w))]
    for _ in range(3):
        voila.evaluate('window.said = []')
        control(voila, 'roll').get_by_role('button').first.click()
        until(voila, lambda picture,words: 'lowest energy, 10 steps' not in words)
        until(voila, lambda picture,words: 'lowest energy, 10 steps' in words)
        if len(set(shown())) > 5: break
    moves = [k for i,k in enumerate(shown()) if i == 0 or k != shown()[i - 1]]
    assert len(set(moves)) > 5 and moves == sorted(moves), moves
    until(voila, lambda picture,words: [picture, words] == first[:2])

def test_training_can_be_watched_and_stopped(voila, shots):
    voila.get_by_text('Watch it learn', exact=True).click()
    press(voila, 'live-num_steps', 'ArrowLeft', 14)
    voila.wait_for_timeout(1000)         # until the kernel has heard of all of them
    control(voila, 'train').click()
    pictures = set()
    def watch(picture, words):
        pictures.add(picture)
        return '2 of 2' in words and ': trained.' in words
    until(voila, watch, 'live-', 60)
    assert len(pictures) > 3
    voila.screenshot(path=shots/'voila_learn.png')
    control(voila, 'train').click()
    until(voila, lambda picture,words: '2 of 2' in words and ': trained.' not in words, 'live-')
    control(voila, 'stop').click()
    until(voila, lambda picture,words: ': stopped.' in words, 'live-')
    voila.wait_for_function("() => ![...document.querySelectorAll('.ebt-train')].at(-1).disabled")
    voila.get_by_text('Watch it think', exact=True).first.click()
    control(voila, 'task').get_by_text('yours: add').wait_for()
    until(voila, lambda picture,words: 'feedforward' in words)
    voila.screenshot(path=shots/'voila_yours.png')
    no_errors(voila)

def test_page_tells_that_its_kernel_is_gone_and_can_be_reloaded_and_closed(browser, home):
    page = browser.new_page()
    with exploring(home) as (process,link):
        page.goto(link, wait_until='domcontentloaded')
        ready(page)
        kernel = page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId")
        assert ask(urlsplit(link), f'{urlsplit(link).path}voila/api/shutdown/{kernel}', 'POST')[0] == 204
        page.locator('.ebt-ended').get_by_text('Reload the page').wait_for()
        for _ in range(2):
            page.reload(wait_until='domcontentloaded')
            ready(page)
            assert page.locator('.ebt-ended').count() == 0 and soon(lambda: len(kernels(process)) == 1)
        page.close(run_before_unload=True)
        assert soon(lambda: not kernels(process), 10)

def test_page_waits_for_its_turn_and_tells_that_its_server_is_gone(browser, home):
    page = browser.new_page()
    with exploring(home) as (process,link):
        with ThreadPoolExecutor(4) as pool: assert all(pool.map(lambda _: kernel_in(ask(urlsplit(link))[1]), range(4)))      # opened in no browser, given up after 20 s
        page.goto(link, wait_until='domcontentloaded')
        page.get_by_text('All places are taken').wait_for()
        ready(page)
        assert len(kernels(process)) <= 4
        for _ in range(2):
            with page.expect_response(lambda r: re.search('/api/kernels/[^/]+$', r.url)): pass     # the page asks whether its kernel is there
        assert page.locator('.ebt-ended').count() == 0
    page.locator('.ebt-ended').get_by_text('The explorer has ended').wait_for()
    page.close()

def test_page_with_settings_of_their_own_behind_a_proxy(browser, tmp_path):
    with exploring(os.environ | {k: str(v) for k,v in upset(tmp_path).items() if k != 'cwd'}, '--base_url', '/user/me/') as (_,link), opened(browser, link) as page:
        press(ready(page), 'x0', 'ArrowRight', 12)
        until(page, lambda picture,words: 'outside the training range' in words)
