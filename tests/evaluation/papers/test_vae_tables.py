"""The tables of Defense-VAE and MAD-VAE beside folders made by hand."""

import importlib
import json
import math

import pytest
import tyro

from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers import vae_sources, vae_table_report, vae_tables
from memdef_jax.evaluation.papers.published_vae import TABLES, Average, printed
from memdef_jax.evaluation.sweeps.records import append_record
from memdef_jax.training.run import VERSION

THREE = ("fgsm", "rfgsm", "cw")
VARIANTS = {
    "defense_vae": ("vae", "rec", "e2e"),
    "mad_vae": ("identity", "vanilla", "classification", "proximity_distance", "combined"),
}


def write_run(
    folder,
    dataset="mnist",
    classifier="a",
    attacks=THREE,
    kind="defense_vae",
    finished=True,
    **fields,
):
    """A run's description, as training leaves it, and places for its defenses."""
    folder.mkdir(parents=True)
    config = {"classifier": {"architecture": classifier}, "mixture": {"attacks": list(attacks)}}
    run = {
        "kind": kind,
        "dataset": dataset,
        "fingerprint": "f",
        "config": config,
        "defenses": list(VARIANTS.get(kind, ())),
    }
    run |= fields
    content = {"version": VERSION, "run": run}
    (folder / "run.json").write_text(json.dumps(content))
    for name in run["defenses"] if finished else ():
        (folder / "defenses" / name).mkdir(parents=True)
        (folder / "defenses" / name / "defense.json").touch()
    return folder


def measure(folder, threat, attack, eps, right, n=100, variant="vae", alone=0, **fields):
    """A cell: of n images so many right by a variant, and `alone` by the undefended classifier."""
    record = {
        "dataset": "mnist",
        "fingerprint": "f",
        "defense": "defense_vae",
        "selector": variant,
        "threat": threat,
        "attack": attack,
        "norm": None,
        "eps": eps,
        "n": n,
        "seed": 0,
        "settings": {},
        "robust_accuracy": right / n,
        "clean_accuracy": 0.9,
        "selector_accuracy": alone / n,
    }
    append_record(folder, record | fields)


def write_black_box(folder, *rows, **fields):
    usual = {"eps": 0.3, "n": 200, "seed": 0, "queries": 4800, "agreement": 0.9}
    content = {"dataset": "mnist", "fingerprint": "f", "classifier": "a", "kind": "defense_vae"}
    content |= {"rows": [usual | row for row in rows]} | fields
    (folder / "black_box.json").write_text(json.dumps(content))


def judged(**robust):
    """Variants as black_box.json has them."""
    return {
        name: {"clean": 0.95, "robust": share, "interval": [share - 0.03, share + 0.02]}
        for name, share in robust.items()
    }


def write_overpowered(folder, variants, name="overpowered", **fields):
    content = {"dataset": "mnist", "fingerprint": "f", "kind": "mad_vae", "n": 40}
    content |= {"target": "classifier" if "classifier" in name else "deployed"}
    content |= {"rhos": [1.0, 2.5, 3.0, 3.5], "variants": variants} | fields
    (folder / f"{name}.json").write_text(json.dumps(content))


def compared(folder, paper="defense_vae", tables=None):
    return vae_tables.compare(
        paper, vae_sources.read_sources(folder, paper), tables or TABLES[paper]
    )


def cell(found, table, column, attack, row="A", dataset="mnist"):
    """The one number of a table."""
    place = table, dataset, column, attack, row
    here = [
        c
        for c in found
        if place
        == (c.printed.table, c.printed.dataset, c.printed.column, c.printed.attack, c.printed.row)
    ]
    assert len(here) == 1, place
    return here[0]


def percents(one):
    return {name: reading.percent for name, reading in one.readings.items()}


# --- attacks on the classifier itself -----------------------------------------------------------


