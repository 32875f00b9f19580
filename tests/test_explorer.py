"The explorer without a browser: figures drawn again, scenes and their captions, panels that follow their controls, and what is closed is freed."
import gc, os, socket, sys, time, weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import ipywidgets as widgets
from ipywidgets.widgets.widget import _instances

from ebt_toy import EBT, EnergyFunction, Explorer, create_synthetic_data, train_energy_model, train_feedforward
from ebt_toy import ebt as ebt_module
from ebt_toy.data import get_task
from ebt_toy.encoder import TokenEncoder
from ebt_toy.explorer import EXAMPLES, InferencePanel, descent_sliders, shown_inputs
from ebt_toy.live import (QUESTION, LiveTraining, TrainingPanel, add_axes, blank_figure, button, clear_axes, close_tree,
                          controls_beside, image, png, slider)
from ebt_toy.plots import contour_levels
from ebt_toy.scene import (MORE_STEPS, MOST_STEPS, RULES, _advice, _number, caption, compare, compute_scene, default_view, draw_scene,
                           in_training_range, model_set, pretrained_set, scene_figure, training_limits)
from ebt_toy.serve import choose_port, page_server, served

QUICK = dict(latent_dim=32, num_steps=20, compile=False, report=None, progress=False)

# Figures and controls

def test_a_cleared_figure_is_as_new():
    fig = blank_figure()
    ax = add_axes(fig, 0.1, 0.1, 0.8, 0.8)
    empty = png(fig)
    ax.plot([1, 2], label='line')
    ax.legend()
    assert png(fig) != empty
    clear_axes(ax)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    assert png(fig) == empty and empty[:4] == b'\x89PNG'

def test_controls_and_their_names():
    made = slider(widgets.IntSlider, 'guesses', 8, 1, 32, 1, 'd', 'How many')
    assert (made.value, made.min, made.max, made.description) == (8, 1, 32, 'guesses')
    assert [list(w._dom_classes) for w in (button('train', 'Train'), image('picture'))] == [['ebt-train'], ['ebt-picture']]
    box = controls_beside([[made]], image('picture'))
    assert box.children[0].children[0].children == (made,)
    close_tree(box)
    assert (box.comm, made.comm, made.layout.comm) == (None,)*3

# Watching a training

def lines(ax): return {l.get_label(): l.get_xydata() for l in ax.lines}

def test_live_training_draws_at_each_evaluation():
    data = create_synthetic_data('add', size_train=500, vec_size=2)
    x,y = (t[0] for t in data.val_dataset.tensors)
    ffn = train_feedforward(*data, **QUICK, lr=1e-3)
    live,seen = LiveTraining(x, y, {'FFN,': ffn.history}, 'EBT,'),[]
    model = train_energy_model(*data, **QUICK, eval_every=10, callback=lambda *now: (live(*now), seen.append(live.picture.value)))
    land,curves = live.fig.axes
    assert len(set(seen)) == 3 and 'Update 20 of 20: trained' in live.words.value
    assert list(lines(curves)) == ['FFN, validation (ID)', 'FFN, test (OOD)', 'EBT, validation (ID)', 'EBT, test (OOD)']
    assert (lines(curves)['EBT, test (OOD)'][:, 1] == model.history['test_loss']).all()
    assert np.allclose(lines(land)['truth'][0], y.numpy())
    live.stop()
    assert 'Stopping' in live.words.value
    assert train_energy_model(*data, **QUICK, callback=live).history.status == 'stopped'
    assert 'Update 0 of 20: stopped' in live.words.value

def test_live_training_of_single_numbers_several_seeds_and_no_question():
    data = create_synthetic_data('add', size_train=500, vec_size=1)
    live = LiveTraining(torch.tensor([0.5, 0.2]), torch.tensor([0.7]))
    train_energy_model(*data, **QUICK, seeds=[0, 1], callback=live)
    assert live.fig.axes[0].get_ylabel() == 'energy'             # a profile
    assert len(live.fig.axes[1].collections) == 2                # bands over two seeds
    live = LiveTraining()
    train_feedforward(*data, **QUICK, callback=live)
    assert not live.fig.axes[0].get_visible()

