"""A stand-in for vLLM, which needs a GPU: the argument names of vLLM 0.33, over a model that transformers computes."""

import sys
import types
from importlib.machinery import ModuleSpec
from typing import ClassVar

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLING = {
    "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop": None, "stop_token_ids": None, "ignore_eos": False,
    "max_tokens": 16, "min_tokens": 0, "logprobs": None, "prompt_logprobs": None, "detokenize": True,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": False,
    "logit_bias": None, "allowed_token_ids": None, "bad_words": None,
}  # fmt: skip
# Whatever else changes the distribution or the length, at the values that leave both alone.
NEUTRAL = {name: SAMPLING[name] for name in SAMPLING if name not in {
    "temperature", "seed", "stop_token_ids", "ignore_eos", "max_tokens", "detokenize",
}}  # fmt: skip
LOADING = {
    "model", "runner", "convert", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code",
    "tensor_parallel_size", "dtype", "quantization", "revision", "tokenizer_revision", "chat_template", "seed",
    "gpu_memory_utilization", "enforce_eager", "hf_token", "hf_overrides", "compilation_config", "logits_processors",
    # of EngineArgs, behind **kwargs
    "generation_config", "override_generation_config", "max_model_len", "enable_lora", "max_loras", "max_lora_rank",
}  # fmt: skip


class SamplingParams:
    def __init__(self, **given):
        assert given.keys() <= SAMPLING.keys(), given.keys() - SAMPLING.keys()
        self.__dict__ |= SAMPLING | given


class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path="", base_model_name=None, load_inplace=False):
        assert lora_int_id >= 1
        self.path = lora_path


class LLM:
    loaded: ClassVar = []  # the arguments of each

    def __init__(self, model, **given):
        assert given.keys() <= LOADING, given.keys() - LOADING
        if given.get("enable_lora"):
            assert given["max_lora_rank"] in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        self.loaded.append({"model": model, **given})
        self.given = given
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.eos = AutoTokenizer.from_pretrained(given.get("tokenizer") or model).eos_token_id

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        assert len(prompts) == len(sampling_params)
        LLM.params = sampling_params
        model = self.model
        if lora_request is not None:
            assert self.given["enable_lora"]
            model = PeftModel.from_pretrained(model, lora_request.path)
        model.eval()
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        found = [self._complete(model, ids, params) for ids, params in zip(rows, sampling_params, strict=True)]
        return [
            types.SimpleNamespace(prompt_token_ids=ids, outputs=[types.SimpleNamespace(text="", token_ids=completion)])
            for ids, completion in zip(rows, found, strict=True)
        ]

    def _complete(self, model, prompt, params):
        ends = {*(params.stop_token_ids or []), *([] if params.ignore_eos else [self.eos])}
        generator = torch.Generator().manual_seed(params.seed)
        ids = list(prompt)
        while len(ids) < len(prompt) + params.max_tokens and (len(ids) == len(prompt) or ids[-1] not in ends):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double()
            if params.temperature == 0:
                ids.append(logits.argmax().item())
            else:
                probs = (logits / params.temperature).softmax(0)
                ids.append(torch.multinomial(probs, 1, generator=generator).item())
        return tuple(ids[len(prompt) :])


def install(monkeypatch):
    """Put the stand-in where `import vllm` finds it; return its LLM, which remembers what was loaded and asked."""
    monkeypatch.setattr(LLM, "loaded", [])
    modules = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        module.__spec__ = ModuleSpec(name, None)  # other libraries look for vLLM too, and find no version
        monkeypatch.setitem(sys.modules, name, module)
    return LLM
