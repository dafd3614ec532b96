"""What makes an encoder good: recipes, data, teachers, losses, guards, and the run that uses them.

The names below are imported when they are first used, so the parts that need no torch do without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oskit.lazy import importer

if TYPE_CHECKING:
    from oskit.training.data.holdout import hold_out as hold_out
    from oskit.training.data.leakage import find_leakage as find_leakage
    from oskit.training.data.training_data import TrainingData as TrainingData
    from oskit.training.data.training_data import load_training_data as load_training_data
    from oskit.training.mining.miner import mine_negatives as mine_negatives
    from oskit.training.recipe.recipe import MiningConfig as MiningConfig
    from oskit.training.recipe.sources import DataSource as DataSource
    from oskit.training.teachers.ensemble import EnsembleTeacher as EnsembleTeacher

_HOME = {
    "DataSource": "oskit.training.recipe.sources",
    "EnsembleTeacher": "oskit.training.teachers.ensemble",
    "MiningConfig": "oskit.training.recipe.recipe",
    "TrainingData": "oskit.training.data.training_data",
    "find_leakage": "oskit.training.data.leakage",
    "hold_out": "oskit.training.data.holdout",
    "load_training_data": "oskit.training.data.training_data",
    "mine_negatives": "oskit.training.mining.miner",
}

__all__ = sorted(_HOME)

__getattr__ = importer(__name__, _HOME)