def small_panel(got):
    panel = TrainingPanel(lambda *trained: got.append(trained))
    panel.controls['num_steps'].value,panel.controls['size_train'].value = 100,100
    return panel

def test_the_training_panel_hands_over_both_models():
    got = []
    small_panel(got).train()
    task,models,rivals = got[0]
    assert task == 'add' and list(models) == list(rivals) == list(range(0, 101, 10))
    x = torch.tensor([QUESTION])
    right = get_task('add').truth(x)
    for m in (models, rivals): assert (m[100](x) - right).norm() < (m[0](x) - right).norm()

def test_sliders_that_arrive_late_change_nothing():
    got = []
    panel = small_panel(got)
    def move_late(change):
        if '1 of 2' in change['new']: panel.controls['num_steps'].value = 300
    panel.live.words.observe(move_late, 'value')
    panel.train()
    assert [max(m) for m in got[0][1:]] == [100, 100]        # both models were trained for as many updates

def test_stop_keeps_what_the_energy_based_model_has_learned():
    got = []
    panel = small_panel(got)
    panel.start()
    panel.live.stop()
    panel.thread.join()
    assert 'Stopped' in panel.live.words.value and not panel.controls['seed'].disabled and not got

    def press_stop(change):
        if '2 of 2' in change['new'] and 'Update 50' in change['new'] and not panel.live.stopped: panel.live.stop()
    panel.live.words.observe(press_stop, 'value')
    panel.live.stopped = False
    panel.train()
    assert [list(m) for m in got[0][1:]] == [list(range(0, 61, 10))]*2      # pressed at 50, heard at 60
    assert 'Update 60 of 100: stopped' in panel.live.words.value

# Scenes

SHOWN = pretrained_set('multiply')
VIEW = default_view(SHOWN)

def glance(shown=SHOWN, **changes):
    "Scene and words for the default view, changed"
    view = replace(VIEW, **changes)
    scene = compute_scene(shown, view)
    return scene,caption(shown, scene, view)

def test_sets_of_models():
    assert list(SHOWN.models) == list(SHOWN.rivals)
    assert model_set(EBT(EnergyFunction(6, 3, latent_dim=8), 3), task='add').x == (0.,)*6
    with pytest.raises(ValueError, match='model: expected an EBT, or a dict from updates to EBTs, got Linear'): model_set(torch.nn.Linear(2, 2))
    texts = EBT(EnergyFunction(4, 2, latent_dim=8), 2, encoder=TokenEncoder(4, 1, 1))
    with pytest.raises(ValueError, match='model: expected one whose questions are vectors'): model_set(texts)
    with pytest.raises(ValueError, match='x: expected one question'): model_set(EBT(lambda x,y: y.pow(2).sum(-1), 2))
    own = EBT(EnergyFunction(4, 2, latent_dim=8), 2)
    with pytest.raises(ValueError, match='rival: expected the same updates as model'): model_set(own, rival={5: own})

def test_a_comparison_is_fair():
    assert (in_training_range((1., -1.)), in_training_range((0., 1.05))) == (True, False)
    turned = replace(SHOWN, models=SHOWN.rivals, rivals=SHOWN.models, comparisons={})
    for in_range in (True, False):
        one,other = (compare(s, 10_000, in_range) for s in (SHOWN, turned))
        assert np.allclose(one, (other.rival_mse, other.mse, 1 - other.nearer), atol=1e-6)
    assert compare(SHOWN, 0, True).mse > 1000*compare(SHOWN, 10_000, True).mse
    assert compare(replace(SHOWN, rivals={}), 0, True) is None

def test_a_scene_descends_from_every_guess():
    scene,words = glance()
    assert scene.path.guesses.shape == (11, 8, 2)
    assert scene.path.guesses[0, 0].tolist() == list(VIEW.start)
    assert scene.best == scene.path.energies[-1].argmin().item()
    own = (scene.path.guesses[-1, scene.best] - scene.truth).pow(2).mean()
    assert torch.isclose(scene.errors[-1, scene.best], own, atol=1e-9) and not scene.lost.any() and scene.errors[-1].max() < 1e-4
    assert words.count('<tr') == 5 and '(0.50, −0.60) × (0.20, 0.80) = ?' in words and 'inside the training range' in words
    assert 'All 8 paths have settled, less than 0.01 from each other and less than 0.01 from the right answer' in words
    for mse in compare(SHOWN, 10_000, True)[:2]: assert f'>{_number(mse)}</td>' in words

