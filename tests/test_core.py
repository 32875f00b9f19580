"Small things that everyone needs: checks, random states, and files that are written whole or not at all."
import random

import numpy as np
import pytest, torch

from ebt_toy.core import atomic_file, check_count, check_known, check_positive, generator, get_device, open_file, seeded

@pytest.mark.parametrize('check, message', [
    (lambda: check_count('size_train', 0), "size_train: expected a whole number of at least 1, got 0"),
    (lambda: check_count('vec_size', 2.5), "vec_size: .*got 2.5"),
    (lambda: check_positive('lr', float('nan')), "lr: expected a finite number above 0, got nan"),
    (lambda: check_known('task', 'ad', ['add', 'multiply']), "did you mean 'add'"),
    (lambda: get_device('abacus'), "device: expected a device of this machine"),
    (lambda: generator(-1), "seed: expected a non-negative integer")])
def test_refusals(check, message):
    with pytest.raises(ValueError, match=message): check()

def test_seeded_repeats_all_three_states_and_restores_them():
    def three(): return torch.rand(1).item(),np.random.rand(),random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = three()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with seeded(0): a = three()
    with seeded(0): assert three() == a
    assert three() == expected

def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path/'a.txt'
    with atomic_file(path) as f: f.write(b'first')
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as f:
        f.write(b'seco')
        during = sorted(p.name for p in tmp_path.iterdir())
        raise KeyboardInterrupt
    assert len(during) == 2 and during[1] == 'a.txt' and during[0].startswith('.a.txt.')
    assert path.read_bytes() == b'first' and list(tmp_path.iterdir()) == [path]

def test_a_killed_write_is_swept_up(tmp_path):
    path = tmp_path/'a.txt'
    (tmp_path/'.a.txt.0123abcd.part').write_bytes(b'seco')
    with atomic_file(path) as f: f.write(b'third')
    assert path.read_bytes() == b'third' and list(tmp_path.iterdir()) == [path]

def test_open_file(tmp_path):
    (tmp_path/'a.txt').write_bytes(b'third')
    with open_file(tmp_path/'a.txt') as f: assert f.read() == b'third'
    with pytest.raises(ValueError, match="expected a file, got a folder"): open_file(tmp_path)
