"""What a run is configured by: defaults < YAML file < command line, and clear refusals."""

import inspect
import re
from pathlib import Path

import pytest

from stagemeter import AnalysisConfig, StagemeterError
from stagemeter.analysis.config import ProfileConfig, load_config
from stagemeter.core.settings import AnalysisSettings
from stagemeter.models.families.deepseek_ocr.modes import MODES

CONF = Path(__file__).parents[2] / "conf" / "static_analysis"


@pytest.fixture
def settings_file(tmp_path):
    """Write a file of settings and return its path: ``settings_file("mode: tiny")``."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path: Path | None = None, **overrides) -> str:
    """The message with which settings are refused; always one line."""
    with pytest.raises(StagemeterError) as caught:
        load_config(path, overrides, AnalysisConfig)
    message = str(caught.value)
    assert "\n" not in message
    return message


def sizes(config: AnalysisSettings) -> tuple[int, int, bool]:
    return config.base_size, config.image_size, config.crop_mode


# What there is


def test_default_file_holds_the_defaults():
    assert load_config(CONF / "default.yaml", {}, AnalysisConfig) == AnalysisConfig()


def test_default_sizes_are_those_of_the_default_mode():
    assert sizes(AnalysisSettings()) == MODES[AnalysisSettings().mode]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_file(mode):
    config = load_config(CONF / f"{mode}.yaml", {}, AnalysisConfig)
    assert config.mode == mode
    assert sizes(config) == MODES[mode]
    assert config == AnalysisConfig(mode=mode)


def test_there_is_no_other_file():
    assert {path.stem for path in CONF.iterdir()} == {"default", *MODES}


@pytest.mark.parametrize("field", AnalysisConfig.model_fields)
def test_every_setting_is_documented(field):
    documented = re.findall(r"^(\w[\w, ]*) : (?:.|\n)*?\n    \S", inspect.getdoc(AnalysisConfig), flags=re.MULTILINE)
    assert field in {name.strip() for names in documented for name in names.split(",")}


def test_published_modes():
    assert MODES == {
        "tiny": (512, 512, False),
        "small": (640, 640, False),
        "base": (1024, 1024, False),
        "large": (1280, 1280, False),
        "gundam": (1024, 640, True),
    }


# Layers


def test_overrides_win_over_the_file_and_the_file_over_defaults(settings_file):
    config = load_config(settings_file("text_tokens: 20\nnew_tokens: 30\n"), {"new_tokens": 40}, AnalysisConfig)
    assert (config.text_tokens, config.new_tokens, config.batch_size) == (20, 40, 1)


def test_mode_given_on_top_wins_over_sizes_of_the_file(settings_file):
    config = load_config(
        settings_file("base_size: 777\nimage_size: 333\ncrop_mode: true\n"), {"mode": "tiny"}, AnalysisConfig
    )
    assert sizes(config) == MODES["tiny"]
    assert config.mode == "tiny"


def test_size_given_on_top_wins_over_the_mode_of_the_file(settings_file):
    config = load_config(settings_file("mode: gundam\n"), {"image_size": 512}, AnalysisConfig)
    assert sizes(config) == (1024, 512, True)
    assert config.mode == "custom"


def test_sizes_that_make_up_a_mode_are_called_by_its_name():
    assert AnalysisConfig(base_size=1280, crop_mode=False).mode == "large"
    assert AnalysisConfig(mode="tiny", base_size=1024).mode == "base"
    assert AnalysisConfig(base_size=1024, image_size=640, crop_mode=True).mode == "gundam"


def test_without_tiles_the_tile_size_is_that_of_the_view():
    assert AnalysisConfig(crop_mode=False, base_size=1024, image_size=640) == AnalysisConfig(mode="base")


def test_picture_switches_the_blank_page_off(settings_file):
    assert AnalysisConfig(sample_image_path="page.png").use_synthetic_inputs is False
    assert (
        load_config(CONF / "default.yaml", {"sample_image_path": "page.png"}, AnalysisConfig).use_synthetic_inputs
        is False
    )
    in_file = settings_file("sample_image_path: page.png\nuse_synthetic_inputs: true\n")
    with pytest.raises(StagemeterError, match=r"'page.png' is not used, since use_synthetic_inputs is true"):
        load_config(in_file, {}, AnalysisConfig)


def test_configurations_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        AnalysisConfig().batch_size = 2


def test_origin_configuration_is_understood():
    config = AnalysisConfig(
        image_h=1024,
        image_w=1024,
        base_size=1024,
        image_size=640,
        seq_len=512,
        crop_mode=True,
        patch_size=16,
        downsample_ratio=4,
        use_analytic_fallback=True,
        use_synthetic_inputs=True,
        sample_image_path=None,
    )
    assert (config.mode, config.seq_len) == ("gundam", 512)


def test_null_length_is_that_of_the_prompt(settings_file):
    assert load_config(settings_file("seq_len: null\n"), {}, AnalysisConfig).seq_len is None


def test_switched_off(settings_file):
    assert load_config(settings_file("enabled: false\n"), {}, AnalysisConfig).enabled is False


# Settings that cannot be


@pytest.mark.parametrize(
    ("key", "closest"),
    [("batchsize", "batch_size"), ("new_token", "new_tokens"), ("imagesize", "image_size"), ("d_type", "dtype")],
)
def test_unknown_setting_is_answered_with_the_closest(key, closest):
    assert refusal(**{key: 1}) == f"{key}: no such setting. Did you mean {closest!r}?"


def test_unknown_setting_that_is_close_to_none_is_answered_with_all():
    message = refusal(zzzz=1)
    assert message.startswith("zzzz: no such setting. Give one of ")
    for name in AnalysisConfig.model_fields:
        assert name in message


def test_unknown_setting_of_a_file_names_the_file(settings_file):
    path = settings_file("batchsize: 2\n")
    assert refusal(path) == f"{path}: batchsize: no such setting. Did you mean 'batch_size'?"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enabled", "yes"),
        ("model", 3),
        ("model", None),
        ("mode", 3),
        ("mode", "Tiny"),
        ("base_size", "1024"),
        ("base_size", 1024.0),
        ("base_size", True),
        ("base_size", None),
        ("image_size", [640]),
        ("crop_mode", 1),
        ("crop_mode", "true"),
        ("seq_len", "auto"),
        ("seq_len", 0),
        ("seq_len", -5),
        ("seq_len", 10**7),
        ("text_tokens", 0),
        ("text_tokens", -1),
        ("text_tokens", 2**20 + 1),
        ("text_tokens", float("nan")),
        ("new_tokens", 0),
        ("new_tokens", 10**30),
        ("batch_size", 0),
        ("batch_size", -3),
        ("batch_size", 10**9),
        ("batch_size", {}),
        ("image_h", 0),
        ("image_w", -1654),
        ("image_w", 10**6),
        ("base_size", 15),
        ("base_size", 10**5),
        ("image_size", 0),
        ("dtype", "float64"),
        ("dtype", 16),
        ("dtype", None),
        ("decode_context", "fixed"),
        ("decode_context", 1),
        ("decode_context", 0),
        ("decode_context", -1),
        ("decode_context", 2.5),
        ("decode_context", True),
        ("patch_size", 0),
        ("downsample_ratio", 0),
        ("use_analytic_fallback", "no"),
        ("use_synthetic_inputs", 0),
        ("sample_image_path", 5),
        ("walk_every_layer", 1),
    ],
)
def test_impossible_value_is_named_with_its_setting(key, value):
    message = refusal(**{key: value})
    assert message.startswith(f"{key}: ")
    assert repr(value) in message


@pytest.mark.parametrize(("given", "closest"), [("gundum", "gundam"), ("Tiny", "tiny"), ("bas", "base")])
def test_unknown_mode_is_answered_with_the_closest(given, closest):
    assert refusal(mode=given) == f"mode: {given!r} cannot be used. Did you mean {closest!r}?"


def test_unknown_data_type_is_answered_with_the_known_ones():
    assert refusal(dtype="int8") == "dtype: 'int8' cannot be used. Give 'bfloat16', 'float16' or 'float32'"
    assert refusal(dtype="float61") == "dtype: 'float61' cannot be used. Did you mean 'float16'?"


def test_all_problems_are_named_at_once():
    message = refusal(batch_size=0, new_tokens=-1)
    assert "batch_size: 0" in message
    assert "new_tokens: -1" in message


def test_page_is_needed_where_blank_ones_are_off():
    assert refusal(use_synthetic_inputs=False).startswith("sample_image_path: missing")


# Files that cannot be


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("- a\n- b\n", "holds a list"),
        ("gundam\n", "holds a str"),
        ("42\n", "holds a int"),
        ("mode: [tiny\n", "is not YAML"),
        ("a: b: c\n", "is not YAML"),
        ("\tmode: tiny\n", "is not YAML"),
        ("mode: tiny\n---\nmode: base\n", "is not YAML"),
        ("mode: !!python/object/apply:os.system ['true']\n", "no tags of a programming language"),
        ("!!python/object:pathlib.Path {}\n", "no tags of a programming language"),
        ("mode: *nowhere\n", "is not YAML"),
        (b"\xff\xfe\x00", "is not text"),
        ("model: a\x00b\n", "is not YAML"),
    ],
    ids=[
        "list",
        "text",
        "number",
        "open bracket",
        "two colons",
        "tab",
        "two documents",
        "call",
        "object",
        "alias",
        "bytes",
        "null byte",
    ],
)
def test_file_that_cannot_be_used_is_named(settings_file, content, complaint):
    path = settings_file(content)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert complaint in message


def test_python_tags_are_not_run(settings_file, tmp_path):
    canary = tmp_path / "was-run"
    refusal(settings_file(f"mode: !!python/object/apply:pathlib.Path.touch [{canary}]\n"))
    assert not canary.exists()


def test_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such configuration file. Check the path"


def test_folder_in_place_of_a_file_is_named(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: is a folder. Give a configuration file"


def test_file_below_a_file_is_named(settings_file):
    path = settings_file("mode: tiny\n") / "deeper.yaml"
    assert refusal(path).startswith(f"{path}: ")


def test_setting_given_twice_is_refused(settings_file):
    path = settings_file("new_tokens: 10\nnew_tokens: 20\n")
    message = refusal(path)
    assert "new_tokens" in message
    assert str(path) in message


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "{}\n"])
def test_empty_file_changes_nothing(settings_file, content):
    assert load_config(settings_file(content), {}, AnalysisConfig) == AnalysisConfig()


def test_keys_that_are_not_text_are_refused_by_name(settings_file):
    assert "3: no such setting" in refusal(settings_file("3: tiny\n"))


# Profiles


def test_file_of_a_profile_holds_the_defaults():
    assert load_config(CONF.parent / "profile" / "default.yaml", {}, ProfileConfig) == ProfileConfig()


def test_profile_is_configured_by_what_an_analysis_is_and_more(settings_file):
    path = settings_file("mode: tiny\nrepeats: 7\ntrace: none\n")
    config = load_config(path, {"warmup": 0}, ProfileConfig)
    assert (config.base_size, config.repeats, config.trace, config.warmup) == (512, 7, "none", 0)
    with pytest.raises(StagemeterError, match="repeats: no such setting"):
        load_config(path, {}, AnalysisConfig)


@pytest.mark.parametrize(
    ("setting", "message"), [("repeats: 0", "repeats"), ("warmup: -1", "warmup"), ("trace: all", "trace")]
)
def test_profile_settings_that_cannot_be(settings_file, setting, message):
    with pytest.raises(StagemeterError, match=message):
        load_config(settings_file(setting + "\n"), {}, ProfileConfig)


def test_near_names_are_those_of_the_kind(settings_file):
    with pytest.raises(StagemeterError, match="Did you mean 'repeats'"):
        load_config(settings_file("repeat: 3\n"), {}, ProfileConfig)