def test_each_threat_model_is_a_reading_with_its_difference_from_the_paper(tmp_path):
    run = write_run(tmp_path / "any")
    measure(run, "none", "clean", None, 98, alone=99)
    measure(run, "grey_box", "fgsm", 0.3, 97, alone=12)
    measure(run, "adaptive", "fgsm", 0.3, 41, alone=70)
    measure(run, "worst_case", "fgsm", 0.3, 40, alone=5)
    measure(run, "grey_box", "fgsm", 0.3, 88, variant="rec", alone=12)
    measure(run, "grey_box", "fgsm", 0.25, 1, alone=1)  # another budget
    measure(run, "grey_box", "pgd", 0.3, 1, alone=1)  # another attack
    measure(run, "grey_box", "fgsm", 0.3, 1, fingerprint="other")
    measure(run, "grey_box", "cw", None, 93, alone=0)
    found = compared(tmp_path)
    own = cell(found, 1, "Defense-VAE", "fgsm")  # the paper prints 98.29
    assert percents(own) == pytest.approx({"grey_box": 97, "adaptive": 41, "worst_case": 40})
    assert own.differences["grey_box"] == pytest.approx(97 - 98.29)
    assert own.reproduced_by == ("grey_box",)
    low, high = own.readings["grey_box"].interval
    # Wilson: the shares p with |p - 0.97| = z sqrt(p (1 - p) / n)
    for bound in (low / 100, high / 100):
        z = abs(bound - 0.97) / math.sqrt(bound * (1 - bound) / 100)
        assert z == pytest.approx(1.96, abs=0.001)
    assert percents(cell(found, 1, "Defense-VAE-REC", "fgsm")) == pytest.approx({"grey_box": 88})
    assert percents(cell(found, 1, "Defense-VAE", "cw")) == pytest.approx({"grey_box": 93})
    assert not cell(found, 1, "Defense-VAE-E2E", "fgsm").readings
    # the undefended classifier: without attack, and under the one crafted on it
    assert percents(cell(found, 1, "No Attack", "clean")) == pytest.approx({"clean": 99})
    assert percents(cell(found, 1, "No Defense", "fgsm")) == pytest.approx({"grey_box": 12})


def test_numbers_of_other_authors_stand_alone(tmp_path):
    run = write_run(tmp_path / "any")
    measure(run, "grey_box", "fgsm", 0.3, 97)
    others = [c for c in compared(tmp_path) if c.printed.system is None]
    assert {c.printed.column for c in others} == {"Defense-GAN", "MagNet", "Adversarial Training"}
    assert not any(c.readings or c.verdict for c in others)


def test_of_several_measurements_the_one_with_most_images_counts_and_then_the_last(tmp_path):
    run = write_run(tmp_path / "any")

    def reading():
        return cell(compared(tmp_path), 1, "Defense-VAE", "cw").readings["grey_box"]

    measure(run, "grey_box", "cw", None, 10, n=20)
    measure(run, "grey_box", "cw", None, 4, n=10)
    assert (reading().percent, reading().n) == (50.0, 20)
    measure(run, "grey_box", "cw", None, 15, n=20, settings={"steps": 100})
    assert reading().percent == 75.0


# --- which run is which row ---------------------------------------------------------------------


def test_a_row_is_a_run_on_its_dataset_classifier_and_training_attacks(tmp_path):
    a = write_run(tmp_path / "one", "fashion_mnist", "a")
    b = write_run(tmp_path / "deep" / "two", "fashion_mnist", "b", ("cw", "rfgsm", "fgsm"))
    less = write_run(tmp_path / "three", "fashion_mnist", "a", ("rfgsm", "fgsm"))
    more = write_run(tmp_path / "four", "fashion_mnist", "a", ("fgsm", "rfgsm", "deepfool"))
    write_run(tmp_path / "other", kind="memory_defense")
    write_run(tmp_path / "mad", classifier="magnet", kind="mad_vae")
    write_run(tmp_path / "far" / "too" / "deep", "fashion_mnist", "c")
    for share, run in enumerate((a, b, less, more), 1):
        fields = {"dataset": "fashion_mnist", "variant": "rec"}
        measure(run, "grey_box", "cw", None, 10 * share, **fields)
    found = compared(tmp_path)

    def own(table, column, row="A"):
        one = cell(found, table, column, "cw", row, "fashion_mnist")
        return percents(one).get("grey_box")

    assert own(1, "Defense-VAE-REC") == own(2, "Trained on 3") == pytest.approx(10)
    assert own(1, "Defense-VAE-REC", "B") == own(2, "Trained on 3", "B") == pytest.approx(20)
    assert own(2, "Trained on other 2") == pytest.approx(30)
    assert own(2, "Trained on other 2 and DeepFool") == pytest.approx(40)
    assert own(1, "Defense-VAE-REC", "C") is own(2, "Trained on other 2", "B") is None
    measured = {c.printed.dataset for c in found if c.readings}
    assert measured == {"fashion_mnist"}


def test_the_folder_may_be_the_run_itself_and_faces_come_from_a_folder(tmp_path):
    run = write_run(tmp_path / "faces", "folder:celeba", "d")
    measure(run, "grey_box", "rfgsm", 0.3, 91, dataset="folder:celeba")
    one = cell(compared(run), 7, "Defense-VAE", "rfgsm", "D", "celeba")
    assert percents(one) == pytest.approx({"grey_box": 91})


def test_two_runs_of_a_row_are_refused(tmp_path):
    first, second = write_run(tmp_path / "x"), write_run(tmp_path / "y", attacks=THREE[::-1])
    with pytest.raises(InputError, match=f"{first} and {second} are runs on the same dataset"):
        vae_sources.read_sources(tmp_path, "defense_vae")


