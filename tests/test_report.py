"""The report: what it shows, in any state of a run, and that model text stays text."""

import html
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import weakref
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from test_series import folded

from azr.config import Config, ConfigError, LogConfig, TaskConfig, to_toml
from azr.report import Refresher, write_report
from azr.report.__main__ import main
from azr.report.chart import Line, draw_histogram, draw_lines
from azr.report.curve import draw_learning_curve
from azr.report.record import read_run
from azr.report.samples import SCANNED, SHOWN, TEXT_CHARS, read_samples
from azr.report.summary import headline, judge
from azr.report.words import duration, number, percent
from azr.run.db import RunDb, SampleRow
from azr.run.metrics import MetricsLog
from azr.run.series import POINTS

HOSTILE = (
    "</script><script>document.documentElement.dataset.errors='pwned'</script>",
    "<img src=x onerror=\"document.documentElement.dataset.errors='pwned'\">",
    "<!-- <script> ]]> --> &lt;b&gt; &amp; \u2028\u2029 \x00\x07 \u202e tfel-ot-thgir",
    "',\");}</style><style>*{display:none}</style>",
    "\ud800 lone surrogate",
)
TYPES = ("deduction", "<b>odd")
REASON = "not_<i>prime"


def rows(steps, types=TYPES, splits=("train", "heldout_new", "heldout_old")):
    for step in range(steps + 1):
        rise = step / max(1, steps)
        row = {"propose/recent": 10.0, "brand/new_metric": rise, "time/elapsed_s": 2.0 * step}
        for kind in types:
            row |= {
                f"propose/{kind}/valid_rate": rise,
                f"propose/{kind}/learnability": rise * (1 - rise),
                f"propose/{kind}/unique_rate": 1 - rise / 2,
                f"propose/{kind}/rejected/{REASON}": 3.0,
                f"solve/{kind}/accuracy": rise,
                f"buffer/{kind}/size": float(step),
            }
            for role in ("propose", "solve"):
                row[f"reward/{role}/{kind}/mean"] = rise - 0.5
                row[f"reward/{role}/{kind}/std"] = 0.5
            for split in splits if step % 10 == 0 else ():
                name = f"eval/{split}/{kind}"
                row[f"{name}/greedy_accuracy"] = rise if split == "train" else 0.0
                row[f"{name}/sampled_accuracy"] = 0.9 * rise
                row[f"{name}/chance"] = 0.05
                row[f"{name}/tasks"] = 40.0
        for phase, share in (("rollout", 0.2), ("verify", 0.1), ("update", 0.6), ("other", 0.1)):
            row[f"time/{phase}_s"] = share
        yield step, row | {"time/step_s": 1.0, "perf/gen_tok_s": 5e4, "policy/entropy": 1 - rise}


def sample(step, role="solve", text="4", **more):
    fields = {
        "role": role, "type": "deduction", "prompt": "S D 7 2 =", "task_key": "S D 7 2 =",
        "text": text, "outcome": "correct" if role == "solve" else "valid", "reason": "",
        "solve_rate": None, "reward": 1.0, "advantage": 0.5, "tokens": 2, "finish": "stop",
        "is_estimate": False,
    }  # fmt: skip
    return SampleRow(**fields | more)


