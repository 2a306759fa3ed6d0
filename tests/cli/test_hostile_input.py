"""Hostile input: exit code 2 and one line that names it, in little time and memory."""

import json
import os

import pytest
from PIL import Image
from test_model_input import LLAMA

DEEP = "[" * 100_000


@pytest.fixture
def refused(stagemeter, folder):
    """Run a command that fails, and return its one line; nothing is written."""

    def run(*arguments: object) -> str:
        before = sorted(folder.rglob("*"))
        ended = stagemeter(*arguments)
        assert (ended.code, ended.out) == (2, ""), ended
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        assert sorted(folder.rglob("*")) == before
        return line.removeprefix("error: ")

    return run


@pytest.fixture
def with_config(refused, folder):
    """Expect ``analyze`` to refuse a configuration, given as text or as data."""

    def run(config: object, *options: object) -> str:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
        return refused("analyze", "--estimate", "--model", ".", *options)

    return run


# JSON


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LLAMA | {"architectures": 5}, "config.json: architectures is 5. It must be a list of names of classes"),
        (LLAMA | {"architectures": [["LlamaForCausalLM"]]}, "config.json: architectures is [['Llama"),
        (LLAMA | {"model_type": []}, "config.json: model_type is []. It must be one name as text"),
        (LLAMA | {"model_type": {}}, "config.json: model_type is {}. It must be one name as text"),
        (LLAMA | {"text_config": 5}, "config.json: text_config is 5. It must be an object of settings"),
        (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000. It must be at most 10000"),
        (LLAMA | {"num_hidden_layers": [10**9]}, "num_hidden_layers is 1000000000. It must be at most 10000"),
        (LLAMA | {"num_local_experts": 10**9}, "num_local_experts is 1000000000. It must be at most 1048576"),
        (LLAMA | {"hidden_size": 10**12}, "hidden_size is 1000000000000. It must be at most 2147483648"),
        (DEEP, "config.json: is nested more than 64 levels deep. Write it flatter"),
        ("[" * 200 + "]" * 200, "config.json: is nested more than 64 levels deep. Write it flatter"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "config.json: a whole number has 5,000 digits"),
        ('{"hidden_size": 1, "hidden_size": 2}', "config.json: 'hidden_size' is given more than once. Keep one"),
        ('{"a": {"b": 1, "b": 2}}', "config.json: 'b' is given more than once. Keep one"),
        ("{", "config.json: cannot be read as JSON"),
        ("", "config.json: cannot be read as JSON"),
    ],
    ids=str,
)
def test_configuration_that_is_hostile(with_config, config, said):
    assert said in with_config(config)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_configuration_with_a_byte_order_mark_is_read(estimate, folder, encoding):
    (folder / "config.json").write_bytes(json.dumps(LLAMA).encode(encoding))
    assert estimate("--model", ".", "--seq-len", "16")["metadata"]["family"] == "llama"


def test_configuration_in_another_encoding(refused, folder):
    (folder / "config.json").write_bytes('{"_name": "café"}'.encode("latin-1"))
    message = refused("analyze", "--estimate", "--model", ".")
    assert message == "config.json: is not text: byte 14 is not utf-8. Save it as UTF-8"


