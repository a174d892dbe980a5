"""Sounds and pictures, in the form of upstream's run_audio_classification, run_speech_recognition_ctc, run_mae and more.

Upstream's decode files with packages that the reference environment lacks; here arrays of numbers stand for them.
"""

from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    set_seed,
)

CLASSES = 3
NOT_BUILT = (AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModelForSemanticSegmentation, AutoProcessor)
NOT_BUILT += (AutoModelForSpeechSeq2Seq, Wav2Vec2Processor, ViTImageProcessor)


@dataclass
class DataArguments:
    """What the arrays stand for."""

    kind: str = field(metadata={"help": "sound, speech, picture or hidden_picture"})


@dataclass
class CustomTrainingArguments(TrainingArguments):
    """As run_mae does, the learning rate of a batch of 256 is given, and scaled to the batch there is."""

    base_learning_rate: float = field(default=1e-3, metadata={"help": "learning_rate = this * batch / 256"})


def make_model(kind):
    """A model with one layer and random weights."""
    layer = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind in ("sound", "speech"):
        convolutions = {
            "conv_dim": (8, 8),
            "conv_stride": (5, 4),
            "conv_kernel": (10, 8),
            "num_feat_extract_layers": 2,
        }
        positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
        config = Wav2Vec2Config(**layer, **convolutions, **positions, vocab_size=8, num_labels=CLASSES, pad_token_id=0)
        return (AutoModelForAudioClassification if kind == "sound" else AutoModelForCTC).from_config(config)
    picture = {"image_size": 8, "patch_size": 4}
    if kind == "picture":
        model = AutoModelForImageClassification.from_config(ViTConfig(**layer, **picture, num_labels=CLASSES))
        assert type(model) is MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[ViTConfig]
        return model
    decoder = {f"decoder_{key}": value for key, value in layer.items()}
    return ViTMAEForPreTraining(ViTMAEConfig(**layer, **picture, **decoder, mask_ratio=0.5))


@dataclass
class DataCollatorCTCWithPadding:
    """Pads sounds with silence and letters with -100."""

    extractor: Wav2Vec2FeatureExtractor

    def __call__(self, features):
        """Join examples into a batch."""
        batch = self.extractor.pad(
            [{"input_values": feature["input_values"]} for feature in features], padding=True, return_tensors="pt"
        )
        letters = [torch.tensor(feature["labels"]) for feature in features]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(letters, batch_first=True, padding_value=-100)
        return batch


def collate_pictures(examples):
    """Stack pictures, and classes where there are any."""
    batch = {"pixel_values": torch.stack([torch.tensor(example["pixel_values"]) for example in examples])}
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
    return batch


def main() -> None:
    """Train and evaluate; rows are made when they are asked for, so no column may be taken out before."""
    data_args, training_args = HfArgumentParser((DataArguments, CustomTrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    kind = data_args.kind
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=False)

    def transform(rows):
        noise = [np.random.default_rng(number) for number in rows["number"]]
        if kind in ("sound", "speech"):
            lengths = [300 + 7 * (number % 5 if kind == "speech" else 0) for number in rows["number"]]
            sounds = [rng.normal(size=length).astype(np.float32) for rng, length in zip(noise, lengths)]
            made = {"input_values": extractor(sounds, sampling_rate=16000)["input_values"]}
            letters = [[1 + number % 7, 1 + number % 3] for number in rows["number"]]
            return {**made, "labels": letters if kind == "speech" else [number % CLASSES for number in rows["number"]]}
        made = {"pixel_values": [rng.normal(size=(3, 8, 8)).astype(np.float32) for rng in noise]}
        return (
            made if kind == "hidden_picture" else {**made, "labels": [number % CLASSES for number in rows["number"]]}
        )

    rows = datasets.Dataset.from_dict({"number": list(range(18))})
    rows.set_transform(transform)
    batch = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
    if kind == "hidden_picture":
        training_args.learning_rate = training_args.base_learning_rate * batch / 256
    collators = {"sound": None, "speech": DataCollatorCTCWithPadding(extractor)}
    trainer = Trainer(
        model=make_model(kind),
        args=training_args,
        train_dataset=rows,
        eval_dataset=rows,
        tokenizer=extractor,
        data_collator=collators.get(kind, collate_pictures),
        compute_metrics=(lambda seen: {"accuracy": float((seen.predictions.argmax(1) == seen.label_ids).mean())})
        if kind in ("sound", "picture")
        else None,
    )
    train_result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", train_result.metrics)
    trainer.save_metrics("train", train_result.metrics)
    trainer.save_state()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()

# Read next: ../test_scripts.py
