"""One rater's way through the pairs, without a page: which pair comes next, on which side each answer stands, what was said."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from vision_rl.pictures import rgb_image
from vision_rl.preferences.choices import Choice, ChoiceFile, Pair


@dataclass(frozen=True)
class Shown:
    """A pair on the page: its place in the list, and which of its answers stands left, and which right."""

    place: int
    order: tuple[int, int]


class Comparison:
    """Shows each rater the pairs that this rater has not judged yet, in their order, sides by chance.

    Args:
        pairs: what is to be judged, at least one.
        choices: where it is kept. What is in it already is not asked again.
        draw: `draw(image, completion) -> picture`, the processor's.
        seed: of the sides; None: another one each time, as people should have it.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        choices: ChoiceFile,
        draw: Callable[..., Image.Image],
        seed: int | None = None,
    ):
        if not pairs:
            raise ValueError("There are no pairs to compare: give at least one.")
        self.pairs, self.choices, self.draw = list(pairs), choices, draw
        self._sides = random.Random(seed)

    @cached_property
    def keys(self) -> list[str]:
        """The keys of all pairs. Making them stores the pairs' files, so nothing can go wrong with these later."""
        return [self.choices.key(pair) for pair in self.pairs]

    def next(self, rater: str) -> Shown | None:
        """The first pair that the rater has not judged; None after the last."""
        judged = self.choices.judged_by(rater)
        place = next((place for place, key in enumerate(self.keys) if key not in judged), None)
        return None if place is None else Shown(place, self._sides.choice([(0, 1), (1, 0)]))

    def num_judged(self, rater: str) -> int:
        judged = self.choices.judged_by(rater)
        return sum(key in judged for key in self.keys)

    def pictures(self, shown: Shown) -> tuple[Image.Image, Image.Image]:
        """Draw the answers that stand left and right."""
        pair = self.pairs[shown.place]
        left, right = (self.draw(rgb_image(pair.image, shown.place), pair.completions[which]) for which in shown.order)
        return left, right

    def choose(self, shown: Shown, side: int | None, rater: str) -> None:
        """Keep that the left (0) or the right (1) answer is better, or neither (None). A second answer to a pair is not kept."""
        if self.keys[shown.place] in self.choices.judged_by(rater):
            return  # a double click, or a page that was open twice
        better = None if side is None else shown.order[side]
        self.choices.append(Choice(self.pairs[shown.place], better, shown.order, rater))
