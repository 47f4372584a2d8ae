"""Private and fragile names of TRL, transformers, PEFT, accelerate, torch, bitsandbytes and vLLM, one file per library."""
