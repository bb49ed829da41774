"""A saved model as a function of pictures: `vision_rl.pipeline(folder_or_name)`."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from vision_rl.models.uvim import UViMDecoder, UViMModel
from vision_rl.pictures import as_images, is_picture, rgb_image
from vision_rl.processing import DenseProcessor
from vision_rl.randomness import random_states, set_random_states, uniform_table
from vision_rl.task import load_processor, load_task, task_of
from vision_rl.trainer.mle_config import VisionMLEConfig
from vision_rl.trainer.mle_trainer import VisionMLETrainer
from vision_rl.trainer.vision_config import on_one_device


Picture = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


@contextmanager
def _apart() -> Iterator[None]:
    """Make a trainer without a change to one that is there: accelerate keeps precision and device for the whole process.

    The seeds of the process stay as they are, too.
    """
    kinds = (PartialState, AcceleratorState, GradientState)
    before, states = random_states(), [kind._shared_state for kind in kinds]
    if AcceleratorState._shared_state:
        for kind, state in zip(kinds, states, strict=True):
            kind._shared_state = type(state)()
    try:
        yield
    finally:
        set_random_states(before)
        for kind, state in zip(kinds, states, strict=True):
            kind._shared_state = state


class VisionPipeline:
    """Answers pictures with the task's objects: boxes, captions, maps, colour pictures, texts.

    ```python
    detect = vision_rl.pipeline("runs/detection-map")
    boxes = detect("street.jpg")
    detect.draw("street.jpg", boxes).save("boxes.png")
    ```

    Args:
        model: a folder or Hub name of a model with its processor, as the trainers save it.
        task: one of ours by its name, or the file of yours; None: told from the processor.
        batch_size: pictures that are answered at once.
        use_cpu: also where there is a GPU.
        revision: branch, tag or commit of a model on the Hub.

    Raises:
        ValueError: for a model of another task.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        task: str | None = None,
        batch_size: int = 16,
        use_cpu: bool = False,
        revision: str | None = None,
    ):
        name = os.fspath(model)
        self.task = task_of(name, revision) if task is None else load_task(task)
        self.processor = load_processor(name, self.task, revision)
        decoder = None
        if isinstance(self.processor, DenseProcessor):
            decoder = UViMDecoder(
                UViMModel.from_pretrained(name, subfolder="stage1", revision=revision), self.processor
            )
        with _apart():
            self.trainer = self._make_trainer(name, decoder, batch_size, use_cpu, revision)

    def _make_trainer(
        self, name: str, decoder: UViMDecoder | None, batch_size: int, use_cpu: bool, revision: str | None
    ):
        self._folder = tempfile.TemporaryDirectory(prefix="vision_rl")  # Trainer wants one; nothing is written
        config = VisionMLEConfig(
            self._folder.name,
            per_device_eval_batch_size=batch_size,
            use_cpu=use_cpu,
            report_to="none",
            disable_tqdm=True,
            model_init_kwargs=None if revision is None else {"revision": revision},
        )
        return VisionMLETrainer(
            name, on_one_device(config), processing_class=self.processor, completion_decoder=decoder
        )

    def __call__(self, images: Picture | Sequence[Picture]) -> Any:
        """Return the answer to one picture, or a list of those to many; a picture is a PIL image, a path, or an array."""
        rows = [{"image": image} for image in as_images(images)]
        answers: Any = self.trainer.predict(rows).predictions if rows else []
        return answers[0] if is_picture(images) else answers

    def sample(self, images: Picture | Sequence[Picture], num_generations: int, seed: int = 0) -> list:
        """Return `num_generations` answers to each picture, drawn as while a model is tuned: for comparing, and choosing.

        The same seed draws the same for the same list, whatever `batch_size`. Models that are sampled by `generate` draw from
        torch's generator instead.
        """
        rows = [{"image": image} for image in as_images(images)]
        answers: list[list] = []
        for batch in self.trainer.get_test_dataloader(rows) if rows else []:
            batch = self.trainer._prepare_inputs(batch)
            length = self.trainer.max_completion_length
            uniforms = uniform_table(seed, 0, batch["row_index"], num_generations, length)
            drawn = self.trainer.complete(batch, num_generations, uniforms=uniforms)
            objects, _ = self.trainer.decode(drawn, batch)
            answers += [objects[start : start + num_generations] for start in range(0, len(objects), num_generations)]
        return answers[0] if is_picture(images) else answers

    def draw(self, image: Picture, completion: Any, reference: Any = None, width: int | None = None) -> Image.Image:
        """The picture with an answer to it drawn in, `width` pixels wide; with a reference, what of it is right."""
        return self.trainer.processor.draw(rgb_image(image, 0), completion, reference, width)


def pipeline(
    model: str | os.PathLike,
    task: str | None = None,
    batch_size: int = 16,
    use_cpu: bool = False,
    revision: str | None = None,
) -> VisionPipeline:
    """A saved model as a function of pictures; see `VisionPipeline`."""
    return VisionPipeline(model, task, batch_size, use_cpu, revision)