def test_a_folder_without_runs_is_refused(tmp_path):
    write_run(tmp_path / "mad", kind="mad_vae")
    write_run(tmp_path / "imported", config={"imported": {"vae": "0"}})  # trained on who knows what
    sentence = f"{tmp_path} holds no run of Defense-VAE, nor do the folders in it; train one first"
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=sentence.replace(str(tmp_path), str(folder))):
            vae_sources.read_sources(folder, "defense_vae")


def test_a_table_that_is_not_compared_is_refused():
    with pytest.raises(InputError, match=r"table 5 is not one of those compared here; use 1, 2, "):
        vae_tables.compare("defense_vae", [], (1, 5))


# --- attacks on a substitute --------------------------------------------------------------------


def test_substitutes_count_by_whose_answers_they_learned_from(tmp_path):
    run = write_run(tmp_path / "any")
    write_black_box(
        run,
        {
            "substitute": "b",
            "oracle": "undefended",
            "clean_undefended": 0.99,
            "undefended": 0.67,
            "variants": judged(vae=0.97, rec=0.9),
        },
        {
            "substitute": "b",
            "oracle": "undefended",
            "eps": 0.1,
            "clean_undefended": 0.5,
            "undefended": 0.5,
            "variants": judged(vae=0.5),
        },
        {
            "substitute": "b",
            "oracle": "vae",
            "clean_undefended": 0.99,
            "undefended": 0.8,
            "variants": judged(vae=0.6),
        },
    )
    found = compared(tmp_path)
    vae = cell(found, 3, "Defense-VAE", "fgsm", "A/B")  # the paper prints 98.68
    assert percents(vae) == pytest.approx({"oracle undefended": 97, "oracle deployed": 60})
    assert vae.readings["oracle undefended"].interval == pytest.approx((94, 99))
    assert vae.readings["oracle undefended"].n == 200
    assert vae.verdict == "oracle undefended"
    rec = cell(found, 3, "Defense-VAE-REC", "fgsm", "A/B")
    assert percents(rec) == pytest.approx({"oracle undefended": 90})
    assert percents(cell(found, 3, "No Attack", "clean", "A/B")) == pytest.approx({"clean": 99})
    none = cell(found, 3, "No Defense", "fgsm", "A/B")
    assert percents(none) == pytest.approx({"oracle undefended": 67})
    assert not cell(found, 3, "Defense-VAE", "fgsm", "A/E").readings
    assert not cell(found, 1, "No Attack", "clean").readings  # that is the sweep's to tell


def test_of_several_attacks_on_a_substitute_most_images_and_the_first_seed_count(tmp_path):
    run = write_run(tmp_path / "any")
    usual = {"substitute": "e", "oracle": "undefended", "clean_undefended": 1.0, "undefended": 0.5}
    shares = ((0.1, 200, 1), (0.2, 500, 0), (0.3, 500, 1), (0.4, 100, 0))
    rows = [
        usual | {"n": n, "seed": seed, "variants": judged(vae=share)} for share, n, seed in shares
    ]
    write_black_box(run, *rows)
    one = cell(compared(tmp_path), 3, "Defense-VAE", "fgsm", "A/E").readings["oracle undefended"]
    assert (one.percent, one.n) == (pytest.approx(20), 500)


# --- the Overpowered attack ---------------------------------------------------------------------


@pytest.fixture
def mad(tmp_path):
    return write_run(tmp_path / "runs" / "mad", classifier="magnet", kind="mad_vae")


def counted(accuracy, original, found=0.9, changed=0.25):
    return {
        "accuracy": accuracy,
        "original_accuracy": original,
        "found": found,
        "changed": changed,
        "interval": [0.4, 0.5],
    }


def test_the_overpowered_attack_has_two_accuracies(mad):
    write_overpowered(mad, {"vanilla": counted(0.45, 0.3), "combined": counted(None, None)})
    found = compared(mad, "mad_vae")
    pooled = cell(found, 3, "Vanilla", "overpowered", "accuracy")  # the paper prints 44.43
    assert percents(pooled) == pytest.approx({"overpowered": 45})
    assert pooled.readings["overpowered"].interval == pytest.approx((40, 50))
    assert pooled.verdict == "overpowered"
    original = cell(found, 3, "Vanilla", "overpowered", "original_accuracy")  # 33.5
    assert original.differences == pytest.approx({"overpowered": 30 - 33.5})
    assert not cell(found, 3, "Combined", "overpowered", "accuracy").readings
    (source,) = vae_sources.read_sources(mad, "mad_vae")
    (remark,) = source.remarks
    assert "vanilla found an image in 90.0%" in remark
    assert "25.0% of these show another class" in remark


