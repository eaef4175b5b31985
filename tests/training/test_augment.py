import pytest
import torch

from fedrobust.seeds import generator
from fedrobust.spec import SpecError
from fedrobust.training import Recipe
from fedrobust.training.augment import PADDING, apply, crop, draw, flip, names_of


def images():
    return (torch.arange(3 * 2 * 5 * 6) % 256).to(torch.uint8).view(3, 2, 5, 6)


def test_flips_are_mirrors_and_only_where_drawn():
    flipped = flip(images(), torch.tensor([[0.1, 0.5, 0.9]]))
    assert torch.equal(flipped[0], images()[0].flip(-1))
    assert torch.equal(flipped[1:], images()[1:])


def test_crops_are_slow_crops():
    draws = torch.tensor([[0.0, 0.4999, 0.99999]])
    x = images()
    padded = torch.zeros(3, 2, 5 + 2 * PADDING, 6 + 2 * PADDING, dtype=torch.uint8)
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = x
    for i, value in enumerate(draws[0].tolist()):
        place = int(value * 81)
        top, left = place // 9, place % 9
        expected = padded[i, :, top : top + 5, left : left + 6]
        assert torch.equal(crop(x, draws)[i], expected)
    middle = torch.tensor([[(4 * 9 + 4 + 0.5) / 81] * 3])
    assert torch.equal(crop(x, middle), x)


def test_draws_follow_the_generator_and_the_input_stays():
    x = images()
    first, again, other = (
        apply(x, "flip+crop", draw("flip+crop", 3, generator(s, "a"))) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, images())
    assert first.dtype == torch.uint8


def test_names():
    assert names_of(Recipe().augment) == ()
    assert names_of("crop+flip") == ("crop", "flip")
    with pytest.raises(SpecError, match="did you mean 'flip'"):
        names_of("flop")
