"""Pages of a corpus: pictures in a folder, sizes in a table."""

import pytest
from PIL import Image

from stagemeter import AnalysisConfig, StagemeterError
from stagemeter.sweeping.build import SweepSettings, build_grids
from stagemeter.sweeping.corpus import Corpus, PageSize, pages_of_folder, pages_of_table
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
    assert pages_of_folder(tmp_path).pages == [
        PageSize(300, 200, "b.png"),
        PageSize(700, 900, "below/a.jpg"),
        PageSize(80, 50, "turned.jpg"),
    ]
    (grid,) = build_grids(SweepSettings(images=str(tmp_path), mode="base,gundam"))
    rows = evaluate_rows(grid, 0, grid.size)
    assert rows["page"].tolist() == ["b.png", "below/a.jpg", "turned.jpg"] * 2
    assert rows["image_width"].tolist() == [300, 700, 80] * 2


@pytest.fixture
def mixed(tmp_path):
    """A folder of two pages, a copy of one of them, and much that is no page."""
    folder = tmp_path / "scans"
    (folder / "below").mkdir(parents=True)
    page = Image.new("RGB", (300, 200))
    page.save(folder / "a.png")
    page.save(folder / "below" / "copy.png")
    page.save(folder / "many.tiff", save_all=True, append_images=[Image.new("RGB", (9, 9))] * 3)
    (folder / "notes.txt").write_text("no picture")
    page.save(folder / ".hidden.png")
    (folder / ".cache").mkdir()
    page.save(folder / ".cache" / "b.png")
    (tmp_path / "elsewhere").mkdir()
    page.save(tmp_path / "elsewhere" / "c.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "nowhere.png").symlink_to(tmp_path / "nothing.png")
    Image.new("RGB", (7, 8)).save(tmp_path / "outside.png")
    (folder / "outside.png").symlink_to(tmp_path / "outside.png")
    return folder


def test_what_a_folder_leaves_out_is_counted_by_kind(mixed):
    corpus = pages_of_folder(mixed)
    assert [(page.name, page.width) for page in corpus.pages] == [
        ("a.png", 300),
        ("below/copy.png", 300),
        ("many.tiff", 300),
        ("outside.png", 7),
    ]
    left_out, copies = corpus.notes
    assert sorted(left_out.removeprefix("left out of the pages: ").split("; ")) == [
        "1 file that is no picture by its ending",
        "2 hidden files or folders",
        "2 links to folders or to nothing",
        "3 further pages of pictures of several pages",
    ]
    assert copies == "1 file is a copy of another one, and counts like it"


def test_a_folder_of_pages_alone_says_nothing(tmp_path):
    Image.new("RGB", (7, 8)).save(tmp_path / "a.png")
    assert pages_of_folder(tmp_path) == Corpus([PageSize(7, 8, "a.png")])


def test_all_pages_of_pdfs_in_a_folder_count(tmp_path, make_pdf):
    (tmp_path / "below").mkdir()
    make_pdf(tmp_path / "a.pdf", (72, 144), (144, 72), (72, 144))
    make_pdf(tmp_path / "below" / "b.PDF", (36, 36))
    Image.new("RGB", (7, 8)).save(tmp_path / "c.png")
    expected = [("a.pdf[1]", 200, 400), ("a.pdf[2]", 400, 200), ("a.pdf[3]", 200, 400), ("below/b.PDF", 100, 100)]
    found = pages_of_folder(tmp_path).pages
    assert [(page.name, page.width, page.height) for page in found] == [*expected, ("c.png", 7, 8)]
    (grid,) = build_grids(SweepSettings(images=str(tmp_path), mode="base", dpi="100"))
    rows = evaluate_rows(grid, 0, grid.size)
    assert rows["page"].tolist() == [page.name for page in found]
    assert rows["image_width"].tolist() == [100, 200, 100, 50, 7]
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(StagemeterError, match=r"a\.pdf: is an incomplete PDF.*\. Repair or remove them"):
        pages_of_folder(tmp_path)


def test_a_resolution_without_a_pdf_is_refused(tmp_path):
    from stagemeter.application.plan import plan_devices

    Image.new("RGB", (7, 8)).save(tmp_path / "a.png")
    for settings in ({"images": str(tmp_path)}, {"page_size": "9x9"}, {}):
        with pytest.raises(StagemeterError, match="dpi: 100 means nothing without a PDF"):
            build_grids(SweepSettings(dpi="100", **settings))
    for images in (tmp_path, None):
        with pytest.raises(StagemeterError, match="dpi: 100 means nothing without a PDF"):
            plan_devices(AnalysisConfig(dpi=100), 1000, ["A100-80GB"], images=images)


def test_a_table_names_files_where_it_has_no_sizes(tmp_path, make_pdf):
    make_pdf(tmp_path / "a.pdf", (72, 144), (144, 72), (72, 72))
    Image.new("RGB", (7, 8)).save(tmp_path / "b.png")
    file = tmp_path / "pages.csv"
    file.write_text("page,width,height\na.pdf[2-],,\nb.png,,\nblank,30,40\n")
    expected = [("a.pdf[2]", 400, 200), ("a.pdf[3]", 200, 200), ("b.png", 7, 8), ("blank", 30, 40)]
    assert [(page.name, page.width, page.height) for page in pages_of_table(file).pages] == expected
    file.write_text("page\na.pdf[1]\nb.png\n")
    assert [(page.width, page.height) for page in pages_of_table(file, dpi=100).pages] == [(100, 200), (7, 8)]
    for rows, message in [("a.pdf[4],,", r"line 2: .*a\.pdf\[4\]: the document has"), ("c.png,,", "line 2: .*no such")]:
        file.write_text(f"page,width,height\n{rows}\n")
        with pytest.raises(StagemeterError, match=message):
            pages_of_table(file)


def test_pages_of_a_table_that_share_a_name_are_said(tmp_path):
    file = tmp_path / "sizes.csv"
    file.write_text("page,width,height\na,1,2\na,3,4\n")
    assert pages_of_table(file).notes == ("1 page has the name of another one: all of them count",)


def test_sweep_and_plan_say_what_their_corpus_leaves_out(mixed, tmp_path):
    from stagemeter.application.plan import plan_devices
    from stagemeter.application.sweep import sweep
    from stagemeter.export.sweep import sweep_markdown
    from stagemeter.sweeping.summary import summarize

    swept = sweep({"images": mixed, "mode": "tiny"}, tmp_path / "sweep.parquet", estimate=True)
    assert [note[:22] for note in swept.notes] == ["left out of the pages:", "1 file is a copy of an"]
    text = sweep_markdown(summarize(swept.output), "sweep.parquet", "charts.html", swept.notes)
    assert "3 further pages of pictures" in text
    plan = plan_devices(AnalysisConfig(mode="tiny"), 1000, ["A100-80GB"], images=mixed)
    assert set(swept.notes) <= set(plan.notes)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(StagemeterError, match="no such folder"):
        pages_of_folder(tmp_path / "nothing")
    with pytest.raises(StagemeterError, match="holds no PDF, and no picture"):
        pages_of_folder(tmp_path)
    for number in range(5):
        (tmp_path / f"broken{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(StagemeterError, match=r"broken0.png.*broken2.png.*and 2 more\. Repair or remove them"):
        pages_of_folder(tmp_path)


def test_columns_of_a_table_that_are_not_read_are_said(tmp_path):
    file = tmp_path / "sizes.csv"
    file.write_text("width,height,count\n300,200,3\n")
    assert pages_of_table(file).notes == ("columns that are not read: 'count'. Each line is one page",)


def test_table_of_sizes(tmp_path):
    file = tmp_path / "sizes.csv"
    file.write_text("page, width, height\none, 300, 200\ntwo, 700, 900\n")
    assert pages_of_table(file) == Corpus([PageSize(300, 200, "one"), PageSize(700, 900, "two")])
    file.write_text("height,width\n200,300\n")
    assert pages_of_table(file) == Corpus([PageSize(300, 200)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not CSV"),
        ("width,height\n", "holds no page"),
        ("width,size\n1,2\n", "lacks the column 'height'"),
        ("width,height, width\n1,2,3\n", "has the column 'width' more than once"),
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


def test_a_table_that_is_replaced_is_named(tmp_path):
    from stagemeter import sweep

    output = tmp_path / "sweep.parquet"
    assert sweep({"mode": "tiny"}, output, estimate=True).messages == []
    assert sweep({"mode": "base"}, output, estimate=True).messages == [
        f"{output}: the table that was there is replaced"
    ]