def test_a_search_on_the_classifier_alone_is_a_reading_of_its_own(mad):
    ours, published = "overpowered", "overpowered, classifier alone"
    write_overpowered(mad, {"vanilla": counted(0.6, 0.5)}, name="overpowered-classifier")
    alone = cell(compared(mad, "mad_vae"), 3, "Vanilla", "overpowered", "accuracy")
    assert percents(alone) == pytest.approx({published: 60})
    write_overpowered(mad, {"vanilla": counted(0.45, 0.3)})
    sources = vae_sources.read_sources(mad, "mad_vae")
    both = cell(vae_tables.compare("mad_vae", sources, [3]), 3, "Vanilla", ours, "accuracy")
    assert percents(both) == pytest.approx({ours: 45, published: 60})
    assert "on vanilla's classifier alone found" in sources[0].remarks[1]


def test_each_search_that_is_missing_has_its_command(mad):
    every = dict.fromkeys(VARIANTS["mad_vae"], counted(0.45, 0.3))
    one = f"python -m eval.overpowered --run {mad}"
    write_overpowered(mad, every)
    (line,) = commands(mad, "mad_vae")
    assert line.endswith(f", then `{one} --target classifier`")
    assert f"`{one}`" not in line
    write_overpowered(mad, every, name="overpowered-classifier")
    (line,) = commands(mad, "mad_vae")
    assert "eval.overpowered" not in line


def test_over_other_noise_it_is_another_number(mad):
    write_overpowered(mad, {"vanilla": counted(0.45, 0.3)}, rhos=[1.0])
    assert not any(c.readings for c in compared(mad, "mad_vae"))


def test_a_mad_vae_is_compared_in_percent(mad):
    fields = {"defense": "mad_vae", "variant": "proximity_distance"}
    measure(mad, "grey_box", "single_pixel", None, 98, alone=99, **fields)
    measure(mad, "grey_box", "mifgsm", 0.3, 98, alone=1, **fields)
    found = compared(mad, "mad_vae")
    one = cell(found, 1, "Proximity and Distance", "single_pixel", "MagNet")
    assert one.differences == pytest.approx({"grey_box": 98 - 98.77})
    none = cell(found, 1, "No Defense", "mifgsm", "MagNet")
    assert none.differences == pytest.approx({"grey_box": 1 - 0.74})


# --- damaged files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("black_box.json", '{"rows": [', "is damaged; delete it and measure again with `python"),
        ("black_box.json", "[]", "is damaged; delete it"),
        ("black_box.json", '{"fingerprint": "f"}', "is damaged; delete it"),
        ("black_box.json", '{"fingerprint": "f", "rows": [{"n": 1}]}', "is damaged; delete it"),
        ("black_box.json", '{"fingerprint": "g", "rows": []}', "was measured on other data than"),
        ("overpowered.json", '{"fingerprint": "f", "rhos": 3}', "is damaged; delete it and"),
        (
            "overpowered.json",
            '{"fingerprint": "f", "rhos": [1.0, 2.5, 3.0, 3.5], "n": 1, "variants": {"vae": 1}}',
            "is damaged; delete it and measure again with `python -m eval.overpowered --run ",
        ),
        (
            "overpowered-classifier.json",
            "[]",
            "measure again with `python -m eval.overpowered --run .* --target classifier`",
        ),
        ("robustness.jsonl", "{}\n", "line 1 is damaged"),
        ("run.json", "{", "is damaged; choose a new folder"),
        ("run.json", '{"version": 1, "run": {"kind": "defense_vae"}}', "is damaged; choose a new"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, name, content, sentence):
    run = write_run(tmp_path / "any")
    (run / name).write_text(content)
    with pytest.raises(InputError, match=sentence) as error:
        vae_sources.read_sources(tmp_path, "defense_vae")
    assert str(run / name) in str(error.value)
    assert "\n" not in str(error.value)


# --- averages -----------------------------------------------------------------------------------


def averaged(folder, column, table=1, dataset="mnist"):
    found = vae_tables.average("defense_vae", compared(folder))
    place = table, dataset, column
    (one,) = [a for a in found if (a.printed.table, a.printed.dataset, a.printed.column) == place]
    return one


