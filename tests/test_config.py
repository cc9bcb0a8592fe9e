"""Settings: defaults < YAML < flags, and every mistake named before anything is read."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml

from corruption import build_corruption
from helpers.programs import run_python
from i2sb.cli.program import describe
from i2sb.config import EvalConfig, SampleConfig, TrainConfig, check_resumable
from i2sb.errors import UserError
from i2sb.options import by_group, flag
from i2sb.parsing import from_yaml, make_parser, read_config, read_flags, to_yaml

NEEDED = ["--name", "run", "--dataset-dir", "data", "--corrupt", "sr4x-pool"]

# The released program's flags that have a meaning here, as its command lines spell them.
RELEASED = {
    TrainConfig: "--name --corrupt --dataset-dir --image-size --interval --beta-max --t0 --T --ot-ode --clip-denoise "
    "--cond-x1 --add-x1-noise --batch-size --microbatch --num-itr --lr --lr-gamma --lr-step --l2-norm --ema --log-dir "
    "--log-writer --ckpt --seed",
    SampleConfig: "--ckpt --nfe --partition --use-fp16 --clip-denoise --batch-size --dataset-dir --image-size --seed",
    EvalConfig: "--ckpt --sample-dir --mode --batch-size --dataset-dir",
}


@pytest.mark.parametrize("config_class", RELEASED)
def test_released_flags_are_there(config_class):
    flags = {flag for action in make_parser(config_class)._actions for flag in action.option_strings}
    assert set(RELEASED[config_class].split()) <= flags


def test_published_defaults():
    config = read_flags(TrainConfig, NEEDED)
    published = {"interval": 1000, "beta_max": 0.3, "t0": 1e-4, "T": 1.0, "lr": 5e-5, "lr_gamma": 0.99, "lr_step": 1000}
    published |= {"l2_norm": 0.0, "ema": 0.99, "batch_size": 256, "image_size": 256, "seed": 0}
    assert {name: getattr(config, name) for name in published} == published
    assert not (config.ot_ode or config.cond_x1 or config.add_x1_noise)


def test_precedence_is_defaults_yaml_flags(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("lr: 1\not_ode: true\nbatch_size: 8\neval_image_size: null\n")
    config = read_flags(TrainConfig, [*NEEDED, "--batch-size", "6", "--no-ot-ode"], file)
    assert (config.lr, config.ot_ode, config.batch_size, config.interval) == (1.0, False, 6, 1000)
    assert isinstance(config.lr, float)
    assert read_flags(TrainConfig, NEEDED, file).ot_ode


@pytest.mark.parametrize(
    ("config_class", "flags"),
    [
        (TrainConfig, [*NEEDED, "--ot-ode"]),
        (SampleConfig, ["--ckpt", "a"]),
        (EvalConfig, ["--ckpt", "a", "--sample-dir", "b"]),
    ],
)
def test_saved_settings_read_back(tmp_path, config_class, flags):
    config = read_flags(config_class, flags)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(config_class, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("num_itr: 010", 10),
        ("num_itr: 0x10", 16),
        ("num_itr: 0o17", 15),
        ("lr: 1e-3", 1e-3),
        ("lr: 1.0e-3", 1e-3),
        ("lr: 5", 5.0),
        ("ot_ode: true", True),
        ("eval_image_size: ~", None),
        ("wandb_user: no", "no"),
        ("wandb_user: 2024-01-01", "2024-01-01"),
        ("num_itr: 1:20", "--num-itr 1:20: must be a whole number"),
        ("num_itr: 1_000", "--num-itr 1_000: must be a whole number"),
        ("lr: 1:30.5", "--lr 1:30.5: must be a number"),
        ("lr: '1:30.5'", "--lr 1:30.5: must be a number"),
        ("eval_image_size: 1_6", "--eval-image-size 1_6: must be a whole number or null"),
        ('results_dir: "a\\0b"', r"--results-dir 'a\x00b': holds a null character, which no name of a file can"),
        ("ot_ode: on", "--ot-ode on: must be true or false"),
        ("ot_ode: no", "--ot-ode no: must be true or false"),
    ],
)
def test_yaml_is_of_version_1_2(tmp_path, line, want):
    """In version 1.1, which PyYAML reads, 010 is 8, 1:20 is 80, 1_000 is 1000, and no is false."""
    (tmp_path / "a.yaml").write_text(line)
    name = line.partition(":")[0]
    if isinstance(want, str) and want.startswith("--"):
        with pytest.raises(UserError) as error:
            read_flags(TrainConfig, NEEDED, tmp_path / "a.yaml")
        assert describe(error.value).removeprefix(f"{tmp_path}/a.yaml: ") == want
        return
    value = getattr(read_flags(TrainConfig, NEEDED, tmp_path / "a.yaml"), name)
    assert value == want and type(value) is type(want)


@pytest.mark.parametrize("flags", [["--num-itr", "1:20"], ["--num-itr=1_000"], ["--lr", "1:30.5"], ["--num-itr=+010"]])
def test_flags_take_no_numbers_of_yaml_1_1_either(flags):
    with pytest.raises(UserError, match=r"(num_itr|lr) \S+: must be a (whole )?number"):
        read_flags(TrainConfig, [*NEEDED, *flags])


@pytest.mark.parametrize("text", ["1e3", "0o17", "010", "1:20", "on", "no", "null", "1_0", "2024-01-01", "0x1"])
def test_a_name_that_looks_like_something_else_is_saved_as_a_name(tmp_path, text):
    config = read_flags(TrainConfig, [*NEEDED, "--wandb-user", text])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(TrainConfig, tmp_path / "config.yaml").wandb_user == text
    assert yaml.safe_load(to_yaml(config))["wandb_user"] == text


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_config_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"cannot be read as YAML: .*is no regular file"):
        read_flags(TrainConfig, NEEDED, path)


def test_saved_settings_with_a_line_missing_are_refused(tmp_path):
    text = to_yaml(read_flags(TrainConfig, [*NEEDED, "--ot-ode", "--beta-max", "1"]))
    lines = [line for line in text.splitlines() if not line.startswith(("ot_ode", "beta_max"))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="config.yaml: lacks beta_max, ot_ode"):
        read_config(TrainConfig, tmp_path / "config.yaml")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_flags(TrainConfig, NEEDED).lr = 1.0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bach-size", "3"], "unknown setting --bach-size: did you mean --batch-size?"),
        (["--batch_size", "3"], "unknown setting --batch_size: did you mean --batch-size?"),
        (["--no-lr"], "unknown setting --no-lr"),
        (["--batch-size", "many"], "--batch-size many: must be a whole number"),
        (["--lr", "fast"], "--lr fast: must be a number"),
        (["--log-writer", "paper"], "--log-writer paper: must be one of tensorboard, wandb, none"),
        (["--interval", "999"], "--interval 999: must be even, such as 1000"),
        (["--interval", "0"], "--interval 0: must be at least 2"),
        (["--batch-size", "5", "--microbatch", "2"], "--batch-size 5: must be a multiple of --microbatch 2"),
        (["--microbatch", "many"], "--microbatch many: must be a whole number or auto"),
        (["--microbatch", "0"], "--microbatch 0: must be at least 1"),
        (["--beta-max", "-1"], "--beta-max -1.0: must be above 0"),
        (["--t0", "2"], "--t0 2.0: must be below --T 1.0"),
        (["--lr", "0"], "--lr 0.0: must be above 0"),
        (["--lr", "nan"], "--lr nan: must be a number"),
        (["--lr-gamma", "1.5"], "--lr-gamma 1.5"),
        (["--ema", "1"], "--ema 1.0: must be at least 0 and below 1"),
        (["--start-share", "1.5"], "--start-share 1.5: must be at least 0 and at most 1"),
        (["--start-share", "-0.1"], "--start-share -0.1: must be at least 0 and at most 1"),
        (["--lr-cooldown", "-1"], "--lr-cooldown -1: must be at least 0"),
        (["--lr-cooldown", "11", "--num-itr", "10"], "--lr-cooldown 11: must not be more than --num-itr 10"),
        (["--crops-per-image", "4"], "--crops-per-image 4: only --crop random uses it"),
        (["--crops-per-image", "0", "--crop", "random"], "--crops-per-image 0: must be at least 1"),
        (["--crop", "middle"], "--crop middle: must be one of center, random"),
        (["--eval-nfe", "1000"], "--eval-nfe 1000: must be between 1 and 999"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--name", "../elsewhere"], "--name ../elsewhere: begin with a letter"),
        (["--name", "."], "--name .: begin with a letter"),
        (["--name", "x" * 300], ": begin with a letter"),
        (["--lr", "1e999"], "--lr inf: must be finite"),
        (["--lr="], "--lr '': must be a number"),
        (["--interval", "1000000000"], "--interval 1000000000: must be at least 2 and at most 1000000"),
        (["--name", "/absolute"], "--name /absolute: begin with a letter"),
        (["--name", ""], "--name: is missing"),
        (["--corrupt", ""], "--corrupt: is missing"),
        (["stray"], "nrecognized arguments: stray"),
    ],
)
def test_wrong_flags_are_named(flags, words):
    with pytest.raises(ValueError) as error:
        read_flags(TrainConfig, [*NEEDED, *flags])
    assert words in describe(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("batc_size: 8", "a.yaml: unknown setting batc_size: did you mean batch_size?"),
        ("batch_size: many", "a.yaml: --batch-size many: must be a whole number"),
        ("ot_ode: perhaps", "a.yaml: --ot-ode perhaps: must be true or false"),
        ("lr: null", "a.yaml: --lr null: must be a number"),
        ("name:", "a.yaml: --name null: must be text"),
        ("lr: .inf", "--lr inf: must be finite"),
        ("[" * 5000, "a.yaml: cannot be read as YAML"),
        ("- 1\n- 2", "a.yaml: must hold lines of the form 'name: value', not a list"),
        ("a: b: c", "a.yaml: cannot be read as YAML"),
        ("lr: 1.0\nlr: 2.0", "a.yaml: cannot be read as YAML: lr is given twice"),
        ("lr: !!python/object/apply:os.getcwd []", "a.yaml: cannot be read as YAML"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, words):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError) as error:
        read_flags(TrainConfig, NEEDED, tmp_path / "a.yaml")
    assert words in describe(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml: there is no such file"):
        read_flags(TrainConfig, NEEDED, tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("text", "part"), [("", (0, 1)), ("0_4", (0, 4)), ("3_4", (3, 4))])
def test_partitions(text, part):
    assert SampleConfig(ckpt="a", partition=text).part == part


@pytest.mark.parametrize("text", ["4_4", "1", "a_b", "1_0", "-1_4", "1/4"])
def test_wrong_partitions_are_named(text):
    with pytest.raises(ValueError, match=f"partition {text}: write i_n"):
        SampleConfig(ckpt="a", partition=text)


def test_resuming_allows_what_does_not_change_the_result(tmp_path):
    saved = read_flags(TrainConfig, NEEDED)
    check_resumable(saved, dataclasses.replace(saved, num_itr=5, workers=0, eval_every=7), tmp_path)
    with pytest.raises(ValueError) as error:
        check_resumable(saved, dataclasses.replace(saved, interval=100, network="tiny"), tmp_path)
    assert "--interval 1000 there, 100 now; --network adm256 there, tiny now" in describe(error.value)
    assert str(tmp_path) in describe(error.value)


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """It saved no lines of what came later, and what those stand for is not what they are by default now."""
    wanted = read_flags(TrainConfig, NEEDED)
    later = tuple(f"{f.name}:" for f in dataclasses.fields(TrainConfig) if f.metadata["later"])
    lines = [line for line in to_yaml(wanted).splitlines() if not line.startswith(later)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    saved = read_config(TrainConfig, tmp_path / "config.yaml")
    assert saved.regression_target == "image" != wanted.regression_target
    check_resumable(saved, wanted, tmp_path)
    regressions = [dataclasses.replace(config, formulation="regression") for config in (saved, wanted)]
    with pytest.raises(ValueError, match="`regression_target` image there, difference now"):
        check_resumable(*regressions, tmp_path)


def test_a_run_that_goes_on_may_cool_down_but_keeps_its_crops_and_its_steps(tmp_path):
    saved = read_flags(TrainConfig, [*NEEDED, "--crop", "random", "--crops-per-image", "4"])
    check_resumable(saved, dataclasses.replace(saved, lr_cooldown=100), tmp_path)
    for change in ({"start_share": 0.3}, {"crops_per_image": 2}, {"crop": "center", "crops_per_image": 1}):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` .* there, .* now"):
            check_resumable(saved, dataclasses.replace(saved, **change), tmp_path)


def test_crops_of_a_reference_are_refused_in_scoring():
    assert EvalConfig(make_reference="a.npz", dataset_dir="data", crop="random").crop == "random"
    with pytest.raises(ValueError, match="crop random: is for `make_reference`; scoring takes the run's own"):
        EvalConfig(ckpt="a", sample_dir="b", crop="random")


def test_yaml_is_plain(tmp_path):
    assert yaml.safe_load(to_yaml(read_flags(TrainConfig, NEEDED)))["corrupt"] == "sr4x-pool"


def test_help_names_the_networks_and_samplers_there_are():
    """config.py knows neither; what it says of them must still be so."""
    from i2sb.baselines.formulations import ConditionalDiffusion, UnconditionalDiffusion
    from i2sb.formulation import SchroedingerBridge
    from i2sb.network_sizes import NETWORKS

    helps = {f.name: f.metadata["help"] for f in (*dataclasses.fields(SampleConfig), *dataclasses.fields(TrainConfig))}
    assert all(re.search(rf"\b{name}\b", helps["network"]) for name in NETWORKS)
    for formulation in (SchroedingerBridge, ConditionalDiffusion, UnconditionalDiffusion):
        assert all(re.search(rf"\b{name}\b", helps["sampler"]) for name in formulation.samplers)


@pytest.mark.parametrize("config_class", [TrainConfig, SampleConfig, EvalConfig])
def test_help_shows_every_flag_with_its_default_and_no_types(config_class):
    text = " ".join(make_parser(config_class).format_help().split())
    for field in dataclasses.fields(config_class):
        assert f" {flag(field.name).replace('--', '--[no-]' if isinstance(field.default, bool) else '--')} " in text
        if type(field.default) in (int, float):
            assert f"(default: {field.default})" in text
    assert "type:" not in text and "(default: )" not in text and "None" not in text


@pytest.mark.parametrize(("config_class", "most_used"), [(TrainConfig, 10), (SampleConfig, 10), (EvalConfig, 5)])
def test_help_lists_each_flag_once_under_a_heading_the_most_used_on_top(config_class, most_used):
    groups = by_group(config_class)
    assert list(groups)[0] == "most used" and len(groups["most used"]) == most_used
    assert all(heading and len(options) > 1 for heading, options in groups.items())
    listed = [f.name for options in groups.values() for f in options]
    assert sorted(listed) == sorted(f.name for f in dataclasses.fields(config_class))
    lines = make_parser(config_class).format_help().splitlines()
    places = [lines.index(f"{heading}:") for heading in groups]
    assert places == sorted(places)
    flags = [re.match(r"  --(\[no-\])?([\w-]+)", line) for line in lines]
    assert [match[2] for match in flags if match] == [name.replace("_", "-") for name in listed]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("config_class", [TrainConfig, SampleConfig, EvalConfig])
def test_help_keeps_to_the_width_of_the_terminal_and_flags_whole(config_class, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = make_parser(config_class).format_help().splitlines()
    assert all(len(line) <= columns for line in lines if len(line.split()) > 1)
    assert not any(re.search(r"--\w+-$", line) for line in lines)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--formulation", "regression", "--ot-ode"], "--ot-ode True: --formulation regression does not use it"),
        (["--formulation", "regression", "--start-share", "0.3"], "--start-share 0.3: --formulation regression does"),
        (["--schedule", "cosine"], "--schedule cosine: --formulation bridge does not use it"),
        (["--formulation", "diffusion", "--cond-x1"], "--cond-x1 True: --formulation diffusion does not use it"),
        (["--regression-target", "image"], "--regression-target image: --formulation bridge does not use it"),
        (["--network", "nope"], "--network nope: unknown; choose one of adm256"),
        (["--network", "unet-48x1-blocks1-attention-heads16"], "48 channels are no multiple of 32"),
        (["--network", "unet-32x1.3-blocks1-attention-heads64"], "96 channels cannot be split into heads of 64"),
        (["--network", "unet-64x1/4.1-blocks1-attention-heads4x"], "16 channels are no multiple of 32"),
        (["--network", "unet-64x1/2.1-blocks1-attention-heads7x"], "64 channels cannot be split into 7 heads"),
        (["--network", "mine.py"], "--network mine.py: name the class too, as path/to/file.py:ClassName"),
    ],
)
def test_what_nothing_would_use_is_refused_before_anything_is_done(flags, words):
    refused = run_python("train.py", *NEEDED, *flags, "--dry-run", check=False)
    assert refused.returncode == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_run_that_was_begun_goes_on_with_settings_that_nothing_uses(tmp_path):
    """As older versions let it begin; and what it says nothing of was as it was then."""
    flags = [*NEEDED, "--results-dir", tmp_path, "--formulation", "regression", "--ot-ode"]
    saved = to_yaml(read_flags(TrainConfig, list(map(str, flags))))
    run = tmp_path / NEEDED[NEEDED.index("--name") + 1]
    run.mkdir()
    (run / "config.yaml").write_text(
        "".join(line for line in saved.splitlines(True) if "regression_target" not in line)
    )
    assert run_python("train.py", *flags, "--dry-run").stdout == saved
    assert read_config(TrainConfig, run / "config.yaml").regression_target == "image"


def test_the_command_line_writes_settings_as_flags():
    assert (
        describe(UserError("eval_nfe", 5, "must be below `interval` 5")) == "--eval-nfe 5: must be below --interval 5"
    )
    inside = UserError("nfe", 0, "must be at least 1").inside(Path("a.yaml"))
    assert (
        describe(inside) == "a.yaml: --nfe 0: must be at least 1"
        and str(inside) == "a.yaml: `nfe` 0: must be at least 1"
    )
    assert describe(UserError("", None, "stop")) == "stop"
    with pytest.raises(ValueError) as error:
        build_corruption("jpeg-0")
    assert describe(error.value) == "--corrupt jpeg-0: the quality must be between 1 and 100"


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ("", None),
        ("--value-range 0 10000", (0.0, 10000.0)),
        ("--value-range -1 1", (-1.0, 1.0)),
        ("--value-range -1e4 2.5E-3", (-1e4, 2.5e-3)),
        ("--value-range 5 1", "value_range 5 1: the first must be below the second"),
        ("--value-range 0 1_000", "value_range 1_000: must be 2 numbers"),
        ("--value-range x 1", "value_range x: must be 2 numbers"),
        ("--value-range 0 nan", "value_range nan: must be 2 numbers"),
        ("--value-range 0 1e999", "value_range"),
        ("--value-range 0", "--value-range: expected 2 arguments"),
        ("--show-channels 1 2", "show_channels 1 2: name one channel, or three"),
        ("--show-channels 0", "show_channels 0: must be at least 1"),
        ("--show-channels a", "show_channels a: must be one whole number or several"),
        ("--image-channels 0", "image_channels 0: must be at least 1"),
    ],
)
def test_settings_of_several_numbers(flags, value):
    if isinstance(value, str):
        with pytest.raises(ValueError, match=value):
            read_flags(TrainConfig, [*NEEDED, *flags.split()])
        return
    config = read_flags(TrainConfig, [*NEEDED, *flags.split()])
    assert config.value_range == value
    assert from_yaml(TrainConfig, to_yaml(config), Path("a.yaml")) == config


@pytest.mark.parametrize("text", ["[1]", "[0, 1, 2]", "[0, a]", "0 1", "5", "[]", "{a: 1}"])
def test_several_numbers_in_a_file_are_a_list_of_them(text):
    given = to_yaml(read_flags(TrainConfig, NEEDED)).replace("value_range: null", f"value_range: {text}")
    with pytest.raises(UserError, match="^a.yaml: `value_range` .*: must be 2 numbers"):
        from_yaml(TrainConfig, given, Path("a.yaml"))
