"""Results of this process as a folder: what ``fedrobust run`` would have left there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import tables
from fedrobust.runs.folder import RunFolder


def keep(results: Any, folder: Path, *, data_root: str | None) -> Path:
    """Write ``Results``: a folder a run, the table, the picture, the report; return the folder.

    Raises
    ------
    FolderError
        If another process holds one of the folders.
    WriteError
        If the disk takes no more.
    """
    for place, (experiment, rows) in enumerate(results.runs):
        one = RunFolder(folder, experiment)
        with one.recording(own={}):
            for row in rows:
                one.append(row)
        if results.models:
            from experiments.export import write

            state = results.state_dict(place, data_root=data_root)
            write(one.path / "model.safetensors", experiment, state)
    write_tables(results, folder)
    results.report(folder / "report.html", data_root=data_root)
    return folder


def write_tables(results: Any, output: Path) -> list[Path]:
    """Write the table (Markdown, CSV, LaTeX) and the picture; return what was written."""
    values = (results.table() * 100).round(2) if results.headline.is_share else results.table()
    (output / "table.csv").write_text(tables.csv(values))
    (output / "table.md").write_text(results.table("markdown"))
    (output / "table.tex").write_text(results.table("latex"))
    picture = output / ("heat_map.png" if len(results.runs) > 1 else "accuracy.png")
    results.plot().savefig(picture, dpi=150)
    written = [output / "table.md", output / "table.csv", output / "table.tex", picture]
    if "wrong_files" in (frame := results.frame):
        from experiments.pictures import detection

        written.append(output / "detection.png")
        detection(frame).savefig(written[-1], dpi=150)
    return written