def test_averages_are_over_what_was_measured_and_say_over_how_many(tmp_path):
    run = write_run(tmp_path / "a")
    measure(run, "none", "clean", None, 98, alone=99)
    measure(run, "grey_box", "fgsm", 0.3, 90, alone=12)
    measure(run, "grey_box", "cw", None, 60, n=100, alone=2)
    measure(run, "adaptive", "cw", None, 5)
    vae = averaged(tmp_path, "Defense-VAE")
    assert vae.printed == Average(1, "mnist", "Defense-VAE", 94.90)
    assert vae.cells == 12
    # the paper prints 98.29 for FGSM and 92.69 for CW
    assert vae.means == {
        "grey_box": pytest.approx((75, 75 - (98.29 + 92.69) / 2, 2)),
        "adaptive": pytest.approx((5, 5 - 92.69, 1)),
    }
    undefended = averaged(tmp_path, "No Defense").means
    assert undefended == {"grey_box": pytest.approx((7, 7 - (14.65 + 8.45) / 2, 2))}
    clean = averaged(tmp_path, "No Attack")
    assert (clean.cells, clean.means) == (4, {"clean": pytest.approx((99, 99 - 99.15, 1))})
    assert averaged(tmp_path, "MagNet").means == {}
    assert averaged(tmp_path, "Defense-VAE", 3).means == {}


# --- what is shown ------------------------------------------------------------------------------


def shown(folder, table, heading, paper="defense_vae"):
    """The lines of a table by row, attack and system, as dictionaries."""
    report = vae_table_report.report(folder, paper, (table,))
    (sheet,) = [s for s in report.sheets if s.heading == heading]
    assert {len(row) for row in sheet.rows} == {len(sheet.header)}
    return {tuple(row[:3]): dict(zip(sheet.header, row)) for row in sheet.rows}


def test_lines_show_our_number_and_by_how_much_it_exceeds_the_papers(tmp_path):
    for name in "abcd":
        run = write_run(tmp_path / name, classifier=name)
        measure(run, "none", "clean", None, 98, alone=99)
        measure(run, "grey_box", "fgsm", 0.3, 97, alone=12)
    rows = shown(tmp_path, 1, "Table 1, mnist")
    line = rows["A", "fgsm", "Defense-VAE"]
    assert line["paper %"] == "98.29"
    assert line["grey_box"] == "97.0 (-1.3)"
    assert (line["adaptive"], line["n"], line["reproduced by"]) == ("", "100", "grey_box")
    assert line["95%"] == "91.5-99.0"
    assert rows["A", "fgsm", "No Defense"]["reproduced by"] == "none"  # 14.65: 2.65 off
    assert rows["A", "clean", "No Attack"]["grey_box"] == "99.0 (-0.2)"
    other = rows["A", "fgsm", "MagNet"]
    assert [value for value in other.values() if value] == ["A", "fgsm", "MagNet", "19.10"]
    assert rows["Average", "", "No Attack"]["grey_box"].endswith(" over 4 of 4")
    # the paper: 14.65, 1.81, 29.53 and 4.33
    assert rows["Average", "", "No Defense"]["grey_box"] == "12.0 (-0.6) over 4 of 12"
    assert rows["Average", "", "Defense-VAE"]["grey_box"] == "97.0 (-0.5) over 4 of 12"
    assert rows["Average", "", "Adversarial Training"]["paper %"] == "27.38"
    text = vae_table_report.report(tmp_path, "defense_vae", (1,)).said[0]
    # 99.0 against 99.15, 96.10, 99.08, 97.87; 12 against 14.65, 1.81, 29.53, 4.33; and
    # 97 against 98.29, 95.92, 98.41, 97.56
    assert text == (
        "Table 1, mnist: of 12 numbers measured in the paper's own setting 7 come within 2 points."
    )


def test_tables_with_substitutes_and_latent_attacks_have_columns_of_their_own(tmp_path, mad):
    write_run(tmp_path / "any")
    line = shown(tmp_path / "any", 3, "Table 3, mnist")["A/B", "fgsm", "Defense-VAE"]
    assert {"oracle undefended", "oracle deployed"} < set(line)
    line = shown(mad, 3, "Table 3, mnist", "mad_vae")["accuracy", "overpowered", "Identity"]
    assert "overpowered" in line
    assert "adaptive" not in line


def test_run_times_are_printed_with_where_to_measure_ours(tmp_path):
    write_run(tmp_path / "any")
    report = vae_table_report.report(tmp_path, "defense_vae")
    tables = [sheet.heading.split(",")[0] for sheet in report.sheets]
    assert tables == sorted(tables)
    assert ["Defense-VAE", "9.03"] in report.sheets[tables.index("Table 4")].rows
    assert any("python -m benchmarks.purify" in text for text in report.said)
    only = vae_table_report.report(tmp_path, "defense_vae", (4,))
    assert [sheet.heading for sheet in only.sheets] == ["Table 4, run time"]
    assert only.said == ["Ours for Table 4: `python -m benchmarks.purify`."]


# --- what is missing ----------------------------------------------------------------------------


def commands(folder, paper="defense_vae", tables=None):
    said = vae_table_report.report(folder, paper, tables).said
    return [text for text in said if text.startswith("`")]


