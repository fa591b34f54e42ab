import pytest

from chiron.engine import InvalidLimitError, UnknownProfileError, get_profile, profile_names
from chiron.engine.step_time import StepTimeTable

# Measured points above 2,048 tokens that the compact table leaves out: tokens, 8B ms, 70B ms.
# Same source as the table: profiles published by Microsoft's Vidur simulator (MIT licence).
LEFT_OUT = [
    (2304, 161.504, 441.880),
    (2816, 190.288, 537.120),
    (3840, 260.096, 710.360),
    (4352, 297.120, 804.920),
    (4608, 309.856, 825.480),
    (4864, 326.112, 876.320),
    (5376, 361.696, 949.440),
    (5632, 374.672, 994.480),
    (5888, 389.472, 1032.360),
    (6400, 429.936, 1098.320),
    (6656, 444.928, 1135.600),
    (6912, 458.192, 1173.080),
    (7168, 482.320, 1231.200),
    (7424, 497.552, 1285.960),
    (7680, 509.616, 1305.840),
    (7936, 532.992, 1351.480),
    (8960, 605.904, 1558.000),
    (9472, 614.976, 1548.760),
    (10240, 670.624, 1707.680),
    (14336, 946.464, 2408.760),
]


def test_unknown_profile_names_itself_and_those_there_are():
    with pytest.raises(UnknownProfileError) as caught:
        get_profile("llama9")
    assert "'llama9'" in str(caught.value)
    for name in ("llama3-8b@a100", "llama3-70b@4xa100", "toy"):
        assert name in str(caught.value)


def test_every_registered_profile_bears_its_registry_name():
    assert profile_names() == ("demo", "llama3-70b@4xa100", "llama3-8b@a100", "toy")
    assert [get_profile(name).name for name in profile_names()] == list(profile_names())


@pytest.mark.parametrize(
    ("tokens", "milliseconds"),
    [
        (1, 9.696),
        (128, 13.184),
        (136, 18.064),  # the staircase: 4.9 ms for eight tokens more
        (132, 15.624),  # half-way between 13.184 and 18.064
        (448, 35.120),
        (512, 34.640),  # falls where the measurement falls
        (480, 34.880),
        (2048, 145.568),
        (16384, 1082.784),
    ],
)
def test_8b_step_time_follows_the_measured_points(tokens, milliseconds):
    table = StepTimeTable(get_profile("llama3-8b@a100").step_time_ms)
    assert table.seconds(tokens) == pytest.approx(milliseconds / 1e3, rel=1e-12)


@pytest.mark.parametrize(("name", "column"), [("llama3-8b@a100", 1), ("llama3-70b@4xa100", 2)])
def test_thinned_region_stays_within_its_stated_error(name, column):
    table = StepTimeTable(get_profile(name).step_time_ms)
    errors = [abs(table.seconds(point[0]) * 1e3 / point[column] - 1) for point in LEFT_OUT]
    assert max(errors) < 0.04
    assert sum(errors) / len(errors) < 0.015


def test_last_segment_continues_beyond_the_last_point():
    table = StepTimeTable(((1, 10.0), (11, 20.0)))
    assert table.seconds(31) == pytest.approx(0.040)
    assert table.seconds(100_011) == pytest.approx(100.020)


def test_first_point_holds_below_it():
    assert StepTimeTable(((8, 10.0), (16, 20.0))).seconds(3) == pytest.approx(0.010)


def test_kv_figures_of_the_calibrated_profiles():
    small, large = get_profile("llama3-8b@a100"), get_profile("llama3-70b@4xa100")
    assert small.kv_read_s_per_token == pytest.approx(81.92e-9)
    assert large.kv_read_s_per_token == pytest.approx(51.2e-9)  # four GPUs read at once
    assert small.kv_blocks == 26_875
    assert large.kv_blocks == 31_250


def test_replace_changes_only_the_named_fields():
    profile = get_profile("toy").replace(load_s=9.0)
    assert profile.load_s == 9.0
    assert profile.replace(load_s=0.3) == get_profile("toy")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("gpus", 0),
        ("block_size", 0),
        ("kv_bytes_per_token", -1),
        ("kv_read_bytes_per_s", 0.0),
        ("kv_capacity_tokens", 15),
        ("max_context_tokens", 0),
        ("default_step_token_budget", 0),
        ("load_s", -0.1),
        ("wake_s", (1.0,)),
        ("wake_s", (1.0, -1.0)),
        ("step_time_ms", ((1, 1.0),)),
        ("step_time_ms", ((2, 1.0), (2, 2.0))),
        ("step_time_ms", ((0, 1.0), (2, 2.0))),
        ("step_time_ms", ((1, 0.0), (2, 2.0))),
        ("no_such_field", 1),
    ],
)
def test_bad_profile_values_are_refused_by_field(field, value):
    with pytest.raises(InvalidLimitError) as caught:
        get_profile("toy").replace(**{field: value})
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


def test_table_that_ends_downhill_is_refused():
    with pytest.raises(InvalidLimitError, match="must not fall"):
        StepTimeTable(((1, 2.0), (2, 1.0)))
