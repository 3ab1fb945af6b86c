"""Configuration: presets, overrides, and errors that name the field, the value and the fix."""

import dataclasses
import functools
import math
import os
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from azr.config import (
    LARGEST_FLOAT,
    Config,
    ConfigError,
    LossConfig,
    RunConfig,
    differences,
    field_names,
    load_toml,
    parse_command_line,
    preset_path,
    to_toml,
    validate,
    weak_signals,
)

PLAIN = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
PRESETS = sorted(preset_path("cpu-prime.toml").parent.glob("*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.name)
def test_every_preset_is_valid_and_survives_a_round_trip(path, tmp_path):
    config = load_toml(path)
    validate(config)
    copy = tmp_path / "config.toml"
    copy.write_text(to_toml(config))
    assert load_toml(copy) == config


@given(
    st.text(PLAIN, max_size=20), st.integers(0, 2**62), st.floats(0, LARGEST_FLOAT), st.booleans()
)
def test_any_value_survives_toml(tmp_path_factory, name, seed, coefficient, flag):
    config = dataclasses.replace(
        Config(),
        run=RunConfig(name=name, seed=seed),
        loss=LossConfig(entropy_coef=coefficient),
        log=dataclasses.replace(Config().log, samples=flag),
    )
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert load_toml(path) == config


def test_no_argument_means_the_cpu_preset():
    command = parse_command_line([])
    assert not command.dry_run and not command.resume
    assert command.config.run.name == "cpu-prime"
    assert command.config.run.device == "cpu"
    assert command.config.task.prime.max_p == 23


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('steps = 7\n[optim]\nlr = 1\n[task]\ntypes = ["induction"]\n')
    command = parse_command_line(["--config", str(file), "--optim.lr", "0.5", "--seed=9"])
    assert command.config.steps == 7
    assert command.config.optim.lr == 0.5
    assert command.config.run.seed == 9
    assert command.config.task.types == ("induction",)
    assert command.config.optim.beta1 == Config().optim.beta1
    assert command.config.run.name == "mine"


def test_short_names_are_those_of_the_design():
    command = parse_command_line(
        ["--model", "m", "--env", "prime", "--steps", "3", "--seed", "4", "--device", "cuda"]
    )
    c = command.config
    assert (c.model.path, c.task.family, c.steps, c.run.seed, c.run.device) == (
        "m", "prime", 3, 4, "cuda",
    )  # fmt: skip


def test_a_preset_is_found_by_name_and_a_missing_one_names_the_others():
    assert preset_path("cpu-prime").name == "cpu-prime.toml"
    assert preset_path("configs/cpu-prime-31.toml").name == "cpu-prime-31.toml"
    with pytest.raises(ConfigError, match="no such file; presets.*cpu-prime-31.toml"):
        preset_path("cpu-prim.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", r"unknown key step; did you mean steps\?"),
        ("[optim]\nlrr = 3.0", r"unknown key optim.lrr; did you mean optim.lr\?"),
        ("[selfplay]\nproposal_per_type = 3", r"did you mean selfplay.proposals_per_type\?"),
        ("[loss]\nlr = 3.0", r"unknown key loss.lr; did you mean optim.lr\?"),
        ("[task.prime]\nmaxp = 3", r"unknown key task.prime.maxp; did you mean task.prime.max_p"),
        ("zzzzzz = 1", "unknown key zzzzzz; see --help"),
        ("steps = 3.5", "steps must be of type int, got 3.5"),
        ("steps = true", "steps must be of type int, got True"),
        ('steps = "3"', "steps must be of type int, got '3'"),
        ("[log]\nsamples = 1", "log.samples must be of type bool, got 1"),
        ("[loss]\nkl = 'k9'", r"loss.kl must be one of \['none', 'k1', 'k2', 'k3'\], got 'k9'"),
        ("[selfplay]\nsolve_lag = true", r"solve_lag must be one of \[0, 1\], got True"),
        ("[task]\ntypes = 'deduction'", "task.types must be a list of strings"),
        ("optim = 3", "optim is a table of options, got 3"),
        ("steps = ", "bad.toml: "),
        ("[optim]\nlr = 1" + "0" * 400, "optim.lr must be a finite number.*, got '0x"),
        ("[run]\nseed = 1" + "0" * 400, "run.seed must be at most 9223372036854775807.*got '0x"),
        ("[run]\nseed = 1" + "0" * 5000, "bad.toml: Exceeds the limit"),
        ("[optim]\nlr = 1e400", "optim.lr must be a finite number.*, got inf"),
        ('[run]\nroot = "a\\u0000"', "run.root must be text without NUL"),
        ("steps = 1\nsteps = 2", "bad.toml: Cannot overwrite a value"),
        ("steps = 1\n\0", "bad.toml: the file holds NUL bytes.*save it as UTF-8"),
        ("x = " + "[" * 100_000, "bad.toml: "),
        (b"\xff\xfe", "bad.toml: the file is UTF-16: save it as UTF-8"),
        (b"name = '\xe9'", "bad.toml: the file is not UTF-8 .*can't decode byte 0xe9"),
        ("steps = 3".encode("utf-16-be"), "bad.toml: the file holds NUL bytes"),
        ("steps = 3".encode("utf-32"), "bad.toml: the file is UTF-32"),
    ],
)
def test_a_bad_file_is_refused_by_name(text, message, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=message) as info:
        load_toml(file)
    assert len(str(info.value).splitlines()) == 1 and len(str(info.value)) < 400


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    file = tmp_path / "marked.toml"
    file.write_bytes(b"\xef\xbb\xbfsteps = 7\r\n[optim]\r\nlr = 0.5\r\n")
    assert (load_toml(file).steps, load_toml(file).optim.lr) == (7, 0.5)


