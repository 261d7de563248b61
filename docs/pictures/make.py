"""Draws the pictures of threat-models.md: `python docs/pictures/make.py`."""

import pathlib

BOXES = {  # name: x, y, width, text
    "image": (10, 60, 70, "image"),
    "a": (120, 15, 110, "classifier-A"),
    "slot": (270, 15, 90, "slot (argmax)"),
    "encoder": (120, 105, 110, "encoder"),
    "memory": (270, 105, 90, "memory"),
    "decoder": (400, 105, 90, "decoder"),
    "b": (530, 105, 110, "classifier-B"),
    "answer": (680, 105, 70, "answer"),
}
ARROWS = [
    ("image", "a"),
    ("a", "slot"),
    ("image", "encoder"),
    ("slot", "memory"),
    ("encoder", "memory"),
    ("memory", "decoder"),
    ("decoder", "b"),
    ("b", "answer"),
]
REBUILD = {"image", "encoder", "memory", "decoder", "b", "answer"}
# What is differentiated, what is fixed, and what stands for it.
THREATS = {
    "transfer": ({"image", "a"}, {}, {"a": "benign copy of A"}),
    "grey_box": ({"image", "a"}, {}, {}),
    "frozen_mask": (REBUILD, {"slot"}, {"slot": "A(clean)"}),
    "frozen_mask_true": (REBUILD, {"slot"}, {"slot": "true label"}),
    "adaptive": (set(BOXES), {}, {"slot": "soft, or straight-through"}),
}


def draw(name: str) -> str:
    """The pipeline with the attacker's part filled and everything else pale."""
    seen, fixed, renamed = THREATS[name]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 160" role="img" '
        f'aria-label="threat model {name}" font-family="sans-serif" font-size="13">',
        '<rect width="760" height="160" fill="white"/>',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
    ]
    for start, end in ARROWS:
        (x, y, width, _), (to_x, to_y, to_width, _) = BOXES[start], BOXES[end]
        if start == "slot":
            line = f'x1="{x + width / 2}" y1="{y + 36}" x2="{to_x + to_width / 2}" y2="{to_y}"'
        else:
            line = f'x1="{x + width}" y1="{y + 18}" x2="{to_x}" y2="{to_y + 18}"'
        live = start in seen and end in seen
        style = 'stroke="#0b5fa5" stroke-width="2.5"' if live else 'stroke="#999"'
        parts.append(f'<line {line} {style} marker-end="url(#head)"/>')
    for box, (x, y, width, text) in BOXES.items():
        fill, edge = ("#cfe6fa", "#0b5fa5") if box in seen else ("#f4f4f4", "#bbb")
        if box in fixed:
            fill, edge = "#fff2cc", "#b58900"
        text = renamed.get(box, text)
        size = 13 if len(text) < 15 else 9 if len(text) > 20 else 11
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="36" rx="5" fill="{fill}" '
            f'stroke="{edge}"/><text x="{x + width / 2}" y="{y + 22}" text-anchor="middle" '
            f'font-size="{size}" fill="#222">{text}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    for threat in THREATS:
        (pathlib.Path(__file__).parent / f"{threat}.svg").write_text(draw(threat))