def test_a_picture_shows_its_scene():
    scene,_ = glance()
    fig = scene_figure()
    picture = png(draw_scene(fig, scene, VIEW))
    assert png(draw_scene(fig, scene, VIEW)) == picture       # nothing is left from the time before
    land,energy,error,ends = fig.axes
    assert (lines(land)['first guess'] == scene.path.guesses[0].numpy()).all()
    assert np.allclose(lines(land)['truth'][0], [0.1, -0.48], atol=1e-6)
    assert np.allclose(energy.lines[1].get_ydata(), scene.path.energies[:, scene.best].numpy(), atol=1e-6)
    assert np.isclose(error.lines[-1].get_ydata()[0], (scene.rival - scene.truth).pow(2).mean().item(), atol=1e-9)
    marks = np.concatenate([l.get_xydata() for l in ends.lines])
    assert len(marks) == 8 + 1 + 2                            # ends, the best again, truth and rival
    for at,limits in zip(marks.T, (ends.get_xlim(), ends.get_ylim())): assert limits[0] < at.min() and at.max() < limits[1]

def test_captions_are_true():
    far,words = glance(x=(1.8, -0.6, 1.8, 0.8), steps=60)
    for text in ('outside the training range', 'a₁ = 1.80, b₁ = 1.80', 'the valley itself lies wrong', 'Thinking longer'): assert text in words
    assert far.errors[-1].min() > 100*glance()[0].errors[-1].max()
    untrained,words = glance(updates=0)
    assert 'untrained' in words and untrained.moves.sum(0).max() < 0.2
    heights = contour_levels(untrained.final_energies - untrained.final_energies.min())[1:]
    assert (heights < np.ptp(untrained.surface.energies)).sum() == 1
    zigzag,words = glance(step_size=2.5)
    assert 'zigzag' in words and 'Make the step size smaller' in words and (zigzag.moves[-1] < zigzag.moves[1]).all()
    assert glance(step_size=4., steps=60)[0].moves[-1].min() > 1
    assert 'zigzag' in glance(noise=0.02, step_size=2.5)[1]            # steps far longer than the noise are not its doing
    slow = glance(steps=2)[1]
    assert '8 of 8 paths are still on the way' in slow and 'Give them more steps or a larger step size' in slow
    assert _advice(replace(VIEW, steps=MOST_STEPS)) == 'Give them a larger step size.'
    assert 'Noise of 0.1 per step' in glance(noise=0.1)[1]
    alone,words = glance(starts=1)
    assert 'The path has settled, less than 0.01 from the right answer.' in words and 'Lowest energy' not in words and alone.best == 0

def test_paths_that_diverge_leap_as_far_each_time():
    scene,words = glance(step_size=30., steps=60)
    assert scene.lost.all() and '8 of 8 paths diverged' in words and 'step size smaller' in words
    assert 10 < scene.moves[1:].median() < 50 and 10 < scene.errors[1:].median() < 1000      # they neither grow nor shrink
    fig = draw_scene(scene_figure(), scene, replace(VIEW, step_size=30., steps=60))
    assert np.isfinite(fig.axes[0].lines[0].get_xdata()).sum() == 16       # two points per path
    assert not fig.axes[3].get_visible()

def test_without_a_formula_and_with_another_task():
    unknown = replace(SHOWN, truth=None)
    scene,words = glance(unknown)
    fig = draw_scene(scene_figure(), scene, VIEW)
    assert [ax.get_visible() for ax in fig.axes] == [True, True, False, True]
    assert '>right answer<' not in words and 'MSE' not in words and "Give <code>task=" in words
    assert 'hypot((0.50, −0.60), (0.20, 0.80)) = ?' in glance(replace(SHOWN, task='hypot'))[1]

# Division, where thinking longer pays

DIVIDE = pretrained_set('divide')
SMALL = replace(default_view(DIVIDE), x=(0.5, -0.6, 0.15, 0.8))

