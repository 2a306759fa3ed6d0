"""Input that cannot be used: exit code 2, one line that says why, nothing written, no run."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def refused(stagemeter, folder):
    """Run ``analyze`` with bad options and tracking, and return the message."""

    def run(*arguments: object) -> str:
        before = sorted(folder.rglob("*"))
        ended = stagemeter("analyze", *arguments)
        assert ended.code == 2, ended
        assert ended.out == ""
        assert "Traceback" not in ended.err
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        assert sorted(folder.rglob("*")) == before, "nothing is written, and no store is made"
        return line.removeprefix("error: ")

    return run


# Values


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--mode", "enormous"),
        ("--mode", "Gundam2"),
        ("--dtype", "int3"),
        ("--model", "gpt-17"),
        ("--base-size", "0"),
        ("--base-size", "-1024"),
        ("--base-size", "100000"),
        ("--base-size", "big"),
        ("--base-size", "1024.5"),
        ("--tile-size", "0"),
        ("--tile-size", "-5"),
        ("--tile-size", "1e-3"),
        ("--text-tokens", "0"),
        ("--text-tokens", "-1"),
        ("--text-tokens", "ten"),
        ("--text-tokens", "99999999999999999999"),
        ("--seq-len", "0"),
        ("--seq-len", "-3"),
        ("--seq-len", "9999999999"),
        ("--new-tokens", "0"),
        ("--new-tokens", "-512"),
        ("--new-tokens", "nan"),
        ("--new-tokens", "1000000000000"),
        ("--batch-size", "0"),
        ("--batch-size", "-1"),
        ("--batch-size", "1000000000"),
        ("--decode-context", "0"),
        ("--decode-context", "1"),
        ("--decode-context", "-7"),
        ("--decode-context", "middle"),
        ("--decode-context", "99999999999"),
        ("--decode-context", "9" * 30),
    ],
)
def test_impossible_value_is_named(refused, option, value):
    assert value in refused(option, value)


@pytest.mark.parametrize(
    ("size", "named"),
    [
        ("1654", "'1654'"),
        ("axb", "'axb'"),
        ("-5x5", "'-5x5'"),
        ("10x10x10", "'10x10x10'"),
        ("9999999999x1", "'9999999999x1'"),
        ("0x2339", "--page-size: 0 "),
        ("1654x0", "--page-size: 0 "),
        ("1000000x100", "--page-size: 1000000 "),
    ],
)
def test_impossible_page_size_is_named(refused, size, named):
    assert named in refused("--page-size", size)


def test_page_of_more_pixels_than_a_picture_may_have(refused):
    """A blank page has the limit of a picture, whether or not it is drawn later."""
    assert "99999" in refused("--page-size", "99999x99999")
    assert "99999" in refused("--page-size", "99999x99999", "--estimate", "--no-track")


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        (["--mode", "gundum"], "Did you mean 'gundam'?"),
        (["--mode", "xxl"], "Give 'tiny', 'small', 'base', 'large', 'gundam'"),
        (["--dtype", "bfloat61"], "Did you mean 'bfloat16'?"),
        (["--model", "deepseek"], "deepseek-ocr"),
        (["--page-size", "1654"], "such as 1654x2339"),
        (["--newtokens", "5"], "--new-tokens"),
        (["--image", "a.png", "--page-size", "10x10"], "exclude each other"),
        (["stray"], "stray"),
    ],
)
def test_message_names_the_way_out(refused, arguments, way_out):
    assert way_out in refused(*arguments)


@pytest.mark.parametrize("option", ["--mode", "--batch-size", "--image", "--page-size", "--config"])
def test_empty_value_is_refused(refused, option):
    """A shell passes an empty value for a variable that is not set."""
    assert option in refused(option, "")


def test_missing_argument(stagemeter, folder):
    ended = stagemeter("watch")
    assert (ended.code, ended.err) == (2, "error: URLS: missing. See `stagemeter watch --help`\n")


def test_unknown_command(stagemeter, folder):
    ended = stagemeter("analyse")
    assert ended.code == 2
    assert ended.err.startswith("error: analyse: no such command. Did you mean analyze?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode"], "--mode: requires an argument. See `stagemeter COMMAND --help`"),
        (["--json=3"], "--json: does not take a value. See `stagemeter COMMAND --help`"),
        (["--batch-size", "x"], "--batch-size: 'x' is not a valid integer. See `stagemeter analyze --help`"),
        (
            ["stray"],
            "--model: 'stray' is unknown. Give a name of `stagemeter models`, or a folder that holds a config.json",
        ),
        (["--xyz"], "--xyz: no such option. See `stagemeter analyze --help`"),
        (["--mdoe", "tiny"], "--mdoe: no such option. Did you mean --mode?"),
        (["--mode", ""], "--mode: is empty. Give a value, or `none`"),
        (["--tile-size", "0"], "--tile-size: 0 cannot be used. Give a whole number from 16 to 8,192"),
    ],
)
def test_every_error_begins_with_the_option(refused, arguments, message):
    assert refused(*arguments) == message


# Pictures


def png(width: int, height: int) -> bytes:
    """A PNG file whose header names a size and whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"this is a letter, not a picture of one", "is not a picture"),
        (b"%PDF-1.7\n", "is an incomplete PDF"),
        (b"\x89PNG\r\n\x1a\n", "is"),
        (png(0, 100), "is"),
        (png(100, 0), "is"),
        (png(200, 100), "is damaged or incomplete"),
        (png(60_000, 60_000), "is too large"),
        (png(10_000, 9_900), "is too large"),
    ],
    ids=["empty", "text", "pdf", "signature", "0 x N", "N x 0", "no pixels", "bomb", "half a bomb"],
)
def test_file_that_is_no_page_is_named(refused, folder, content, complaint):
    (folder / "scan.png").write_bytes(content)
    message = refused("--image", "scan.png")
    assert "scan.png" in message
    assert complaint in message


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "gif", "webp"])
def test_truncated_picture_is_refused(refused, folder, kind):
    path = folder / f"scan.{kind}"
    Image.effect_noise((300, 200), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"scan.{kind}" in refused("--image", path.name)


def test_picture_that_is_not_there(refused):
    assert "scan.png: no such picture" in refused("--image", "scan.png")


def test_folder_in_place_of_a_picture(refused, folder):
    (folder / "scans").mkdir()
    assert "scans: is a folder" in refused("--image", "scans")


def test_picture_is_needed_where_the_file_says_so(refused, folder):
    (folder / "mine.yaml").write_text("use_synthetic_inputs: false\n")
    assert "--image: " in refused("--config", "mine.yaml")


# Files


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("- mode\n", "holds a list"),
        ("tiny\n", "holds a str"),
        ("mode: [\n", "is not YAML"),
        ("mode: !!python/object/apply:os.getcwd []\n", "no tags of a programming language"),
        ("batchsize: 2\n", "Did you mean 'batch_size'?"),
        ("batch_size: two\n", "batch_size: 'two'"),
        ("batch_size: 0\n", "batch_size: 0"),
        ("mode: tiny\nmode: base\n", "more than once"),
    ],
)
def test_settings_that_cannot_be_used_name_their_file(refused, folder, content, complaint):
    (folder / "mine.yaml").write_text(content)
    message = refused("--config", "mine.yaml")
    assert message.startswith("mine.yaml: ")
    assert complaint in message