def _with(name: str, value: object, config: object | None = None) -> Config:
    """Returns the default configuration with one option changed."""
    config = Config() if config is None else config
    first, _, rest = name.partition(".")
    value = _with(rest, value, getattr(config, first)) if rest else value
    return dataclasses.replace(config, **{first: value})


@pytest.mark.parametrize("name", field_names())
def test_no_option_takes_what_is_none_of_its_type(name, tmp_path):
    value = functools.reduce(getattr, name.split("."), Config())
    wrong: list[object] = [None, np.float32(1.0), [], {}]
    if type(value) in (int, float):
        wrong += [10**400, -(10**400), True, "1", np.float64(1.0), np.int64(1), Decimal(1)]
    if type(value) is float:
        wrong += [math.nan, math.inf, -math.inf, 1e300]
    if type(value) is str:
        wrong += ["\0", "a\udce9", 1, Path("a")]
    if type(value) is tuple:
        wrong += [("deduction", 1), ["deduction"], "deduction", ("a\udce9",)]
    for bad in wrong:
        with pytest.raises(ConfigError, match=rf"^--{name} .*must be ") as info:
            validate(_with(name, bad))
        assert len(str(info.value).splitlines()) == 1 and len(str(info.value)) < 300
    if type(value) is float:
        for text in ("nan", "inf", "-inf", "1e400"):
            file = tmp_path / "bad.toml"
            *where, last = name.split(".")
            file.write_text(f"[{'.'.join(where)}]\n{last} = {text}\n")
            with pytest.raises(ConfigError, match=rf"{name} must be a finite number"):
                load_toml(file)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, []),
        ({"proposals_per_type": 1}, ["propose/*: --selfplay.proposals-per-type 1"]),
        ({"proposals_per_type": 1, "roles": "solver"}, []),
        ({"solver_tasks_per_type": 1}, ["solve/*: --selfplay.solver-tasks-per-type 1"]),
        ({"solver_tasks_per_type": 1, "solver_samples_per_task": 2}, []),
        ({"solver_tasks_per_type": 1, "roles": "proposer"}, []),
        ({"solver_tasks_per_type": 1, "solver_samples": "estimate"}, []),
        ({"estimate_samples": 1}, ["propose/*: --selfplay.estimate-samples 1"]),
        ({"estimate_samples": 1, "roles": "solver"}, []),
        ({"estimate_temperature": 1e-3}, ["propose/*: --selfplay.estimate-temperature 0.001"]),
        (
            {"solver_tasks_per_type": 1, "solver_samples": "estimate", "estimate_samples": 1},
            ["solve/*: --selfplay.solver-tasks-per-type 1", "propose/*: --selfplay.estimate-"],
        ),
    ],
)
def test_a_cell_that_cannot_learn_is_named(changed, named):
    selfplay = dataclasses.replace(Config().selfplay, **changed)
    config = dataclasses.replace(Config(), selfplay=selfplay)
    validate(config)
    found = weak_signals(config)
    assert len(found) == len(named)
    assert all(message.startswith(start) for message, start in zip(found, named, strict=True))


