"""Does our captioner get from transformers what the model says of each picture alone?

Makes a LLaVA of random weights with a processor and a vocabulary of words, saves it to
`settings["folder"]`, and describes `images` (b, y, x, 3) by `settings["prompts"]` with
`LocalCaptioner`, all at once. Gives `ours`, and in `theirs` what picking the likeliest word again
and again gives for each picture by itself, without padding or cache: texts, one a line.
"""

import io
import pathlib
import sys

import exchange
import numpy as np
import tokenizers
import torch
import torchvision_stub  # noqa: F401  Before the library that imports torchvision.
import transformers
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from input_pipeline.build.captions import local  # noqa: E402

WORDS = 60
TEMPLATE = (
  "{% for message in messages %}USER : {% for part in message['content'] %}"
  "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
  "{% endfor %}{% if add_generation_prompt %}ASSISTANT : {% endif %}"
)


def main(arrays, settings):
  torch.set_num_threads(1)
  torch.manual_seed(0)
  model, processor = make(settings["folder"])
  files = []
  for pixels in arrays["images"]:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    files.append(data.getvalue())
  captioner = local.LocalCaptioner(settings["folder"], max_tokens=settings["tokens"])
  ours = captioner.describe(files, settings["prompts"])
  theirs = [
    alone(model, processor, Image.fromarray(pixels), prompt, settings["tokens"])
    for pixels, prompt in zip(arrays["images"], settings["prompts"])
  ]
  return {name: np.frombuffer("\n".join(texts).encode(), np.uint8)
          for name, texts in (("ours", ours), ("theirs", theirs))}


def make(folder):
  names = ["<pad>", "<unk>", "</s>", "<image>", "USER", ":", "ASSISTANT",
           *(f"word{k}" for k in range(WORDS))]
  ids = {name: k for k, name in enumerate(names)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
  words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
    additional_special_tokens=["<image>"])
  pictures = transformers.CLIPImageProcessor(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
  processor = transformers.LlavaProcessor(
    pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default",
    image_token="<image>", num_additional_image_tokens=1, chat_template=TEMPLATE)
  config = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(
      hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
      image_size=32, patch_size=8),
    text_config=transformers.LlamaConfig(
      vocab_size=len(names), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
      num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
      pad_token_id=0, eos_token_id=2, bos_token_id=2),
    image_token_index=ids["<image>"], vision_feature_layer=-1)
  model = transformers.LlavaForConditionalGeneration(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      # Far from each other, so that no two words are as likely but for rounding.
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  processor.save_pretrained(folder)
  return model, processor


@torch.inference_mode()
def alone(model, processor, image, prompt, tokens):
  """The likeliest word, `tokens` times, each from a whole pass over all before it."""
  text = f"USER : <image> {prompt} ASSISTANT : "
  inputs = processor(images=image, text=text, return_tensors="pt")
  ids = inputs["input_ids"]
  for _ in range(tokens):
    logits = model(input_ids=ids, pixel_values=inputs["pixel_values"],
                   attention_mask=torch.ones_like(ids)).logits
    ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    if ids[0, -1] == 2:
      break
  return processor.tokenizer.decode(
    ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
  exchange.serve(main)
