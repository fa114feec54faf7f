"""What a broken-off run must still be, to be gone on with: the same data, settings, versions and threads.

A run that goes on with something else would end with other numbers and say nothing of it; so each difference is
refused by its name, unless the user allows that name, which the log then records.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distilbert.checkpoint import safely
from distilbert.errors import TrainingError, escape
from distilbert.training import logs

Identity = Mapping[str, Any]  # plain JSON values by name

ATTEMPTS_FILE = "attempts.json"
LONGEST = 40  # characters of a value in a message
CHECKPOINTS, MODEL, REPORT_FILE, CURVES_FILE = "checkpoints", "model", "report.json", "curves.svg"
WRITTEN = (CHECKPOINTS, MODEL, REPORT_FILE, CURVES_FILE, logs.NAME)  # what only a run that has begun writes
MAX_ATTEMPTS = 5  # resumptions at one step, with no checkpoint made in between


def changed(former: Identity, current: Identity, allowed: Collection[str]) -> list[str]:
    """The allowed names whose values differ, each as a line for the log.

    Raises:
        TrainingError: another one differs; all are named. ValueError: `allowed` names what is not compared.
    """
    unknown = sorted(set(allowed) - current.keys())
    if unknown:
        raise ValueError(f"allow_changed has {', '.join(unknown)}, and must name some of {', '.join(sorted(current))}.")
    current = json.loads(json.dumps(current))  # tuples as the lists that the file holds
    different = [name for name in sorted({*former, *current}) if former.get(name) != current.get(name)]
    refused = [name for name in different if name not in allowed]
    if refused:
        lines = (difference(name, former.get(name), current.get(name)) for name in refused)
        raise TrainingError(
            f"the run that lies there is another one ({', '.join(refused)}). Choose another folder, restore what it "
            f"was, or allow the change by its name (allow_changed). {'; '.join(lines)}."
        )
    return [difference(name, former.get(name), current.get(name)) for name in different]


def difference(name: str, former: Any, current: Any) -> str:
    """What changed, in few words: of mappings, what they do not share."""
    if isinstance(former, dict) and isinstance(current, dict):
        keys = sorted(key for key in {*former, *current} if former.get(key) != current.get(key))
        return "; ".join(difference(f"{name}.{key}", former.get(key), current.get(key)) for key in keys)
    return f"{name} was {escape(repr(former), LONGEST)} and is {escape(repr(current), LONGEST)}"


def check_folder(folder: Path) -> None:
    """Refuse to write over what no run has written.

    Raises:
        TrainingError: a file or folder that a run writes is there, and no run has begun there.
    """
    there = [name for name in WRITTEN if (folder / name).exists()]
    if there and not (folder / ATTEMPTS_FILE).exists():
        raise TrainingError(f"{folder}: holds {', '.join(there)}, and not from a run; choose another folder.")


def count_attempt(folder: Path, step: int) -> None:
    """Note that a run begins at `step`, and refuse one that has begun there too often.

    Raises:
        TrainingError: it has, each time without reaching a further checkpoint.
    """
    path = folder / ATTEMPTS_FILE
    former = safely.read_json(path) if path.exists() else {}
    count = former.get("count", 0) + 1 if former.get("step") == step else 1
    if count > MAX_ATTEMPTS:
        raise TrainingError(
            f"{folder}: the run was begun {MAX_ATTEMPTS} times at step {step} and never reached a further checkpoint. "
            f"Find out what ends it (memory?), save more often (save_every), then remove {ATTEMPTS_FILE}."
        )
    safely.write_json(path, {"step": step, "count": count})
