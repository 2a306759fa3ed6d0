"""Image tokens of random pages equal those of transformers' processors, for every family that reads pages."""

import random
from dataclasses import replace

import pytest
from PIL import Image
from processors import ONE_VIEW, TOKENS, UNDER_SETTINGS

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import page_counter
from stagemeter.core.errors import StagemeterError
from stagemeter.models.families import families
from stagemeter.models.lookup import describe_model
from stagemeter.models.pages.processor_files import ProcessorFiles

#: Sides of patches, blocks and tiles, at whose multiples sizes change.
EDGES = (14, 16, 28, 32, 48, 336, 384, 448, 512, 560, 640, 768)
#: Pixels of the largest page that Pillow opens.
MOST = 89_478_485


def random_sizes(number, seed):
    """Return widths and heights: of pages, of any shape, tiny ones, thin ones, and those beside multiples of edges."""
    rng = random.Random(seed)

    def beside(edge):
        return max(1, edge * rng.randint(1, 9000 // edge) + rng.randint(-1, 1))

    def drawn():
        match rng.randrange(5):
            case 0:
                return rng.randint(300, 5000), rng.randint(300, 5000)
            case 1:
                return tuple(round(2 ** rng.uniform(0, 14)) for _ in range(2))
            case 2:
                return rng.randint(1, 64), rng.randint(1, 64)
            case 3:
                thin = rng.randint(1, 40)
                return rng.sample([thin, min(thin * rng.randint(20, 400), 20_000)], 2)
            case _:
                return beside(rng.choice(EDGES)), beside(rng.choice(EDGES))

    sizes = (drawn() for _ in range(2 * number))
    return [(width, height) for width, height in sizes if width * height <= MOST][:number]


def differences(name, sizes, under_settings=False):
    model, expected, config = describe_model(name), TOKENS[name], AnalysisConfig()
    if under_settings:
        values, options, expected = UNDER_SETTINGS[name]
        config = AnalysisConfig(**options)
        if values:
            model = replace(model, processor=ProcessorFiles(image=values, image_source="preprocessor_config.json"))
    count = page_counter(config, model)

    def counted(width, height):
        try:
            views = count(width, height)
        except StagemeterError:
            return None
        return views.global_views if model.family.name == "mllama" else views.image_tokens

    return [
        (width, height, found, wanted)
        for width, height in sizes
        if (found := counted(width, height)) != (wanted := expected(width, height))
    ]


def test_every_family_that_reads_pages_is_compared():
    read = {family.name for name in TOKENS for family in [describe_model(name).family]}
    assert read == {name for name, family in families().items() if family.reads_pages}


@pytest.mark.parametrize("name", TOKENS)
def test_random_pages_have_the_tokens_of_the_processor(name):
    assert differences(name, random_sizes(200, 19)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_ten_thousand_pages_have_the_tokens_of_the_processor(name):
    sizes = random_sizes(10_000, 20)
    assert len(sizes) == 10_000
    assert differences(name, sizes) == []


@pytest.mark.parametrize(("number", "seed"), [(200, 21), pytest.param(10_000, 22, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", UNDER_SETTINGS)
def test_random_pages_under_settings_have_the_tokens_of_the_processor(name, number, seed):
    assert differences(name, random_sizes(number, seed), under_settings=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_VIEW)
def test_any_page_is_the_one_view_that_the_processor_makes(name):
    """Thinner pages than these become pictures of gigabytes before they are cropped."""
    processor, count = ONE_VIEW[name](), page_counter(AnalysisConfig(), describe_model(name))
    for size in ((1, 1), (1, 7), (31, 3), (9, 1), (1654, 2339), (513, 224)):
        made = processor(Image.new("RGB", size), return_tensors="np")["pixel_values"]
        views = count(*size)
        assert made.shape == (views.global_views + views.local_views, 3, views.height, views.width)


def test_models_of_one_view_are_compared_with_what_their_processors_make():
    constant = {name for name in TOKENS if len({TOKENS[name](*size) for size in random_sizes(50, 23)}) == 1}
    assert constant == set(ONE_VIEW)