def make_run(folder, steps=30, *, target=None, samples=True, preset="cpu-prime.toml", types=TYPES):
    folder.mkdir(parents=True)
    task = TaskConfig(types=types)
    config = Config(steps=target or steps, task=task, log=LogConfig(samples=samples))
    (folder / "config.toml").write_text(to_toml(config))
    env = {
        "azr": "0.1.0", "commit": "abc1234", "processor": "Chip & Co <9>", "cores": 2, "gpu": None,
        "python": "3.11.7", "torch": "2.13.0", "command": ["train.py", "--seed", "3"],
        "facts": {"preset": preset, "model": "qwen2"}, "universe": {types[0]: 80},
        "memory_peak_bytes": 2**20,
    }  # fmt: skip
    (folder / "env.json").write_text(json.dumps(env))
    log = MetricsLog(folder / "metrics.jsonl")
    for step, row in rows(steps, types):
        log.write(step, row)
    log.close()
    event = {"step": 7, "kind": "warning", "message": f"careful: {HOSTILE[0]}"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    if samples:
        db = RunDb(
            folder / "run.db", lambda task: {"task": task, "code": "def f(a):\n    return a"}
        )
        for step in range(steps + 1):
            texts = HOSTILE[:4] if step % 10 == 0 else (str(step),)
            made = [sample(step, text=t, prompt=f"prompt {t}") for t in texts]
            made.append(sample(step, "propose", HOSTILE[1], outcome="invalid", reason=REASON))
            db.write(step, [("deduction", f"key {step} {HOSTILE[0]}", HOSTILE[0])], made)
        db.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report") / "20260101-000000-first", 500)


class Page(HTMLParser):
    """A page as a browser's parser takes it apart: tags, and the words outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.data, self._inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script" and dict(attrs).get("id") == "data":
            self._inside = "data"

    def handle_endtag(self, tag):
        self._inside = "" if tag in ("script", "style") else self._inside

    def handle_data(self, data):
        if self._inside == "data":
            self.data += data
        elif not self._inside:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def paths(self, kind):
        return [a for t, a in self.tags if t == "path" and a["class"].split()[0] == kind]


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_every_section_of_a_run_is_there(run):
    page = read_page(write_report([run]))
    sections = [a["id"] for t, a in page.tags if t == "details" and a.get("class") == "section"]
    assert sections == [
        "learning", "warnings", "proposer", "rewards", "update", "time", "browse", "setup", "more",
    ]  # fmt: skip
    labels = [a["data-label"] for a in page.paths("line")]
    assert {"greedy", "sampled", "chance", "new", "old", *TYPES} <= set(labels)
    # A band for each greedy curve of each split, and for each cell's deviation.
    assert len(page.paths("band")) == 2 * 3 + 2 * 2
    for words in (
        "solves 90% of 80 training tasks, from 0% before", "chance is 5.0%", "careful:",
        "differ from the preset cpu-prime.toml", "Chip & Co <9>", "rollout 20%", "update 60%",
        "brand/new_metric", "not <i>prime", "steps = 500", "of all there are: deduction 80",
    ):  # fmt: skip
        assert words in page.text, words


def test_the_page_loads_nothing_and_says_so_to_the_browser(run):
    text = write_report([run]).read_text()
    page = Page(text)
    assert not [a for t, a in page.tags if "src" in a or "href" in a and a["href"][0] != "#"]
    assert not {t for t, _ in page.tags} & {"link", "img", "iframe", "object", "base"}
    assert "url(" not in text and "@import" not in text
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "'sha256-" in policy
    assert "unsafe-inline'; script-src 'sha256" in policy


def test_model_text_stays_text(run):
    page = read_page(write_report([run]))
    # Two scripts, the data and the page's own; nothing that a model wrote opened a tag.
    assert [t for t, _ in page.tags if t in ("script", "style", "img")] == ["style"] + 2 * [
        "script"
    ]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert not {t for t, _ in page.tags} & {"b<", "i<"} and "odd" not in {t for t, _ in page.tags}
    data = json.loads(page.data)
    texts = {s[data["runs"][0]["fields"].index("text")] for s in data["runs"][0]["samples"]}
    assert set(HOSTILE[:4]) <= texts
    assert {f"prompt {t}" for t in HOSTILE[:4]} <= set(data["runs"][0]["prompts"])
    assert not re.search(r"[<>&\u2028]", page.data)


def test_a_lone_surrogate_is_no_reason_to_fail(tmp_path):
    folder = make_run(tmp_path / "run", 5)
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"step": 1, "kind": "warning", "message": HOSTILE[4]}) + "\n")
    assert "? lone surrogate" in read_page(write_report([folder])).text


@pytest.mark.parametrize(
    "state", ["empty", "step 0", "cut line", "no samples", "bad database", "no file"]
)
def test_a_report_of_whatever_there_is(tmp_path, state):
    folder = make_run(tmp_path / "run", 20, target=40, samples=state != "no samples")
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    if state == "empty":
        for name in ("env.json", "run.db", "events.jsonl"):
            (folder / name).unlink()
        metrics.write_bytes(b"")
    elif state == "step 0":
        metrics.write_bytes(lines[0])
    elif state == "cut line":
        metrics.write_bytes(b"".join(lines)[:-40])
    elif state == "bad database":
        (folder / "run.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    elif state == "no file":
        (folder / "run.db").unlink()
        (folder / "run.db").mkdir()
    page = read_page(write_report([folder]))
    assert "stopped early" in page.text
    expected = {
        "empty": "Nothing has been evaluated yet",
        "step 0": "The start model solves 0%",
        "cut line": "line 21 is cut short or damaged",
        "no samples": "no samples were kept (--log.samples)",
        "bad database": "run.db cannot be read",
        "no file": "run.db cannot be read",
    }
    assert expected[state] in page.text
    assert bool(page.paths("line")) == (state != "empty")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"policy/entropy": 10**400}, "policy/entropy is 1000"),
        (
            {"policy/entropy": "low"},
            "policy/entropy is 'low' at step 20, and",
        ),
        ({"eval/train/deduction/greedy_accuracy": 1.5}, "greedy_accuracy is 1.5"),
        ({"eval/train/deduction/chance": -1}, "chance is -1 at step 20"),
        ({"eval/train/deduction/tasks": -3.0}, "tasks is -3.0 at step 20"),
        ({"step": 10**400}, "line 21 is cut short or damaged"),
        ({"x": HOSTILE[0]}, 'x is "</script><script>'),
    ],
)
def test_values_of_the_wrong_kind_are_left_out_and_named(tmp_path, change, complaint):
    folder = make_run(tmp_path / "run", 20, target=40)
    path = folder / "metrics.jsonl"
    *lines, last = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps(json.loads(last) | change)]) + "\n")
    page = read_page(write_report([folder]))
    assert complaint in page.text and page.text.count("not shown") == 1
    assert page.paths("line") and "stopped early" in page.text


def test_the_headline_tells_the_time_of_its_evaluation(tmp_path):
    folder = make_run(tmp_path / "run", 27, target=40)
    assert headline(read_run(folder)).startswith("After 20 steps (40 s) the model solves")


def test_what_state_a_run_is_in(tmp_path):
    folder = make_run(tmp_path / "run", 20, target=40)
    assert read_run(folder).state == "stopped early"
    (folder / "lock").write_text(str(os.getpid()))
    assert read_run(folder).state == "still going"
    assert read_run(folder, is_over=True).state == "stopped early"
    ended = subprocess.Popen(["true"])
    ended.wait()
    (folder / "lock").write_text(str(ended.pid))
    assert read_run(folder).state == "stopped early"
    assert read_run(make_run(tmp_path / "done", 20)).state == "finished"


def test_a_report_while_the_run_writes(tmp_path):
    folder = make_run(tmp_path / "run", 20, target=40)
    db = RunDb(folder / "run.db", lambda task: {})
    db.write(21, [], [sample(21, text="written, but still in the journal")])
    try:
        assert "still in the journal" in read_page(write_report([folder])).data
    finally:
        db.close()


def test_several_runs_lie_over_each_other(tmp_path, run):
    other = make_run(tmp_path / "20260102-111111-first", 300, types=("deduction", "third"))
    page = read_page(write_report([run, other], tmp_path / "both.html"))
    assert {"20260101-000000", "20260102-111111"} <= {a["data-label"] for a in page.paths("line")}
    assert "Where the runs differ" in page.text
    assert [r["name"] for r in json.loads(page.data)["runs"]] == [
        "20260101-000000", "20260102-111111",
    ]  # fmt: skip
    # One run has a type that the other lacks: each type of either has its figures.
    captions = page.text
    assert "third: training tasks" in captions and "<b>odd: training tasks" in captions


def test_options_are_compared_with_the_preset_of_the_run(tmp_path):
    changed = {name: pair for name, *pair in read_run(make_run(tmp_path / "a", 2)).changed}
    assert changed["optim.lr"] == ["1e-06", "0.002"] and "optim.beta1" not in changed
    assert "run.name" not in changed
    record = read_run(make_run(tmp_path / "b", 2, preset="gone.toml"))
    assert record.preset == "" and [name for name, *_ in record.changed] == ["steps", "task.types"]


def test_a_configuration_of_another_version_is_shown_as_it_is(tmp_path):
    folder = make_run(tmp_path / "run", 2)
    with open(folder / "config.toml", "a") as file:
        file.write('\n[removed]\noption = "old <value>"\n')
    assert ("removed.option", "old <value>", "not there") in read_run(folder).changed


def test_thinning_keeps_rare_kinds_and_both_ends(tmp_path):
    db = RunDb(tmp_path / "run.db", lambda task: task)
    for step in range(1, 41):
        made = [sample(step, text=str(i)) for i in range(1200)]
        if step == 17:
            made += [sample(step, text="rare", outcome="malformed", reason="bomb", tokens=99)]
        db.write(step, [("deduction", f"k{step}-{i}", {}) for i in range(20)], made)
    db.close()
    with sqlite3.connect(tmp_path / "run.db") as raw:
        rows = raw.execute("SELECT count(*) FROM samples").fetchone()[0]
    problems = []
    book = read_samples(tmp_path / "run.db", problems)
    assert not problems and book.rows == rows == 48_001
    assert book.scanned == SCANNED and abs(book.total / 48_001 - 1) < 1e-3
    assert len(book.shown) == pytest.approx(SHOWN, abs=2) and book.tasks_total == 800
    steps = [s.step for s in book.shown]
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 40
    assert max(np.bincount(steps)[1:]) <= 2 * SHOWN / 40
    assert len(book.tasks) == 400 and book.tasks[0].key == "k1-0"


def test_rare_kinds_are_kept_whole_where_all_rows_are_read(tmp_path):
    db = RunDb(tmp_path / "run.db", lambda task: task)
    for step in range(1, 11):
        made = [sample(step, text=str(i)) for i in range(1000)]
        db.write(step, [], [*made, sample(step, text="no", outcome="wrong", reason="rare")])
    db.close()
    book = read_samples(tmp_path / "run.db", [])
    assert sum(s.outcome == "wrong" for s in book.shown) == 10 and len(book.shown) == SHOWN


def test_long_texts_are_cut_and_fewer_of_them_shown(tmp_path):
    db = RunDb(tmp_path / "run.db", lambda task: task)
    texts = [f"start {i} " + "x" * 200_000 + " end" for i in range(30)]
    db.write(1, [], [sample(1, text=t) for t in texts])
    many = [sample(2, text=f"{i} " + "y" * 30_000) for i in range(1000)]
    db.write(2, [], many)
    db.close()
    book = read_samples(tmp_path / "run.db", [])
    assert sum(len(s.text) + len(s.prompt) for s in book.shown) < 3e6
    first = book.shown[0].text
    assert first.startswith("start 0 x") and first.endswith("x end")
    assert "194,012 characters left out" in first and len(first) < TEXT_CHARS + 60


def test_distributions_count_every_sample(tmp_path):
    db = RunDb(tmp_path / "run.db", lambda task: task)
    for step, reward in ((1, -0.5), (2, -0.5), (7, 1.0), (8, 1.0)):
        db.write(
            step, [], 3 * [sample(step, reward=reward, tokens=step)] + [sample(step, reward=None)]
        )
    db.close()
    book = read_samples(tmp_path / "run.db", [])
    rewards = book.rewards["solve", "deduction"]
    assert (rewards.early, rewards.late) == ({-0.5: 6}, {1.0: 6})
    assert book.tokens["solve"].early == {1.0: 3, 2.0: 5} and book.total == 16


def test_the_learning_curve_stands_alone(run, tmp_path):
    text = draw_learning_curve(read_run(run))
    assert "url(" not in text and "@import" not in text and "var(" not in text
    picture = ElementTree.fromstring(text)
    kinds = [e.get("class") for e in picture.iter() if e.get("class")]
    # By type: training tasks and valid proposals, chance, two hold-outs; one universe is counted.
    assert [kinds.count(f"line k{i}") for i in (0, 1)] == [2, 2]
    assert [kinds.count(f"line k{i} dashed") for i in (0, 1)] == [2, 1]
    assert kinds.count("line k1 dotted") == kinds.count("line k1 dashdot") == 1
    shown = [e.text for e in picture.iter() if e.tag.endswith("text")]
    for words in ("Solver: greedy accuracy", "Proposer", "step", "held-out new", "chance", *TYPES):
        assert words in shown, words
    empty = make_run(tmp_path / "run", 2)
    (empty / "metrics.jsonl").write_text("")
    (empty / "metrics.folded.json").unlink(missing_ok=True)
    assert "<path" in draw_learning_curve(read_run(empty))


def test_a_failure_is_told_and_ends_nothing(tmp_path):
    told = []
    Refresher(tmp_path / "nowhere", lambda: None, 0.0)(told.append)
    assert len(told) == 1 and "report.html was not written" in told[0] and "goes on" in told[0]
    folder = make_run(tmp_path / "run", 2)
    (folder / "report.html").mkdir()
    Refresher(folder, lambda: None, 0.0)(told.append)
    assert len(told) == 2 and "IsADirectoryError" in told[1]


def test_a_report_takes_little_of_a_runs_time_but_for_the_last(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("azr.report.page.time.monotonic", lambda: clock[0])
    written = []

    def write(folders, *, is_over):
        clock[0] += 2.0 + len(written)  # it grows
        written.append((clock[0], is_over))

    monkeypatch.setattr("azr.report.page.write_report", write)
    monkeypatch.setattr("azr.report.page.write_learning_curve", lambda folder: None)
    refresh = Refresher(tmp_path, lambda: None, 0.0)
    while clock[0] < 5000:
        clock[0] += 10.0
        refresh(pytest.fail)
    spent = [2.0 + i for i in range(len(written))]
    assert len(written) > 5
    for i, (end, _) in enumerate(written[1:], 1):
        assert sum(spent[: i + 1]) <= 0.01 * end + 1.0  # each took a second more than foreseen
    refresh(pytest.fail, is_over=True)
    assert written[-1][1] and not any(is_over for _, is_over in written[:-1])


def test_what_a_report_was_made_of_is_gone_at_once(tmp_path, monkeypatch):
    class Part:
        pass

    def write(folders, *, is_over):
        part = Part()
        part.whole = part
        left.append(weakref.ref(part))

    left = []
    monkeypatch.setattr("azr.report.page.write_report", write)
    monkeypatch.setattr("azr.report.page.write_learning_curve", lambda folder: None)
    Refresher(tmp_path, lambda: None, 0.0)(pytest.fail)
    assert left[0]() is None


def test_a_series_that_cannot_be_kept_ends_nothing(tmp_path):
    def keep_series():
        raise OSError(28, "No space left on device")

    told = []
    Refresher(make_run(tmp_path / "run", 2), keep_series, 0.0)(told.append)
    assert len(told) == 1 and "No space left on device" in told[0]


def test_spikes_and_missing_values_of_a_long_run_are_on_the_page(tmp_path):
    folder = make_run(tmp_path / "run", 2, target=4000)
    (folder / "metrics.jsonl").unlink()
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(4001):
        spike = {1234: 77.0, 2345: -55.0, 3000: math.nan}.get(step, 1.0)
        log.write(step, {"policy/lr": spike, "policy/entropy": math.nan, "policy/kl": spike})
    log.close()
    for _ in range(2):  # read from the file, then as the run keeps it
        text = write_report([folder]).read_text()
        for title in ("Learning rate", "KL to the start model"):
            figure = re.search(f"<figcaption>{title}.*?</figure>", text)[0]
            low, high = map(float, re.search(r'data-y="([^"]*)"', figure)[1].split())
            assert low < -55 and high > 77
            top, bottom = map(float, re.search(r'data-box="([^"]*)"', figure)[1].split()[2:])
            drawn = [low + (bottom - y) / (bottom - top) * (high - low)
                     for _, y in points(figure, "raw")]  # fmt: skip
            assert min(drawn) == pytest.approx(-55, abs=1) and max(drawn) == pytest.approx(
                77, abs=1
            )
            assert "no value (NaN) at 1 of 4,001 steps" in figure and 'class="gap' in figure
        figure = re.search("<figcaption>Entropy.*?</figure>", text)[0]
        assert "no value (NaN) at 4,001 of 4,001 steps: 0 to 4,000" in figure
        log.save_fold()


def test_a_curve_is_broken_where_it_has_no_value():
    series = folded([1.0, 2.0, None, 4.0, None, 6.0, 7.0])
    figure = draw_lines("t", [Line(label="a", series=series)], note="words")
    (path,) = re.findall(r'<path class="line[^>]*d="([^"]*)"', figure)
    assert [len(piece.split("L")) for piece in path[1:].split("M")] == [2, 2, 2]
    assert "words; a: no value (NaN) at 2 of 7 steps: 2 to 4" in figure
    assert len(re.search('class="gap[^>]*d="([^"]*)"', figure)[1].split("v")) == 3


def test_events_are_read_as_far_as_they_can_be_and_the_last_are_shown(tmp_path):
    folder = make_run(tmp_path / "run", 2)
    path = folder / "events.jsonl"
    lines = [json.dumps({"step": i, "kind": "warning", "message": f"no {i}."}) for i in range(1500)]
    path.write_text("\n".join(["[", *lines[:-1], "\0\0" + lines[-1]]))
    text = read_page(write_report([folder])).text
    assert "events.jsonl: lines 1 and 1501 are cut short or damaged" in text
    assert "events.jsonl: the first 499 lines, of 1,501" in text
    assert "no 1498." in text and "no 499." in text and "no 498." not in text


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = make_run(tmp_path / "one", 3), make_run(tmp_path / "two", 3)
    assert main([str(one)]) == 0 and (one / "report.html").exists()
    assert main([str(one), str(two)]) == 0 and (tmp_path / "report.html").exists()
    assert main([str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err
    assert main([str(one), "--out", str(tmp_path / "no" / "such" / "folder.html")]) == 1
    assert "use --out FILE" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        read_run(tmp_path)


def test_an_accuracy_is_judged_by_its_interval():
    assert judge(0.5, 0.05, 80) == "above chance"
    assert judge(0.0, 0.05, 8) == "not distinguishable from chance"
    assert judge(0.0, 0.5, 80) == "below chance"
    assert judge(0.5, None, 80) == judge(0.5, 0.05, None) == ""


def test_the_headline_does_not_claim_what_eight_tasks_cannot_show(tmp_path):
    folder = make_run(tmp_path / "run", 10, types=("deduction",))
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('/tasks": 40.0', '/tasks": 4.0'))
    words = html.unescape(re.sub("<.*?>", "", headline(read_run(folder))))
    assert words.startswith("After 10 steps (20 s) the model solves 90% of 4 training tasks")
    assert "0% before; chance is 5.0%" in words and "chance is 5.0% (" not in words
    assert "90% of 4 held-out new tasks (above chance)" in words
    path.write_text(
        re.sub(r'sampled_accuracy": [\d.]+', 'sampled_accuracy": 0.0', path.read_text())
    )
    words = html.unescape(re.sub("<.*?>", "", headline(read_run(folder))))
    assert words.count("not distinguishable from chance") == 3


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0%"), (0.0434, "4.3%"), (0.5, "50%"), (0.0001, "0%"), (0.9965, "99.7%"),
     (0.9999, "100%"), (1.0, "100%"), (math.nan, "–"), (None, "–")],
)  # fmt: skip
def test_percentages(value, words):
    assert percent(value) == words


def test_other_numbers():
    shown = [number(v) for v in (0, 0.25, 2e-6, 123.4, 9999, 45_678, 2.5e6, -0.5, None)]
    assert shown == ["0", "0.25", "2e-06", "123", "9,999", "45.7k", "2.5M", "-0.5", "–"]
    assert [duration(s) for s in (0.21, 48, 124, 11_100)] == [
        "0.21 s",
        "48 s",
        "2 min 4 s",
        "3 h 5 min",
    ]


def points(figure, kind="line"):
    d = re.search(rf'<path class="{kind}[^"]*"[^>]* d="M([^"]*)"', figure)[1]
    return [tuple(map(float, p.split())) for p in d.split("L")]


def test_a_curve_is_where_its_values_are():
    figure = draw_lines(
        "t", [Line(label="a", series=folded([0.0, 0.5, 1.0], [0, 50, 100]))], "share"
    )
    (x0, y0), (x1, y1), (x2, y2) = points(figure)
    left, right, top, bottom = map(float, re.search(r'data-box="([^"]*)"', figure)[1].split())
    assert (x0, y0) == (left, bottom) and (x2, y2) == (right, top)
    assert x1 == pytest.approx((left + right) / 2) and y1 == pytest.approx((top + bottom) / 2)


def test_a_long_series_is_thinned_without_moving_its_ends_or_its_mean():
    values = [math.sin(s / 700) for s in range(10_000)]
    figure = draw_lines("t", [Line(label="", series=folded(values))])
    drawn = points(figure)
    assert POINTS / 2 < len(drawn) <= POINTS
    low, high = map(float, re.search(r'data-y="([^"]*)"', figure)[1].split())
    left, right, top, bottom = map(float, re.search(r'data-box="([^"]*)"', figure)[1].split())
    back = [low + (bottom - y) / (bottom - top) * (high - low) for _, y in drawn]
    assert back[0] == pytest.approx(values[0], abs=0.01)
    assert back[-1] == pytest.approx(values[-1], abs=0.01)
    assert np.mean(back) == pytest.approx(np.mean(values), abs=0.01)


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, -1.0], [1e-14, 3e-14], [1e9, 2e9]])
def test_axes_fit_any_values(values):
    figure = draw_lines("t", [Line(label="a", series=folded(values))])
    low, high = map(float, re.search(r'data-y="([^"]*)"', figure)[1].split())
    assert low < high and low <= min(values) and max(values) <= high
    assert "nan" not in figure and figure.count('class="tick"') >= 2


def test_labels_do_not_overlap():
    lines = [Line(label=f"n{i}", series=folded([0, 0.5 + i / 1000], [0, 9])) for i in range(6)]
    places = re.findall(
        r'class="label[^"]*" x="[^"]*" y="([^"]*)"', draw_lines("t", lines, "share")
    )
    gaps = np.diff(sorted(map(float, places)))
    assert len(places) == 6 and min(gaps) >= 12.9


@pytest.mark.parametrize(
    "values", [[1.0], list(range(12)), list(range(400)), [0.1 * i for i in range(90)]]
)
def test_a_histogram_shows_every_sample_once(values):
    figure = draw_histogram("t", dict.fromkeys(values, 2), {values[-1]: 5}, "k0")
    found = re.findall(r"<title>[^:]*: ([\d.]+)% (early|late)</title>", figure)
    shares = {kind: sum(float(s) for s, k in found if k == kind) for kind in ("early", "late")}
    assert shares["early"] == pytest.approx(100, abs=8) and shares["late"] == 100
    assert draw_histogram("t", {}, {}, "k0") == draw_lines("t", []) == ""


PROBE = """
<script>
const $ = (q) => [...document.querySelectorAll(q)];
const out = {errors: document.documentElement.dataset.errors || "",
  ready: document.documentElement.dataset.ready, wide: document.documentElement.scrollWidth,
  inner: innerWidth, scripts: $("script").length, images: $("img").length,
  open: $("details.section[open]").length, cards: $("#browser .sample").length,
  curves: $("path.line").filter((p) => p.getBoundingClientRect().width > 50).length,
  dark: getComputedStyle(document.body).backgroundColor};
const pick = (i, v) => { const s = $(".controls select, .controls input")[i]; s.value = v;
  s.dispatchEvent(new Event("input")); };
const first = () => $("#browser .sample .line1").map((l) => l.textContent);
pick(1, "propose"); out.proposals = first().every((t) => t.startsWith("propose"));
pick(1, ""); pick(5, "20"); pick(6, "29"); out.count = $(".count")[0].textContent;
pick(5, ""); pick(6, ""); pick(7, "<\\/script>"); out.found = $(".count")[0].textContent;
pick(7, ""); pick(0, "tasks"); out.tasks = $(".count")[0].textContent;
out.task = $("#browser .sample")[0].innerText; out.scripts = $("script").length;
out.images = $("img").length;
$("#browser .sample button")[0].click(); out.again = $(".controls select")[0].value;
const svg = $("svg.lines")[0], box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2,
  clientY: box.top + 20}));
