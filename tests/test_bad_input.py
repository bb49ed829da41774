"""Bad input is answered with a sentence that says what is wrong, where, and what to do: before training if possible."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from peft import LoraConfig, PromptTuningConfig
from PIL import Image
from tiny import SIZE, image_processor, share_of_a, text_dataset, text_processor, tiny_images, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    TrainingArguments,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from vision_rl import TextProcessor, VisionMLEConfig, VisionMLETrainer, VisionRewardConfig, VisionRewardTrainer
from vision_rl.processing import as_images, image_size, rgb_image
from vision_rl.tasks.ocr import character_accuracy_reward, character_tokenizer


def reward_trainer(tmp_path, reward=share_of_a, dataset=None, model=None, processor=None, **kwargs):
    args = VisionRewardConfig(
        str(tmp_path),
        **{
            "per_device_train_batch_size": 4,
            "max_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
            **kwargs,
        },
    )
    return VisionRewardTrainer(
        model or tiny_model(),
        reward,
        args,
        train_dataset=text_dataset(8) if dataset is None else dataset,
        processing_class=processor or text_processor(),
    )


class AsRows(torch.utils.data.Dataset):
    """A data set of one's own."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def mle_trainer(tmp_path, dataset, processor=None, model=None, **kwargs):
    args = VisionMLEConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        **kwargs,
    )
    return VisionMLETrainer(
        model or tiny_model(), args, train_dataset=dataset, processing_class=processor or text_processor()
    )


class TestColumns:
    def test_a_misspelt_column_is_named_with_its_likely_spelling(self, tmp_path):
        dataset = text_dataset(8).rename_column("image", "imagee")
        with pytest.raises(ValueError, match=r"train_dataset has no column `image`.*Did you mean `imagee`\?"):
            reward_trainer(tmp_path, dataset=dataset)

    def test_a_missing_target_is_found_before_mle(self, tmp_path):
        with pytest.raises(ValueError, match=r"no column `text`.*target_columns"):
            mle_trainer(tmp_path, text_dataset(8).remove_columns("text"))

    def test_target_columns_maps_the_data_sets_names(self, tmp_path):
        dataset = text_dataset(8).rename_column("text", "transcription")
        mle_trainer(tmp_path, dataset, target_columns={"text": "transcription"}).train()
        reward_trainer(tmp_path, character_accuracy_reward, dataset, target_columns={"text": "transcription"}).train()

    def test_target_columns_is_a_dict(self):
        for given in (["text"], "text"):
            with pytest.raises(ValueError, match=r"target_columns is .*text.*must be a dict .*\{'text'"):
                VisionMLEConfig("out", target_columns=given)

    def test_what_is_no_row_is_told_what_a_row_is(self, tmp_path):
        trainer = reward_trainer(tmp_path)
        for given, told in (
            ("a.png", r"test_dataset is a str; it must hold rows.*vision_rl.pipeline\(folder\)\('a.png'\)"),
            (tiny_images(1)[0], "test_dataset is a Image; it must hold rows"),
            (
                ["a.png"],
                r"test_dataset is a list of str, but a row is a dict.*\[\{'image': each\} for each in test_dataset\]",
            ),
            (tiny_images(2), "test_dataset is a list of Image, but a row is a dict"),
        ):
            with pytest.raises(TypeError, match=told):
                trainer.predict(given)
        with pytest.raises(
            TypeError, match="train_dataset is a str; it must hold rows.*load_dataset loads a data set"
        ):
            mle_trainer(tmp_path, "ocr/words")

    def test_a_target_that_the_processor_does_not_know(self, tmp_path):
        with pytest.raises(ValueError, match=r"\['boxes'\], but TextProcessor takes \['text'\]"):
            mle_trainer(tmp_path, text_dataset(8), target_columns={"boxes": "text"})

    def test_a_reward_that_asks_for_a_column_that_is_not_there(self, tmp_path):
        def reward(completions, boxes, **kwargs):
            return [0.0] * len(completions)

        with pytest.raises(ValueError, match="The reward `reward` asks for a column.*`boxes`"):
            reward_trainer(tmp_path, reward)

    def test_a_reward_that_needs_references_where_there_are_none(self, tmp_path):
        with pytest.raises(ValueError, match="`character_accuracy_reward` compares with `references`"):
            reward_trainer(tmp_path, character_accuracy_reward, text_dataset(8).remove_columns("text"))

    def test_a_reward_that_needs_no_label_runs_on_images_alone(self, tmp_path):
        reward_trainer(tmp_path, dataset=text_dataset(8).remove_columns("text")).train()

    def test_a_reward_without_kwargs_is_refused_at_the_start(self, tmp_path):
        with pytest.raises(TypeError, match=r"must end in \*\*kwargs"):
            reward_trainer(tmp_path, lambda completions: [0.0] * len(completions))


