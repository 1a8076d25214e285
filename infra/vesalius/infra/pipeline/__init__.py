"""The way of a run, composed from the floors below: train, fit the thresholds, score, evaluate, promote.

Each step finds what an earlier call has finished and leaves it alone, so that the same command given twice costs
the work once, and a broken-off one goes on.
"""

from __future__ import annotations

from vesalius.infra.pipeline.beginning import StudyRequest, begin_study
from vesalius.infra.pipeline.forecasting import Forecast, describe_forecast, forecast
from vesalius.infra.pipeline.held_out import check_held_out, judge_held_out
from vesalius.infra.pipeline.judging import (
    ThresholdRule,
    device_name,
    evaluate_run,
    fit_thresholds,
    score_run,
    scores_folder,
)
from vesalius.infra.pipeline.registered import model_folder, promote_run, score_reference
from vesalius.infra.pipeline.studies import change_study, check_resumed, repeat_best
from vesalius.infra.pipeline.tracked_study import tracked_study
from vesalius.infra.pipeline.training import (
    choose_settings,
    describe_run,
    method_type,
    require_model,
    start_run,
    train,
)
from vesalius.infra.pipeline.trials import TrialTrainer, base_of

__all__ = [
    "Forecast",
    "StudyRequest",
    "ThresholdRule",
    "TrialTrainer",
    "base_of",
    "begin_study",
    "change_study",
    "check_held_out",
    "check_resumed",
    "choose_settings",
    "describe_forecast",
    "describe_run",
    "device_name",
    "evaluate_run",
    "fit_thresholds",
    "forecast",
    "judge_held_out",
    "method_type",
    "model_folder",
    "promote_run",
    "repeat_best",
    "require_model",
    "score_reference",
    "score_run",
    "scores_folder",
    "start_run",
    "tracked_study",
    "train",
]
