"""Seconds and memory of the start on a data set of COCO's size: the first start, which reads the JSON, and a later one.

    python benchmarks/annotations.py
    python benchmarks/annotations.py --num_images 10000 --num_boxes 75000

The annotations are made up: as many as COCO's, with polygons, over images that are hard links to a few files. Each
figure is measured in a process of its own: wall time and CPU time of the call, without the imports, and peak memory of
the process, with and without its imports.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import report
from PIL import Image
from transformers import HfArgumentParser


SIZES = [(640, 480), (480, 640), (640, 427), (500, 375), (640, 640), (333, 500), (612, 612), (640, 360)]
NUM_CATEGORIES = 80
POLYGON = 40  # numbers in a polygon, about COCO's mean

CHILD = """
import json, re, sys, time
from vision_rl.data.coco import category_ids, load_coco_detection
import datasets
datasets.disable_progress_bars()
images, file, what = sys.argv[1:]
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
imported, start, cpu = peak(), time.perf_counter(), time.process_time()
if what == "json.load":
    with open(file) as stream: found = len(json.load(stream)["annotations"])
else:
    rows = load_coco_detection(images, file)
    found = len(rows)
    if what == "counts":
        from transformers import ViTImageProcessorPil
        from vision_rl.tasks.detection import DetectionProcessor
        names = rows.features["objects"]["category"].feature.names
        processor = DetectionProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}), names)
        imported, start, cpu = peak(), time.perf_counter(), time.process_time()
        found = sum(processor.count_classes(rows))
    elif what == "ids":
        start, cpu = time.perf_counter(), time.process_time()
        found = len(category_ids(file))
seconds = {"s": time.perf_counter() - start, "CPU s": time.process_time() - cpu}
print(json.dumps({"found": found, **seconds, "MiB": peak() - imported, "MiB in all": peak()}))
"""

WHAT = {
    "json.load alone": "json.load",
    "first start": "load",
    "later start": "load",
    "later start, and category_ids": "ids",
    "later start, and count_classes": "counts",
}


@dataclass
class AnnotationArguments:
    num_images: int = 118_287
    num_boxes: int = 860_001


def main(args: AnnotationArguments) -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = make_annotations(folder, args.num_images, args.num_boxes)
        size = {"JSON, MB": file.stat().st_size / 1e6}
        rows = [{"what": name, **size, **measured(folder, file, what)} for name, what in WHAT.items()]
        stored = sum(path.stat().st_size for path in (folder / "cache").rglob("*.arrow"))
    return [{**row, "on disk, MB": stored / 1e6} for row in rows]


def measured(folder: Path, file: Path, what: str) -> dict[str, float]:
    """The figures that a new process prints."""
    command = [sys.executable, "-c", CHILD, str(folder / "images"), str(file), what]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def make_annotations(folder: Path, num_images: int, num_boxes: int, seed: int = 0) -> Path:
    """Images below `folder/images`, and their `instances.json`."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir()
    size_of = rng.integers(len(SIZES), size=num_images)
    images = []
    pictures: dict[tuple[int, int], Path] = {}
    for index, kind in enumerate(size_of.tolist()):
        path = folder / "images" / f"{index:012d}.png"
        first = pictures.setdefault((kind, index // 50_000), path)  # file systems allow some 60,000 links to a file
        if first is path:
            Image.new("1", SIZES[kind]).save(path)
        else:
            os.link(first, path)
        width, height = SIZES[kind]
        images.append({"id": index, "file_name": path.name, "width": width, "height": height})
    of_image = np.sort(rng.integers(num_images, size=num_boxes))
    sides = np.array(SIZES)[size_of[of_image]]  # (n, 2)
    start = rng.uniform(0, 0.7, (num_boxes, 2)) * sides
    extent = np.maximum(rng.uniform(0.02, 0.3, (num_boxes, 2)) * sides, 1)
    boxes = np.concatenate([start, extent], axis=1).round(2)
    labels = rng.integers(NUM_CATEGORIES, size=num_boxes)
    file = folder / "instances.json"
    with open(file, "w") as stream:
        categories = [{"id": 3 * place + 1, "name": f"class {place}"} for place in range(NUM_CATEGORIES)]
        stream.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for index, (image, box, label) in enumerate(
            zip(of_image.tolist(), boxes.tolist(), labels.tolist(), strict=True)
        ):
            polygon = [round(box[side % 2] + box[2 + side % 2] * (side % 7) / 7, 2) for side in range(POLYGON)]
            entry = {
                "segmentation": [polygon],
                "area": round(0.6 * box[2] * box[3], 3),
                "iscrowd": 0,
                "image_id": image,
            }
            entry |= {"bbox": box, "category_id": 3 * label + 1, "id": index + 1}
            stream.write(f"{', ' if index else ''}{json.dumps(entry)}")
        stream.write(f'], "categories": {json.dumps(categories)}}}')
    return file


if __name__ == "__main__":
    report("annotations", main(*HfArgumentParser(AnnotationArguments).parse_args_into_dataclasses()))