class TestDataSets:
    def test_an_empty_data_set(self, tmp_path):
        with pytest.raises(ValueError, match="train_dataset is empty"):
            reward_trainer(tmp_path, dataset=text_dataset(8).select([]))

    def test_fewer_rows_than_a_step_takes(self, tmp_path):
        with pytest.raises(ValueError, match="One step takes 4 images .*has only 3: lower the batch size"):
            reward_trainer(tmp_path, dataset=text_dataset(3))

    def test_a_data_set_without_length_and_index_that_is_no_stream_is_told_to_be_loaded(self, tmp_path):
        with pytest.raises(TypeError, match="streaming=False"):
            reward_trainer(tmp_path, dataset=iter(text_dataset(8)))

    def test_a_text_that_is_no_string_names_its_row(self, tmp_path):
        rows = [{"image": image, "text": "ab" if i != 2 else None} for i, image in enumerate(tiny_images(4))]
        with pytest.raises(
            ValueError,
            match=r"train_dataset: Row 2, column `text`: text must be a string; .* \(1 of 4 rows cannot be used",
        ):
            mle_trainer(tmp_path, rows)

    def test_a_text_that_the_tokenizer_cannot_write_names_its_row_before_training(self, tmp_path):
        rows = [
            {"image": image, "text": "ab!" if row in (2, 20) else "ab"} for row, image in enumerate(tiny_images(24))
        ]
        with pytest.raises(ValueError, match=r"Row 2, column `text`: .*no id for '!'.* \(2 of 24 rows cannot be used"):
            mle_trainer(tmp_path, rows)
        reward_trainer(tmp_path, dataset=rows)  # which learns no text

    def test_texts_that_the_tokenizer_knows_in_part_are_counted(self, tmp_path, caplog):
        tokenizer = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}, "<unk>"))
        tokenizer.pre_tokenizer = Whitespace()
        tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        words = TextProcessor(image_processor(), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens))
        rows = [{"image": image, "text": "a b" if row < 12 else "a zz"} for row, image in enumerate(tiny_images(16))]
        mle_trainer(tmp_path, rows, words)
        assert "4 of 16 rows have something that the tokenizer does not know" in caplog.text

    def test_a_row_of_a_list_that_lacks_a_column_is_named(self, tmp_path):
        rows = [{"image": image, "text": "ab"} for image in tiny_images(4)]
        del rows[2]["text"]
        with pytest.raises(ValueError, match="Row 2 has no column `text`; it has `image`"):
            mle_trainer(tmp_path, rows).train()

    def test_a_row_that_is_no_dict(self, tmp_path):
        with pytest.raises(TypeError, match="Row 0 is a tuple; a row must be a dict"):
            mle_trainer(tmp_path, [(image, "ab") for image in tiny_images(4)])

    def test_a_transform_that_fails_is_told_with_its_row_and_its_own_words(self, tmp_path):
        def transform(rows):
            raise KeyError("scan")

        dataset = Dataset.from_dict({"file": ["a.png"] * 4}).with_transform(transform)
        with pytest.raises(ValueError, match="Row 0 cannot be read: 'scan'"):
            mle_trainer(tmp_path, dataset)

    def test_columns_that_a_transform_makes_are_columns(self, tmp_path):
        images = tiny_images(4)
        dataset = Dataset.from_dict({"index": range(4)}).with_transform(
            lambda rows: {"image": [images[i] for i in rows["index"]], "text": ["ab"] * len(rows["index"])}
        )
        mle_trainer(tmp_path, dataset).train()

    def test_a_column_with_the_name_of_a_reward_argument(self, tmp_path):
        dataset = text_dataset(8).add_column("completions", ["x"] * 8)
        with pytest.raises(
            ValueError, match=r"train_dataset has columns \['completions'\], but under these names rewards are given"
        ):
            reward_trainer(tmp_path, dataset=dataset)

    def test_a_column_called_codes_is_no_ones_labels_but_of_stage_one(self, tmp_path):
        mle_trainer(tmp_path, text_dataset(8).add_column("codes", [["A12"]] * 8)).train()

    def test_what_a_processor_makes_must_be_tensors_and_labels(self, tmp_path):
        class Processor(TextProcessor):
            make = staticmethod(lambda batch: batch)

            def __call__(self, *args, **kwargs):
                return self.make(super().__call__(*args, **kwargs))

        class Arrays(Processor):
            make = staticmethod(lambda batch: {**batch, "pixel_values": batch["pixel_values"].numpy()})

        class Lists(Processor):
            make = staticmethod(lambda batch: {**batch, "labels": batch["labels"].tolist()})

        class Without(Processor):
            make = staticmethod(lambda batch: {"pixel_values": batch["pixel_values"]})

        parts = (text_processor().image_processor, text_processor().tokenizer)
        for made, error, message in (
            (Arrays(*parts), TypeError, "Arrays made `pixel_values` as a ndarray; it must be a tensor"),
            (Lists(*parts), TypeError, "Lists made `labels` as a list; it must be a tensor"),
            (Without(*parts), ValueError, "Without made no labels from the targets"),
        ):
            with pytest.raises(error, match=message):
                mle_trainer(tmp_path, text_dataset(8), processor=made)

    def test_a_list_of_dicts_is_a_data_set(self, tmp_path):
        mle_trainer(tmp_path, [{"image": image, "text": "ab"} for image in tiny_images(4)]).train()


