"""Whether the test looks other than train: adversarial validation, and the properties that differ most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kaggle_kit.audit.components import principal_components, thumbnail_vectors
from kaggle_kit.audit.findings import Finding
from kaggle_kit.audit.pictures import Images

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
FEWEST = 40  # images of a split: with fewer an AUC says nothing
MOST = 10_000  # images of a split
CUTS, COMPONENTS, TREES, LEAVES = 5, 16, 80, 15
CLEAR_DISTANCE, CLEAR_P = 0.05, 0.01
NOTHING, SLIGHT, STRONG = 0.55, 0.65, 0.8  # AUCs, for the verdict
MAX_SUSPECTS = 100
# What a picture shows, and what is of its file alone; each with words for more and for less of it.
VISIBLE = {
    "brightness": ("brighter", "darker"),
    "contrast": ("richer in contrast", "flatter"),
    "sharpness": ("sharper", "more blurred"),
    "content": ("fuller", "emptier"),
    "colourfulness": ("more colourful", "less colourful"),
}
OF_FILE = {
    "height": ("higher", "less high"),
    "width": ("wider", "narrower"),
    "aspect": ("wider for their height", "narrower for their height"),
    "num_bytes": ("larger files", "smaller files"),
    "frames": ("of more frames", "of fewer frames"),
}
NAMED_VISIBLE, NAMED_OF_FILE = ("gray",), ("mode", "file_format")


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """A property that differs between train and test.

    Attributes:
        name: A column of `Images`, or "aspect".
        distance: Kolmogorov and Smirnov's: the largest difference of the two distributions, 0 to 1; of a property
            without order, the largest difference of a value's shares.
        p_value: Chance of such a distance without drift, times the number of properties looked at; at most 1.
        train: The property's median, or a value's share, in train.
        test: The same in test.
        text: One sentence with the direction, such as "test images are brighter: median 0.61 against 0.43".
        is_leak: Whether it is of the file, not of what it shows: a network does not see it.
    """

    name: str
    distance: float
    p_value: float
    train: float
    test: float
    text: str
    is_leak: bool = False


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Train against test.

    Attributes:
        auc: How well a classifier tells test images from train images that it has not seen: 0.5 not at all, 1 always.
            NaN where there are too few images.
        low: Lower end of its 95 % interval.
        high: Upper end.
        visible_auc: The same from what the pixels show alone: thumbnails, brightness, contrast, ...; NaN likewise.
        num_train: Images looked at.
        num_test: Images looked at.
        drifted: Properties, most different first; only those that differ beyond chance.
        suspects: {row of `Images`: chance of being test} of the test images that are least like train, of what they
            show; empty where the two look alike.
        text: The verdict in one or two sentences.
    """

    auc: float
    low: float
    high: float
    visible_auc: float
    num_train: int
    num_test: int
    drifted: tuple[Drifted, ...]
    suspects: dict[int, float]
    text: str


def compare_splits(images: Images, *, seed: int = 0) -> Drift:
    """Compare train with test.

    Args:
        images: All images; at most 10,000 of a split are drawn.
        seed: Of what is drawn, of the folds and of the classifier.
    """
    rng = np.random.default_rng(seed)
    drawn = [_drawn(np.flatnonzero(images.readable & (images.split == name)), rng) for name in ("train", "test")]
    rows, is_test = np.concatenate(drawn), np.repeat([0, 1], [len(part) for part in drawn])
    counts = len(drawn[0]), len(drawn[1])
    if min(counts) < FEWEST:
        text = f"Too few images to compare: {counts[0]:,} of train, {counts[1]:,} of test; {FEWEST} of each are needed"
        return _no_drift(counts, text)
    visible, of_file = _columns(images, rows, VISIBLE, NAMED_VISIBLE), _columns(images, rows, OF_FILE, NAMED_OF_FILE)
    shown = np.column_stack(
        [*visible.values(), principal_components(thumbnail_vectors(images.thumbnails, rows), COMPONENTS)]
    )
    visible_chance = _chances(shown, is_test, seed)
    visible_auc = _auc(visible_chance, is_test)
    whole = np.column_stack([shown, *of_file.values()]) if of_file else shown
    auc = _auc(_chances(whole, is_test, seed), is_test) if of_file else visible_auc
    half = 1.96 * _auc_error(auc, counts)
    drifted = tuple(_drifted(images, rows, is_test))
    clear = visible_auc - 1.96 * _auc_error(visible_auc, counts) > NOTHING
    return Drift(
        auc=auc,
        low=max(0.0, auc - half),
        high=min(1.0, auc + half),
        visible_auc=visible_auc,
        num_train=counts[0],
        num_test=counts[1],
        drifted=drifted,
        suspects=_suspects(rows, is_test, visible_chance) if clear else {},
        text=_verdict(auc, half, visible_auc, drifted),
    )


def drift_findings(drift: Drift, images: Images) -> Iterator[Finding]:
    """Yield a finding for each test image that is least like train."""
    for row, chance in drift.suspects.items():
        detail = f"unlike train: of the test by {chance:.0%}, where {drift.num_test / _total(drift):.0%} are"
        yield Finding(kind="drift", id=str(images.id[row]), split="test", score=round(chance, 4), detail=detail)


def _total(drift: Drift) -> int:
    return max(drift.num_train + drift.num_test, 1)


def _drawn(rows: Ints, rng: np.random.Generator) -> Ints:
    return rows if len(rows) <= MOST else np.sort(rng.choice(rows, MOST, replace=False))


