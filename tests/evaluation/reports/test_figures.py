"""Figures show the numbers they are given, with labels, and legends that cover nothing."""

import io

import numpy as np
import pytest
from PIL import Image

from memdef_jax.evaluation.reports import figures

NAMES = ["$x$", "_hidden", "$\\frac{", "a name that is far too long for any axis\nof any figure"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn, laid out, before they became PNGs."""
    kept = []
    to_png = figures.png

    def keep(figure):
        kept.append(figure)
        return to_png(figure)

    monkeypatch.setattr(figures, "png", keep)
    return kept


def curve(name, eps, robust, **more):
    return {"name": name, "eps": eps, "robust": robust, **more}


def points(where, labels, adversarial=()):
    """A space as the summary holds it."""
    return {
        "points": np.asarray(where).tolist(),
        "labels": list(labels),
        "adversarial": [bool(flag) for flag in adversarial],
    }


def every_kind():
    rng = np.random.default_rng(0)
    line = curve("a", [0.0, 0.1], [0.9, 0.4], low=[0.8, 0.3], high=[0.95, 0.5])
    return {
        "curves": figures.curves([line]),
        "confusion": figures.confusion([[3, 1, 0, 0]] * 4, NAMES),
        "histograms": figures.histograms({"clean": rng.random(50), "attacked": [0.5]}, 0.9),
        "roc": figures.roc({"attacked": (np.array([0, 0.2, 1]), np.array([0, 0.9, 1]))}),
        "scatter": figures.scatter({"a": points(rng.random((8, 2)), [0, 1, 2, 3] * 2)}, NAMES),
    }


def test_each_is_a_png_on_white_with_something_on_it():
    for png in every_kind().values():
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.format == "PNG"
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
        assert 0.002 < (pixels < 250).any(axis=-1).mean() < 0.9


def test_each_has_labelled_axes_and_a_legend_that_covers_no_data(drawn):
    every_kind()
    assert len(drawn) == 5
    for figure in drawn:
        axis = figure.axes[0]
        assert len(axis.get_xlabel()) > 5
        assert len(axis.get_ylabel()) > 5
        for legend in figure.legends:
            plot, box = axis.get_tightbbox(), legend.get_window_extent()
            assert not plot.overlaps(box)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1


def test_curves_are_lines_in_percent_with_their_intervals(drawn):
    eps, robust = [0.0, 9 / 255, 25 / 255], [0.9, None, 0.123]
    low, high = [0.85, 0.5, 0.1], [0.95, 0.6, 0.15]
    figures.curves([curve("first", eps, robust, low=low, high=high), curve("_b", eps, robust)])
    (figure,) = drawn
    axis = figure.axes[0]
    assert len(axis.lines) == 2
    for line in axis.lines:
        np.testing.assert_allclose(line.get_xdata(), eps)
        np.testing.assert_allclose(line.get_ydata(), [90, np.nan, 12.3])
    (band,) = axis.collections
    assert band.get_datalim(axis.transData).y0 == pytest.approx(10)
    assert band.get_datalim(axis.transData).y1 == pytest.approx(95)
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.lines}
    assert len(looks) == 2
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["first", "_b"]


def test_forty_curves_look_different(drawn):
    figures.curves([curve(f"run {i}", [0, 1], [1, 0]) for i in range(40)])
    lines = drawn[0].axes[0].lines
    assert len({(x.get_color(), x.get_linestyle(), x.get_marker()) for x in lines}) == 40


def test_a_confusion_matrix_is_shaded_by_row_and_carries_its_counts(drawn):
    counts = [[8, 2, 0], [0, 0, 0], [1, 0, 3]]
    figures.confusion(counts, ["a", "b", "c"])
    axis = drawn[0].axes[0]
    shares = np.array([[80, 20, 0], [0, 0, 0], [25, 0, 75]])
    np.testing.assert_allclose(axis.images[0].get_array(), shares)
    written = {text.get_position()[::-1]: text.get_text() for text in axis.texts}
    assert written == {(0, 0): "8", (0, 1): "2", (2, 0): "1", (2, 2): "3"}
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "b", "c"]


def test_a_hundred_classes_are_drawn_without_names(drawn):
    names = [f"class {i}" for i in range(100)]
    figures.confusion(np.eye(100).tolist(), names)
    figures.scatter({"a": points(np.random.default_rng(0).random((100, 2)), range(100))}, names)
    assert not drawn[0].axes[0].texts
    assert not drawn[1].legends


def test_histograms_sum_to_all_images_and_mark_the_threshold(drawn):
    rng = np.random.default_rng(1)
    scores = {"clean": rng.random(70).tolist(), "attacked": (1 + rng.random(30)).tolist()}
    figures.histograms(scores, 0.97)
    axis = drawn[0].axes[0]
    bottoms = axis.get_ylim()[0]
    assert bottoms == 0
    assert axis.lines[0].get_xdata() == [0.97, 0.97]
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins=40)
    for patch, values in zip(axis.patches, scores.values(), strict=True):
        heights, at, _ = patch.get_data()
        np.testing.assert_allclose(at, edges)
        np.testing.assert_allclose(heights, 100 * np.histogram(values, edges)[0] / len(values))
        assert heights.sum() == pytest.approx(100)
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["clean", "attacked", "threshold"]


def test_a_histogram_without_threshold_or_of_equal_scores_is_drawn(drawn):
    figures.histograms({"clean": [0.5, 0.5]}, None)
    assert not drawn[0].axes[0].lines


def test_roc_curves_are_shares_in_percent(drawn):
    figures.roc({"a": (np.array([0, 0.5, 1]), np.array([0, 0.75, 1]))})
    line, chance = drawn[0].axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [0, 50, 100])
    np.testing.assert_allclose(line.get_ydata(), [0, 75, 100])
    np.testing.assert_allclose(chance.get_xdata(), chance.get_ydata())


def test_points_of_each_class_have_a_look_of_their_own(drawn):
    where = np.arange(40.0).reshape(20, 2)
    labels = [i % 10 for i in range(20)]
    figures.scatter({"a": points(where, labels)}, [f"class {i}" for i in range(10)])
    groups = drawn[0].axes[0].collections
    assert len(groups) == 10
    for label, group in enumerate(groups):
        np.testing.assert_array_equal(group.get_offsets(), where[label::10])
    assert len({tuple(group.get_facecolor()[0]) for group in groups}) == 10


@pytest.mark.parametrize("length", [3, 14, 24, 33, 60])
def test_legends_of_any_length_stay_in_the_figure(drawn, length):
    name = "in_loop, frozen_mask_true, PGD at 25/255 of run MNIST-2"[:length]
    figures.curves([curve(f"{i} {name}", [0, 1], [1, 0]) for i in range(7)])
    box = drawn[0].legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= drawn[0].bbox.x1
    assert drawn[0].axes[0].bbox.height > 0.5 * drawn[0].bbox.height
    assert not drawn[0].axes[0].get_tightbbox().overlaps(box)


def test_clean_and_attacked_images_of_a_space_stand_on_the_same_axes(drawn):
    spaces = np.random.default_rng(0).normal(size=(2, 20, 2))
    attacked = np.arange(20) >= 10
    found = {name: points(p, [0, 1] * 10, attacked) for name, p in zip("pq", spaces)}
    figures.scatter(found, ["a", "b"])
    axes = np.reshape(drawn[0].axes, (2, 2))
    assert [axis.get_title() for axis in axes[1]] == ["attacked images, p", "attacked images, q"]
    for column, where in zip(axes.T, spaces, strict=True):
        clean, other = column
        assert clean.get_xlim() == other.get_xlim()
        assert clean.get_ylim() == other.get_ylim()
        for axis, shown in ((clean, ~attacked), (other, attacked)):
            for label, group in enumerate(axis.collections):
                here = where[shown & (np.arange(20) % 2 == label)]
                np.testing.assert_array_equal(group.get_offsets(), here)


def test_how_many_neighbours_are_alike_stands_above_each_group(drawn):
    found = points(np.random.default_rng(0).random((6, 2)), [0, 1] * 3, [False] * 3 + [True] * 3)
    figures.scatter({"a": {**found, "alike": {"clean": 0.5, "attacked": 0.25}}}, ["a", "b"])
    said = [axis.get_title().split("\n") for axis in drawn[0].axes]
    assert said == [
        ["clean images", "50% of an image's neighbours have its label"],
        ["attacked images", "25% of an image's neighbours have its label"],
    ]