def divided(**changes):
    "Scene and words for a small divisor, changed"
    view = replace(SMALL, **changes)
    scene = compute_scene(DIVIDE, view)
    return scene,caption(DIVIDE, scene, view)

def test_the_training_range_is_that_of_the_task():
    assert DIVIDE.limits == ((0, 1), (0, 1), (0.5, 1), (0.5, 1)) and SHOWN.limits == ((0, 1),)*4 and training_limits('sqrt', 2) == ((0.25, 1),)*2
    assert (DIVIDE.most_steps, SHOWN.most_steps) == (MORE_STEPS, MOST_STEPS) == (200, 60)
    data = create_synthetic_data('divide', vec_size=2)
    inside = [in_training_range(x, DIVIDE.limits) for x in data.val_dataset.tensors[0].tolist()]
    assert all(inside) and not any(in_training_range(x, DIVIDE.limits) for x in data.test_dataset.tensors[0].tolist())
    assert not in_training_range((0.5, 0.5, 0.45, -0.8), DIVIDE.limits) and in_training_range((0., 1., -0.5, 1.), DIVIDE.limits)
    words = divided()[1]
    assert 'outside the training range</b>, a from −1 to 1, |b| from 0.5 to 1: b₁ = 0.15.' in words and '÷ (0.15, 0.80) = ?' in words
    assert 'inside the training range</b>, a from −1 to 1, |b| from 0.5 to 1.' in divided(x=DIVIDE.x)[1]

def test_a_comparison_asks_what_the_task_asks():
    inside,outside = (compare(DIVIDE, 3000, i) for i in (True, False))
    assert inside.mse < inside.rival_mse < 1e-3 and 0.05 < outside.mse < outside.rival_mse < 1
    assert 'of 500 random ones up to twice as hard' in divided()[1] and 'of 500 random ones as in training' in divided(x=DIVIDE.x)[1]

def test_a_small_divisor_needs_many_fixed_steps():
    few,words = divided()
    curved = few.curved
    assert '8 of 8 paths are still on the way: up to 3.8 from the bottom' in words and 'In the check b₁·y₁ = a₁ an error of y₁ counts only 0.15 times' in words
    assert torch.allclose(curved.left, (few.path.guesses[-1] - few.truth).norm(dim=-1), rtol=0.02)     # the bowl's bottom is the answer
    n = np.log(10)/-np.log(1 - curved.values[0].item())
    assert f'about {n:.0f} steps to a tenth of the distance' in words
    more = divided(steps=10 + round(n))[0]
    assert torch.allclose(more.curved.left/curved.left, torch.tensor(0.1), rtol=0.05)                    # as the words say
    many,words = divided(steps=200)
    assert many.errors[-1].max() < few.errors[-1].min()/1000 and 'Thinking longer' in words and 'another step rule' in words
    half = divided(x=(0.5, -0.6, 0.3, 0.8))[0].curved.values[0]
    assert half/curved.values[0] == pytest.approx(4, rel=0.2)                                           # curvature falls with the divisor squared

def test_a_fixed_step_that_is_too_long_diverges_and_safe_rules_do_not():
    long,words = divided(step_size=3., steps=60)
    assert long.lost.all() and '8 of 8 paths diverged' in words and 'or take another step rule' in words and 'allows no α above 2.3' in words
    large,words = divided(x=(0.5, -0.6, 2., 0.8), steps=60)
    assert large.lost.all() and 'above 2 each step ends further up the other side' in words
    for rule in RULES:
        if rule == 'fixed': continue
        for changes in (dict(), dict(x=(0.5, -0.6, 2., 0.8))):
            scene,words = divided(**changes, rule=rule, step_size=3., steps=60)
            assert not scene.lost.any() and scene.path.energies.diff(dim=0).max() < 1e-6 and 'diverge' not in words and 'zigzag' not in words
            assert words.count(RULES[rule][1]) == 1
    for rule in ('barzilai_borwein', 'newton'): assert divided(rule=rule)[0].errors[-1].median() < 0.001 < 1 < divided()[0].errors[-1].min()

