"""Pages of PDFs: their sizes are those of the pictures that pypdfium2 renders."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdfium2 import PdfDocument

from stagemeter.core.errors import StagemeterError
from stagemeter.core.pdf import PdfPage, is_pdf, pdf_pages
from stagemeter.core.picture import load_page, page_count, page_size

SIDE = st.floats(3, 3000, width=32)
#: A document whose owner set a password: PDFium compares the digest ``/U`` with that of an empty one.
ENCRYPTED = b"""%%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 300]>>endobj
4 0 obj<</Filter/Standard/V 1/R 2/P -4/O<%(digest)s>/U<%(digest)s>>>endobj
trailer<</Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]>>
%%%%EOF
""" % {b"digest": b"7a" * 32}


@given(SIDE, SIDE, st.integers(1, 600), st.sampled_from([0, 90, 180, 270]), st.booleans())
def test_sizes_are_those_of_what_is_rendered(tmp_path_factory, width, height, dpi, rotation, cropped):
    path = tmp_path_factory.mktemp("pdf") / "page.pdf"
    document = PdfDocument.new()
    page = document.new_page(width, height)
    page.set_rotation(rotation)
    if cropped:
        page.set_cropbox(width / 4, height / 8, width / 2, height / 3)
    document.save(path)
    document.close()
    (found,) = pdf_pages(path)
    size = found.pixels(dpi)
    document = PdfDocument(path)
    measured = document[0]
    assert (found.width, found.height) == measured.get_size()
    if size[0] * size[1] < 4_000_000:
        assert load_page(path, dpi).size == page_size(path, dpi) == size
    # The shape is the crop box's, turned.
    shown = (width / 4, height * 5 / 24) if cropped else (width, height)
    shown = shown[::-1] if rotation in (90, 270) else shown
    assert (found.width, found.height) == pytest.approx(shown, rel=1e-4)


def test_a_page_of_a4_at_the_default_resolution_is_the_default_page(tmp_path, make_pdf):
    path = make_pdf(tmp_path / "a4.pdf", (595.276, 841.89))
    assert page_size(path) == load_page(path).size == (1654, 2339)
    assert page_size(path, 300) == (2481, 3508)


def test_pages_are_named(tmp_path, make_pdf):
    path = make_pdf(tmp_path / "scan.PDF", *[(10 * number, 5) for number in range(1, 8)])
    for numbers, expected in {
        "1": [1],
        "2,5-": [2, 5, 6, 7],
        "1-3": [1, 2, 3],
        " -2, 7": [1, 2, 7],
        "6,2": [6, 2],
    }.items():
        pages = pdf_pages(f"{path}[{numbers}]")
        assert pages == [PdfPage(f"[{number}]", 10 * number, 5) for number in expected]
        assert page_count(f"{path}[{numbers}]") == len(expected)
        assert page_size(f"{path}[{numbers}]", 72) == (10 * expected[0], 5)
        assert load_page(f"{path}[{numbers}]", 72).size == (10 * expected[0], 5)
    assert page_count(path) == 7
    # A file that has such a name is itself.
    one = make_pdf(Path(f"{path}[2]"), (30, 40))
    assert pdf_pages(one) == [PdfPage("", 30, 40)]


def test_pages_of_a_changed_document_are_read_again(tmp_path, make_pdf):
    path = make_pdf(tmp_path / "scan.pdf", (72, 72))
    assert page_size(path) == (200, 200)
    make_pdf(path, (144, 72), (72, 72))
    assert (page_size(path), page_count(path)) == ((400, 200), 2)


def test_a_pdf_is_known_by_its_content(tmp_path, make_pdf):
    path = make_pdf(tmp_path / "scan.bin", (72, 72))
    assert is_pdf(path)
    assert page_size(path) == (200, 200)
    os.mkfifo(tmp_path / "pipe")
    assert not is_pdf(tmp_path / "pipe")
    assert not is_pdf(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.pdf", "none.pdf: no such PDF. Check the path"),
        ("empty.pdf", "empty.pdf: is empty (0 bytes). Write or copy the PDF again"),
        ("cut.pdf", "cut.pdf: is an incomplete PDF, without the mark of its end. Save or copy it again"),
        ("picture.pdf", "picture.pdf: is not a PDF by its content. Give a PDF, or rename the file"),
        ("broken.pdf", "broken.pdf: is a damaged PDF, or one without pages"),
        ("pageless.pdf", "pageless.pdf: is a damaged PDF, or one without pages"),
        ("locked.pdf", "locked.pdf: is encrypted and needs a password. Save a copy without one: qpdf --decrypt"),
        ("folder.pdf", "folder.pdf: is a folder. Give a PDF"),
        ("scan.pdf[0]", "scan.pdf[0]: the document has the pages 1 to 3. Give numbers among these"),
        ("scan.pdf[2-4]", "scan.pdf[2-4]: the document has the pages 1 to 3. Give numbers among these"),
        ("scan.pdf[9-]", "scan.pdf[9-]: the document has the pages 1 to 3. Give numbers among these"),
        ("scan.pdf[3-2]", "scan.pdf[3-2]: the range 3-2 runs backwards. Write the lower number first"),
        ("scan.pdf[]", "scan.pdf[]: is no list of page numbers. Write such as [2], [1-3] or [1,4-]"),
        ("scan.pdf[-]", "scan.pdf[-]: is no list of page numbers"),
        ("scan.pdf[1,two]", "scan.pdf[1,two]: is no list of page numbers"),
        ("huge.pdf", "huge.pdf of 40000 x 40000: it has 1600000000 pixels, more than the limit"),
    ],
)
def test_bad_documents_are_refused_with_a_remedy(tmp_path, make_pdf, given, message):
    make_pdf(tmp_path / "scan.pdf", *[(72, 72)] * 3)
    make_pdf(tmp_path / "huge.pdf", (14_400, 14_400))
    whole = (tmp_path / "scan.pdf").read_bytes()
    (tmp_path / "empty.pdf").touch()
    (tmp_path / "cut.pdf").write_bytes(whole[:-20])
    (tmp_path / "picture.pdf").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing\n%%EOF\n")
    catalog = b"1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
    (tmp_path / "pageless.pdf").write_bytes(b"%PDF-1.7\n" + catalog + b"trailer<</Root 1 0 R>>\n%%EOF\n")
    (tmp_path / "locked.pdf").write_bytes(ENCRYPTED)
    (tmp_path / "folder.pdf").mkdir()
    for read in (page_size, load_page):
        with pytest.raises(StagemeterError, match=re.escape(message)):
            read(tmp_path / given)
