"""Count what a model costs, stage by stage, before it runs; measure how well it ran. MLflow keeps both.

Names are imported when they are first used, so importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagemeter.analysis.analyze import analyze_model as analyze_model
    from stagemeter.analysis.analyze import estimate_model as estimate_model
    from stagemeter.analysis.analyzer import DeepseekOCRStaticAnalyzer as DeepseekOCRStaticAnalyzer
    from stagemeter.analysis.analyzer import estimate_report as estimate_report
    from stagemeter.analysis.config import AnalysisConfig as AnalysisConfig
    from stagemeter.application.compare import compare_runs as compare_runs
    from stagemeter.application.mfu import pair_experiment as pair_experiment
    from stagemeter.application.mfu import pair_runs as pair_runs
    from stagemeter.application.sweep import sweep as sweep
    from stagemeter.core.errors import StagemeterError as StagemeterError
    from stagemeter.core.errors import TrackingError as TrackingError
    from stagemeter.core.report import StageAnalysisResult as StageAnalysisResult
    from stagemeter.core.report import report_schema as report_schema
    from stagemeter.counting.counter import CostCounter as CostCounter
    from stagemeter.counting.registry import register_formula as register_formula
    from stagemeter.counting.registry import unregister_formula as unregister_formula
    from stagemeter.export import write_static_compute_fvcore_table as write_static_compute_fvcore_table
    from stagemeter.export import write_static_compute_json as write_static_compute_json
    from stagemeter.export import write_static_compute_markdown as write_static_compute_markdown
    from stagemeter.integrations.autolog import autolog as autolog
    from stagemeter.integrations.lightning import LightningStagemeterCallback as LightningStagemeterCallback
    from stagemeter.integrations.trainer import StagemeterCallback as StagemeterCallback
    from stagemeter.models.lookup import ModelDescription as ModelDescription
    from stagemeter.models.lookup import describe_model as describe_model
    from stagemeter.modules.analyze import analyze as analyze
    from stagemeter.modules.analyze import count as count
    from stagemeter.modules.fvcore_analysis import ActivationCountAnalysis as ActivationCountAnalysis
    from stagemeter.modules.fvcore_analysis import FlopCountAnalysis as FlopCountAnalysis
    from stagemeter.modules.report import ModuleReport as ModuleReport
    from stagemeter.modules.report import ModuleStage as ModuleStage
    from stagemeter.modules.shapes import spec as spec
    from stagemeter.profiling.session import DeepSeekOCRSession as DeepSeekOCRSession
    from stagemeter.tracking.log import log_static_report as log_static_report
    from stagemeter.tracking.spans import trace_processor as trace_processor

_HOMES = {
    "ActivationCountAnalysis": "stagemeter.modules.fvcore_analysis",
    "FlopCountAnalysis": "stagemeter.modules.fvcore_analysis",
    "AnalysisConfig": "stagemeter.analysis.config",
    "CostCounter": "stagemeter.counting.counter",
    "DeepSeekOCRSession": "stagemeter.profiling.session",
    "DeepseekOCRStaticAnalyzer": "stagemeter.analysis.analyzer",
    "LightningStagemeterCallback": "stagemeter.integrations.lightning",
    "ModelDescription": "stagemeter.models.lookup",
    "ModuleReport": "stagemeter.modules.report",
    "ModuleStage": "stagemeter.modules.report",
    "StageAnalysisResult": "stagemeter.core.report",
    "StagemeterCallback": "stagemeter.integrations.trainer",
    "StagemeterError": "stagemeter.core.errors",
    "TrackingError": "stagemeter.core.errors",
    "analyze": "stagemeter.modules.analyze",
    "analyze_model": "stagemeter.analysis.analyze",
    "autolog": "stagemeter.integrations.autolog",
    "compare_runs": "stagemeter.application.compare",
    "count": "stagemeter.modules.analyze",
    "describe_model": "stagemeter.models.lookup",
    "estimate_model": "stagemeter.analysis.analyze",
    "estimate_report": "stagemeter.analysis.analyzer",
    "log_static_report": "stagemeter.tracking.log",
    "pair_experiment": "stagemeter.application.mfu",
    "pair_runs": "stagemeter.application.mfu",
    "register_formula": "stagemeter.counting.registry",
    "report_schema": "stagemeter.core.report",
    "spec": "stagemeter.modules.shapes",
    "sweep": "stagemeter.application.sweep",
    "trace_processor": "stagemeter.tracking.spans",
    "unregister_formula": "stagemeter.counting.registry",
    "write_static_compute_fvcore_table": "stagemeter.export",
    "write_static_compute_json": "stagemeter.export",
    "write_static_compute_markdown": "stagemeter.export",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
