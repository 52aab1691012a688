"""A small pipeline of every kind of model, and what it is asked."""

from dataclasses import replace
from typing import Any

import chameleon
import glm as glm_model
import glm_folder
import harmon_plain
import wrapped
from small import LATENTS, kl, latent_pipeline, pipeline, randomised, scale_pipeline

from vargen.models import emu3
from vargen.models.emu3 import Emu3
from vargen.models.flowar import FlowAR, FlowARConfig
from vargen.models.glm_image import GlmImage
from vargen.models.janus import Janus
from vargen.models.lumina_mgpt import Anole, Vocabulary
from vargen.models.wrapped import Images
from vargen.models.xar import XAR, XARConfig
from vargen.pipelines.continuous import ContinuousPipeline
from vargen.pipelines.glm_image import GlmImagePipeline
from vargen.pipelines.prompted import PromptedPipeline
from vargen.tokenizers.kl import KLConfig, KLTokenizer


def lumina():
    return PromptedPipeline(chameleon.lumina(), chameleon.vqgan(), text_tokenizer=chameleon.text())


def anole():
    how = {"size": (64, 64), "sizes": ((64, 64),), "factor": chameleon.FACTOR, "template": "{prompt}"}
    model = Anole(chameleon.decoder(), Vocabulary.read(chameleon.NAMES), **how)
    return PromptedPipeline(model, chameleon.vqgan(), text_tokenizer=chameleon.text())


def emu():
    model, text = wrapped.emu_model(), wrapped.words(wrapped.EMU, bos=False)
    made = Emu3(
        model.model.text_model, model.lm_head, emu3.codes(model.config.vocabulary_map), size=(32, 48), sizes=((32, 48),)
    )
    images = Images(model.model.vqmodel, 8, flat=False, sphere=False)
    return PromptedPipeline(made.requires_grad_(False), images, text_tokenizer=text)


def janus():
    model = wrapped.janus_model().requires_grad_(False)
    images = Images(model.model.vqmodel, 2, flat=True, sphere=True, mean=0.4, std=0.3)
    made = Janus(model.model, begin=4, start=1, nothing=0)
    return PromptedPipeline(made, images, text_tokenizer=wrapped.words(wrapped.JANUS, bos=True))


def glm():
    sizes: Any = ((192, 128), (128, 192))
    model = glm_model.theirs()
    how: Any = {"codes": glm_model.CODES, "start": glm_model.START, "size": sizes[0], "sizes": sizes}
    made = GlmImage(model.model.language_model, model.lm_head, **how)
    return GlmImagePipeline(made.drawing(glm_model.SPEC), text_tokenizer=glm_folder.words())


def glm_whole():
    sizes: Any = ((128, 192),)
    model = glm_folder.first()
    how: Any = {"codes": glm_model.CODES, "start": glm_model.START, "size": sizes[0], "sizes": sizes}
    made = GlmImage(model.model.language_model, model.lm_head, **how)
    return GlmImagePipeline(made, text_tokenizer=glm_folder.words(), painter=glm_folder.pipeline(model))


def harmon(folder):
    images = kl(replace(LATENTS, channels=harmon_plain.SMALL.mar.channels))
    return ContinuousPipeline(harmon_plain.small(folder), images, text_tokenizer=harmon_plain.text_tokenizer())


def sixteen():
    return randomised(KLTokenizer(KLConfig((8, 8), 1, 16, norm_groups=4)), 1, 1.0)


def flowar():
    config = FlowARConfig(1, 2, 32, head_depth=1, head_width=64, cross=True, classes=5)
    return ContinuousPipeline(randomised(FlowAR(config), 0, 1.0), sixteen())


def xar():
    return ContinuousPipeline(randomised(XAR(XARConfig(1, 2, 32, classes=5)), 0, 1.0), sixteen())


ASKED = {  # a pipeline, and what it is asked
    "raster": (pipeline, {"class_labels": [1, 4], "method": "ar"}),
    "next-scale": (scale_pipeline, {"class_labels": [1, 4], "method": "var"}),
    "mar": (latent_pipeline, {"class_labels": [1, 4], "method": "mar:iterations=2:steps=2"}),
    "flowar": (flowar, {"class_labels": [1], "method": "flowar:steps=2"}),
    "xar": (xar, {"class_labels": [1], "method": "xar:steps=2"}),
    "harmon": (harmon, {"prompt": ["a dog"], "method": "mar:iterations=2:steps=2"}),
    "lumina": (lumina, {"prompt": ["a red boat"], "method": "ar"}),
    "anole": (anole, {"prompt": ["a red boat"], "method": "ar"}),
    "emu3": (emu, {"prompt": ["a red boat"], "method": "ar"}),
    "janus": (janus, {"prompt": ["a red boat"], "method": "ar"}),
    "glm": (glm_whole, {"prompt": ["a red boat"], "method": "ar", "num_inference_steps": 2}),
}
