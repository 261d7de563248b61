"""What the tests of the pages share: a summary, a picture, and a reader of HTML."""

import io
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from memdef_jax.evaluation import THREATS, WORST, wilson_interval
from memdef_jax.evaluation.reports import figures
from memdef_jax.evaluation.reports.page import Picture

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress"]


def record(selector, threat, attack, eps, correct, n=500, **more):
    """A record with the numbers that so many correct answers give."""
    return {
        "selector": selector,
        "threat": threat,
        "attack": attack,
        "eps": eps,
        "norm": None if attack == "clean" else "l2" if eps is None else "linf",
        "n": n,
        "seed": 0,
        "robust_accuracy": correct / n,
        "interval": list(wilson_interval(correct, n)),
        "clean_accuracy": None,
        "selector_accuracy": min(correct + 3, n) / n,
        "agreement": 1 - 1 / n,
        "success_rate": 1 - correct / n,
        "median_norm": 1.2345678 if eps is None and attack != "clean" else eps,
        "variant": "joint" if threat == "adaptive" else None,
        "variants": {"joint": correct / n, "soft_mask": 0.5} if threat == "adaptive" else {},
        "paper": 0.9002 if threat == "frozen_mask" else None,
        "seconds": 0.1 + correct / 7,
        **more,
    }


def records(selectors=("benign", "in_loop"), seed=0):
    """A small sweep with invented outcomes."""
    rng = np.random.default_rng(seed)
    cells = [("none", "clean", None)]
    cells += [
        (threat, attack, eps)
        for threat in (*THREATS, WORST)
        for attack, eps in (("fgsm", 9 / 255), ("pgd", 9 / 255), ("pgd", 0.1234567), ("cw", None))
    ]
    return [
        record(selector, *cell, int(rng.integers(0, 500)))
        for selector in selectors
        for cell in cells
    ]


def summary(seed=0):
    """Every section, with numbers that rounding changes."""
    rng = np.random.default_rng(seed)
    eps = [0.0, 0.01, 9 / 255, 0.1]
    robust = sorted(rng.random(4).tolist(), reverse=True)
    low, high = [r * 0.9 for r in robust], [min(1.0, r * 1.05) for r in robust]
    verdicts = [("pass", 0.0123456, 0.02), ("warn", 0.0234567, 0.02), ("fail", 1 / 3, 0.1)]
    verdicts.append(("skipped", None, None))
    return {
        "heading": "Memory Defense on fashion_mnist",
        "words": "The memory acts as a class template.",
        "headline": ["The pipeline is as robust as its selector.", "Nothing else holds."],
        "data": {"name": "fashion_mnist", "source": "a mirror", "fingerprint": "3f5cd29d" * 8},
        "records": records(seed=seed),
        "curves": [
            {
                "name": f"{selector}, adaptive, pgd",
                "selector": selector,
                "threat": "adaptive",
                "eps": eps,
                "robust": robust,
                "low": low,
                "high": high,
            }
            for selector in ("benign", "in_loop")
        ],
        "checks": {
            "in_loop": [
                {
                    "name": f"check_{i}",
                    "title": f"check number {i} holds",
                    "verdict": verdict,
                    "number": value,
                    "limit": limit,
                    "unit": "share",
                    "advice": "More steps find more images, so quote the accuracy at 200 steps.",
                }
                for i, (verdict, value, limit) in enumerate(verdicts)
            ]
        },
        "detection": {
            "in_loop": {
                "threshold": 0.0612345,
                "auroc": 0.7654321,
                "detection_rate": 1 / 7,
                "passed_accuracy": 2 / 7,
                "false_positive_rate": 0.0101,
                "undetected_error": 3 / 7,
                "evading": {"auroc": 0.54321, "detection_rate": 0.0, "passed_accuracy": 1 / 9},
                "clean_scores": rng.gamma(9, 0.004, 100).tolist(),
                "attacked_scores": rng.gamma(9, 0.005, 100).tolist(),
                "evading_scores": rng.gamma(9, 0.0042, 100).tolist(),
            }
        },
        "confusion": {
            "in_loop": {
                "words": "PGD at 25/255, adaptive",
                "slots": rng.integers(0, 90, (4, 4)).tolist(),
            }
        },
        "diagnostics": {
            name: {"image_spread": 0.18606074, "mse": 0.0420611, "follows_wrong_slot": 1.0}
            for name in ("benign", "in_loop")
        },
        "transfer": {"names": ["benign", "in_loop"], "accuracy": [[1 / 3, 0.8], [0.7, 2 / 3]]},
        "latent": {
            key: {"points": rng.normal(size=(40, 2)).tolist(), "labels": [i % 4 for i in range(40)]}
            for key in ("with", "without")
        }
        | {"class_names": CLASSES},
        "class_names": CLASSES,
        "provenance": {"command": "eval.robustness", "versions": {"jax": "0.10.2"}, "seed": 0},
    }


def picture(name="in_loop-adaptive-pgd", section="attacked", side=300, seed=0):
    """A PNG of noise, which does not compress: about three bytes a pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return Picture(name, buffer.getvalue(), f"Attacked images of {name}", section)


class Page(HTMLParser):
    """A page taken apart.

    Attributes:
      tags: (name, attributes) in order.
      numbers: {data-from: (data-value, text)}; of equal addresses the last.
      tables: for each table its rows, each a list of (tag, attributes, text of the cell).
      scripts: the text of each script.
    """

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.numbers, self.tables, self.scripts = [], {}, [], []
        self._open, self._cell, self._number = [], None, None
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = [tag, attrs, ""]
            self.tables[-1][-1].append(self._cell)
        elif tag == "script":
            self.scripts.append("")
        if "data-value" in attrs:
            self._number = [attrs["data-value"], ""]
            self.numbers[attrs["data-from"]] = self._number

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self._cell[2] = " ".join(self._cell[2].split())
            self._cell = None
        elif tag == "span":
            self._number = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell[2] += data
        if self._number is not None:
            self._number[1] += data
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data

    def all(self, tag, **wanted):
        """Attributes of all tags with this name and these attributes."""
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]


def resolve(tree, pointer):
    """What a JSON pointer (RFC 6901) points to."""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


def check_numbers(page, tree):
    """Every number shown is the one in the tree, and its text rounds it."""
    for pointer, (exact, text) in page.numbers.items():
        value = resolve(tree, pointer)
        assert json.loads(exact) == value, pointer
        if "/" in text:
            top, bottom = map(int, text.split("/"))
            assert top / bottom == value, pointer
            continue
        shown = float(text)
        rounded = abs(shown - value) <= 0.0501 or abs(shown - value) <= 5.1e-4 * abs(value)
        assert rounded or abs(shown - 100 * value) <= 0.0501, pointer


def embedded(page):
    """The JSON in the page; NaN is not JSON."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(page.scripts[0], parse_constant=refuse)


def leave_undrawn(monkeypatch):
    """Figures become one small picture, for tests of what surrounds them."""
    png = picture(side=8).png
    for name in ("curves", "confusion", "histograms", "roc", "scatter"):
        monkeypatch.setattr(figures, name, lambda *_: png)
