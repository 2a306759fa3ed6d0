"""Differences from the system that Stagemeter started from, in numbers.

The rules of that system stand here as they were: its formulas for the language model, the inputs of each encoder,
fvcore's multiply-accumulates reported as FLOPs, and a stage's FLOPs as the sum over all modules under its name.

    python benchmarks/origin.py
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer
from stagemeter.analysis.requests import plan_request
from stagemeter.models.closed_form import stage_cost
from stagemeter.models.families.deepseek_ocr.configuration import published_architecture
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.families.deepseek_ocr.tiling import MAX_TILES, MIN_TILES, local_grid_tokens, queries_per_side
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.pages.tiling import tile_grid

SAM = "model.vision_tower.sam_encoder"


def origin_prefill(d_model: int, d_ff: int, n_layers: int, seq_len: int) -> int:
    """Return the old ``estimate_prefill_flops_total``: two FFN products, not three; one projection, not four."""
    base = n_layers * (4 * d_model * d_ff + 2 * d_model * d_model)
    return base * seq_len + n_layers * 2 * d_model * (seq_len * (seq_len + 1) // 2)


def origin_decode(d_model: int, d_ff: int, n_layers: int, context: int) -> int:
    """Return the old ``estimate_decode_flops_per_token``."""
    return n_layers * (4 * d_model * d_ff + 2 * d_model * d_model + 2 * d_model * context)


def main() -> None:
    """Print a Markdown table."""
    architecture = published_architecture()
    config = AnalysisConfig()
    model = ModelDescription("deepseek-ocr", FAMILY, architecture, {}, "a benchmark")
    workload = plan_request(config, model)
    decoder = architecture.decoder
    sizes = (decoder.hidden, decoder.intermediate, decoder.layers)

    def flops(stage: str, **changes: int) -> int:
        return stage_cost(FAMILY.stage(stage), architecture, replace(workload, **changes)).flops

    rows = [
        ("MACs reported as FLOPs (`sam`, all views)", flops("sam") // 2, flops("sam")),
        ("`sam` sees the tiles only", flops("sam", global_views=0), flops("sam")),
        ("`clip` sees the global view only", flops("clip", local_views=0), flops("clip")),
        (
            "`prefill` by a dense formula without gates",
            origin_prefill(*sizes, workload.prompt_tokens),
            flops("prefill"),
        ),
        ("`decode` by a dense formula without gates", origin_decode(*sizes, workload.decode_context), flops("decode")),
    ]
    analysis = DeepseekOCRStaticAnalyzer(DeepSeekOCRSession.from_config()).analyze_full_model(config)
    by_module = analysis["by_module"]
    nested = sum(value for name, value in by_module.items() if name == SAM or name.startswith(f"{SAM}."))
    rows.append(("parents counted with their children (`sam`)", nested, by_module[SAM]))

    small = 600
    ours = plan_request(config.model_copy(update={"image_w": small, "image_h": small}), model).image_tokens
    grid = tile_grid(small, small, config.image_size, MAX_TILES, MIN_TILES)
    theirs = ours + local_grid_tokens(queries_per_side(config.image_size), *grid)
    rows.append((f"a page of {small} x {small} is tiled (image tokens)", theirs, ours))

    print("| difference | then | now | error then |\n| :--- | ---: | ---: | ---: |")
    for what, then, now in rows:
        print(f"| {what} | {then:,} | {now:,} | {100 * (then / now - 1):+.1f} % |")


if __name__ == "__main__":
    main()