def test_a_reward_that_turns_the_aim_round_is_named():
    config = dataclasses.replace(Config(), reward=dataclasses.replace(Config().reward, wrong=1.0))
    assert weak_signals(config) == ["--reward.wrong 1 pays as much as a right answer, which has 1"]


@pytest.mark.parametrize(
    "changed",
    [
        {"proposals_per_type": 1, "solver_tasks_per_type": 1},
        {"proposals_per_type": 1, "roles": "proposer"},
        {"solver_tasks_per_type": 1, "roles": "solver"},
    ],
)
def test_where_nothing_can_learn_the_run_is_refused(changed):
    selfplay = dataclasses.replace(Config().selfplay, **changed)
    with pytest.raises(ConfigError, match=r"/\*: --selfplay.*one sample.*give 2 or more"):
        validate(dataclasses.replace(Config(), selfplay=selfplay))


@pytest.mark.parametrize("section", [None, {"lr": 1.0}])
def test_a_section_is_one(section):
    with pytest.raises(ConfigError, match="optim.lr: its section is no section of a Config"):
        validate(Config(optim=section))


def test_an_infinite_wish_is_told_what_to_give():
    for flag, instead in (("--loss.tis-cap", "0 turns it off"), ("--optim.grad-clip", "1e9 clips")):
        with pytest.raises(ConfigError, match=f"must be a finite number.*; {instead}"):
            parse_command_line([flag, "inf"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--rollout.temperature", "0"], "--rollout.temperature 0.0: must be from 1e-5"),
        (["--optim.lr", "nan"], "--optim.lr nan: must be a finite number"),
        (["--rollout.top-p", "1.5"], r"--rollout.top_p 1.5: must be in \(0, 1\]"),
        (["--rollout.top-k", "5", "--loss.tis-cap", "0"], "needs the mismatch correction"),
        (["--loss.kl", "none"], "--loss.kl_coef 0.4: does not go with --loss.kl none"),
        (["--selfplay.solve-lag", "1"], "use --selfplay.solver-samples fresh with a lag"),
        (["--selfplay.estimate-temperature", "0.5"], "must equal --rollout.temperature"),
        (["--selfplay.buffer-size", "3"], "must fit in --selfplay.buffer-size"),
        (["--task.types", "deduction", "deduction"], "names a type twice"),
        (["--task.types"], "needs at least one task type"),
        (["--model.heads", "3"], "must be a multiple of"),
        (["--loss.dual-clip", "0.5"], "must be above 1, or 0 for off"),
        (["--reward.wrong", "nan"], "--reward.wrong nan: must be a finite number"),
        (["--optim.weight-decay", "500"], "times --optim.lr 0.002 must be below 1"),
        (["--task.program.cpu-s", "1e9"], r"--task.program.cpu_s 1000000000.0: must be in \[1e-6"),
        (["--run.threads", "1000000000"], "--run.threads 1000000000: must be at most 1024"),
        (["--config"], "--config needs a TOML file"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such file"),
    ],
)
def test_a_bad_command_line_is_refused_by_name(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_command_line(flags)


def test_truncated_sampling_is_allowed_with_the_correction():
    config = parse_command_line(["--rollout.top-p", "0.9"]).config
    assert config.rollout.top_p == 0.9 and config.loss.tis_cap == 2.0


@pytest.mark.parametrize("flag", ["--optim.lrr", "--sed", "--resume-it"])
def test_an_unknown_flag_leaves_with_code_2(flag, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_command_line([flag, "3"])
    assert exit_info.value.code == 2
    assert flag in capsys.readouterr().err


def test_an_unknown_flag_names_the_nearest_one(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--optim.lrr", "3"])
    assert "--optim.lr" in capsys.readouterr().err


def test_every_option_has_a_checked_default_and_field_names_list_all():
    validate(Config())
    names = field_names()
    table = tomllib.loads(to_toml(Config()))

    def leaves(part, where=""):
        for key, value in part.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{where}{key}.")
            else:
                yield where + key

    assert sorted(leaves(table)) == sorted(names)


def test_differences_name_what_differs():
    changed = dataclasses.replace(Config(), steps=7, loss=LossConfig(clip_low=0.1))
    assert differences(changed, Config()) == [("steps", 7, 500), ("loss.clip_low", 0.1, 0.2)]


def test_help_needs_no_torch_and_lists_every_option():
    code = (
        "import sys; sys.argv = ['azr.train', '--help']\n"
        "from azr.train import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={"COLUMNS": "200", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    for name in field_names():
        assert f"--{name.replace('_', '-')}" in done.stdout, name
    assert "--config FILE.toml" in done.stdout and "--dry-run" in done.stdout


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ([], "cpu-prime.toml"),
        (["--env", "program"], "cpu-program.toml"),
        (["--steps", "3", "--task.family=program"], "cpu-program.toml"),
        (["--env", "prime"], "cpu-prime.toml"),
        (["--env", "somebody-elses"], "cpu-prime.toml"),
        (["--env", "program", "--config", "cpu-prime-31.toml"], "cpu-prime-31.toml"),
    ],
)
def test_without_a_file_the_family_names_the_preset(flags, preset):
    command = parse_command_line(flags)
    assert Path(command.preset).name == preset
    assert "--env" not in flags or command.config.task.family == flags[1]


@pytest.mark.parametrize(
    ("flag", "before", "message"),
    [("-OO", "", "-OO (-O is fine)"), ("-B", "os.rmdir(os.getcwd())", "working directory is gone")],
)
def test_a_process_that_nothing_runs_in_is_told_so_by_every_command(
    flag, before, message, tmp_path
):
    code = f"""
import os
{before}
from azr import doctor, evaluate, train
from azr.report import __main__ as report
print([main(a) for main, a in ((train.main, ["--dry-run"]), (evaluate.main, ["runs/none"]),
                               (report.main, ["runs/none"]), (doctor.main, []))])
"""
    done = subprocess.run(
        [sys.executable, flag, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": ":".join(map(os.path.abspath, sys.path))},
    )  # fmt: skip
    assert done.stdout == "[2, 2, 2, 2]\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and all(line.startswith("azr: ") and message in line for line in lines)


def test_an_option_of_before_is_taken_at_the_value_that_it_has_now(tmp_path):
    """So that a run of then can be resumed; another value would be lost in silence."""
    path = tmp_path / "config.toml"
    path.write_text("[log]\nplain = false\n[run]\nwatchdog_s = 900.0\n")
    assert load_toml(path) == Config()
    path.write_text("[log]\nplain = true\n")
    with pytest.raises(ConfigError, match="unknown key log.plain"):
        load_toml(path)