class TestProcessors:
    def test_a_processor_whose_module_is_not_imported_is_named(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        text_processor().save_pretrained(tmp_path)
        saved = tmp_path / "processor_config.json"
        saved.write_text(saved.read_text().replace("TextProcessor", "ElsewhereProcessor"))
        with pytest.raises(ValueError, match="is a ElsewhereProcessor, whose module is not imported"):
            VisionMLETrainer(str(tmp_path), VisionMLEConfig(str(tmp_path), use_cpu=True), text_dataset(8))


class TestImages:
    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "1", "I;16", "I", "F"])
    def test_every_mode_becomes_rgb(self, mode):
        if mode == "I;16":
            image = Image.fromarray(np.full((4, 4), 65535, np.uint16))
        elif mode == "I":
            image = Image.fromarray(np.full((4, 4), 65535, np.int32))
        else:
            image = Image.new("RGB", (4, 4), "white").convert(mode)
        converted = rgb_image(image, 0)
        assert converted.mode == "RGB" and converted.getpixel((1, 1)) == (255, 255, 255)

    def test_sixteen_bits_are_scaled_not_clipped(self):
        image = Image.fromarray(np.array([[0, 257 * 10, 257 * 200]], np.uint16))
        assert [rgb_image(image, 0).getpixel((x, 0))[0] for x in range(3)] == [0, 10, 200]

    def test_transparency_is_laid_over_white(self):
        assert rgb_image(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), 0).getpixel((0, 0)) == (255, 255, 255)
        palette = Image.new("P", (2, 2), 0)
        palette.info["transparency"] = 0
        assert rgb_image(palette, 0).getpixel((0, 0)) == (255, 255, 255)

    def test_arrays_and_paths_are_images_too(self, tmp_path):
        tiny_images(1)[0].save(tmp_path / "a.png")
        assert rgb_image(str(tmp_path / "a.png"), 0).size == rgb_image(tmp_path / "a.png", 0).size == (SIZE, SIZE)
        assert rgb_image(np.zeros((5, 7), np.uint8), 0).size == (7, 5)

    def test_a_grey_array_may_have_an_axis_of_one_channel(self):
        assert rgb_image(np.full((5, 7, 1), 9, np.uint8), 0).getpixel((0, 0)) == (9, 9, 9)

    def test_a_photo_is_turned_as_its_camera_says_however_a_row_holds_it(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # Orientation: a quarter turn
        Image.new("RGB", (8, 4)).save(tmp_path / "photo.jpg", exif=exif)
        opened = Dataset.from_dict({"image": [str(tmp_path / "photo.jpg")]}).cast_column("image", ImageFeature())
        assert rgb_image(str(tmp_path / "photo.jpg"), 0).size == rgb_image(opened[0]["image"], 0).size == (4, 8)
        by_pillow = Image.open(tmp_path / "photo.jpg")
        assert by_pillow.size == (8, 4)
        assert rgb_image(by_pillow, 0).size == as_images(by_pillow)[0].size == image_size(by_pillow) == (4, 8)

    def test_a_truncated_file_is_named_with_its_row(self, tmp_path):
        tiny_images(1)[0].save(tmp_path / "whole.png")
        broken = tmp_path / "broken.png"
        broken.write_bytes((tmp_path / "whole.png").read_bytes()[:300])
        with pytest.raises(ValueError, match=r"image of row 7 \(.*broken\.png\) cannot be read"):
            rgb_image(str(broken), 7)
        features = Features({"image": ImageFeature(), "text": Value("string")})
        whole = [str(tmp_path / "whole.png")] * 3
        rows = {"image": [*whole, str(broken)], "text": ["a"] * 4}
        with pytest.raises(ValueError, match=r"Row 3 \(.*broken\.png\) cannot be read"):
            mle_trainer(tmp_path, Dataset.from_dict(rows, features=features)).train()

    def test_an_image_folder_of_datasets_trains(self, tmp_path):
        for i, image in enumerate(tiny_images(4)):
            image.convert("L").save(tmp_path / f"{i}.png")
        lines = [f'{{"file_name": "{i}.png", "text": "ab"}}' for i in range(4)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        dataset = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
        mle_trainer(tmp_path, dataset).train()

    def test_an_array_of_unknown_range_is_refused(self):
        with pytest.raises(ValueError, match="row 3 cannot be read: an array of float32 has no known range"):
            rgb_image(np.zeros((4, 4, 3), np.float32), 3)

    def test_what_is_no_image_is_said_to_be_none(self):
        with pytest.raises(ValueError, match="image of row 3 cannot be read: a dict is not an image"):
            rgb_image({}, 3)


class TestConfig:
    def test_the_options_of_another_trainer_are_refused(self, tmp_path):
        parts = {"train_dataset": text_dataset(8), "processing_class": text_processor()}
        for args in (VisionMLEConfig(str(tmp_path), use_cpu=True), TrainingArguments(str(tmp_path), use_cpu=True)):
            with pytest.raises(TypeError, match="; VisionRewardTrainer takes a VisionRewardConfig"):
                VisionRewardTrainer(tiny_model(), share_of_a, args, **parts)
        with pytest.raises(TypeError, match="args is a VisionRewardConfig; VisionMLETrainer takes a VisionMLEConfig"):
            VisionMLETrainer(tiny_model(), VisionRewardConfig(str(tmp_path), use_cpu=True), **parts)

    @pytest.mark.parametrize("baseline", ["leave_one_out", "first", "mean"])
    def test_one_generation_has_no_siblings(self, baseline):
        with pytest.raises(
            ValueError, match="num_generations must be at least 2 .*the baseline is the mean of the other"
        ):
            VisionRewardConfig("out", num_generations=1, baseline=baseline)

    @pytest.mark.parametrize("baseline", ["greedy", "none"])
    def test_one_generation_is_enough_without_siblings(self, baseline):
        VisionRewardConfig("out", num_generations=1, baseline=baseline)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("baseline", "rloo"),
            ("loss_reduction", "batch"),
            ("temperature", 0.0),
            ("beta", -1.0),
            ("max_completion_length", 0),
            ("encoder_learning_rate", -1e-3),
            ("remove_unused_columns", True),
            ("auto_find_batch_size", True),
            ("bf16_full_eval", True),
            ("train_sampling_strategy", "sequential"),
            ("include_num_input_tokens_seen", "all"),
            ("include_for_metrics", ["loss"]),
            ("prediction_loss_only", True),
        ],
    )
    def test_a_value_out_of_range_names_its_option(self, option, value):
        with pytest.raises(ValueError, match=option):
            VisionRewardConfig("out", **{option: value})

    def test_a_misspelt_option_of_the_papers_optimiser_names_the_known_ones(self, tmp_path):
        with pytest.raises(ValueError, match="optim_args has 'beta2=0.95'; big_vision_adafactor takes beta2_cap"):
            reward_trainer(tmp_path, optim="big_vision_adafactor", optim_args="beta2=0.95").train()

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ("beta2=0.95", "'beta2=0.95'; big_vision_adafactor takes beta2_cap"),
            ("reference_layout=no", "'reference_layout=no', but reference_layout must be true or false"),
            ("reference_layout=none", "'reference_layout=none', but reference_layout must be true or false"),
            ("momentum=none,min_dim_size_to_factor=none", "but min_dim_size_to_factor must be at least 1"),
            ("min_dim_size_to_factor=0", "but min_dim_size_to_factor must be at least 1"),
            ("beta2_cap=0,95", "but beta2_cap must be above 0"),
            ("beta2_cap=true", "but beta2_cap must be above 0 and at most 1"),
            ("beta2_cap=nan", "but beta2_cap must be above 0 and at most 1"),
            ("momentum=off", "but momentum must be at least 0 and below 1, or None"),
            ("clipping_threshold=false", "but clipping_threshold must be above 0, or None"),
        ],
    )
    def test_a_value_in_optim_args_that_cannot_be_is_told_with_its_name_by_the_config(self, given, told):
        with pytest.raises(ValueError, match=f"optim_args has .*{told}"):
            VisionMLEConfig("out", optim="big_vision_adafactor", optim_args=given)

    def test_optim_args_that_are_no_text_are_refused(self):
        with pytest.raises(ValueError, match=r"optim_args is \{'beta2_cap': 0.95\}; it must be text"):
            VisionMLEConfig("out", optim="big_vision_adafactor", optim_args={"beta2_cap": 0.95})

    def test_the_papers_optimiser_is_refused_where_tensors_are_flat_pieces(self, tmp_path):
        trainer = reward_trainer(tmp_path, optim="big_vision_adafactor")
        trainer.is_deepspeed_enabled = True
        with pytest.raises(ValueError, match="needs whole tensors to factor"):
            trainer.create_optimizer()

    @pytest.mark.parametrize(
        "option", ["beta", "temperature", "epsilon", "mle_weight", "learning_rate", "encoder_learning_rate"]
    )
    def test_not_a_number_is_no_value_of_any_option(self, option):
        with pytest.raises(ValueError, match=f"{option} is nan, but it must be a finite number"):
            VisionRewardConfig("out", **{option: float("nan")})

    @pytest.mark.parametrize("weight", ["nan", "inf"])
    def test_a_weight_that_is_not_finite(self, weight):
        with pytest.raises(ValueError, match="reward_weights is .* must be a finite number"):
            VisionRewardConfig("out", reward_weights=[1.0, float(weight)])

    def test_a_norm_that_is_only_measured(self):
        VisionRewardConfig("out", max_grad_norm=float("inf"))

    @pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
    @pytest.mark.parametrize("config", [VisionRewardConfig, VisionMLEConfig])
    def test_a_plateau_of_a_metric_that_should_rise_is_one_where_it_does_not(self, config, schedule):
        args = config("out", lr_scheduler_type=schedule, metric_for_best_model="score", eval_strategy="steps")
        assert args.lr_scheduler_kwargs["mode"] == "max"
        args = config("out", lr_scheduler_type=schedule, metric_for_best_model="loss", eval_strategy="steps")
        assert not args.lr_scheduler_kwargs

    @pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
    def test_a_schedule_that_watches_a_metric_watches_the_reward(self, schedule):
        args = VisionRewardConfig("out", lr_scheduler_type=schedule, eval_strategy="steps")
        assert (args.metric_for_best_model, args.lr_scheduler_kwargs["mode"]) == ("reward", "max")

    def test_reward_weights_must_match_the_rewards(self, tmp_path):
        with pytest.raises(ValueError, match="reward_weights has 2 numbers for 1 reward functions"):
            reward_trainer(tmp_path, reward_weights=[1.0, 2.0])


