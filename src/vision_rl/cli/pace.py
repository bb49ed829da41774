"""Says after a few steps how long the run will take, where that is days: a recipe for GPUs may have been started on a CPU."""

import logging
import time

from transformers import TrainerCallback


logger = logging.getLogger(__name__)
WATCHED_STEPS, A_DAY = 3, 24 * 3600


class PaceCallback(TrainerCallback):
    """Warns once, after the third step on a CPU, if the rest takes more than a day at its pace. The run goes on."""

    def __init__(self):
        self.watched, self.began = 0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        if self.watched == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.watched += 1
        if self.watched != WATCHED_STEPS or args.device.type != "cpu" or not state.is_world_process_zero:
            return
        step = (time.perf_counter() - self.began) / WATCHED_STEPS
        left = (state.max_steps - state.global_step) * step
        if left > A_DAY:
            logger.warning(
                "A step took %.1f s on this CPU: the %d steps that are left will take %.0f days. The run goes on; a GPU, or "
                "fewer and smaller steps (max_steps, per_device_train_batch_size, image_size), would end it sooner.",
                step,
                state.max_steps - state.global_step,
                left / A_DAY,
            )
