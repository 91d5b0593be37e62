"""What Kaggle accepts and how it answers: facts with their date, in this one place.

Read in the `kaggle` package 2.2.5 (October 2026) unless a line says "reported", which is what users told.
"""

from __future__ import annotations

import html
import re
import unicodedata

CREDENTIALS_PAGE = "https://www.kaggle.com/settings/api"

DATASET_METADATA = "dataset-metadata.json"
KERNEL_METADATA = "kernel-metadata.json"
# names that an upload leaves out where they lie at the top of a folder
NEVER_UPLOADED = (
    "datapackage.json",
    KERNEL_METADATA,
    "model-metadata.json",
    "model-instance-metadata.json",
    *(f"dataset-cover-image{suffix}" for suffix in (".png", ".jpg", ".jpeg", ".webp")),
)

DATASET_TITLE_LENGTH = (6, 50)
DATASET_SLUG_LENGTH = (6, 50)
SUBTITLE_LENGTH = (20, 80)
DATASET_KEYS = ("id", "id_no", "title", "subtitle", "description", "licenses", "keywords", "resources")
# keys that `kaggle datasets metadata` writes and an upload passes over
DATASET_SETTINGS = (
    *("collaborators", "data", "expectedUpdateFrequency", "image", "info", "isPrivate", "userSpecifiedSources"),
)

KERNEL_TITLE_MIN_LENGTH = 5
KERNEL_SLUG_MIN_LENGTH = 5
KERNEL_TYPES = ("script", "notebook")
LANGUAGES = ("python", "r", "rmarkdown")
PINNING_TYPES = ("original", "latest")
KERNEL_SWITCHES = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
KERNEL_SOURCES = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")
KERNEL_KEYS = (
    *("id", "id_no", "title", "code_file", "language", "kernel_type", "machine_shape", "keywords"),
    *("docker_image", "docker_image_pinning_type"),
    *KERNEL_SWITCHES,
    *KERNEL_SOURCES,
)
DEFAULT_GPU = "NvidiaTeslaT4"  # two of them
RETIRED_SHAPES = {
    "nvidiateslap100": f"write {DEFAULT_GPU}",
    "tpuv38": "write TpuV5E8",
    "tpu1vmv38": "write TpuV5E8",
    "tpuv232": "there is none in its place",
    "tpuv2256": "there is none in its place",
}
CODE_SIZE_BYTES = 1_000_000  # of a kernel's code; reported

MAX_GPU_SESSIONS = 2  # batch sessions at a time; reported
# what a push says for a third one, and answers as if all were well; reported
GPU_SESSIONS_FULL = re.compile(r"session count|maximum batch|concurrent.*session", re.IGNORECASE)
DAILY_LIMIT = re.compile(r"submission limit|daily.*(limit|submission)|submissions? (allowed|remaining)", re.IGNORECASE)
RULES_NOT_ACCEPTED = re.compile(r"accept.*rules|rules.*accept|must.*(join|enter)", re.IGNORECASE)

# unpacked on upload (reported), source distributions among them
UNPACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
EXPLODED = (".pt", ".pth")  # zips inside, sometimes unpacked to folders; reported

PLACEHOLDERS = ("OWNER", "YOU", "COMPETITION", "INSERT_TITLE_HERE", "INSERT_SLUG_HERE", "INSERT_KERNEL_SLUG_HERE")
OWNER_PATTERN = re.compile(r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*")
SLUG_PATTERN = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def slug_of(title: str) -> str:
    """Return the slug that Kaggle makes of a title: `My bundle, v2` is `my-bundle-v2`."""
    plain = unicodedata.normalize("NFKD", html.unescape(title)).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"(?<=\d),(?=\d)", "", plain)
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def rules_page(competition: str) -> str:
    """Return where a competition's rules are accepted."""
    return f"https://www.kaggle.com/competitions/{competition}/rules"


def has_known_slug(title: str) -> bool:
    """Return whether `slug_of` is sure: letters that are no accented A to Z are spelt out by tables of Kaggle's."""
    return all(ord(one) < 128 or unicodedata.combining(one) for one in unicodedata.normalize("NFKD", title))


def is_gpu(machine_shape: str | None) -> bool:
    """Return whether a machine of this shape counts as a GPU session."""
    return (machine_shape or "").lower().startswith("nvidia")
