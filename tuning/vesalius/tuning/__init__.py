"""Search spaces, studies and their analysis.

What a study may search is declared beside each setting of a method (:func:`vesalius.platform.contracts.setting`) and
narrowed or widened here; nothing on this floor names a method. How a trial is trained and judged the floor above hands
in (:class:`Trainer`).

::

    dimension.py   one setting, what it may be, when it is searched
    spaces.py      the dimensions of a study, checked before anything starts
    objectives.py  what is made better: figures of validation, never of gate or test
    samplers.py    samplers and pruners by name
    file.py        a study's description, YAML or Python
    spec.py        what decides a study, and what becomes of a trial
    folder.py      a study on disk
    population.py  who goes on from whom, and with what settings
    storage.py     where Optuna keeps it; patience where that is down
    noted.py       what the storage holds of a trial
    opening.py     a study made or found in its storage
    ledger.py      what is tried, was tried, and was left half-way: the one truth
    searcher.py    how Ray Tune is told of it
    trial.py       a trial in its worker
    resources.py   what fits side by side
    running.py     a study driven to its end
    repeating.py   trials trained again with other seeds
    analysis.py    what it has found
    learning.py    what it takes from earlier studies
    seeds.py       whether the best is better than the start over other seeds
"""

from vesalius.platform.contracts import Choice, Range, spaces
from vesalius.tuning.analysis import Analysis, TrialRow, analyse
from vesalius.tuning.dimension import Condition, Dimension, parse_space
from vesalius.tuning.file import read_study_file
from vesalius.tuning.folder import (
    StudyFolder,
    check_new_study,
    create_study,
    find_study,
    new_study,
    studies_folder,
)
from vesalius.tuning.learning import Lesson, PastStudy, PastTrial, learn, past_study
from vesalius.tuning.objectives import OBJECTIVES, choose_objectives, intermediate, objective
from vesalius.tuning.population import check_mutable, mutable_spaces
from vesalius.tuning.repeating import repeat
from vesalius.tuning.resources import alive_nodes, check_resources, fitting
from vesalius.tuning.running import Driven, drive
from vesalius.tuning.samplers import PRUNERS, SAMPLERS, VALIDATIONS, check_pruner, check_sampler
from vesalius.tuning.seeds import (
    SeedComparison,
    SeedRow,
    compare_seeds,
    compared,
    held_out,
    keep_held_out,
    kept_held_out,
    other_seeds,
    seed_comparison,
    taken_seeds,
)
from vesalius.tuning.spaces import declared, dimensions, full_key
from vesalius.tuning.spec import COUNTED, LOCAL, Learnt, Population, Record, Start, StudySpec
from vesalius.tuning.storage import PATIENCE_SECONDS, VARIABLE, check_address, try_storage, whole_address
from vesalius.tuning.trial import Trainer

__all__ = [
    "COUNTED",
    "LOCAL",
    "OBJECTIVES",
    "PATIENCE_SECONDS",
    "PRUNERS",
    "SAMPLERS",
    "VALIDATIONS",
    "VARIABLE",
    "Analysis",
    "Choice",
    "Condition",
    "Dimension",
    "Driven",
    "Learnt",
    "Lesson",
    "PastStudy",
    "PastTrial",
    "Population",
    "Range",
    "Record",
    "SeedComparison",
    "SeedRow",
    "Start",
    "StudyFolder",
    "StudySpec",
    "Trainer",
    "TrialRow",
    "alive_nodes",
    "analyse",
    "check_address",
    "check_mutable",
    "check_new_study",
    "check_pruner",
    "check_resources",
    "check_sampler",
    "choose_objectives",
    "compare_seeds",
    "compared",
    "create_study",
    "declared",
    "dimensions",
    "drive",
    "find_study",
    "fitting",
    "full_key",
    "held_out",
    "intermediate",
    "keep_held_out",
    "kept_held_out",
    "learn",
    "mutable_spaces",
    "new_study",
    "objective",
    "other_seeds",
    "parse_space",
    "past_study",
    "read_study_file",
    "repeat",
    "seed_comparison",
    "spaces",
    "studies_folder",
    "taken_seeds",
    "try_storage",
    "whole_address",
]
