"""The code of the documentation runs: the quickstart and pages that say they go on from it, other pages, tutorials."""

import ast
import dataclasses
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from tiny import image_processor

from vision_rl import VisionMLEConfig, VisionRewardConfig
from vision_rl.cli import main
from vision_rl.cli.parser import recipe_files
from vision_rl.models import vision_encoder_decoder, vit_encoder
from vision_rl.tasks.ocr import character_tokenizer
from vision_rl.trainer.step_log import PATIENCE


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GOES_ON = re.compile(r"go(?:es)? on from\s+the\s+\[quickstart\]\(index\.md#quickstart\)")
SHORTER = [
    (r"max_steps([=\s\":]+)\d+", r"max_steps\g<1>2"),
    (r"printed_numbers\(\d+", "printed_numbers(64"),
    (r'"train", \d+', '"train", 64'),
    (r'"validation", \d+', '"validation", 24'),
    (r'"height": 640, "width": 480', '"height": 64, "width": 64'),
]

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of the installed package")


def blocks(page: str, languages: str = "python") -> list[tuple[str, str]]:
    """Language and code of each block in one of the languages, with fewer rows and steps than on the page."""
    found = re.findall(rf"^```({languages})\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)
    for pattern, replacement in SHORTER:
        found = [(language, re.sub(pattern, replacement, code)) for language, code in found]
    return found


def run(page: str, names: dict, languages: str = "python", first: str = "") -> None:
    """Run the blocks of a page from the one that contains `first` on. Of shell blocks only our own commands are run."""
    code = blocks(page, languages)
    start = next(place for place, block in enumerate(code) if first in block[1])
    for number, (language, block) in enumerate(code[start:], start):
        if language == "python":
            exec(compile(block, f"{page}[{number}]", "exec"), names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("vision-rl "):
                assert main(shlex.split(line, comments=True)[1:]) == 0, line


def goes_on(page: str) -> bool:
    """Whether the page says, before its first block of Python, that it goes on from the quickstart."""
    return GOES_ON.search((DOCS / page).read_text().split("```python")[0]) is not None


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder to work in that is empty but for `experiments`, whose checkpoints the pages use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


def test_the_quickstart_runs_and_then_each_page_that_says_it_goes_on_from_it(desk):
    quickstart: dict = {"__name__": "docs"}
    run("index.md", quickstart)
    for page in sorted(path.name for path in DOCS.glob("*.md")):
        if page != "index.md" and blocks(page) and goes_on(page):
            run(page, dict(quickstart), "python|bash" if page == "own-data.md" else "python")


def test_a_page_that_does_not_say_that_it_goes_on_from_the_quickstart_runs_without_its_names_and_files(desk):
    for page in sorted(path.name for path in DOCS.glob("*.md")):
        if page != "index.md" and blocks(page) and not goes_on(page):
            run(page, {"__name__": "docs"})


# --- the README -------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_its_code_runs_as_it_stands(desk):
    assert len((ROOT / "README.md").read_text().split()) < 700
    run("../README.md", {"__name__": "readme"})
    assert (desk / "runs" / "boxes.png").is_file()


def test_the_readme_says_what_was_measured():
    def mean(results: str, row: str, column: str) -> float:
        recorded = json.loads((ROOT / "experiments" / "results" / f"{results}.json").read_text())
        return recorded["rows"][row][column]["mean"]

    captions = [
        mean("scene-captions", f"{row}", "cider")
        for row in ("mle, greedy", "tuned_without_end, greedy", "mle_continued, greedy", "mle, beam 8")
    ]
    boxes = [
        mean("detection-incomplete", row, "map") for row in ("mle", "tuned_map", "mle@0.95", "mle_continued@0.95")
    ]
    maps = [mean("panoptic", row, "pq") for row in ("mle", "tuned 3e-05", "mle_continued 0.001")]
    few = [mean("panoptic-few-labels", row, "pq") for row in ("mle", "tuned 3e-05", "mle_continued 0.0001")]
    measured = ("sampled_reward", "colorfulness", "psnr")
    colours = [mean("colorization", row, name) for name in measured for row in ("mle", "tuned 1e-06")]
    readme = (ROOT / "README.md").read_text()
    assert "CIDEr {:.2f} → {:.2f}; more MLE {:.2f}; 8 beams {:.2f}".format(*captions) in readme
    assert "mAP {:.2f} → {:.2f}; MLE with a stop threshold {:.2f}, with more MLE {:.2f}".format(*boxes) in readme
    assert "PQ {:.3f} → {:.3f}; more MLE {:.3f}".format(*maps) in readme
    assert "few labels: {:.3f} → {:.3f}; more MLE {:.3f}".format(*few) in readme
    assert "of a sample {:.2f} → {:.2f}, greedy {:.2f} → {:.2f}; PSNR falls {:.1f} → {:.1f}".format(*colours) in readme


# --- the tutorials ----------------------------------------------------------------------------------------------------


def test_the_tutorial_on_a_coco_folder_runs_from_its_first_block_to_its_last(desk):
    run("tutorials/coco-folder.md", {"__name__": "docs"}, "python|bash")
    assert (desk / "found" / "detections.json").is_file() and (desk / "first.png").is_file()


def reader_of_the_hub(folder: Path, kind: type, encoder: torch.nn.Module) -> None:
    """Save a tiny random model in a folder with a Hub name, where transformers looks before it asks the Hub."""
    tokenizer = character_tokenizer("0123456789")
    layers = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "forced_eos_token_id": None, **layers}
    if kind is transformers.DonutProcessor:
        decoder = transformers.MBartForCausalLM(transformers.MBartConfig(encoder_layers=1, **config))
        images = transformers.DonutImageProcessor(size={"height": 64, "width": 64})
    else:
        decoder = transformers.TrOCRForCausalLM(transformers.TrOCRConfig(**config))
        images = image_processor()
    model = vision_encoder_decoder(encoder, decoder, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)
    kind(images, tokenizer).save_pretrained(folder)


def test_the_tutorial_on_trocr_and_donut_runs_from_its_first_block_to_its_last_with_either(desk):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    trocr = vit_encoder(32, patch_size=16, **sizes)
    reader_of_the_hub(desk / "microsoft/trocr-small-handwritten", transformers.TrOCRProcessor, trocr)
    swin = {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    donut = transformers.DonutSwinModel(transformers.DonutSwinConfig(**swin))
    reader_of_the_hub(desk / "naver-clova-ix/donut-base", transformers.DonutProcessor, donut)

    names = {"__name__": "docs"}
    run("tutorials/trocr.md", names)
    names |= {"model": names["donut"], "processor": names["donut_processor"]}
    run("tutorials/trocr.md", names, first="def good_reading")


def test_the_notebook_has_the_cells_of_its_page():
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "tutorials" / "notebook.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    notebooks = list(DOCS.glob("tutorials/*.ipynb"))
    assert notebooks
    for path in notebooks:
        assert path.read_text() == script.notebook(path.with_suffix(".md").read_text()), f"run {script.__doc__}"


# --- the sentences of the troubleshooting page ----------------------------------------------------------------------


def sentences_of(path: Path) -> Iterator[str]:
    """The texts in a file, with "…" in place of each value that is put into them."""
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield re.sub(r"%[-.\dsdrgf]+", "…", node.value)


def test_each_sentence_that_the_page_explains_is_one_that_the_library_says():
    said = [text.replace("`", "") for path in (ROOT / "src").rglob("*.py") for text in sentences_of(path)]
    page = (DOCS / "troubleshooting.md").read_text().split("## Starting a run")[1]
    explained = re.findall(r"^\| `(.+?)` \|", page, re.M)
    explained = [sentence for sentence in explained if not sentence.startswith("torch.")]
    unsaid = []
    for sentence in explained:
        parts = [part for part in re.split(r"…", sentence) if part.strip()]
        if not any(re.search(".*".join(map(re.escape, parts)), text, re.S) for text in said):
            unsaid.append(sentence)
    assert len(explained) > 50 and not unsaid


# --- what pages say about files and versions ------------------------------------------------------------------------


def test_the_walks_through_the_house_name_files_that_are_there():
    named = re.findall(r"`([\w./*]+\.(?:py|yaml))[`:,]", (DOCS / "architecture.md").read_text())
    folder = ""
    for name in named:
        if name in ("my_rewards.py",) or name.startswith("tests/"):
            continue
        here = ROOT / "src" / "vision_rl"
        folder = str(Path(name).parent) if "/" in name else folder  # a bare name is in the folder of the one before
        assert list(here.glob(name)) or list(here.glob(f"{folder}/{name}")), name
    assert len(named) > 30


def test_the_page_on_versions_names_the_floors_of_the_metadata_and_the_versions_that_were_tested():
    page = (DOCS / "compatibility.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = dict(re.match(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in declared)
    floors.pop("torch")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints" / "known-good.txt").read_text(), re.M))
    assert {name: floor for name, floor, _ in rows} == floors
    assert {name: version for name, _, version in rows} == {name: pinned[name] for name in floors}
    assert f"**torch** is {pinned['torch']} in all three" in page


def test_the_page_on_rewards_names_the_step_up_to_which_a_run_may_be_without_any_reward():
    assert f"at or after step {PATIENCE}, or up to the end of training" in (DOCS / "design-a-reward.md").read_text()


def test_the_table_of_memory_has_each_recipe_once():
    page = (DOCS / "distributed.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| \d+ \|", page, re.M)
    named = [name for row in rows for name in re.findall(r"\w+", row)]
    assert sorted(named) == sorted(path.stem for path in recipe_files())


def test_the_tables_of_options_have_each_option_that_training_arguments_lack_with_its_default():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+?) \|", (DOCS / "api.md").read_text(), re.M)
    listed = {}
    for names, defaults in rows:
        names, defaults = re.findall(r"\w+", names), defaults.replace("`", "").split(", ")
        listed |= dict(zip(names, defaults * len(names) if len(defaults) == 1 else defaults, strict=True))
    of_trainer = {option.name for option in dataclasses.fields(transformers.TrainingArguments)}
    options = {option.name: option.default for option in dataclasses.fields(VisionRewardConfig)}
    assert options.keys() >= {option.name for option in dataclasses.fields(VisionMLEConfig)}
    assert {name for name in options if name not in of_trainer} <= listed.keys() <= options.keys()
    assert {name: ast.literal_eval(default) for name, default in listed.items()} == {
        name: options[name] for name in listed
    }


def test_the_page_on_the_log_explains_each_number_that_our_rewards_and_options_log():
    page = (DOCS / "how-it-works.md").read_text().split("## Reading the log")[1].split("\n## ")[0]
    explained = {name for row in re.findall(r"^\| (`.+?`) \|", page, re.M) for name in re.findall(r"`(.+?)`", row)}
    rewards = [path for path in (ROOT / "src" / "vision_rl").rglob("*.py") if path.name == "rewards.py"]
    rewards += (ROOT / "src" / "vision_rl" / "preferences").glob("*.py")
    logged = {name for path in rewards for name in re.findall(r"\blog_metric\(\"(.+?)\"", path.read_text())}
    assert len(logged) > 9
    assert logged | {"skipped_rows", "skipped_steps", "rewards/<name>/skipped"} <= explained