def _no_drift(counts: tuple[int, int], text: str) -> Drift:
    nan = float("nan")
    return Drift(
        auc=nan,
        low=nan,
        high=nan,
        visible_auc=nan,
        num_train=counts[0],
        num_test=counts[1],
        drifted=(),
        suspects={},
        text=text,
    )


def _values(images: Images, rows: Ints, name: str) -> Values:
    if name == "aspect":
        return np.asarray(images.width[rows] / np.maximum(images.height[rows], 1), np.float64)
    return np.asarray(getattr(images, name)[rows], np.float64)


def _columns(
    images: Images, rows: Ints, ordered: dict[str, tuple[str, str]], named: tuple[str, ...]
) -> dict[str, Values]:
    """Return {property: (n,) values} of those that are not all alike; values without order as numbers."""
    found = {name: _values(images, rows, name) for name in ordered}
    for name in named:
        found[name] = np.unique(getattr(images, name)[rows], return_inverse=True)[1].ravel().astype(np.float64)
    return {name: values for name, values in found.items() if np.ptp(values) > 0}


def _chances(values: npt.NDArray[np.floating], is_test: Ints, seed: int) -> Values:
    """Return (n,) how sure trees, fitted on other images, are that each is of the test."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    trees = HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, early_stopping=False, random_state=seed
    )
    cuts = StratifiedKFold(CUTS, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(trees, values, is_test, cv=cuts, method="predict_proba")[:, 1])


def _auc(chances: Values, is_test: Ints) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(is_test, chances))


def _auc_error(auc: float, counts: tuple[int, int]) -> float:
    """Return an AUC's standard error. Source: Hanley and McNeil (1982), their formula for any distribution."""
    many, few = counts
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (few - 1) * (one - auc**2) + (many - 1) * (two - auc**2)
    return float(np.sqrt(max(variance, 0.0) / (many * few)))


def _drifted(images: Images, rows: Ints, is_test: Ints) -> list[Drifted]:
    """Return the properties that differ beyond chance, the most different first."""
    looked = [_ordered_drift(images, rows, is_test, name) for name in (*VISIBLE, *OF_FILE)]
    looked += [_named_drift(images, rows, is_test, name) for name in (*NAMED_VISIBLE, *NAMED_OF_FILE)]
    some = [one for one in looked if one is not None]
    found = [replace(one, p_value=min(1.0, one.p_value * len(some))) for one in some]
    clear = [one for one in found if one.distance >= CLEAR_DISTANCE and one.p_value <= CLEAR_P]
    return sorted(clear, key=lambda one: -one.distance)


def _ordered_drift(images: Images, rows: Ints, is_test: Ints, name: str) -> Drifted | None:
    from scipy.stats import ks_2samp

    values = _values(images, rows, name)
    if not np.ptp(values) > 0:
        return None
    train, test = values[is_test == 0], values[is_test == 1]
    result = ks_2samp(train, test, method="asymp")
    before, after = float(np.median(train)), float(np.median(test))
    if before == after:  # the medians are one value that most images have
        before, after = float(train.mean()), float(test.mean())
    word = {**VISIBLE, **OF_FILE}[name][0 if after > before else 1]
    text = f"test images are {word}: {name.replace('_', ' ')} {_shown(after)} against {_shown(before)} in train"
    return Drifted(
        name=name,
        distance=float(result.statistic),
        p_value=float(result.pvalue),
        train=before,
        test=after,
        text=text,
        is_leak=name in OF_FILE,
    )


def _named_drift(images: Images, rows: Ints, is_test: Ints, name: str) -> Drifted | None:
    from scipy.stats import chi2_contingency

    names, place = np.unique(getattr(images, name)[rows], return_inverse=True)
    if len(names) < 2:
        return None
    table = np.bincount(is_test * len(names) + place.ravel(), minlength=2 * len(names)).reshape(2, -1)
    shares = table / table.sum(axis=1, keepdims=True)
    most = int((shares[1] - shares[0]).argmax())  # the one that grew
    value = f"{name.replace('_', ' ')} {names[most]}" if name != "gray" else "gray" if names[most] else "coloured"
    before, after = float(shares[0, most]), float(shares[1, most])
    return Drifted(
        name=name,
        distance=float(np.abs(shares[1] - shares[0]).max()),
        p_value=float(chi2_contingency(table).pvalue),
        train=before,
        test=after,
        text=f"{after:.1%} of the test images are {value}, against {before:.1%} in train",
        is_leak=name in NAMED_OF_FILE,
    )


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _suspects(rows: Ints, is_test: Ints, chances: Values) -> dict[int, float]:
    test = np.flatnonzero(is_test)
    order = test[np.argsort(-chances[test], kind="stable")][:MAX_SUSPECTS]
    return {int(rows[place]): float(chances[place]) for place in order}


def _verdict(auc: float, half: float, visible_auc: float, drifted: tuple[Drifted, ...]) -> str:
    measured = f"AUC {auc:.3f}, 95 % {max(0.0, auc - half):.3f} to {min(1.0, auc + half):.3f}"
    if auc - half <= 0.5 or auc < NOTHING:
        told = "not provably better than by chance" if auc - half <= 0.5 else "hardly"
        return f"Train and test look alike: a classifier tells them apart {told} ({measured})."
    how = "slightly" if auc < SLIGHT else "clearly" if auc < STRONG else "strongly"
    text = f"The test differs {how} from train ({measured})"
    text += f"; {drifted[0].text}." if drifted else ", in no single property."
    if visible_auc < NOTHING:
        text += f" It is of the files alone: from what the images show the AUC is {visible_auc:.3f}."
    return text
