"""The report of an audit: one HTML file that loads nothing, from what to do first down to the single image."""

from __future__ import annotations

import base64
import hashlib
import shlex
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import kaggle_kit
from kaggle_kit.audit.captions import Captions
from kaggle_kit.audit.map_section import choose_dots, map_fields
from kaggle_kit.audit.model_section import model_fields
from kaggle_kit.audit.montage import Pictures, gather_pictures, montage_uri
from kaggle_kit.audit.sections import (
    by_kind,
    class_fields,
    drift_fields,
    duplicate_fields,
    file_fields,
    montage_fields,
    odd_fields,
    property_fields,
)
from kaggle_kit.files import replacing
from kaggle_kit.train.outcome import Fields

if TYPE_CHECKING:
    from kaggle_kit.audit.examine import Audit

_TEMPLATE, _SCRIPT = "audit.html.j2", "map.js.j2"
_TINY = 64  # pixels of an image's longer side below which a page shows its pixels as squares
_SECTIONS = (
    ("todo", "First steps"),
    ("classes", "Classes"),
    ("montages", "Montages"),
    ("properties", "Sizes and light"),
    ("files", "Files"),
    ("issues", "Label issues"),
    ("losses", "Top losses"),
    ("confused", "Confused"),
    ("combinations", "Never right"),
    ("odd", "Odd ones"),
    ("duplicates", "Duplicates"),
    ("drift", "Train and test"),
    ("map", "Map"),
)


def write_report(audit: Audit, path: Path) -> Path:
    """Write the report: one HTML file that opens without a network and holds all its pictures.

    Its size is bounded: worst and rarest things are shown, and how many more there are is said; the review page shows
    them, and findings.parquet beside the report holds them all.

    Args:
        audit: What was found; its images are read again where they are shown.
        path: Of the page.

    Returns:
        The page's path.
    """
    fields, pictures = page_fields(audit)
    with replacing(path) as temporary:
        temporary.write_text(_render(fields, pictures), encoding="utf-8")
    return path


def page_fields(audit: Audit) -> tuple[Fields, Pictures]:
    """Return all that the page says as plain values, and its pictures."""
    captions, found = Captions(audit), by_kind(audit.findings)
    sections: Fields = {
        "model": model_fields(audit, found, captions),  # whose pictures stay where not all fit
        "duplicates": duplicate_fields(audit, captions),
        "odd": odd_fields(found, audit.traits, captions),
        "drift": drift_fields(audit, captions),
        "montages": montage_fields(audit, captions),
    }
    dots = choose_dots(audit, captions)
    pictures = gather_pictures(audit.opened, audit.images, captions.wanted)
    for section in sections["montages"]:
        for card in [*section["cards"], *section["more"]]:
            tiles = [pictures.tiles[row] for row in card["rows"] if row in pictures.tiles]
            card["picture"] = montage_uri(tiles) if tiles else ""
    sections |= {
        "classes": class_fields(audit),
        "properties": property_fields(audit),
        "files": file_fields(found, audit),
        "map": map_fields(audit, dots, captions, pictures),
        "leaks": [leak.text for leak in audit.leaks],
    }
    return {**_header_fields(audit, sections, pictures), **sections}, pictures


def _header_fields(audit: Audit, sections: Fields, pictures: Pictures) -> Fields:
    images, counts = audit.images, audit.counts
    sides = images.height[images.readable].max(initial=0), images.width[images.readable].max(initial=0)
    notes = [*audit.notes, *pictures.notes]
    if pictures.left_out:
        notes.append(f"{pictures.left_out:,} pictures were left out so that this page stays small.")
    there = {name for name in ("montages", "odd", "drift", "map") if sections[name]}
    there |= {"todo", "classes", "properties", "files", "duplicates"}
    if sections["model"]:
        there |= {"issues", "losses", "confused"} | ({"combinations"} if sections["model"]["several"] else set())
    return {
        "title": f"Audit of {audit.task.name}",
        "subtitle": str(audit.data),
        "navigation": [one for one in _SECTIONS if one[0] in there],
        "tiles": _tiles(audit, sum(counts.num_images.values())),
        "advice": [{"text": one.text, "command": one.command, "severity": one.severity} for one in audit.advice],
        "notes": notes,
        "tiny": 0 < max(map(int, sides)) <= _TINY,
        "tile_width": pictures.tile_size[1],
        "seconds": [(name, f"{seconds:.1f} s") for name, seconds in audit.seconds.items()],
        "num_findings": f"{len(audit.findings):,}",
        "folder": str(audit.folder),
        "review": f"kaggle-kit review {shlex.quote(str(audit.folder))}",
        "version": kaggle_kit.__version__,
    }


def _tiles(audit: Audit, images: int) -> list[tuple[str, str]]:
    number, counts = audit.numbers(), audit.counts
    tiles = [(f"{images:,}", "images")]
    tiles += [(f"{many:,}", split) for split, many in counts.num_images.items()]
    tiles.append((f"{counts.num_labelled:,}", "labelled"))
    if number["broken"]:
        tiles.append((f"{number['broken']:,}", "cannot be read"))
    if audit.duplicates.groups:
        groups = len(audit.duplicates.groups)
        tiles.append((f"{groups:,}", f"{'group' if groups == 1 else 'groups'} of duplicates"))
    if audit.after is not None:
        issues = audit.after.num_issues
        tiles.append((f"{issues:,}", "label that looks wrong" if issues == 1 else "labels that look wrong"))
    return tiles


def _render(fields: Fields, pictures: Pictures) -> str:
    import jinja2
    from markupsafe import Markup

    folder = resources.files("kaggle_kit.audit")
    script = folder.joinpath(_SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.globals["picture"] = lambda row: pictures.alone.get(row, "")
    points = fields["map"].get("points", "")  # JSON in which nothing can end the element that it stands in
    fields = {**fields, "script": Markup(script), "script_hash": digest, "points": Markup(points)}  # noqa: S704
    return environment.from_string(folder.joinpath(_TEMPLATE).read_text(encoding="utf-8")).render(fields)