def test_settings_that_are_not_there(refused):
    assert refused("--config", "none.yaml") == "none.yaml: no such configuration file. Check the path"


def test_file_in_place_of_the_output_folder(refused, folder):
    (folder / "taken").write_text("mine")
    assert "taken is not a folder" in refused("--output-dir", "taken")
    assert "Give another folder" in refused("--output-dir", "taken/deeper")
    assert (folder / "taken").read_text() == "mine"


def test_folder_in_place_of_an_output_file(refused, folder):
    (folder / "out" / "static_compute.md").mkdir(parents=True)
    assert "static_compute.md: is a folder" in refused("--output-dir", "out")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"architectures": ["LlamaForCausalLM"]}'])
def test_model_folder_that_cannot_be_used(refused, folder, content):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(content)
    assert str(Path("model") / "config.json") in refused("--model", "model")


def test_model_folder_without_config(refused, folder):
    (folder / "model").mkdir()
    assert "model: it holds no config.json" in refused("--model", "model")


def test_sizes_that_are_not_the_models(refused, folder):
    (folder / "mine.yaml").write_text("patch_size: 14\n")
    assert "patch_size: 14 is not this model's, which is 16" in refused("--config", "mine.yaml")


def test_a_missing_argument_is_named(stagemeter):
    ended = stagemeter("watch")
    assert ended.err.startswith("error: URLS: missing. See `stagemeter watch --help`")
