"""An encoder-decoder that is not a `VisionEncoderDecoderModel`, for the tests of the `generate` fallback."""

from transformers import GenerationMixin, PreTrainedModel, VisionEncoderDecoderModel

from vision_rl.compatibility import CACHE


class ForeignEncoderDecoder(PreTrainedModel, GenerationMixin):
    """The same network behind a class that the sampler does not know."""

    config_class = VisionEncoderDecoderModel.config_class
    main_input_name = "pixel_values"
    _supports_sdpa = True

    @classmethod
    def wrapping(cls, model: VisionEncoderDecoderModel) -> "ForeignEncoderDecoder":
        foreign = cls(model.config)
        foreign.inner = model
        foreign.generation_config = model.generation_config
        return foreign

    def get_encoder(self, modality=None):
        return self.inner.encoder

    def forward(self, pixel_values=None, decoder_input_ids=None, encoder_outputs=None, **kwargs):
        kwargs = {name: kwargs[name] for name in (CACHE, "use_cache", "return_dict") if name in kwargs}
        return self.inner(
            pixel_values=pixel_values,
            decoder_input_ids=decoder_input_ids,
            encoder_outputs=encoder_outputs,
            **kwargs,
        )