def fill(run, row="A", paper="defense_vae", but=()):
    """Measure everything of one row of a paper's Table 1 on MNIST, but for some variants."""
    for p in printed(paper):
        place = p.table, p.dataset, p.row
        if place != (1, "mnist", row) or p.system in (None, *but):
            continue
        if p.system == "clean":
            measure(run, "none", "clean", None, 90, alone=90)
            continue
        variant = "vae" if p.system == "undefended" else p.system
        for threat in ("grey_box", "adaptive"):
            measure(run, threat, p.attack, p.eps, 50, variant=variant)


def test_blanks_of_a_run_are_measured_by_one_command_of_each_kind(tmp_path):
    run = write_run(tmp_path / "any")
    first, *others = commands(tmp_path, tables=(1, 3))[4:]  # Fashion-MNIST comes before
    assert first == (
        f"`python -m eval.robustness --run {run} --suite defense_vae`, then "
        f"`python -m eval.black_box --run {run} --substitutes b e`"
    )
    assert len(others) == 3
    fill(run)
    assert not any(f"--run {run} " in line for line in commands(tmp_path, tables=(1,)))
    usual = {"oracle": "undefended", "clean_undefended": 1.0, "undefended": 0.5}
    rows = [usual | {"substitute": "b", "variants": judged(vae=0.9, rec=0.9, e2e=0.9)}]
    rows += [
        {**rows[0], "oracle": name, "variants": judged(**{name: 0.5})}
        for name in VARIANTS["defense_vae"]
    ]
    write_black_box(run, *rows)
    assert commands(tmp_path, tables=(1, 3))[4] == (
        f"`python -m eval.black_box --run {run} --substitutes e`"
    )


def test_missing_runs_are_trained_and_measured_by_one_line_each(tmp_path):
    write_run(tmp_path / "any")
    lines = commands(tmp_path)
    # Tables 1 and 3: 4 + 4, 2: 12 with two attacks and 4 with DeepFool, 7: 4 + 3
    assert len(lines) == 8 + 16 + 7
    new = tmp_path / "fashion_mnist-a"
    assert lines[0] == (
        f"`python -m train.defense_vae --run {new} --dataset fashion_mnist "
        "--config.classifier.architecture a`, then "
        f"`python -m eval.robustness --run {new} --suite defense_vae`, then "
        f"`python -m eval.black_box --run {new} --substitutes b e`"
    )
    (two,) = [
        line
        for line in lines
        if "--config.mixture.attacks fgsm rfgsm --config.variants vae rec`" in line
    ][:1]
    assert f"--run {tmp_path / 'fashion_mnist-a-fgsm-rfgsm'} " in two
    assert "black_box" not in two
    faces = [line for line in lines if "--dataset folder:celeba --image-size 32 " in line]
    assert len(faces) == 4
    assert sum("--substitutes e`" in line for line in lines) == 2  # Table 8: C and D
    said = vae_table_report.report(tmp_path, "defense_vae").said
    assert any("celeba/train/<class>/" in text for text in said)
    assert "--preset paper" in said[-len(lines) - 1]


def test_a_mad_vae_needs_all_three_kinds_of_measurement(mad):
    (line,) = commands(mad, "mad_vae")
    assert line == (
        f"`python -m eval.robustness --run {mad} --suite mad_vae`, then "
        f"`python -m eval.black_box --run {mad} --substitutes a b c d e`, then "
        f"`python -m eval.overpowered --run {mad}`, then "
        f"`python -m eval.overpowered --run {mad} --target classifier`"
    )
    fill(mad, row="MagNet", paper="mad_vae")
    for name in ("overpowered", "overpowered-classifier"):
        write_overpowered(mad, dict.fromkeys(VARIANTS["mad_vae"], counted(0.4, 0.3)), name=name)
    assert commands(mad, "mad_vae", (1, 3)) == []


def test_a_variant_that_was_not_trained_is_named(tmp_path):
    run = write_run(tmp_path / "any", defenses=["vae", "rec"])
    said = vae_table_report.report(tmp_path, "defense_vae", (1,)).said
    (sentence,) = [text for text in said if "no variant" in text]
    assert sentence.startswith(f"{run} has no variant e2e; its numbers need a run in another")
    fill(run, but=("e2e",))  # measuring it again would not help
    assert not any(f"--run {run} " in line for line in commands(tmp_path, tables=(1,)))


# --- the program --------------------------------------------------------------------------------


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal breaks cells

    return importlib.import_module("eval.paper_tables").main


