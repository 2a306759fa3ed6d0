"""Pages of a corpus: pictures in a folder, sizes in a table."""

import pytest
from PIL import Image

from stagemeter import StagemeterError
from stagemeter.sweeping.build import SweepSettings, build_grids
from stagemeter.sweeping.corpus import PageSize, pages_of_folder, pages_of_table
from stagemeter.sweeping.evaluate import evaluate_rows


def test_pictures_of_a_folder_by_name(tmp_path):
    (tmp_path / "below").mkdir()
    Image.new("RGB", (300, 200)).save(tmp_path / "b.png")
    Image.new("L", (700, 900)).save(tmp_path / "below" / "a.jpg")
    turned = Image.new("RGB", (50, 80))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "notes.txt").write_text("no picture")
    assert pages_of_folder(tmp_path) == [
        PageSize(300, 200, "b.png"),
        PageSize(700, 900, "below/a.jpg"),
        PageSize(80, 50, "turned.jpg"),
    ]
    (grid,) = build_grids(SweepSettings(images=str(tmp_path), mode="base,gundam"))
    rows = evaluate_rows(grid, 0, grid.size)
    assert rows["page"].tolist() == ["b.png", "below/a.jpg", "turned.jpg"] * 2
    assert rows["image_width"].tolist() == [300, 700, 80] * 2


def test_folders_that_are_none(tmp_path):
    with pytest.raises(StagemeterError, match="is no folder"):
        pages_of_folder(tmp_path / "nothing")
    with pytest.raises(StagemeterError, match="holds no picture"):
        pages_of_folder(tmp_path)
    for number in range(5):
        (tmp_path / f"broken{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(StagemeterError, match=r"broken0.png.*broken2.png.*and 2 more: mend or remove them"):
        pages_of_folder(tmp_path)


def test_table_of_sizes(tmp_path):
    file = tmp_path / "sizes.csv"
    file.write_text("page, width, height\none, 300, 200\ntwo, 700, 900\n")
    assert pages_of_table(file) == [PageSize(300, 200, "one"), PageSize(700, 900, "two")]
    file.write_text("height,width\n200,300\n")
    assert pages_of_table(file) == [PageSize(300, 200)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not CSV"),
        ("width,height\n", "holds no page"),
        ("width,size\n1,2\n", "lacks the column 'height'"),
        ("width,height\n1,2\n3,0\n", "line 3: height is 0"),
        ("width,height\n1.5,2\n", "line 2: width is 1.5"),
        ("width,height\nwide,2\n", "line 2: width is 'wide'"),
        ("width,height\n1,\n", "line 2: height is nan"),
        ('width,height\n"1,2\n', "is not CSV|lacks"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    file = tmp_path / "sizes.csv"
    file.write_text(text)
    with pytest.raises(StagemeterError, match=message):
        pages_of_table(file)
    with pytest.raises(StagemeterError, match="no such table of pages"):
        pages_of_table(tmp_path / "nothing.csv")
