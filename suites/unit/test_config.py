"""Settings: precedence, sources, and what each mistake is answered with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wan_trt_core.config import (
    KEYS,
    ConfigError,
    Loaded,
    Settings,
    checkpoints,
    load_settings,
    with_values,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(yaml: str | None = None, environ: dict[str, str] | None = None, **options: Any) -> Loaded:
    """Load from a ``config.yaml`` in the working folder, the given environment and options."""
    if yaml is not None:
        Path("config.yaml").write_text(yaml)
    return load_settings(None, options, environ or {})


def refusal(yaml: str | None = None, environ: dict[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(yaml, environ, **options)
    return str(caught.value)


class TestPrecedence:
    def test_defaults_without_any_source(self) -> None:
        loaded = load()
        assert loaded.settings.model == "tiny-wan"
        assert loaded.settings.tensorrt.profiles == ("range",)
        assert loaded.config_file is None
        assert set(loaded.sources.values()) == {"default"}
        assert set(loaded.sources) == set(KEYS)

    def test_later_sources_win_and_are_named(self) -> None:
        Path("config.yaml").write_text("backend: torch\nthreads: 2\nperf:\n  warmup: 5\n  min_pairs: 6\n")
        environ = {"WAN_TRT_THREADS": "3", "WAN_TRT_PERF__MIN_PAIRS": "7"}
        loaded = load_settings(None, {"threads": 4, "model": None}, environ, option_prefix="--wan-")
        settings, sources = loaded.settings, loaded.sources
        assert (settings.backend, settings.perf.warmup) == ("torch", 5)
        assert (settings.perf.min_pairs, settings.threads) == (7, 4)
        assert sources["backend"] == "config.yaml:1"
        assert sources["perf.warmup"] == "config.yaml:4"
        assert sources["perf.min_pairs"] == "WAN_TRT_PERF__MIN_PAIRS"
        assert sources["threads"] == "--wan-threads"
        assert sources["model"] == "default"

    def test_a_named_file_is_read_instead_of_the_one_here(self, tmp_path: Path) -> None:
        (tmp_path / "other.yaml").write_text("model: a\n")
        Path("config.yaml").write_text("model: b\n")
        assert load_settings(tmp_path / "other.yaml", environ={}).settings.model == "a"
        assert load_settings(environ={"WAN_TRT_CONFIG": "other.yaml"}).settings.model == "a"
        assert load_settings(environ={"WAN_TRT_CONFIG": ""}).settings.model == "tiny-wan"
        assert load_settings(environ={}).settings.model == "b"

    def test_null_and_an_empty_section_and_an_empty_variable_stand_for_the_default(self) -> None:
        loaded = load("threads: null\nperf:\n  # warmup: 3\n", {"WAN_TRT_BACKEND": ""})
        assert loaded.settings == Settings.model_validate(
            loaded.settings.model_dump() | {"threads": None, "backend": "auto"}
        )
        assert loaded.sources["threads"] == "default"

    def test_a_variable_can_hold_a_list_a_truth_value_or_nothing(self) -> None:
        environ = {
            "WAN_TRT_TENSORRT__PROFILES": "fixed, range",
            "WAN_TRT_PERF__ALLOW_TF32": "true",
            "WAN_TRT_THREADS": "none",
        }
        settings = load("threads: 2\n", environ).settings
        assert settings.tensorrt.profiles == ("fixed", "range")
        assert settings.perf.allow_tf32 is True
        assert settings.threads is None

    def test_variables_of_other_programs_and_of_the_tests_are_left_alone(self) -> None:
        assert load(environ={"HOME": "/", "WAN_TRT_TEST_CHECKPOINT": "/x", "WANTRT_A": "1"})

    def test_relative_paths_start_at_the_file_that_holds_them(self, tmp_path: Path) -> None:
        (tmp_path / "ci").mkdir()
        (tmp_path / "ci" / "gpu.yaml").write_text("baselines: stored\ncache: ~/cache\n")
        loaded = load_settings(tmp_path / "ci" / "gpu.yaml", {"report": "here"}, {})
        assert loaded.settings.baselines == tmp_path / "ci" / "stored"
        assert loaded.settings.cache == Path.home() / "cache"
        assert loaded.settings.report == tmp_path / "here"

    def test_a_checkpoint_is_a_folder_or_an_id_on_the_hub(self, tmp_path: Path) -> None:
        (tmp_path / "ci" / "owner" / "here").mkdir(parents=True)
        file = tmp_path / "ci" / "gpu.yaml"
        for text, expected in (
            ("owner/name", "owner/name"),
            ("owner/name@v1.0", "owner/name@v1.0"),
            ("owner/here", tmp_path / "ci" / "owner" / "here"),
            ("./owner/name", tmp_path / "ci" / "owner" / "name"),
            ("name", tmp_path / "ci" / "name"),
        ):
            file.write_text(f"checkpoint: {text}\n")
            settings = load_settings(file, environ={}).settings
            assert settings.checkpoint == expected and settings.flat()["checkpoint"] == str(expected)
        for given in (
            {"environ": {"WAN_TRT_CHECKPOINT": "owner/name"}},
            {"overrides": {"checkpoint": "owner/name"}},
        ):
            assert load_settings(**({"environ": {}} | given)).settings.checkpoint == "owner/name"

    def test_checkpoints_may_be_given_by_model(self, tmp_path: Path) -> None:
        """In the file a mapping, its folders relative to it; in the variable a list; from options as they give it."""
        file = tmp_path / "gpu.yaml"
        file.write_text("checkpoint: {tiny-wan: mine, wan2.1-t2v-1.3b: owner/name}\n")
        expected = {"tiny-wan": tmp_path / "mine", "wan2.1-t2v-1.3b": "owner/name"}
        text = f"tiny-wan={tmp_path / 'mine'},wan2.1-t2v-1.3b=owner/name"
        for settings in (
            load_settings(file, environ={}).settings,
            load(environ={"WAN_TRT_CHECKPOINT": text}).settings,
            load(checkpoint=checkpoints(text.split(","), "--it")).settings,
        ):
            assert settings.checkpoint == expected
            assert [settings.checkpoint_of(model) for model in (*expected, "wan2.1-t2v-14b")] == [
                *expected.values(),
                None,
            ]
            assert settings.flat()["checkpoint"] == {model: str(place) for model, place in expected.items()}
            assert with_values(settings, {"threads": 1}).checkpoint == expected

    def test_one_checkpoint_is_that_of_every_model(self) -> None:
        settings = load(checkpoint=checkpoints(["/a=b, c"], "--it")).settings
        assert settings.checkpoint_of("tiny-wan") == settings.checkpoint_of("any") == Path("/a=b, c")
        assert load(environ={"WAN_TRT_CHECKPOINT": "/a=b,c"}).settings.checkpoint == Path("/a=b,c")
        assert load().settings.checkpoint_of("tiny-wan") is None


class TestMistakes:
    """Each message names the source, the key and what is allowed."""

    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            (["/a", "/b"], "--it: '/a' is no MODEL=FOLDER or MODEL=ID, and a checkpoint of all models goes"),
            (["tiny-wan=/a", "/b"], "--it: '/b' is no MODEL=FOLDER"),
            (["tiny-wan=/a", "tiny-wan=/b"], "--it: the checkpoint of tiny-wan is given twice"),
        ],
    )
    def test_checkpoints_that_contradict_each_other(self, texts: list[str], said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            checkpoints(texts, "--it")
        assert str(caught.value).startswith(said)

    def test_a_variable_of_checkpoints_that_contradict_each_other(self) -> None:
        with pytest.raises(ConfigError, match=r"^WAN_TRT_CHECKPOINT: the checkpoint of a is given twice"):
            load(environ={"WAN_TRT_CHECKPOINT": "a=/x,a=/y"})

    @pytest.mark.parametrize("text", ["5", "[a, b]", "{}", "{tiny-wan: }", "{1.3: /a}", "{tiny-wan: [a]}"])
    def test_what_is_no_checkpoint(self, text: str) -> None:
        message = refusal(f"checkpoint: {text}\n")
        assert message.startswith("config.yaml:1: checkpoint: ")
        assert message.endswith("is not allowed: a folder, an id on the hub, or a mapping of models to those")

    def test_a_model_whose_checkpoint_is_given_twice(self) -> None:
        message = refusal("checkpoint:\n  tiny-wan: /a\n  tiny-wan: /b\n")
        assert message == "config.yaml:3: checkpoint.tiny-wan: given twice"

    def test_unknown_key_names_file_line_and_nearest(self) -> None:
        message = refusal("model: tiny-wan\nperf:\n  time_budgt: 3\n")
        assert message.startswith("config.yaml:3: perf.time_budgt: unknown setting")
        assert "did you mean perf.time_budget?" in message

    def test_unknown_key_lists_the_section_when_nothing_is_near(self) -> None:
        message = refusal("memory:\n  zzz: 3\n")
        assert "config.yaml:2" in message
        assert "memory.runs, memory.warmup" in message

    def test_unknown_variable_is_not_passed_over(self) -> None:
        message = refusal(environ={"WAN_TRT_PERF__TIME_BUDGT": "3"})
        assert message.startswith("WAN_TRT_PERF__TIME_BUDGT: unknown setting")
        assert "WAN_TRT_PERF__TIME_BUDGET" in message

    def test_unknown_option(self) -> None:
        assert refusal(modle="x").startswith("--modle: unknown setting 'modle'; did you mean model?")

    @pytest.mark.parametrize(
        ("yaml", "parts"),
        [
            (
                "threads: 10000\n",
                ("config.yaml:1: threads: 10000 is not allowed: at most", "of this machine"),
            ),
            ("tensorrt:\n  builder_threads: 10000\n", ("tensorrt.builder_threads: 10000 is not allowed",)),
            ("threads: 0\n", ("config.yaml:1: threads: 0 is not allowed", "greater than or equal to 1")),
            ("perf:\n  confidence: 1.5\n", ("config.yaml:2: perf.confidence", "less than 1")),
            ("perf:\n  time_budget: .nan\n", ("config.yaml:2: perf.time_budget", "finite")),
            ("device: gpu\n", ("config.yaml:1: device: 'gpu'", "'auto', 'cpu' or 'cuda'")),
            ("export:\n  opset: x\n", ("config.yaml:2: export.opset: 'x'", "valid integer")),
            (
                "tensorrt:\n  profiles: [fixed, fixed]\n",
                ("config.yaml:2: tensorrt.profiles", "a profile is named twice"),
            ),
            ("tensorrt:\n  profiles: []\n", ("config.yaml:2: tensorrt.profiles", "at least 1")),
            ("perf: 3\n", ("config.yaml:1: perf must be a mapping",)),
            ("- model\n", ("config.yaml:1: the file must be a mapping",)),
            ("model: a\nmodel: b\n", ("config.yaml:2: model: given twice",)),
            ("model: [\n", ("config.yaml:2: not valid YAML",)),
            ("model: !!python/object/apply:os.getcwd []\n", ("config.yaml:1: model: not a plain YAML",)),
        ],
    )
    def test_wrong_values_name_line_key_and_what_is_allowed(self, yaml: str, parts: tuple[str, ...]) -> None:
        message = refusal(yaml)
        for part in parts:
            assert part in message

    def test_a_rule_over_two_settings_names_both_sources(self) -> None:
        message = refusal("perf:\n  warmup: 1\n  max_pairs: 10\n", {"WAN_TRT_PERF__MIN_PAIRS": "20"})
        assert "config.yaml:3" in message
        assert "WAN_TRT_PERF__MIN_PAIRS" in message
        assert "config.yaml:2" not in message
        assert "min_pairs (20) must not exceed max_pairs (10)" in message

    def test_every_wrong_value_is_told_at_once(self) -> None:
        assert len(refusal("threads: 0\ndevice: gpu\n").splitlines()) == 2

    def test_a_variable_with_a_wrong_value(self) -> None:
        assert refusal(environ={"WAN_TRT_THREADS": "two"}).startswith("WAN_TRT_THREADS: threads: 'two'")

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"nope\.yaml: no such settings file"):
            load_settings(tmp_path / "nope.yaml", environ={})
        with pytest.raises(ConfigError, match=r"WAN_TRT_CONFIG: no file nope\.yaml"):
            load_settings(environ={"WAN_TRT_CONFIG": "nope.yaml"})

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match=r"config\.yaml: not readable as YAML"):
            load_settings(environ={})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().settings.model = "other"  # type: ignore[misc]


def test_the_repositorys_file_holds_every_setting_with_its_default() -> None:
    loaded = load_settings(REPOSITORY / "config.yaml", environ={})
    text = (REPOSITORY / "config.yaml").read_text()
    for key in KEYS:
        assert f"{key.rpartition('.')[2]}:" in text, f"{key} is not in config.yaml"
    ours = loaded.settings.model_dump(exclude={"baselines", "report"})
    assert ours == Settings().model_dump(exclude={"baselines", "report"})
    assert loaded.settings.baselines == REPOSITORY / "baselines"


def test_the_repositorys_file_has_a_comment_on_every_setting() -> None:
    commented, section = set(), ""
    for line in (REPOSITORY / "config.yaml").read_text().splitlines():
        if match := re.match(r"( *)(\w+):(.*)", line):
            indent, name, rest = match.groups()
            section = section if indent else ""
            if not rest:
                section = f"{name}."
            elif " # " in rest:
                commented.add(f"{section}{name}")
    assert commented == set(KEYS)


def test_every_setting_is_described() -> None:
    for row in load().describe():
        assert row.help, row.key
        assert row.source == "default"
