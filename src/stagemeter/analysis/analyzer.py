"""The static analyzer: a configuration in, a report out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.build_report import build_report, stage_results
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import limit_notes, load_picture, plan_page, tile_notes
from stagemeter.analysis.requests import plan_request, plan_workload, refuse_adapter
from stagemeter.analysis.tiers import (
    ANALYTIC,
    EXTRACTED,
    ISOLATED,
    Tier,
    analytic_tier,
    extracted_tier,
    isolated_tier,
    pass_counter,
)
from stagemeter.core.errors import StagemeterError
from stagemeter.core.report import Report, StageAnalysisResult
from stagemeter.core.workload import Workload
from stagemeter.models.families.deepseek_ocr.configuration import DeepseekOCRArchitecture, require_no_window
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.family import Family, all_parameters
from stagemeter.models.lookup import ModelDescription, with_adapter
from stagemeter.models.lora import Adapter

if TYPE_CHECKING:
    import torch

    from stagemeter.profiling.session import DeepSeekOCRSession

__all__ = [
    "AnalysisConfig",
    "DeepseekOCRStaticAnalyzer",
    "StageAnalysisResult",
    "analyze_model",
    "estimate_model",
    "estimate_report",
]

logger = logging.getLogger(__name__)

#: Depth to which the report lists single modules.
_MODULE_DEPTH = 4
#: Up to this side the authors' ``infer`` stretches a page to its single view instead of padding it.
_LARGEST_STRETCHED_VIEW = 640

Progress = Callable[[str], None]


class DeepseekOCRStaticAnalyzer:
    """Counts what each stage of DeepSeek-OCR costs, in three ways.

    Parameters
    ----------
    session : DeepSeekOCRSession
        The model. Its weights are neither read nor needed: counting is done on a copy without weights.
    progress : callable, optional
        Told what is being done, in a few words, whenever that changes.

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
        self._progress = progress or (lambda step: None)

    @cached_property
    def _counted_model(self) -> Any:
        return self.session.without_weights().model

    def prepare_inputs(self, config: AnalysisConfig) -> tuple[torch.Tensor, dict[str, Any]]:
        """Prepare the inputs that inference would get for a page.

        Parameters
        ----------
        config : AnalysisConfig
            Page, mode, text tokens, data type and batch.

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

        Raises
        ------
        StagemeterError
            If the picture or the configuration cannot be used.
        """
        import torch

        from stagemeter.models.families.deepseek_ocr.page import global_view, pixel_tensor, tiles
        from stagemeter.models.families.deepseek_ocr.prompt import build_prompt

        plan = plan_page(config)
        prompt = build_prompt(plan, config.text_tokens, config.patch_size, config.downsample_ratio)
        device, batch = self.session.device, config.batch_size
        dtype = getattr(torch, config.dtype)
        if device.type == "meta":
            local_pixels = torch.empty(plan.local_views, 3, plan.tile_size, plan.tile_size, dtype=dtype, device=device)
            global_pixels = torch.empty(1, 3, plan.base_size, plan.base_size, dtype=dtype, device=device)
        else:
            page = load_picture(config)
            # The authors stretch a page to a small single view, and pad it to a larger one.
            stretch = not config.crop_mode and config.base_size <= _LARGEST_STRETCHED_VIEW
            global_pixels = pixel_tensor([global_view(page, plan.base_size, stretch)], dtype).to(device)
            crops = tiles(page, plan.grid, plan.tile_size) if plan.local_views else []
            local_pixels = (
                pixel_tensor(crops, dtype).to(device)
                if crops
                else global_pixels.new_empty(0, 3, plan.tile_size, plan.tile_size)
            )
        kwargs = {
            "images": [(local_pixels, global_pixels)] * batch,
            "images_seq_mask": torch.tensor([prompt.image_mask] * batch, device=device),
            "images_spatial_crop": torch.tensor([plan.grid] * batch, device=device),
        }
        return torch.tensor([prompt.input_ids] * batch, device=device), kwargs

    def analyze_full_model(self, config: AnalysisConfig) -> dict[str, Any]:
        """Count one forward pass of the whole model over the page and its prompt, by module and operator.

        Returns
        -------
        dict
            ``total_params``, ``total_flops``, ``total_activations``; ``by_module``, ``by_operator`` and
            ``by_module_and_operator`` in FLOPs; ``acts_by_module``; ``unsupported_ops``, calls by operator;
            ``uncalled_modules``.

        Raises
        ------
        StagemeterError
            If the picture or the configuration cannot be used.
        """
        workload = self._workload(config)
        model = self._counted_model
        self._say("whole model")
        with pass_counter(model, self.session.architecture, config.walk_every_layer) as count:
            counts = count(FAMILY.whole_passes["forward"], workload)
        return {
            "total_params": all_parameters(FAMILY, self.session.architecture),
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
            If there is no such stage; the message names those that there are.
        StagemeterError
            If the picture or the configuration cannot be used.
        """
        specification = FAMILY.stage(stage)
        workload = self._workload(config)
        model = self._counted_model
        self._say(stage)
        tiers = {
            ISOLATED: isolated_tier(
                [specification], model, self.session.architecture, workload, config.walk_every_layer
            ),
            ANALYTIC: analytic_tier(FAMILY, self.session.architecture, workload),
        }
        return stage_results(FAMILY, self.session.architecture, config, workload, tiers)[stage]

    def analyze_all_stages(self, config: AnalysisConfig) -> dict[str, StageAnalysisResult]:
        """Analyze every stage by all tiers; the numbers of a stage are from the first of isolated, extracted, analytic.

        Raises
        ------
        StagemeterError
            If the picture or the configuration cannot be used.
        """
        workload = self._workload(config)
        return stage_results(FAMILY, self.session.architecture, config, workload, self._run_tiers(config, workload))

    def generate_report(self, config: AnalysisConfig) -> Report:
        """Analyze everything and return the report.

        Returns
        -------
        dict
            See ``report.schema.json`` in the package and ``docs/static_analysis.md``.

        Raises
        ------
        StagemeterError
            If the picture or the configuration cannot be used.
        """
        session = self.session
        workload = self._workload(config)
        tiers = self._run_tiers(config, workload)
        model, notes = self._counted_model, tile_notes(config)
        return _report(FAMILY, session.architecture, session.name, config, workload, tiers, model, notes)

    def _workload(self, config: AnalysisConfig) -> Workload:
        refuse_adapter(config, "DeepseekOCRStaticAnalyzer")
        return plan_workload(config, self.session.architecture)

    def _run_tiers(self, config: AnalysisConfig, workload: Workload) -> dict[str, Tier]:
        return _run_tiers(FAMILY, self.session.architecture, self._counted_model, config, workload, self._say)

    def _say(self, step: str) -> None:
        logger.info("counting: %s", step)
        self._progress(f"counting: {step}")


def analyze_model(
    model: ModelDescription, config: AnalysisConfig, progress: Progress | None = None, built: Any = None
) -> Report:
    """Analyze a model of any family: counted in isolation, in passes of the whole model, and by closed form.

    Parameters
    ----------
    model : ModelDescription
        The model, see `stagemeter.models.lookup.describe_model`. It is built without weights.
    config : AnalysisConfig
        What to analyze.
    progress : callable, optional
        Told what is being done, in a few words, whenever that changes.
    built : torch.nn.Module, optional
        What ``model.build()`` returned, for whoever analyzes a model more than once. Default: it is built.

    Returns
    -------
    dict
        See ``report.schema.json`` in the package and ``docs/static_analysis.md``.

    Raises
    ------
    StagemeterError
        If the picture or the configuration cannot be used.
    """

    def say(step: str) -> None:
        logger.info("counting: %s", step)
        if progress is not None:
            progress(f"counting: {step}")

    workload, model = plan_request(config, model), with_adapter(model, config.adapter)
    if built is None:
        say("model")
        built = model.build()
    tiers = _run_tiers(model.family, model.architecture, built, config, workload, say, model.adapter)
    notes = (*limit_notes(config, model), *model.notes)
    return _report(model.family, model.architecture, model.name, config, workload, tiers, built, notes, model.adapter)


def estimate_model(model: ModelDescription, config: AnalysisConfig, workload: Workload | None = None) -> Report:
    """Report by closed forms alone: exact as the full analysis is, but not checked by running. Needs no torch.

    Parameters
    ----------
    model : ModelDescription
        The model.
    config : AnalysisConfig
        What to analyze.
    workload : Workload, optional
        What that comes to, where it is known already. Default: it is worked out.

    Raises
    ------
    StagemeterError
        If the picture or the configuration cannot be used.

    Examples
    --------
    >>> from stagemeter import AnalysisConfig, describe_model, estimate_model
    >>> report = estimate_model(describe_model("llama-3.1-8b"), AnalysisConfig(seq_len=2048))
    >>> report["stages"]["prefill"]["flops"]
    30787376250880
    """
    if not model.family.has_closed_forms:
        raise StagemeterError(
            f"{model.name} is of no family whose closed forms are known, so that there is nothing to estimate it by: "
            f"{''.join(f'{note}. ' for note in model.notes)}Count it, without --estimate"
        )
    workload = workload or plan_request(config, model)
    model = with_adapter(model, config.adapter)
    tiers = {ANALYTIC: analytic_tier(model.family, model.architecture, workload, model.adapter)}
    return build_report(
        model.family,
        model.architecture,
        model.name,
        config,
        workload,
        tiers,
        modules=[],
        model_notes=(*limit_notes(config, model), *model.notes),
        adapter=model.adapter,
    )


def _run_tiers(
    family: Family[Any],
    architecture: Any,
    model: Any,
    config: AnalysisConfig,
    workload: Workload,
    say: Progress,
    adapter: Adapter | None = None,
) -> dict[str, Tier]:
    say("stages on their own")
    isolated = isolated_tier(family.stages, model, architecture, workload, config.walk_every_layer)
    say("whole model")
    extracted = extracted_tier(family, model, architecture, workload, config.walk_every_layer)
    tiers = [isolated, extracted]
    if family.has_closed_forms:
        say("closed forms")
        tiers.append(analytic_tier(family, architecture, workload, adapter))
    return {tier.name: tier for tier in tiers}


def _report(
    family: Family[Any],
    architecture: Any,
    name: str,
    config: AnalysisConfig,
    workload: Workload,
    tiers: dict[str, Tier],
    model: Any,
    notes: Sequence[str] = (),
    adapter: Adapter | None = None,
) -> Report:
    modules = _modules(model, tiers[EXTRACTED])
    found = None
    if adapter is not None:
        from stagemeter.models.lora_modules import find_adapter

        found = find_adapter(model, adapter, family.stage("decode").owns)
    report = build_report(family, architecture, name, config, workload, tiers, modules, notes, adapter, found)
    for difference in report["agreement"]["differences"]:
        logger.warning("the tiers disagree: %s", difference)
    return report


def _modules(model: Any, tier: Tier) -> list[dict[str, Any]]:
    """Parameters, multiply-accumulates and activations of the upper modules over one forward pass."""
    counts = tier.passes.get("forward")
    if counts is None:
        return []
    from stagemeter.models.lora_modules import is_adapter

    # Tied weights are counted once, under the first name that leads to them.
    parameters = Counter[str]()
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        path = name.split(".")
        parameters.update({".".join(path[:depth]): parameter.numel() for depth in range(len(path))})
    return [
        {
            "name": name,
            "params": parameters[name],
            "macs": counts.of(name).macs,
            "activations": counts.of(name).activations,
        }
        for name, _ in model.named_modules()
        if name.count(".") < _MODULE_DEPTH and not is_adapter(name)
    ]


def estimate_report(architecture: DeepseekOCRArchitecture, model_name: str, config: AnalysisConfig) -> Report:
    """Report by closed forms alone: exact as the full analysis is, but not checked by running. Needs no torch.

    Parameters
    ----------
    architecture : DeepseekOCRArchitecture
        Sizes of the model.
    model_name : str
        Name of the model in the report.
    config : AnalysisConfig
        What to analyze.

    Raises
    ------
    StagemeterError
        If the picture or the configuration cannot be used.
    """
    refuse_adapter(config, "estimate_report")
    require_no_window(architecture, "the given architecture")
    workload = plan_workload(config, architecture)
    tiers = {ANALYTIC: analytic_tier(FAMILY, architecture, workload)}
    notes = tile_notes(config)
    return build_report(FAMILY, architecture, model_name, config, workload, tiers, modules=[], model_notes=notes)