@pytest.mark.parametrize('rule', RULES)
def test_each_rule_is_drawn_for_every_task(rule):
    assert set(RULES) == {'fixed', *ebt_module._rules}
    fig = scene_figure()
    for shown in (DIVIDE, SHOWN, pretrained_set('add')):
        view = replace(default_view(shown), rule=rule, steps=12)
        scene = compute_scene(shown, view)
        assert scene.path.guesses.shape == (13, 8, 2) and scene.path.energies.shape == (13, 8) and scene.moves.shape == (12, 8) and scene.errors[-1].max() < 1e-2
        assert scene.path.guesses[0, 0].tolist() == list(view.start) and len(png(draw_scene(fig, scene, view))) > 5000
        assert RULES[rule][1] in caption(shown, scene, view)

def test_a_rule_that_rests_is_not_asked_again():
    one,two = (divided(rule='newton', steps=n)[0] for n in (20, 200))
    assert torch.equal(one.path.guesses, two.path.guesses[:21]) and torch.equal(two.path.guesses[20:], two.path.guesses[20].expand(181, 8, 2))

@pytest.mark.parametrize('x, words', [((0.5, -0.6, 0., 0.8), 'divided by b₁ = 0. All values of y₁'), ((0.5, -0.6, -0., 0.), 'divided by b₁ and b₂ = 0. All values of y₁ and y₂'), ((0., 0.4, 0.5, 1e-17), 'divided by b₂ = 0')])
@pytest.mark.parametrize('rule', RULES)
def test_nothing_is_divided_by_zero(x, words, rule):
    scene,said = divided(x=x, rule=rule)
    fig = draw_scene(scene_figure(), scene, replace(SMALL, x=x, rule=rule))
    assert scene.truth is None and scene.errors is None and not fig.axes[2].get_visible() and len(png(fig)) > 5000
    assert 'There is no right answer' in said and words in said and 'outside the training range' in said
    assert not any(w in said for w in ('nan', 'inf,', 'MSE', 'on 500', '>right answer<', 'Give <code>task'))

def test_large_answers_fit_into_the_picture():
    for b,wide in ((0.15, 4.5), (0.05, 14.), (-0.02, 28.)):
        scene,_ = divided(x=(0.5, -0.6, b, 0.8))
        assert scene.surface.u[-1] == wide and abs(scene.truth[0]) < wide

def test_the_panel_offers_division_and_step_rules():
    panel = InferencePanel(dict(multiply=SHOWN, divide=DIVIDE))
    c,first = panel.controls,panel.words.value
    assert c['steps'].max == 60 and 'in training −1 to 1' in panel.heading.value and [v for _,v in c['rule'].options] == list(RULES)
    c['task'].value = 'divide'
    assert panel.view() == default_view(DIVIDE) and c['steps'].max == 200 and 'in training |b| 0.5 to 1' in panel.heading.value
    assert (c['x0'].tooltip, c['x2'].tooltip) == ('Training saw −1 to 1', 'Training saw 0.5 to 1 in size')
    c['steps'].value = 200
    for b in (0.4, 0.2, 0.05, 0.):
        c['x2'].value = b
        assert ('There is no right answer' in panel.words.value) == (b == 0)
    for rule in RULES:
        c['rule'].value = rule
        assert panel.view().rule == rule and 'cannot be shown' not in panel.words.value
        assert (c['noise'].disabled, c['step_size'].disabled) == (rule != 'fixed', rule in ('curvature', 'newton'))
    c['task'].value = 'multiply'                    # the question of the reader stays, all else is as at first
    assert panel.view() == replace(default_view(SHOWN), x=(0.5, -0.6, 0., 0.8)) and c['steps'].max == 60 and c['rule'].value == 'fixed'
    panel.show(panel.first)
    assert panel.words.value == first

def test_the_lesson_on_small_divisors():
    panel = InferencePanel(dict(multiply=SHOWN, divide=DIVIDE))
    buttons = {b.description: b for b in panel.children[0].children[1].children[0].children[1:]}
    buttons['Small divisor'].click()
    assert panel.view() == SMALL and panel.controls['task'].value == 'divide' and '8 of 8 paths are still on the way' in panel.words.value
    panel.controls['rule'].value = 'newton'
    assert 'All 8 paths have settled' in panel.words.value
    buttons['Reset'].click()
    assert panel.view() == default_view(DIVIDE) and 'All 8 paths have settled' in panel.words.value
    assert 'Small divisor' not in [b.description for b in InferencePanel(dict(add=SHOWN)).children[0].children[1].children[0].children[1:]]