class TestRewards:
    def check(self, tmp_path, returned, error, message):
        def bad_reward(completions, **kwargs):
            return returned(len(completions))

        with pytest.raises(error, match=message):
            reward_trainer(tmp_path, bad_reward).train()

    def test_too_few_rewards(self, tmp_path):
        self.check(tmp_path, lambda n: [1.0], ValueError, "`bad_reward` returned 1 rewards for 8 completions")

    def test_a_number_instead_of_a_list(self, tmp_path):
        self.check(tmp_path, lambda n: 1.0, TypeError, "`bad_reward` returned a float; it must return a list")

    def test_a_string_among_the_rewards(self, tmp_path):
        self.check(tmp_path, lambda n: ["good"] * n, ValueError, "`bad_reward` returned a str for row")

    def test_nan_names_the_reward_and_the_row(self, tmp_path):
        self.check(tmp_path, lambda n: [float("nan")] * n, ValueError, r"`bad_reward` returned nan for row \d+")

    def test_tensors_and_arrays_are_lists(self, tmp_path):
        for returned in (torch.ones, np.ones):

            def reward(completions, make=returned, **kwargs):
                return 3 * make(len(completions))

            trainer = reward_trainer(tmp_path, reward, logging_steps=1)
            trainer.train()
            assert trainer.state.log_history[0]["reward"] == 3

    def test_a_reward_that_raises_is_named_with_the_row_it_fails_on(self, tmp_path):
        dataset = [
            {"image": image, "text": word} for image, word in zip(tiny_images(4), ["a", "b", "c", "d"], strict=True)
        ]

        def fragile_reward(completions, text, **kwargs):
            if "c" in text:
                raise KeyError("no such word")
            return [1.0] * len(completions)

        with pytest.raises(RuntimeError, match=r"`fragile_reward` raised KeyError on row 2, completion"):
            reward_trainer(tmp_path, fragile_reward, dataset, find_failing_row=True).train()

    def test_a_failing_batch_is_searched_by_halves(self, tmp_path):
        calls = []

        def fragile_reward(completions, text, **kwargs):
            calls.append(len(completions))
            if "c" in text:
                raise KeyError("no such word")
            return [1.0] * len(completions)

        rows = [{"image": image, "text": "c" if i == 5 else "a"} for i, image in enumerate(tiny_images(8))]
        trainer = reward_trainer(
            tmp_path, fragile_reward, rows, per_device_train_batch_size=8, num_generations=4, find_failing_row=True
        )
        with pytest.raises(RuntimeError, match=r"`fragile_reward` raised KeyError on row 5, completion"):
            trainer.train()
        assert len(calls) < 12  # 32 completions

    def test_a_reward_behind_a_decorator_is_a_reward(self, tmp_path):
        def wrapper(*args, **kwargs):
            return share_of_a(*args, **kwargs)

        reward_trainer(tmp_path, wrapper).train()

    def test_rewards_that_are_all_none_teach_nothing(self, tmp_path):
        self.check(
            tmp_path, lambda n: [None] * n, ValueError, r"Every reward \(bad_reward\) was None .* first 1 steps"
        )

    def test_a_first_step_without_a_reward_is_no_error(self, tmp_path):
        def reward(completions, trainer_state, **kwargs):
            return share_of_a(completions) if trainer_state.global_step else [None] * len(completions)

        reward_trainer(tmp_path, reward, max_steps=2, logging_steps=1).train()

    def test_no_reward_at_all(self, tmp_path):
        with pytest.raises(ValueError, match="reward_funcs is empty"):
            reward_trainer(tmp_path, [])


