"""From the two heads' logits to a panoptic map (paper: UViM; `panoptic_task.py` of the authors' code)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vision_rl.arguments import check_number, naming_arguments
from vision_rl.tasks.panoptic.segments import NUM_IDS, Segmentation, resize_nearest


@naming_arguments
@torch.no_grad()
def decode_logits(semantics: torch.Tensor, instances: torch.Tensor, min_fraction: float = 0.0) -> torch.Tensor:
    """Per pixel the class and the instance: a pixel goes to its best instance, and that to one class as a whole.

    The class is the largest sum of the instance's semantic logits over its pixels: not of probabilities, and not a vote.
    Instance 0 is one like the others; its pixels are void only if class 0 is its largest. Computed on the logits' device,
    where a GPU adds in no fixed order unless `torch.use_deterministic_algorithms(True)` is set.

    Args:
        semantics: `(B, H, W, C)`, logits of the classes; class 0 is void.
        instances: `(B, H, W, N)`, logits of the instances.
        min_fraction: instances that cover at most this share of the image become void (0, 0). The authors' is 0.

    Returns:
        `LongTensor (B, H, W, 2)`, class and instance.
    """
    if semantics.shape[:-1] != instances.shape[:-1] or semantics.ndim != 4:
        raise ValueError(
            f"Logits must have the shapes (B, H, W, C) and (B, H, W, N); they have {tuple(semantics.shape)} and "
            f"{tuple(instances.shape)}."
        )
    num_classes, num_instances = semantics.shape[-1], instances.shape[-1]
    assigned = instances.argmax(-1)  # (B, H, W)
    decoded = []
    for logits, instance in zip(semantics.flatten(1, 2), assigned.flatten(1), strict=True):  # (HW, C), (HW,)
        sums = torch.zeros(num_instances, num_classes, device=logits.device)
        sums.index_add_(0, instance, logits.float())
        of_instance = torch.stack([sums.argmax(-1), torch.arange(num_instances, device=logits.device)], -1)  # (N, 2)
        share = torch.bincount(instance, minlength=num_instances) / len(instance)
        of_instance[share <= min_fraction] = 0
        decoded.append(of_instance[instance])  # (HW, 2)
    return torch.stack(decoded).unflatten(1, semantics.shape[1:3])


@naming_arguments
def to_segmentation(labels: Any, category_ids: Sequence[int], size: tuple[int, int] | None = None) -> Segmentation:
    """Classes and instances of one image as a map of segment ids with its `segments_info`.

    Every pair of class and instance is a segment, of stuff too: two instances of one kind of stuff stay two segments, as
    in the authors' evaluation, and at most one of them can match.

    Args:
        labels: `(H, W, 2)` integers, as from `decode_logits`; class 0 is void.
        category_ids: the category id of class 1, 2, ...
        size: (height, width) to which the finished labels are brought first, by nearest resize; default: as they are.

    Returns:
        `map (height, width)` int32 of ids 1, 2, ... where 0 is void, and dicts with `id` and `category_id`.
    """
    labels = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if labels.ndim != 3 or labels.shape[2] != 2:
        raise ValueError(f"The labels of an image must be (H, W, 2), class and instance; these are {labels.shape}.")
    for side in size or ():
        check_number("size", side, least=1, most=2**16, whole=True)
    labels = resize_nearest(labels, size or labels.shape[:2]).astype(np.int64)
    classes, instances = labels[..., 0], labels[..., 1]
    if labels.min() < 0 or classes.max() > len(category_ids):
        raise ValueError(
            f"Classes must be from 0 to {len(category_ids)}, and instances at least 0; in labels the classes go from "
            f"{classes.min()} to {classes.max()} and the instances from {instances.min()} to {instances.max()}."
        )
    stride = int(instances.max()) + 1
    if stride * (len(category_ids) + 1) > NUM_IDS:
        raise ValueError(
            f"The largest instance of labels is {stride - 1}, too many for a map: number the instances 0, 1, 2, ..."
        )
    keys = np.where(classes > 0, classes * stride + instances, 0)  # (height, width), void first
    counts = np.bincount(keys.reshape(-1))
    counts[0] = 0
    found = np.flatnonzero(counts)
    ids = np.zeros(len(counts), np.int32)
    ids[found] = np.arange(1, len(found) + 1)
    segments_info = [
        {"id": place, "category_id": int(category_ids[key // stride - 1])}
        for place, key in enumerate(found.tolist(), start=1)
    ]
    return ids[keys], segments_info