# The inference panel

def test_sliders_of_a_question_and_a_descent():
    sliders = descent_sliders(VIEW)
    assert (sliders['step_size'].min, sliders['step_size'].max) == (-2, 2)    # powers of ten
    assert shown_inputs(20, 10, (2, 5)) == [2, 5, 12, 15] and shown_inputs(7, 2) == [0, 1, 2, 3]

def test_the_panel_follows_its_controls():
    panel = InferencePanel(dict(multiply=SHOWN))
    assert (panel.controls['roll'].max, panel.controls['steps'].value, 'dim0' in panel.controls) == (10, 10, False)
    assert [panel.controls[f'x{k}'].description for k in range(4)] == ['a₁', 'a₂', 'b₁', 'b₂']
    before,said = panel.picture.value,panel.words.value
    panel.controls['x0'].value = 1.5
    assert panel.picture.value != before and 'outside the training range' in panel.words.value
    panel.show(panel.first)
    assert panel.words.value == said and panel.picture.value == before
    panel.controls['updates'].value = 0
    assert 'untrained' in panel.words.value
    panel.controls['roll'].value = 3
    assert panel.view().steps == 3

def test_many_numbers_have_menus_for_the_plane():
    wide = train_energy_model(*create_synthetic_data('add', size_train=500, vec_size=3), **QUICK)
    panel = InferencePanel(dict(add=model_set(wide, 'add')))
    panel.controls['dim0'].value = 2
    assert [panel.controls[f'x{k}'].description for k in range(4)] == ['a₃', 'a₂', 'b₃', 'b₂']
    panel.controls['x0'].value = 0.9
    assert panel.x[2] == 0.9                       # the third number of the first operand
    panel.controls['dim1'].value = 2               # both the same: they change places
    assert (panel.view().dims, panel.controls['x1'].value, panel.controls['start1'].description) == ((1, 2), 0.9, 'start y₃')
    alone = Explorer(wide, task='add').inference
    assert (alone.controls['task'].options, alone.several) == (('add',), False)
    assert '◇ that of the rival' in Explorer(wide, 'add', wide).children[0].value
    assert 'cut through answers of 3 numbers' in alone.words.value and '★' not in Explorer(wide).children[0].value

def test_single_numbers_are_drawn_as_a_profile():
    data = create_synthetic_data('add', size_train=1000, vec_size=1)
    narrow = train_energy_model(*data, **QUICK | dict(num_steps=400), lr=3e-3)
    panel = InferencePanel(dict(add=model_set(narrow, 'add', x=[0.5, 0.2])))
    assert [n for n in panel.controls if n[-1].isdigit()] == ['x0', 'x1', 'start0']
    assert [panel.controls[n].description for n in ('x0', 'x1', 'start0')] == ['a', 'b', 'start y₁']
    panel.controls['start0'].value = 2.
    drawn = lines(panel.fig.axes[0])
    assert np.allclose((drawn['first guess'][0, 0], drawn['truth'][0, 0]), (2, 0.7), atol=1e-6)
    assert np.abs(drawn['last guess'][:, 0] - 0.7).max() < 0.1

def test_a_picture_follows_the_hand():
    panel,times = InferencePanel(dict(multiply=SHOWN)),[]
    for value in [0.3, 0.4]*3:
        start = time.process_time()
        panel.controls['x0'].value = value
        times.append(time.process_time() - start)
    assert np.median(times) < 0.5                 # about 0.1 s

# The explorer