class TestModels:
    @pytest.mark.parametrize(
        "config",
        [
            OPTConfig(
                vocab_size=8,
                hidden_size=32,
                ffn_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                word_embed_proj_dim=32,
            ),
            LlamaConfig(
                vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
            ),
        ],
    )
    def test_a_decoder_without_cross_attention_is_refused(self, tmp_path, config):
        encoder = ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=SIZE
        )
        model = VisionEncoderDecoderModel(
            config=VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, config)
        )
        model.generation_config.decoder_start_token_id = 0
        with pytest.raises(ValueError, match="has no cross-attention, so it cannot read the image"):
            reward_trainer(tmp_path, model=model)

    def test_a_vocabulary_smaller_than_the_processors(self, tmp_path):
        processor = TextProcessor(image_processor(), character_tokenizer("abcdefgh"))
        with pytest.raises(
            ValueError, match=r"writes 10 different ids, but the decoder's vocabulary has only 6.*vocab_size=10"
        ):
            reward_trainer(tmp_path, processor=processor)

    def test_more_tokens_than_positions(self, tmp_path):
        with pytest.raises(ValueError, match="max_completion_length is 17, but the decoder has only 16 positions"):
            reward_trainer(tmp_path, max_completion_length=17)

    def test_labels_longer_than_the_positions(self, tmp_path):
        rows = [{"image": image, "text": "a" * 20} for image in tiny_images(4)]
        with pytest.raises(ValueError, match=r"21 tokens.*only 16 positions"):
            mle_trainer(tmp_path, rows).train()

    def test_a_model_without_a_start_token(self, tmp_path):
        model = tiny_model()
        model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = None
        with pytest.raises(ValueError, match="The model has no decoder_start_token_id"):
            reward_trainer(tmp_path, model=model)

    @pytest.mark.parametrize("missing", ["pad", "eos"])
    def test_a_tokenizer_without_pad_or_end(self, missing):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=character_tokenizer("ab").backend_tokenizer,
            **{f"{name}_token": token for name, token in (("pad", "<pad>"), ("eos", "</s>")) if name != missing},
        )
        with pytest.raises(ValueError, match=f"The tokenizer has no {missing}_token.*Set it"):
            TextProcessor(image_processor(), tokenizer)

    def test_no_processor(self, tmp_path):
        with pytest.raises(ValueError, match="A processing_class is needed"):
            VisionMLETrainer(tiny_model(), VisionMLEConfig(str(tmp_path), report_to="none"))

    @pytest.mark.parametrize("options", [{"init_lora_weights": "pissa"}, {"bias": "all"}])
    def test_adapters_that_change_what_beta_compares_with(self, tmp_path, options):
        data = {"train_dataset": text_dataset(8), "processing_class": text_processor()}
        args = VisionRewardConfig(str(tmp_path), use_cpu=True, beta=0.1)
        adapters = LoraConfig(r=2, target_modules="all-linear", **options)
        with pytest.raises(ValueError, match="beta compares with the model without its adapters"):
            VisionRewardTrainer(tiny_model(), share_of_a, args, peft_config=adapters, **data)

    def test_a_prompt_that_is_learned_is_refused(self, tmp_path):
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        args, data = VisionRewardConfig(str(tmp_path), use_cpu=True), {"processing_class": text_processor()}
        with pytest.raises(ValueError, match="PromptTuningConfig learns tokens .* such as LoraConfig"):
            VisionRewardTrainer(tiny_model(), share_of_a, args, text_dataset(8), peft_config=prompt, **data)

    def test_options_of_loading_beside_a_model_that_is_loaded(self, tmp_path):
        with pytest.raises(ValueError, match="model_init_kwargs are for a model that is given by its name"):
            reward_trainer(tmp_path, model_init_kwargs={"dtype": "bfloat16"})

    def test_the_old_name_of_dtype_is_heard(self, tmp_path):
        tiny_model().save_pretrained(tmp_path / "model")
        options = {"model": str(tmp_path / "model"), "model_init_kwargs": {"torch_dtype": "bfloat16"}}
        assert reward_trainer(tmp_path, **options).model.dtype == torch.bfloat16

    def test_adapters_on_top_of_adapters(self, tmp_path):
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(target_modules="all-linear")
        with pytest.raises(ValueError, match="has adapters already: leave out peft_config"):
            VisionRewardTrainer(
                get_peft_model(tiny_model(), adapters),
                share_of_a,
                VisionRewardConfig(str(tmp_path), use_cpu=True),
                train_dataset=text_dataset(8),
                processing_class=text_processor(),
                peft_config=adapters,
            )

    def test_a_completion_decoder_that_is_a_function(self, tmp_path):
        with pytest.raises(TypeError, match="completion_decoder is a function; it must be an nn.Module"):
            VisionRewardTrainer(
                tiny_model(),
                share_of_a,
                VisionRewardConfig(str(tmp_path), use_cpu=True),
                train_dataset=text_dataset(8),
                processing_class=text_processor(),
                completion_decoder=lambda ids, batch: [],
            )


