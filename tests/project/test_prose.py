"""The English of docs, docstrings and messages: short sentences, without phrases that made them hard to read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages that scripts write: their texts are those of configurations and of the package.
WRITTEN = ("coverage.md", "models.md")
MODULES = sorted((ROOT / "src").rglob("*.py"))
LONGEST = 30
"""Words of a sentence; about 20 is the aim."""

#: What must not come back, with what to write in its place.
PHRASES = {
    r"\b(is|are) of none\b": "belongs to no",
    r"\bwhat there (is|are|was|were)\b": "name the thing",
    r"\bof which there (is|are)\b": "name the thing",
    r"\bas ever\b": "as before",
    r"\b(no|any|some)body\b": "no one, a person, or the passive",
    r"\bwhoever\b": "users who",
    r"\b(is|are) none (of|that)\b": "is not one of, does not exist",
    r"\bhas none\b.*\bof its own\b": "has no",
    r"\bknows? no\b": "does not support",
    r"\bsaid aloud\b": "reported",
    r"\ball the same\b": "still",
    r"\bto be had\b": "available",
    r"\btaken for\b": "treated as",
    r"\b(is|are) said\b": "say who says it",
    r"\bone (should|must|has to|wants|knows)\b": "imperative, or name the user",
    r"^counted (is|are)\b": "subject first",
    r"^looked at (is|are)\b": "subject first",
    r"\b(is|was) no stagemeter\b": "is not a",
    r"\bonce is what\b": "say it again",
    r"\bnothing (else )?than\b": "only",
    r"\bnot even\b": "leave it out",
    r"\bso to (say|speak)\b": "leave it out",
    r"\bat a time that\b": "when",
    r"\bby what\b": "how",
    r"\bdear(er)?\b": "costly, or raises the cost",
}


def sentences(text: str) -> Iterator[str]:
    """Sentences of a text in Markdown or a docstring, with code left out."""
    text = re.sub(r"```.*?(```|\Z)", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"``[^`]+``|`[^`]+`|<[^>]+>", "X", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*:|#>]|\d+\.)\s?)", text):
        for cell in paragraph.split("|"):
            yield from re.split(r"(?<=[.!?])\s+|[;:]\s", " ".join(cell.split()))


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a module, those of attributes included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield re.sub(r"\n\s*-{3,}\n", "\n\n", re.sub(r"\n(\s*[\w, *]+ : )", r"\n\n\1", node.value.value))


def messages(path: Path) -> Iterator[str]:
    """Texts of a module that people read: whatever holds several words and is no docstring."""
    tree = ast.parse(path.read_text())
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value if node.value.count(" ") > 2 else ""


def faults(texts: Iterator[str], longest: int = LONGEST) -> Iterator[str]:
    for text in texts:
        for sentence in sentences(text):
            words = len(re.findall(r"[A-Za-z][\w'-]*", sentence))
            if words > longest:
                yield f"{words} words: {sentence}"
            for phrase, instead in PHRASES.items():
                if found := re.search(phrase, sentence, flags=re.IGNORECASE):
                    yield f"{found[0]!r} ({instead}): {sentence}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WRITTEN], ids=lambda page: page.name)
def test_page_reads_well(page):
    assert list(faults(iter([page.read_text(encoding="utf-8")]))) == []


@pytest.mark.parametrize(("read", "longest"), [(docstrings, LONGEST), (messages, 200)])
def test_code_reads_well(read, longest):
    found = {str(path.relative_to(ROOT)): wrong for path in MODULES if (wrong := list(faults(read(path), longest)))}
    assert found == {}


def test_docstrings_begin_with_a_verb_or_a_noun():
    questions = re.compile(r"\s*(What|How|Where|Which|Whose|When|Who)\b")
    assert [(path.name, text) for path in MODULES for text in docstrings(path) if questions.match(text)] == []


def test_faults_are_found():
    assert len(list(faults(iter(["Such a thing is of none of these.", " ".join(["word"] * (LONGEST + 1))])))) == 2
    assert list(faults(iter(["Return the size of `a is of none` in bytes."]))) == []
