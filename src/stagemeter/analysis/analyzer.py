"""The static analyzer under the names of the origin: DeepSeek-OCR, and a session in hand.

`stagemeter.analysis.analyze` does the work, and analyzes models of every family.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.analyze import Progress, analyze_model, estimate_model, run_tiers, tell
from stagemeter.analysis.build_report import stage_results
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import load_picture
from stagemeter.analysis.requests import plan_request, refuse_adapter
from stagemeter.analysis.tiers import ANALYTIC, ISOLATED, analytic_tier, isolated_tier, pass_counter
from stagemeter.core.report import StageAnalysisResult
from stagemeter.core.workload import Workload
from stagemeter.export.objects import StaticReport
from stagemeter.models.families.deepseek_ocr.architecture import DeepseekOCRArchitecture
from stagemeter.models.families.deepseek_ocr.configuration import require_no_window
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.family import all_parameters
from stagemeter.models.lookup import ModelDescription

if TYPE_CHECKING:
    import torch

    from stagemeter.profiling.session import DeepSeekOCRSession

__all__ = ["AnalysisConfig", "DeepseekOCRStaticAnalyzer", "StageAnalysisResult", "estimate_report"]


class DeepseekOCRStaticAnalyzer:
    """The static analyzer of DeepSeek-OCR, which counts the cost of each stage in three ways.

    Every method raises `StagemeterError` if the picture or the configuration cannot be used.

    Parameters
    ----------
    session : DeepSeekOCRSession
        The model. Its weights are not read: counting runs a copy without weights.
    progress : callable, optional
        Called with a few words at the beginning of each step.

    Examples
    --------
    >>> from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer
    >>> analyzer = DeepseekOCRStaticAnalyzer(DeepSeekOCRSession.from_config())
    >>> report = analyzer.generate_report(AnalysisConfig(mode="base"))
    >>> report["stages"]["sam"]["flops"]
    976909172736
    """

    def __init__(self, session: DeepSeekOCRSession, progress: Progress | None = None) -> None:
        self.session = session
        self._progress = progress

    @cached_property
    def _model(self) -> ModelDescription:
        return _described(self.session.architecture, self.session.name)

    @cached_property
    def _built(self) -> Any:
        return self.session.without_weights().model

    def prepare_inputs(
        self, config: AnalysisConfig, workload: Workload | None = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Prepare the inputs that inference would get for a page.

        Parameters
        ----------
        config, workload
            See `stagemeter.analysis.analyze.analyze_model`.

        Returns
        -------
        input_ids : torch.Tensor
            Shape ``(batch, prompt tokens)``, int64: the token that begins the sequence, the span of the page, text.
        model_kwargs : dict
            ``images``, one pair per page of local tiles ``(tiles, 3, image_size, image_size)`` and global view
            ``(1, 3, base_size, base_size)``, normalized to mean 0.5 and standard deviation 0.5;
            ``images_seq_mask``, ``(batch, prompt tokens)``, true where a token stands for the page;
            ``images_spatial_crop``, ``(batch, 2)``, columns and rows of tiles.
            All are on the session's device; on the meta device no pixel is read.
        """
        from stagemeter.models.families.deepseek_ocr.page import request_inputs

        workload = workload or plan_request(config, self._model)
        return request_inputs(workload, lambda: load_picture(config), config.crop_mode, self.session.device)

    def analyze_full_model(self, config: AnalysisConfig) -> dict[str, Any]:
        """Count one forward pass of the whole model over the page and its prompt, by module and operator.

        Returns
        -------
        dict
            ``total_params``, ``total_flops``, ``total_activations``; ``by_module``, ``by_operator`` and
            ``by_module_and_operator`` in FLOPs; ``acts_by_module``; ``unsupported_ops``, calls by operator;
            ``uncalled_modules``.
        """
        workload, architecture = self._workload(config), self.session.architecture
        built = self._built
        tell(self._progress, "whole model")
        with pass_counter(built, architecture, config.walk_every_layer) as count:
            counts = count(FAMILY.whole_passes["forward"], workload)
        return {
            "total_params": all_parameters(FAMILY, architecture),
            "total_flops": counts.of("").flops,
            "total_activations": counts.of("").activations,
            "by_module": {module: counts.of(module).flops for module in counts.by_module},
            "by_operator": {operator: cost.flops for operator, cost in counts.by_module[""].items()},
            "by_module_and_operator": {
                module: {operator: cost.flops for operator, cost in operators.items()}
                for module, operators in counts.by_module.items()
            },
            "acts_by_module": {module: counts.of(module).activations for module in counts.by_module},
            "unsupported_ops": dict(counts.unsupported[""]),
            "uncalled_modules": sorted(set(counts.by_module) - counts.called),
        }

    def analyze_stage_isolated(self, stage: str, config: AnalysisConfig) -> StageAnalysisResult:
        """Count one stage by running its modules alone.

        Raises
        ------
        ValueError
            If there is no such stage; the message names the known ones.
        """
        specification, workload = FAMILY.stage(stage), self._workload(config)
        architecture, built = self.session.architecture, self._built
        tell(self._progress, stage)
        tiers = {
            ISOLATED: isolated_tier([specification], built, architecture, workload, config.walk_every_layer),
            ANALYTIC: analytic_tier(FAMILY, architecture, workload),
        }
        return stage_results(self._model, config, workload, tiers)[stage]

    def analyze_all_stages(self, config: AnalysisConfig) -> dict[str, StageAnalysisResult]:
        """Analyze every stage by all tiers; its numbers are from the first of isolated, extracted, analytic."""
        workload = self._workload(config)
        tiers = run_tiers(self._model, self._built, config, workload, self._progress)
        return stage_results(self._model, config, workload, tiers)

    def generate_report(self, config: AnalysisConfig) -> StaticReport:
        """Analyze everything and return the report, see ``report.schema.json`` and ``docs/static_analysis.md``."""
        refuse_adapter(config, "DeepseekOCRStaticAnalyzer")
        return StaticReport(analyze_model(self._model, config, self._progress, self._built))

    def _workload(self, config: AnalysisConfig) -> Workload:
        refuse_adapter(config, "DeepseekOCRStaticAnalyzer")
        return plan_request(config, self._model)


def estimate_report(architecture: DeepseekOCRArchitecture, model_name: str, config: AnalysisConfig) -> StaticReport:
    """Report on DeepSeek-OCR by closed forms alone, see `stagemeter.analysis.analyze.estimate_model`.

    Parameters
    ----------
    architecture, model_name : DeepseekOCRArchitecture, str
        Sizes of the model, and its name in the report.
    config : AnalysisConfig
        What to analyze.

    Raises
    ------
    StagemeterError
        If the picture or the configuration cannot be used.
    """
    refuse_adapter(config, "estimate_report")
    require_no_window(architecture, "the given architecture")
    return StaticReport(estimate_model(_described(architecture, model_name), config))


def _described(architecture: DeepseekOCRArchitecture, name: str) -> ModelDescription:
    return ModelDescription(name, FAMILY, architecture, config={}, source=name)