def test_examples_and_models_from_the_training_panel():
    explorer = Explorer()
    panel,training = explorer.inference,explorer.training
    said = panel.words.value
    buttons = {b.description: b for b in panel.children[0].children[1].children[0].children[1:]}
    assert list(buttons) == [*EXAMPLES, 'Reset']
    for name in EXAMPLES:
        buttons[name].click()
        assert panel.words.value != said
        asked = replace(panel.first, x=panel.view().x)                 # the question stays, all else is as at first
        assert panel.view() == EXAMPLES[name](panel.shown, asked)
    assert panel.controls['task'].value == 'divide'
    panel.controls['task'].value = 'add'
    buttons['Reset'].click()
    assert panel.words.value == said
    training.controls['num_steps'].value,training.controls['size_train'].value = 100,100
    training.train()
    assert (panel.controls['task'].value, panel.view().updates) == ('yours: add', 100)
    training.controls['steps'].value = 3
    training.train()                                # another one takes its place, with inner steps as in training
    assert (panel.controls['task'].value, panel.view().updates, panel.view().steps, panel.quiet) == ('yours: add', 100, 3, False)
    assert 'Watch it think' in training.live.words.value
    before = panel.picture.value
    panel.controls['x0'].value = -0.7
    assert panel.picture.value != before
    panel.controls['task'].value = 'multiply'       # its moments of training are others
    assert panel.view().updates == 10_000
    explorer.close()
    assert (explorer.inference, explorer.children, panel.comm, panel.controls['x0'].comm) == (None, (), None, None)

def held(explorer):
    "What weighs: pictures and the parts that hold models"
    panels = [p for p in (explorer.inference, explorer.training) if p]
    return [weakref.ref(o) for p in panels for o in (p, getattr(p, 'fig', None) or p.live.fig)]

@pytest.mark.parametrize('make', [Explorer, lambda: Explorer(EBT(EnergyFunction(4, 2, latent_dim=8), 2))], ids=['shipped', 'own model'])
def test_close_frees_everything(make):
    before = set(_instances)
    explorer = make()
    parts = held(explorer)
    assert len(parts) in (2, 4) and all(p() for p in parts) and set(_instances) > before
    explorer.close()
    gc.collect()
    assert set(_instances) == before
    assert not any(p() for p in parts)          # although `explorer` is still there
    explorer.close()                            # once more does no harm

def test_close_ends_a_training():
    explorer = Explorer()
    training = explorer.training
    training.controls['num_steps'].value = 5000
    training.start()
    explorer.close()
    training.thread.join(60)
    assert not training.thread.is_alive() and 'Stopped' in training.live.words.value

def test_a_training_that_ends_after_close_shows_nothing():
    explorer = Explorer()
    show_trained = explorer._show_trained
    explorer.close()
    show_trained('add', {}, {})
    assert explorer.inference is None

def test_explorers_share_the_models_that_are_shipped():
    one,two = Explorer(),Explorer()
    assert one.inference.sets['add'] is two.inference.sets['add']
    one.close(), two.close()

# The page's server; `test_explore_command.py` meets it as users do

def test_ports():
    with socket.create_server(('127.0.0.1', 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port: expected one that is free, got {taken}"): choose_port(taken)
    with pytest.raises(ValueError, match="port: expected 0 to 65535, got 70000"): choose_port(70000)
    assert choose_port(taken) == taken and 8866 <= choose_port() < 8966

def test_a_server_lives_as_long_as_its_block(tmp_path):
    port = choose_port(0)
    def up():
        with socket.socket() as s: return s.connect_ex(('127.0.0.1', port)) == 0
    with served([sys.executable, '-m', 'http.server', str(port), '--bind', '127.0.0.1'], port, tmp_path): assert up()
    assert not up()
    with pytest.raises(RuntimeError, match="ended with exit code 3\nno luck"):
        with served([sys.executable, '-c', "print('no luck'); exit(3)"], port, tmp_path): pass
    with pytest.raises(RuntimeError, match="the server does not answer after 0.1 s"):
        with served([sys.executable, '-c', "input()"], port, tmp_path, limit=0.1): pass

def test_a_link_is_secret(tmp_path):
    link,args,env = page_server(tmp_path, 8866)
    assert env['PYTHONPATH'].split(os.pathsep) == [os.path.abspath(p) for p in sys.path]
    secret = link.split('/')[-2]
    assert (link, len(secret), secret in ' '.join(args)) == (f'http://127.0.0.1:8866/{secret}/', 24, False)
    again = page_server(tmp_path, 8866, 'https://hub.example/user/me/')[0]
    assert again.startswith('https://hub.example/user/me/') and secret not in again
    with pytest.raises(ValueError, match="base_url: expected a path"): page_server(tmp_path, 8866, 'hub.example')
