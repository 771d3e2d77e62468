"""The pair pool: fills, then exchanges, and never parts what belongs together."""

import pytest
import torch

from basicsr.data.pair_pool import Pair, PairPool
from basicsr.utils.errors import UserError


def numbered(start: int, count: int, edges: bool = False) -> Pair:
    """Samples whose LQ, GT and path, and edge map if there is one, all tell the same number."""
    numbers = torch.arange(start, start + count, dtype=torch.float32)
    picture = numbers[:, None, None, None].expand(count, 3, 4, 4)
    edge_01 = picture[:, :1] / 2000 if edges else None
    return Pair(picture / 1000, -picture / 1000, tuple(f"{start + i}.png" for i in range(count)), edge_01)


def numbers_of(pair: Pair) -> list[int]:
    """The numbers by path, after checking that LQ and GT, and the map if there is one, tell the same ones."""
    by_path = [int(path.removesuffix(".png")) for path in pair.paths]
    want = torch.tensor(by_path, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 4, 4)
    assert torch.equal(pair.lq_pm1, want / 1000)
    assert torch.equal(pair.gt_pm1, -want / 1000)
    assert pair.edge_01 is None or torch.equal(pair.edge_01, want[:, :1] / 2000)
    return by_path


def test_fills_before_it_swaps() -> None:
    pool = PairPool(size=6, seed=1)
    for step in range(3):
        pair = numbered(2 * step, 2)
        assert pool.push_pop(pair) is pair
    out = numbers_of(pool.push_pop(numbered(6, 2)))
    assert set(out) < set(range(6))


@pytest.mark.parametrize("edges", [False, True])
def test_parts_of_a_sample_stay_together_and_none_is_lost_or_doubled(edges: bool) -> None:
    pool = PairPool(size=12, seed=5)
    inside: set[int] = set()
    for step in range(200):
        pair = numbered(4 * step, 4, edges)
        popped = pool.push_pop(pair)
        assert (popped.edge_01 is not None) == edges
        out = numbers_of(popped)
        if step < 3:
            inside |= set(out)
            continue
        assert len(set(out)) == 4
        assert set(out) <= inside
        inside = (inside - set(out)) | set(numbers_of(pair))
    assert len(inside) == 12


def test_returned_samples_do_not_change_when_the_pool_goes_on() -> None:
    pool = PairPool(size=2, seed=0)
    pool.push_pop(numbered(0, 2))
    out = pool.push_pop(numbered(2, 2))
    before = numbers_of(out)
    pool.push_pop(numbered(4, 2))
    assert numbers_of(out) == before


def test_swaps_mix_batches() -> None:
    pool = PairPool(size=40, seed=3)
    outs = [numbers_of(pool.push_pop(numbered(4 * step, 4))) for step in range(60)][10:]
    sources = [len({n // 4 for n in out}) for out in outs]
    assert sum(sources) / len(sources) > 3  # four samples come from more than three batches on average


def test_draws_depend_on_seed_and_rank_only() -> None:
    def run(seed: int, rank: int) -> list[list[int]]:
        pool = PairPool(size=8, seed=seed, rank=rank)
        outs = []
        for step in range(20):
            torch.rand(step)  # the global stream must not matter
            outs.append(numbers_of(pool.push_pop(numbered(2 * step, 2))))
        return outs

    assert run(1, 0) == run(1, 0)
    assert run(1, 0) != run(2, 0)
    assert run(1, 0) != run(1, 1)


def test_a_shorter_last_batch_is_welcome_at_any_time() -> None:
    pool = PairPool(size=8, seed=0)
    seen: list[int] = []
    for step in range(30):
        pair = numbered(4 * step, 3 if step % 3 == 1 else 4)
        out = pool.push_pop(pair)
        assert len(out) == len(pair)
        seen += numbers_of(out)
    assert len(seen) == 30 * 4 - 10


def test_size_zero_is_no_pool() -> None:
    pool = PairPool(size=0, seed=0)
    for step in range(3):
        pair = numbered(step, 1)
        assert pool.push_pop(pair) is pair


def test_refuses_sizes_that_cannot_work() -> None:
    with pytest.raises(UserError, match=r"queue_size is 10, not a multiple of the batch size 4: use 8 or 12"):
        PairPool(size=10, seed=0).push_pop(numbered(0, 4))
    with pytest.raises(UserError, match=r"batch size 4: use 4, or 0"):
        PairPool(size=3, seed=0).push_pop(numbered(0, 4))
    with pytest.raises(UserError, match="queue_size is -1"):
        PairPool(size=-1, seed=0)


def test_a_pair_must_match() -> None:
    with pytest.raises(ValueError, match="not a pair"):
        Pair(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), ("one.png",))
    with pytest.raises(ValueError, match="not a pair"):
        Pair(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8), ("a", "b"))


@pytest.mark.parametrize("edges", [False, True])
def test_a_saved_pool_goes_on_as_if_nothing_had_been(edges: bool) -> None:
    pool, other = PairPool(size=8, seed=0), PairPool(size=8, seed=0)
    for step in range(7):
        pool.push_pop(numbered(4 * step, 4, edges))
    like = numbered(0, 4, edges)
    assert other.load_state_dict(pool.state_dict(), like)
    assert not PairPool(size=4, seed=0).load_state_dict(pool.state_dict(), like)  # of another size
    assert not PairPool(size=8, seed=0).load_state_dict(pool.state_dict(), numbered(0, 4, not edges))
    assert not PairPool(size=8, seed=0).load_state_dict(PairPool(size=8, seed=0).state_dict(), like)  # of nothing
    for step in range(7, 20):
        batch = numbered(4 * step, 4, edges)
        assert numbers_of(pool.push_pop(batch)) == numbers_of(other.push_pop(batch))


def test_samples_and_windows_of_a_pair_keep_all_parts() -> None:
    pair = numbered(10, 5, edges=True)
    assert (
        numbers_of(pair[:2]) == [10, 11] and numbers_of(pair[3:]) == [13, 14] and numbers_of(pair[[4, 0]]) == [14, 10]
    )
    window = numbered(10, 5, edges=True).cropped(slice(1, 4), slice(0, 2))
    assert window.lq_pm1.shape == window.gt_pm1.shape == (5, 3, 3, 2) and window.edge_01 is not None
    assert window.edge_01.shape == (5, 1, 3, 2) and numbered(0, 1).cropped(slice(1), slice(1)).edge_01 is None
    place = torch.arange(12.0).view(1, 1, 3, 4)
    crop = Pair(place.expand(1, 3, 3, 4), place.expand(1, 3, 3, 4), ("a",), place).cropped(slice(1, 3), slice(2, 4))
    assert crop.edge_01 is not None and torch.equal(crop.edge_01, crop.gt_pm1[:, :1]) and crop.edge_01[0, 0, 0, 0] == 6


def test_a_map_must_match() -> None:
    with pytest.raises(ValueError, match="not a pair: .* edge_01 .2, 1, 8, 8.,"):
        Pair(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), ("a", "b"), torch.zeros(2, 1, 8, 8))
    pool = PairPool(size=4, seed=0)
    pool.push_pop(numbered(0, 2, edges=True))
    with pytest.raises(ValueError, match="a batch of lq_pm1, gt_pm1 for a pool of lq_pm1, gt_pm1, edge_01"):
        pool.push_pop(numbered(0, 2))
