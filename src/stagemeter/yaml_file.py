"""YAML files that people write: plain keys and values, each key once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stagemeter.errors import StagemeterError


def read_yaml(path: Path, what: str, form: str) -> dict[str, Any]:
    """Read a file of keys and values.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What it is, for errors, such as ``configuration``.
    form : str
        How a line of it is written, for errors, such as ``key: value``.

    Returns
    -------
    dict
        Empty for an empty file.

    Raises
    ------
    StagemeterError
        If it cannot be read, is not plain YAML, holds something else than keys and values, or a key twice.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except FileNotFoundError:
        raise StagemeterError(f"{path}: no such {what} file") from None
    except IsADirectoryError:
        raise StagemeterError(f"{path}: is a folder; give a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StagemeterError(f"{path}: cannot be read: {error}") from None
    except yaml.constructor.ConstructorError as error:
        raise StagemeterError(
            f"{path}: {error.problem}: only plain values are read, no tags of a programming language"
        ) from None
    except yaml.YAMLError as error:
        raise StagemeterError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if content is None or root is None:
        return {}
    if not isinstance(content, dict):
        raise StagemeterError(f"{path}: holds a {type(content).__name__}; a {what} is written as `{form}`")
    # YAML forbids it, and PyYAML silently takes the last.
    keys = [key.value for key, _ in root.value]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise StagemeterError(f"{path}: {twice} is given more than once; keep one of them")
    return {str(key): value for key, value in content.items()}
