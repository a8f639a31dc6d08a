"""``benchmarks/attention_sums.py``: what attention loses by sums in half precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scripts import load_script
from torch import Tensor

attention_sums = load_script("benchmarks/attention_sums.py")

GROUP = 4


def attended(keys: int, mean: float, sharper: float = 1) -> tuple[Tensor, Tensor, Tensor]:
    """One head's queries, keys and values of 16; the values have a mean."""
    noise = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, count, 16, generator=noise) for count in (8, keys, keys))
    return query * sharper / 4, key, value + mean


def lost(keys: int, mean: float, sharper: float = 1, group: int = GROUP) -> dict[str, float]:
    return attention_sums.losses(*attended(keys, mean, sharper), group)


def test_every_way_is_attention() -> None:
    query, key, value = attended(300, mean=1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1)
    torch.testing.assert_close(attention_sums.exact(query, key, value).float(), expected)
    for name, tolerance in (("fp16", 2e-3), ("centred", 1e-3), ("bf16", 6e-3)):
        assert 0 < lost(300, mean=1)[name] < tolerance


def test_what_half_precision_loses_grows_with_the_keys_and_centred_values_lose_less() -> None:
    few, many = lost(1_000, mean=1), lost(15_000, mean=1)
    assert many["fp16"] > 10 * few["fp16"] > 1e-3, "what is added gets smaller than the sum's last bit"
    assert many["centred"] < many["fp16"] / 10
    assert many["bf16"] < 2 * few["bf16"], "its sums are float32"


def test_the_fewer_roundings_the_less_is_lost() -> None:
    assert lost(10_000, mean=1, group=64)["fp16"] < lost(10_000, mean=1)["fp16"] / 10


def test_sharp_attention_is_where_eight_bits_lose() -> None:
    flat, sharp = lost(2_000, mean=0), lost(2_000, mean=0, sharper=16)
    assert sharp["effective_keys"] < 10 < 500 < flat["effective_keys"] < 2_000
    assert sharp["bf16"] > 4 * sharp["centred"]


def test_the_keys_that_count_are_all_where_attention_is_flat() -> None:
    query, key, value = attended(500, mean=0)
    assert attention_sums.losses(query * 0, key, value, GROUP)["effective_keys"] == pytest.approx(
        500, rel=1e-3
    )


def test_the_largest_sum_is_that_of_all_keys_where_attention_is_flat_and_of_one_where_it_is_not() -> None:
    query, key, value = attended(1_000, mean=3)
    flat = attention_sums.losses(query * 0, key, value, GROUP)
    assert flat["largest_sum"] == pytest.approx(float(value.sum(1).abs().amax()), rel=1e-4)
    assert flat["largest_centred"] < 1e-4 * flat["largest_sum"], "the mean is all that they have in common"
    one = attention_sums.losses(query * 1e4, key, value, GROUP)
    assert one["largest_sum"] <= float(value.abs().amax()) * 1.001
    apart = (
        value - 3 + 5 * torch.sign(key[..., :1])
    )  # half of the keys differ from the others, and one half is asked for
    asked = torch.zeros_like(query)
    asked[..., 0] = 1e4
    near = attention_sums.losses(asked, torch.sign(key), apart, GROUP)
    assert near["largest_centred"] > 1_000, "centring helps where all are asked for, not where a half is"


def test_every_layer_of_a_model_is_told_of(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "rows.json"
    asked = [
        "--checkpoint",
        str(small_checkpoint),
        "--size",
        "32x32x5",
        "--queries",
        "4",
        "--json",
        str(told),
    ]
    attention_sums.main(asked)
    found = json.loads(told.read_text())
    rows = found["rows"]
    assert found["carried"] is None
    assert [(row["layer"], row["sharper"]) for row in rows] == [
        (n, times) for n in range(3) for times in (1, 4)
    ]
    assert {row["keys"] for row in rows} == {2 * 2 * 2}, (
        "two latent frames of four by four latents, a token of 2 x 2"
    )
    flat, sharp = ([row["effective_keys"] for row in rows if row["sharper"] == times] for times in (1, 4))
    assert all(few < many for few, many in zip(sharp, flat, strict=True))
    assert all(0 < row[way] < 0.1 for row in rows for way in ("fp16", "centred", "bf16"))
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(rows)
    assert [cell.strip() for cell in table[2].strip("|").split("|")][:3] == ["0", "1", "8"]


def test_the_watched_forward_is_the_models_own(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries of the second layer come out of the first, so its answers have to be right."""
    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.models.components.dit import COMPONENT
    from wan_trt_core.models.profiles import Sizes

    checkpoint, video = Checkpoint.open(small_checkpoint), Sizes(32, 32, 5, 12)
    call, found = COMPONENT.call_tensors(checkpoint, video), {}
    make: Callable[..., torch.nn.Module] = COMPONENT.graph

    def watched(*given: object) -> torch.nn.Module:
        graph = make(*given)
        graph.register_forward_hook(lambda graph, given, outputs: found.update(sample=outputs[0]))
        return graph

    monkeypatch.setattr(attention_sums.COMPONENT, "graph", watched)
    _, left = attention_sums.losses_by_layer(checkpoint, video, 4, GROUP, [1], carried=False)
    assert left is None
    torch.testing.assert_close(found["sample"], COMPONENT.reference(checkpoint, "fp32")(call)["sample"])


def test_a_loss_in_attention_is_carried_to_the_prediction(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--checkpoint", str(small_checkpoint), "--size", "32x32x5", "--queries", "1", "--carried"]
    attention_sums.main(asked)
    last = capsys.readouterr().out.splitlines()[-1]
    left = last.removeprefix("1% of every answer lost is ").removesuffix("% of the prediction")
    assert 0 < float(left) < 1, "the residual stream carries the rest"