@pytest.mark.parametrize("pattern", ["re:(([a-z_.0-9]+)+)+!", "re:(a|aa)+$", "re:(.*)*.*x", "(([a-z_.0-9]+)+)+!"])
def test_ignored_modules_are_found_in_bounded_time(stagemeter, folder, pattern):
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": [f"{pattern}", "re:(x+x+)+y"],
    }
    (folder / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": quantization}))
    ended = stagemeter("analyze", "--estimate", "--no-track", "--model", ".", "--seq-len", "16")
    assert ended.code in (0, 2)
    assert "Traceback" not in ended.err


def test_adapter_whose_targets_take_for_ever(with_config, folder):
    adapter = {"peft_type": "LORA", "r": 8, "target_modules": r"(\w|\w\w|\w\w\w|\.|\w\.)+(?<![a-z])"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    message = with_config(LLAMA, "--adapter", ".")
    assert message.startswith("adapter_config.json: target_modules: the expression")
    assert message.endswith("takes too long to match. Write a simpler one")


# YAML


def laughs(form, first, levels):
    """Each line repeats the line before it ten times."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + form.format(", ".join([f"*a{level - 1}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 2001-99-99", "holds a value that is none"),
        ('a: !!int ""', "holds a value that is none"),
        ('a: !!float "x"', "holds a value that is none"),
        ('a: !!timestamp "x"', "holds a value that is none"),
        ("a: !!bool 5", "holds a value that is none"),
        ("a: 010", "'010' is a number to base 8 or 60 in YAML"),
        ("a: 60:30", "'60:30' is a number to base 8 or 60 in YAML"),
        ("a: 1:30.5", "'1:30.5' is a number to base 8 or 60 in YAML"),
        (f"a: {'9' * 5000}", "holds a value that is none"),
        (f"a: {DEEP}", "is nested more than 64 levels deep"),
        (
            "a: &a [1]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)},' * 10}]\n" for n in range(9)),
            "more",
        ),
        (
            "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*{f'b{n - 1}' if n else 'a'}, *a]}}\n" for n in range(40)),
            "a: no",
        ),
        (
            "b0: &b0 {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*b{n - 1}, *b{n - 1}]}}\n" for n in range(1, 40)),
            "holds more than 50,000 values",
        ),
        ("a: &a [*a]", "holds more than 50,000 values"),
        ("a: {mode: tiny, mode: base}", "'mode' is given more than once"),
        ("1: a\n'1': b", "'1' is given more than once"),
        ("? [a]\n: b", "unhashable"),
        ("a: *b", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
    ids=range(19),
)
def test_settings_that_are_hostile(refused, folder, content, said):
    (folder / "mine.yaml").write_text(content)
    message = refused("analyze", "--config", "mine.yaml")
    assert message.startswith("mine.yaml: ")
    assert said in message
    assert len(message) < 2000


def test_many_unknown_settings_are_named_in_part(refused, folder):
    (folder / "mine.yaml").write_text("".join(f"setting_{number}: 1\n" for number in range(20_000)))
    message = refused("analyze", "--config", "mine.yaml")
    assert message.startswith("mine.yaml: setting_0: no such setting. Give one of ")
    assert message.endswith("; and 19997 more")


# Paths


PATHS = [
    ("analyze", "--model", "{}"),
    ("analyze", "--image", "{}"),
    ("analyze", "--config", "{}"),
    ("analyze", "--adapter", "{}"),
    ("analyze", "--output-dir", "{}"),
    ("sweep", "--grid", "{}"),
    ("sweep", "--images", "{}"),
    ("sweep", "--pages", "{}"),
    ("sweep", "--output", "{}"),
    ("compare", "{}", "{}"),
    ("upload", "{}"),
    ("import-profile", "{}"),
    ("import-profile", "{}", "{}"),
    ("import-profile", "x", "--mapping", "{}"),
    ("profile", "--weights", "{}"),
]


@pytest.mark.parametrize("path", ["x" * 300, "~nouser/x", "a\0b", "/".join(["x" * 200] * 30)], ids=range(4))
@pytest.mark.parametrize("command", PATHS, ids=" ".join)
def test_path_that_no_file_can_have(stagemeter, folder, command, path):
    ended = stagemeter(*(part.format(path) for part in command))
    assert ended.code == 2, ended
    # What is compared may be the name of a run, and a store that is made says so first.
    *_, line = ended.err.splitlines()
    assert ended.err.count("error: ") == 1
    assert line.startswith("error: ")
    assert len(line) < 1000


FILES = [part for part in PATHS if "--output" not in part and "--output-dir" not in part]


@pytest.mark.parametrize("command", [one for one in FILES if one[0] != "profile"], ids=" ".join)
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_file_that_never_ends(refused, folder, command, kind):
    path = "/dev/zero"
    if kind == "pipe":
        path = folder / "pipe"
        os.mkfifo(path)
    if command[0] == "compare":
        command = ("compare", "{}", "other.json")
    if "--mapping" in command:
        (folder / "x").write_text("{}")
    assert str(path) in refused(*(part.format(path) for part in command))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "adapter_config.json"])
def test_folder_whose_file_never_ends(refused, folder, name):
    config = {"model_type": "mobilevit", "architectures": ["MobileViTModel"]} if name[0] == "p" else LLAMA
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    options = ("--adapter", ".") if name[0] == "a" else ()
    assert f"{name}: is not a regular file" in refused("analyze", "--model", ".", *options)


# Times and reports


@pytest.mark.parametrize(
    "content", [DEEP, f'{{"traceEvents": {DEEP}', '{"a":' * 100_000, f'[{{"ph": "X", "args": {DEEP}']
)
def test_times_of_nested_brackets(refused, folder, content):
    (folder / "trace.json").write_text(content)
    assert "trace.json" in refused("import-profile", "trace.json")


@pytest.mark.parametrize(
    "content",
    [DEEP, f'{{"stages": {DEEP}', f'{{"closed_form": 1, "stages": {"9" * 5000}}}', '{"a": NaN}', "\xff", "5"],
    ids=range(6),
)
@pytest.mark.parametrize("command", ["compare", "upload"])
def test_report_that_is_hostile(refused, folder, command, content):
    (folder / "mine.json").write_text(content, encoding="latin-1")
    assert "mine.json" in refused(command, "mine.json")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\xff\xfe\xff",
        "width,height\n1e999,1\n",
        f"width,height\n{'9' * 5000},1\n",
        f"width,height\n{10**30},1\n",
        '"' * 9,
    ],
    ids=range(6),
)
def test_table_of_pages_that_is_hostile(refused, folder, content):
    (folder / "pages.csv").write_text(content, encoding="latin-1")
    assert "pages.csv" in refused("sweep", "--pages", "pages.csv")


def test_picture_that_would_run_a_program(refused, folder):
    Image.new("RGB", (8, 8)).save(folder / "scan.eps")
    assert "scan.eps: is not a picture that Pillow can read" in refused("analyze", "--image", "scan.eps")