class TestEvaluation:
    def test_an_empty_set(self, tmp_path):
        with pytest.raises(ValueError, match="eval_dataset is empty"):
            reward_trainer(tmp_path).evaluate([])

    def test_a_set_without_the_targets_cannot_be_evaluated_but_predicted(self, tmp_path):
        dataset = text_dataset(8).remove_columns("text")
        with pytest.raises(ValueError, match="eval_dataset has no column `text`"):
            mle_trainer(tmp_path, text_dataset(8)).evaluate(dataset)

    def test_a_set_without_the_targets_has_a_reward_that_needs_none(self, tmp_path):
        dataset = text_dataset(8).remove_columns("text")
        trainer = reward_trainer(tmp_path)
        assert 0 <= trainer.evaluate(dataset)["eval_reward"] <= 1
        assert "test_reward" not in trainer.predict(dataset).metrics

    @pytest.mark.parametrize("kind", ["table", "selected", "list", "other"])
    def test_labels_that_are_not_published_are_none(self, tmp_path, kind):
        rows = text_dataset(4).remove_columns("text").add_column("text", [None] * 4)
        rows = {"table": rows, "selected": rows.select([2, 0]), "list": list(rows), "other": AsRows(rows)}[kind]
        for trainer in (reward_trainer(tmp_path), mle_trainer(tmp_path, text_dataset(8))):
            trainer.compute_metrics = lambda predictions, references: {"exact": 1.0}
            output = trainer.predict(rows)
            assert len(output.predictions) == len(rows) and not {"test_exact", "test_reward"} & set(output.metrics)
            with pytest.raises(ValueError, match="eval_dataset: Row 0, column `text`: text must be a string"):
                trainer.evaluate(rows)

    def test_images_alone_are_predicted_though_the_reward_reads_a_column_of_its_own(self, tmp_path):
        def reward(completions, answer, **kwargs):
            return [float(text == right) for text, right in zip(completions, answer, strict=True)]

        dataset = text_dataset(8).rename_column("text", "answer")
        trainer = reward_trainer(tmp_path, reward, dataset)
        assert "test_reward" in trainer.predict(dataset).metrics
        images = dataset.remove_columns("answer")
        output = trainer.predict(images)
        assert len(output.predictions) == 8 and "test_reward" not in output.metrics
        with pytest.raises(
            ValueError, match="asks for a column that is not there: eval_dataset has no column `answer`"
        ):
            trainer.evaluate(images)

    def test_a_misspelt_image_column_of_a_set_to_predict(self, tmp_path):
        with pytest.raises(ValueError, match="test_dataset has no column `image`; .* Did you mean `imag`"):
            reward_trainer(tmp_path).predict(text_dataset(8).rename_column("image", "imag"))

    def test_dropping_the_last_rows(self):
        with pytest.raises(ValueError, match="an evaluation would lose rows"):
            VisionRewardConfig("out", dataloader_drop_last=True)

    @pytest.mark.parametrize(
        "options",
        [
            {"load_best_model_at_end": True, "save_steps": 1},
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            {"save_strategy": "best", "metric_for_best_model": "reward"},
        ],
    )
    def test_the_best_of_several_sets_must_be_chosen(self, tmp_path, options):
        sets = {"easy": text_dataset(4), "hard": text_dataset(4, seed=1)}
        args = VisionRewardConfig(str(tmp_path), use_cpu=True, eval_strategy="steps", eval_steps=1, **options)
        with pytest.raises(ValueError, match="write for example 'eval_easy_reward'"):
            VisionRewardTrainer(
                tiny_model(),
                share_of_a,
                args,
                train_dataset=text_dataset(8),
                eval_dataset=sets,
                processing_class=text_processor(),
            )

    def test_a_best_metric_that_no_evaluation_has(self, tmp_path):
        options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
        data = {
            "train_dataset": text_dataset(8),
            "eval_dataset": text_dataset(4),
            "processing_class": text_processor(),
        }
        tuning = VisionRewardConfig(str(tmp_path), use_cpu=True, metric_for_best_model="eval_loss", **options)
        with pytest.raises(ValueError, match="'eval_loss', but no evaluation will have it"):
            VisionRewardTrainer(tiny_model(), share_of_a, tuning, compute_metrics=lambda **_: {}, **data)
        imitation = VisionMLEConfig(str(tmp_path), use_cpu=True, metric_for_best_model="cer", **options)
        with pytest.raises(ValueError, match="'cer', but no evaluation will have it: give compute_metrics"):
            VisionMLETrainer(tiny_model(), imitation, **data)

    def test_training_without_a_training_set(self, tmp_path):
        args = VisionRewardConfig(str(tmp_path), use_cpu=True)
        trainer = VisionRewardTrainer(tiny_model(), share_of_a, args, processing_class=text_processor())
        with pytest.raises(ValueError, match="Training needs a train_dataset"):
            trainer.train()
