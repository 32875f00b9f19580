"""Energy-based thinking against a feedforward network, on tasks small enough to understand."""
__version__ = "0.2.0"

from ebt_toy import _start
if _start.is_command(): _start.begin()    # before the long imports

from ebt_toy.data import create_synthetic_data, register_elementwise, register_task
from ebt_toy.encoder import TokenEncoder
from ebt_toy.ebt import EBT, EnergyFunction, test_energy_model, trace, train_energy_model
from ebt_toy.ffn import FeedForward, train_feedforward
from ebt_toy import energies, pairs, published, puzzles, rivals, several    # which make energies, tasks and models known by their names
from ebt_toy.thinking import best_of, plot_thinking, plot_thinking_map, settle, thinking_curve, thinking_map
from ebt_toy.confidence import confidence, plot_confidence
from ebt_toy.listops import ListOpsError, draw_tree, evaluate, parse, render
from ebt_toy.files import read_dataset
from ebt_toy.generate import Forest, stream
from ebt_toy.ladder import listops_baselines
from ebt_toy.models import predict
from ebt_toy.history import History
from ebt_toy.controls import log_to
from ebt_toy.training import DivergedError, baselines, fit
from ebt_toy.runner import register_model, run_main
from ebt_toy.sweeps import processes, sweep
from ebt_toy.store import read_store
from ebt_toy.saving import save_results
from ebt_toy.checkpoints import load, pretrained, pretrained_steps, save, snapshots
from ebt_toy.plots import (energy_line, energy_plane, plot_accuracy_by_depth, plot_energy_error, plot_error_range, plot_inner_loop, plot_landscape,
                           plot_landscape_training, plot_profile, plot_steps)

_LATER = dict(Explorer='explorer', LiveTraining='live')      # of modules that bring ipywidgets, which takes a while to load

def __getattr__(name):
    "What is imported when it is first asked for"
    if name not in _LATER: raise AttributeError(f"module 'ebt_toy' has no attribute {name!r}")
    from importlib import import_module
    globals()[name] = value = getattr(import_module(f'ebt_toy.{_LATER[name]}'), name)
    return value

def __dir__(): return sorted(globals().keys() | _LATER)
