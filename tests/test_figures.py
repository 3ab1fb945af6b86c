"""Figures of a GPU in the documents are those of the records, or say that there are none."""

import json

import pytest

from bench.figures import CPU_MACHINE, NOT_MEASURED, PLACE, documents, filler, main, newest
from bench.gpu_record import FIGURES

RATE, SHARE = "decode_3b_256_tok_s", "decode_3b_256_roofline_frac"


def place(name, text=NOT_MEASURED):
    return f"<!--gpu {name}-->{text}<!--/gpu-->"


@pytest.fixture
def tree(tmp_path):
    """A checkout with two documents and the given records."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"| decode | {place(RATE)} | {place(SHARE)} |\n")
    (tmp_path / "docs" / "rollout.md").write_text(f"Whole: {place('update_3b_s')}.\n")

    def keep(folder, card, date, rehearsal="", **values):
        path = tmp_path / "bench" / "results" / folder / "record.json"
        path.parent.mkdir(parents=True)
        found = {
            name: dict(value=v, unit=FIGURES[name].unit, stage="x", commit="c", date=date)
            for name, v in values.items()
        }
        record = {"schema": 2, "hardware": {"gpus": [{"name": card}]}, "figures": found}
        path.write_text(json.dumps(record | {"rehearsal": rehearsal}))

    return tmp_path, keep


def test_the_documents_of_this_checkout_agree_with_its_records(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_this_checkout_has_places_for_figures():
    found = [kind for path in documents() for kind, *_ in PLACE.findall(path.read_text())]
    assert min(found.count(kind) for kind in ("gpu", "cpu", "lines")) >= 10


def test_without_a_record_nothing_was_measured(tree):
    root, _ = tree
    assert main(["--check"], root) == 0 and newest(root) == {}


def test_figures_come_from_the_newest_record_that_holds_them(tree, capsys):
    root, keep = tree
    keep("b", "NVIDIA H100 80GB HBM3", "2026-12-01T10:00:00+00:00", **{RATE: 27123.4, SHARE: 0.431})
    keep("a", "NVIDIA H200", "2026-12-05T10:00:00+00:00", **{RATE: 31000.0})
    assert main(["--check"], root) == 1
    assert "README.md" in capsys.readouterr().out
    assert main([], root) == 0 and main(["--check"], root) == 0
    text = (root / "README.md").read_text()
    assert place(RATE, "31,000 tok/s (H200)") in text
    assert place(SHARE, "43.1% (H100 80GB HBM3)") in text
    assert (root / "docs" / "rollout.md").read_text() == f"Whole: {place('update_3b_s')}.\n"


def test_a_figure_written_by_hand_is_noticed(tree, capsys):
    root, keep = tree
    keep("b", "NVIDIA H100", "2026-12-01T10:00:00+00:00", **{RATE: 50.0})
    main([], root)
    edited = (root / "README.md").read_text().replace("50 tok/s (H100)", "70 tok/s (H100)")
    (root / "README.md").write_text(edited)
    assert main(["--check"], root) == 1
    assert f"{RATE}: '70 tok/s (H100)', now '50 tok/s (H100)'" in capsys.readouterr().out


def test_a_rehearsal_is_no_record(tree):
    root, keep = tree
    keep("b", "NVIDIA H100", "2026-12-01T10:00:00+00:00", "on a CPU", **{RATE: 50.0})
    with pytest.raises(ValueError, match="not a record of schema 2 from a GPU"):
        newest(root)


def test_a_place_for_no_figure_is_an_error():
    for name in ("gpu decode_tok", "cpu fork; ours; us", "lines azr/nothing"):
        kind = name.split()[0]
        with pytest.raises(ValueError, match=f"<!--{name}-->: no figure"):
            PLACE.sub(filler(), f"<!--{name}--><!--/{kind}-->")


def test_a_figure_of_a_bench_comes_from_the_newest_record_of_its_row(tmp_path):
    folder = tmp_path / "bench" / "results" / CPU_MACHINE
    folder.mkdir(parents=True)
    for date, ours in (("2026-11-21", 2.0e-3), ("2026-11-20", 1.0)):
        rows = [
            {"name": "ours", "status": "ok", "ratio": 1.0, "items_per_s": 1 / ours},
            {"name": "peer", "status": "ok", "ratio": 0.4414, "facts": {"faults": 1213.6}},
            {"name": "absent", "status": "absent"},
        ]
        record = {"date": date, "results": [{"name": "a, b", "rows": rows}]}
        (folder / f"{date}.json").write_text(json.dumps(record))
    for name, text in (
        ("ours; us", "2,000"), ("ours; ms", "2"), ("peer; ratio", "0.441"),
        ("peer; inverse", "2.27"), ("peer; percent", "44.1"), ("peer; faults", "1,210"),
    ):  # fmt: skip
        filled = f"<!--cpu a, b; {name}-->{text}<!--/cpu-->"
        assert PLACE.sub(filler(tmp_path), f"<!--cpu a, b; {name}--><!--/cpu-->") == filled
    with pytest.raises(ValueError, match="no figure"):
        PLACE.sub(filler(tmp_path), "<!--cpu a, b; absent; ratio--><!--/cpu-->")


def test_lines_of_code_may_be_a_twentieth_off(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.py").write_text("x = 1\n" * 3960)
    (tmp_path / "part" / "b.txt").write_text("no code\n" * 1000)
    readme = tmp_path / "README.md"
    for before, code in (("4,200", 0), ("4,300", 1), ("", 1)):
        readme.write_text(f"<!--lines part-->{before}<!--/lines--> lines")
        assert main(["--check"], tmp_path) == code
    main([], tmp_path)
    assert readme.read_text() == "<!--lines part-->4,000<!--/lines--> lines"