out.tip = document.getElementById("tip").textContent;
document.title = "probe" + JSON.stringify(out);
</script></body>"""


def browse(tmp_path, page, width, *flags):
    """Opens the page in headless Chromium; returns what a script inside of it found."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium here")
    text = page.read_text(encoding="utf-8")
    # The probe is a script of the test's own, which the page's policy would refuse.
    text = re.sub(r"<meta http-equiv=[^>]*>", "", text).replace("</body>", PROBE)
    (tmp_path / "probe.html").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
         *flags, "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search("<title>probe(.*?)</title>", done.stdout.decode(), re.DOTALL)
    assert title, done.stderr.decode()[-2000:]
    return json.loads(html.unescape(title[1]))


def test_in_a_browser_at_desk_width(tmp_path, run):
    page = write_report([run])
    found = browse(tmp_path, page, 1280)
    assert found["errors"] == "" and found["ready"] == "yes"
    assert found["scripts"] == 3 and found["images"] == 0
    assert found["curves"] == len(read_page(page).paths("line"))
    assert found["wide"] <= found["inner"]
    assert found["cards"] == 25 and found["proposals"]
    assert re.fullmatch(r"\d+ of the \d+ samples on this page", found["count"])
    assert 0 < int(found["count"].split()[0]) < 100 and int(found["found"].split()[0]) > 0
    assert "def f(a):\n    return a" in found["task"] and HOSTILE[0] in found["task"]
    assert found["tasks"].endswith("tasks on this page") and found["again"] == "samples"
    assert re.search(r"step 2\d\dgreedy \d+(\.\d)?%sampled \d+(\.\d)?%chance 5%", found["tip"])


def test_in_a_browser_on_a_phone_in_the_dark(tmp_path, run):
    dark = "--blink-settings=preferredColorScheme=0"
    found = browse(tmp_path, write_report([run]), 360, dark)
    assert found["errors"] == "" and found["ready"] == "yes" and found["curves"] >= 4
    assert found["wide"] <= found["inner"] <= 500
    assert found["open"] == 1  # the others are closed until asked for
    assert sum(map(int, re.findall(r"\d+", found["dark"])[:3])) < 150


def test_the_pages_own_policy_lets_it_run(tmp_path, run):
    """Without the probe: the script's digest is right, so the browser fills itself."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium here")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         f"file://{write_report([run])}"],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    dom = done.stdout.decode()
    assert 'data-ready="yes"' in dom and "data-errors" not in dom
    assert dom.count('class="sample ') == 25
