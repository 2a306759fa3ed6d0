"""Count what a model costs, stage by stage, before it runs; measure how well it ran. MLflow keeps both.

What a request costs, by closed forms alone; `analyze_model` also runs the model, on shapes, and compares:

>>> import stagemeter
>>> report = stagemeter.estimate_model("qwen2.5-vl-7b", image_w=1240, image_h=1754, device="H100-SXM")
>>> report.stages.prefill.flops
39414501769216
>>> report.roofline.throughput.first_token_ms < 60
True

A report prints as its table, and a notebook shows that; ``report.to_dataframe()``, ``report.figure()`` and
``report.to_dict()`` give the rest. ``report["stages"]`` works as well. So it is with all results:

>>> larger = stagemeter.estimate_model("qwen2.5-vl-7b", image_w=2480, image_h=3508)
>>> stagemeter.compare_runs({"150 dpi": report, "300 dpi": larger}).figure()
<NotebookFigure size 800x360 with 1 Axes>
>>> stagemeter.plan("qwen2.5-vl-7b", 1e6, ["H100-SXM", "L40S"], mfu=0.3).best[0].device
'H100-SXM'
>>> table = stagemeter.sweep({"batch_size": [1, 8, 64], "device": "H100-SXM"}, "sweep.parquet")  # doctest: +SKIP

In MLflow, with times that `stagemeter profile` or `stagemeter import-profile` logged:

>>> stagemeter.log_static_report(report)  # doctest: +SKIP
>>> stagemeter.pair_runs("name-of-profiling-run", device="H100-SXM")  # doctest: +SKIP

Any other module, trainings, and calls of a server:

>>> print(stagemeter.analyze(model, args=(stagemeter.spec(8, 3, 224, 224),)))  # doctest: +SKIP
>>> stagemeter.autolog()  # doctest: +SKIP
>>> processor = stagemeter.trace_processor("qwen2.5-vl-7b", device="H100-SXM")  # doctest: +SKIP

``docs/api.md`` lists the other names, which `dir` leaves out. All are imported when they are first used, so importing
the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagemeter.analysis.analyzer import DeepseekOCRStaticAnalyzer as DeepseekOCRStaticAnalyzer
    from stagemeter.analysis.analyzer import estimate_report as estimate_report
    from stagemeter.analysis.config import AnalysisConfig as AnalysisConfig
    from stagemeter.application.compare import compare_runs as compare_runs
    from stagemeter.application.mfu import pair_experiment as pair_experiment
    from stagemeter.application.mfu import pair_runs as pair_runs
    from stagemeter.application.reports import analyze_model as analyze_model
    from stagemeter.application.reports import estimate_model as estimate_model
    from stagemeter.application.reports import plan as plan
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
    from stagemeter.export.objects import ComparisonReport as ComparisonReport
    from stagemeter.export.objects import PlanReport as PlanReport
    from stagemeter.export.objects import StaticReport as StaticReport
    from stagemeter.export.objects import UtilizationReport as UtilizationReport
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
    from stagemeter.tracking.scorer import cost_scorer as cost_scorer
    from stagemeter.tracking.spans import trace_processor as trace_processor

#: What one needs first; `help` and `dir` show these.
_FIRST = {
    "estimate_model": "stagemeter.application.reports",
    "analyze_model": "stagemeter.application.reports",
    "compare_runs": "stagemeter.application.compare",
    "sweep": "stagemeter.application.sweep",
    "plan": "stagemeter.application.reports",
    "pair_runs": "stagemeter.application.mfu",
    "log_static_report": "stagemeter.tracking.log",
    "analyze": "stagemeter.modules.analyze",
    "autolog": "stagemeter.integrations.autolog",
    "trace_processor": "stagemeter.tracking.spans",
}
_HOMES = {
    **_FIRST,
    "ActivationCountAnalysis": "stagemeter.modules.fvcore_analysis",
    "FlopCountAnalysis": "stagemeter.modules.fvcore_analysis",
    "AnalysisConfig": "stagemeter.analysis.config",
    "ComparisonReport": "stagemeter.export.objects",
    "CostCounter": "stagemeter.counting.counter",
    "DeepSeekOCRSession": "stagemeter.profiling.session",
    "DeepseekOCRStaticAnalyzer": "stagemeter.analysis.analyzer",
    "LightningStagemeterCallback": "stagemeter.integrations.lightning",
    "ModelDescription": "stagemeter.models.lookup",
    "ModuleReport": "stagemeter.modules.report",
    "ModuleStage": "stagemeter.modules.report",
    "PlanReport": "stagemeter.export.objects",
    "StageAnalysisResult": "stagemeter.core.report",
    "StaticReport": "stagemeter.export.objects",
    "StagemeterCallback": "stagemeter.integrations.trainer",
    "StagemeterError": "stagemeter.core.errors",
    "TrackingError": "stagemeter.core.errors",
    "cost_scorer": "stagemeter.tracking.scorer",
    "count": "stagemeter.modules.analyze",
    "UtilizationReport": "stagemeter.export.objects",
    "describe_model": "stagemeter.models.lookup",
    "estimate_report": "stagemeter.analysis.analyzer",
    "pair_experiment": "stagemeter.application.mfu",
    "register_formula": "stagemeter.counting.registry",
    "report_schema": "stagemeter.core.report",
    "spec": "stagemeter.modules.shapes",
    "unregister_formula": "stagemeter.counting.registry",
    "write_static_compute_fvcore_table": "stagemeter.export",
    "write_static_compute_json": "stagemeter.export",
    "write_static_compute_markdown": "stagemeter.export",
}

__all__ = list(_FIRST)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__") and not callable(globals()[name])), *_FIRST})
