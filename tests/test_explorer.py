"The explorer's widgets: what is closed is freed."
import gc, weakref

import pytest
from ipywidgets.widgets.widget import _instances

from ebt_toy import EBT, EnergyFunction, Explorer

def held(explorer):
    "What weighs: pictures and the parts that hold models"
    rooms = [r for r in (explorer.playground, explorer.classroom) if r]
    return [weakref.ref(o) for r in rooms for o in (r, getattr(r, 'stage', None) or r.live.stage)]

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
    school = explorer.classroom
    school.controls['num_steps'].value = 5000
    school.start()
    explorer.close()
    school.thread.join(60)
    assert not school.thread.is_alive() and 'Stopped' in school.live.words.value

def test_a_training_that_ends_after_close_shows_nothing():
    explorer = Explorer()
    trained = explorer._trained
    explorer.close()
    trained('add', {}, {})
    assert explorer.playground is None

def test_explorers_share_the_models_that_are_shipped():
    one,two = Explorer(),Explorer()
    assert one.playground.exhibits['add'] is two.playground.exhibits['add']
    one.close(), two.close()