def test_the_program_writes_what_it_prints(tmp_path, program, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    run = write_run(tmp_path / "any")
    measure(run, "grey_box", "fgsm", 0.3, 97, alone=12)
    arguments = ["--run", tmp_path, "--paper", "defense_vae", "--table", "1", "4"]
    tyro.cli(program, args=[str(a) for a in arguments])
    out = capsys.readouterr().out
    document = (tmp_path / "paper_tables_defense_vae.md").read_text()
    numbers = json.loads((tmp_path / "paper_tables_defense_vae.json").read_text())
    assert f"tables: {tmp_path / 'paper_tables_defense_vae.md'}" in out
    assert "Table 3" not in out
    for text in (out, document):
        for part in ("Table 1, mnist", "Table 4, run time", "97.0 (-1.3)", "441.81"):
            assert part in text
        for sentence in numbers["notes"]:
            assert sentence in text
    (one,) = [c for c in numbers["cells"] if c["readings"] and c["system"] == "vae"]
    assert one["readings"]["grey_box"]["difference"] == pytest.approx(97 - 98.29)
    assert (one["classifier"], one["trained"]) == ("a", ["cw", "fgsm", "rfgsm"])
    (mean,) = [a for a in numbers["averages"] if a["means"] and a["column"] == "Defense-VAE"]
    ours = mean["means"]["grey_box"]
    assert ours == pytest.approx({"percent": 97, "difference": 97 - 98.29, "cells": 1})
    assert numbers["paper"] == "defense_vae"
    assert numbers["seconds_for_1000_images"]["Defense-VAE"] == 9.03


def test_the_program_compares_a_mad_vae(mad, program, capsys):
    write_overpowered(mad, {"vanilla": counted(0.45, 0.3)})
    tyro.cli(program, args=["--run", str(mad), "--paper", "mad_vae"])
    out = capsys.readouterr().out
    assert "45.0 (+0.6)" in out
    assert "another class to the proxy" in out
    assert "Overpowered attack" in (mad / "paper_tables_mad_vae.md").read_text()


def test_the_program_refuses_an_ablation_and_what_holds_no_run(tmp_path, program):
    arguments = ["--run", str(tmp_path), "--paper", "mad_vae"]
    with pytest.raises(InputError, match="holds no run of MAD-VAE"):
        tyro.cli(program, args=arguments)
    with pytest.raises(InputError, match="has nothing of mad_vae; leave it out"):
        tyro.cli(program, args=[*arguments, "--ablation", str(tmp_path)])


# --- the feature-map denoiser -------------------------------------------------------------------


def write_denoisers(folder, dataset="mnist", **fields):
    """A denoiser, an HGD and an adversarially trained classifier of one dataset."""
    learned = {"classifier": {"architecture": "lenet"}, "examples": {"attacks": ["pgd", "fgsm"]}}
    robust = {"architecture": "lenet", "training": {"recipe": "pgd", "eps": 0.2}}
    kinds = {
        "feature_denoiser": (learned, ["perceptual", "pixel"]),
        "hgd": (learned, ["logits"]),
        "classifier": (robust, ["linear", "memory"]),
    }
    return [
        write_run(folder / kind, dataset, kind=kind, config=config, defenses=names, **fields)
        for kind, (config, names) in kinds.items()
    ]


def test_a_denoisers_tables_are_of_runs_of_three_kinds(tmp_path):
    own, hgd, robust = write_denoisers(tmp_path)
    measure(own, "none", "clean", None, 98, variant="perceptual", alone=99)
    measure(own, "grey_box", "fgsm", 0.2, 91, variant="perceptual", alone=20)
    measure(own, "adaptive", "fgsm", 0.2, 3, variant="perceptual", alone=70)
    measure(own, "grey_box", "fgsm", 0.2, 85, variant="pixel", alone=20)
    measure(own, "grey_box", "fgsm", 0.3, 1, variant="perceptual", alone=1)
    measure(hgd, "grey_box", "pgd", 0.2, 83, variant="logits")
    measure(robust, "grey_box", "pgd", 0.2, 92, variant="linear")
    measure(robust, "grey_box", "pgd", 0.2, 1, variant="memory")
    found = compared(tmp_path, "feature_denoiser", (1,))

    def line(column, attack):
        return cell(found, 1, column, attack, "LeNet")

    ours = line("Ours", "fgsm")
    assert percents(ours) == pytest.approx({"grey_box": 91, "adaptive": 3})
    assert (ours.printed.percent, ours.reproduced_by) == (92.1, ("grey_box",))
    assert percents(line("Unsecured", "fgsm")) == pytest.approx({"grey_box": 20})
    assert percents(line("No Attack", "clean")) == pytest.approx({"clean": 99})
    assert line("HGD", "pgd").differences == pytest.approx({"grey_box": 83 - 83.3})
    assert line("Madry", "pgd").differences == pytest.approx({"grey_box": 92 - 92.5})
    pixel = line("Ours on pixels alone", "fgsm")
    assert (percents(pixel), pixel.printed.percent) == ({"grey_box": pytest.approx(85)}, None)
    assert (pixel.differences, pixel.verdict) == ({}, "")


def test_other_classifiers_are_no_rows_of_the_denoisers_paper(tmp_path):
    write_denoisers(tmp_path)
    for name, change in (("a", {"eps": 0.1}), ("b", {"eps": 0.1}), ("c", {"recipe": "trades"})):
        training = {"recipe": "pgd", "eps": 0.2} | change
        config = {"architecture": "lenet", "training": training}
        write_run(tmp_path / name, kind="classifier", config=config)
    kinds = [s.kind for s in vae_sources.read_sources(tmp_path, "feature_denoiser")]
    assert sorted(kinds) == ["classifier", "feature_denoiser", "hgd"]


def test_blanks_of_a_denoisers_tables_have_commands_for_each_kind(tmp_path):
    own, *_ = write_denoisers(tmp_path / "three")
    mnist = commands(tmp_path, "feature_denoiser", (1,))
    suite = "--suite feature_denoiser`"
    assert len(mnist) == 3
    assert mnist[0] == f"`python -m eval.robustness --run {own} {suite}"
    gray = commands(tmp_path, "feature_denoiser", (2,))
    data = "--dataset cifar10 --gray --image-size 28"
    assert gray == [
        f"`python -m train.feature_denoiser --run {tmp_path / 'cifar10-lenet'} {data}`, then "
        f"`python -m eval.robustness --run {tmp_path / 'cifar10-lenet'} {suite}",
        f"`python -m train.classifier --run {tmp_path / 'classifier-cifar10-lenet'} {data} "
        "--config.architecture lenet --config.variants linear --config.training.eps 0.2 "
        "--config.training.clean-share 0`, then "
        f"`python -m eval.robustness --run {tmp_path / 'classifier-cifar10-lenet'} {suite}",
        f"`python -m train.hgd --run {tmp_path / 'hgd-cifar10-lenet'} {data}`, then "
        f"`python -m eval.robustness --run {tmp_path / 'hgd-cifar10-lenet'} {suite}",
    ]


def test_what_the_denoisers_paper_cannot_have_measured_is_doubted(tmp_path):
    first, second = (
        {(p.attack, p.percent) for p in printed("feature_denoiser") if p.table == table}
        & {("fgsm", 22.1), ("pgd", 16.1)}
        for table in (1, 2)
    )
    assert first == second == {("fgsm", 22.1), ("pgd", 16.1)}
    write_denoisers(tmp_path)
    said = vae_table_report.report(tmp_path, "feature_denoiser").said
    assert sum("digit by digit" in text for text in said) == 1
    only = vae_table_report.report(tmp_path, "feature_denoiser", (1,)).said
    assert not any("digit by digit" in text for text in only)


# --- other images in a dataset's place ----------------------------------------------------------


def test_the_lossy_copy_of_cifar10_has_a_table_of_its_own_and_reproduces_nothing(tmp_path):
    jpeg, name = "folder:cifar10-jpeg", "Table 7, CIFAR-10 (JPEG)"
    run = write_run(tmp_path / "jpeg", jpeg, "a")
    measure(run, "grey_box", "fgsm", 0.3, 45, dataset=jpeg, alone=2)  # the paper prints 44.86
    report = vae_table_report.report(tmp_path, "defense_vae", (7,))
    assert [s.heading for s in report.sheets] == ["Table 7, celeba", "Table 7, cifar10", name]
    line = shown(tmp_path, 7, name)["A", "fgsm", "Defense-VAE"]
    assert (line["grey_box"], line["reproduced by"]) == ("45.0 (+0.1)", "other data")
    assert not shown(tmp_path, 7, "Table 7, cifar10")["A", "fgsm", "Defense-VAE"]["grey_box"]
    assert shown(tmp_path, 7, name)["Average", "", "Defense-VAE"]["grey_box"].endswith("1 of 9")
    assert not any("come within" in text for text in report.said)
    assert any(text.startswith("CIFAR-10 (JPEG) is not the paper's") for text in report.said)
    assert any("--dataset folder:cifar10-jpeg " in text for text in report.said)
    cells = [c for c in report.numbers["cells"] if c["readings"]]
    assert {(c["dataset"], *c["reproduced_by"]) for c in cells} == {("cifar10-jpeg",)}
    assert name in report.document


def test_gray_ones_stand_beside_the_denoisers_second_table(tmp_path):
    own, *_ = write_denoisers(tmp_path, "folder:cifar10-jpeg")
    fields = {"dataset": "folder:cifar10-jpeg", "variant": "perceptual"}
    measure(own, "grey_box", "pgd", 0.2, 38, **fields)
    lines = shown(tmp_path, 2, "Table 2, CIFAR-10 (JPEG)", "feature_denoiser")
    assert lines["LeNet", "pgd", "Ours"]["grey_box"] == "38.0 (-0.5)"
