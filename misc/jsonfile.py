"""Reading JSON files that may be missing or damaged."""

import json
from pathlib import Path
from typing import Any


def read_dict(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, damaged, or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
